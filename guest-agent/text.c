// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * File names are bytes; names of modules are text. What is no UTF-8 (RFC 3629: shortest form, no
 * surrogates, nothing above U+10FFFF) or is a control character is replaced where the name enters,
 * so that nothing behind has to care.
 */
#include "guest-agent/text.h"
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static bool continuation(uint8_t byte)
{
	return (byte & 0xc0) == 0x80;
}

/* Bytes of the character at s, or 0 when it is none. s ends with 0, which is no continuation. */
static size_t character_size(const uint8_t *s)
{
	if (s[0] < 0x80)
		return s[0] >= 0x20 && s[0] != 0x7f;
	if (s[0] >= 0xc2 && s[0] <= 0xdf) {
		bool control = s[0] == 0xc2 && s[1] < 0xa0;

		return continuation(s[1]) && !control ? 2 : 0;
	}
	if ((s[0] & 0xf0) == 0xe0) {
		bool overlong = s[0] == 0xe0 && s[1] < 0xa0,
		     surrogate = s[0] == 0xed && s[1] > 0x9f;

		return continuation(s[1]) && continuation(s[2]) && !overlong && !surrogate ? 3 : 0;
	}
	if (s[0] >= 0xf0 && s[0] <= 0xf4) {
		bool overlong = s[0] == 0xf0 && s[1] < 0x90, beyond = s[0] == 0xf4 && s[1] > 0x8f;

		return continuation(s[1]) && continuation(s[2]) && continuation(s[3]) &&
				       !overlong && !beyond
			       ? 4
			       : 0;
	}
	return 0;
}

void pf_text_clean(char *out, size_t capacity, const char *text)
{
	const uint8_t *s = (const uint8_t *)text;

	while (*s) {
		size_t size = character_size(s), width = size ? size : 1;

		if (width >= capacity)
			break;
		if (size)
			memcpy(out, s, size);
		else
			*out = '?';
		out += width;
		s += width;
		capacity -= width;
	}
	*out = '\0';
}
