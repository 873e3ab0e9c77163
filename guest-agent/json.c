// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/json.h"
#include <stdint.h>

void pf_json_string(FILE *out, const char *text)
{
	fputc('"', out);
	for (; *text; text++) {
		uint8_t c = (uint8_t)*text;

		if (c == '"' || c == '\\')
			fprintf(out, "\\%c", c);
		else if (c < 0x20)
			fprintf(out, "\\u%04x", c);
		else
			fputc(c, out);
	}
	fputc('"', out);
}
