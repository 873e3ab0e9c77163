/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Names of files, VMs and kernels are bytes that somebody else chose. They are checked here and
 * nowhere else: where they enter a session, and where they leave for a log or a terminal.
 */
#include "common/text.h"
#include <string.h>

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

size_t pf_text_decode(const char *text, uint32_t *character)
{
	static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
	const uint8_t *bytes = (const uint8_t *)text;
	size_t length = bytes[0] < 0x80 ? 1 : bytes[0] >> 5 == 6 ? 2 : bytes[0] >> 4 == 14 ? 3 : 4;
	uint32_t c = length == 1 ? bytes[0] : bytes[0] & (0xffu >> (length + 1));

	if (length == 4 && bytes[0] >> 3 != 30)
		return 0;
	for (size_t i = 1; i < length; i++) {
		if (bytes[i] >> 6 != 2)
			return 0;
		c = c << 6 | (bytes[i] & 0x3f);
	}
	if (c < smallest[length] || c > 0x10ffff || c >> 11 == 27)
		return 0;
	*character = c;
	return length;
}

/* Unicode 15, UnicodeData.txt: the categories Cc, Cf, Zl and Zp. */
bool pf_text_is_harmful(uint32_t character)
{
	static const struct {
		uint32_t first, last;
	} harmful[] = {
		{0x0000, 0x001f},
		{0x007f, 0x009f},
		{0x00ad, 0x00ad},
		{0x0600, 0x0605},
		{0x061c, 0x061c},
		{0x06dd, 0x06dd},
		{0x070f, 0x070f},
		{0x0890, 0x0891},
		{0x08e2, 0x08e2},
		{0x180e, 0x180e},
		{0x200b, 0x200f},
		{0x2028, 0x202e},
		{0x2060, 0x2064},
		{0x2066, 0x206f},
		{0xfeff, 0xfeff},
		{0xfff9, 0xfffb},
		{0x110bd, 0x110bd},
		{0x110cd, 0x110cd},
		{0x13430, 0x1343f},
		{0x1bca0, 0x1bca3},
		{0x1d173, 0x1d17a},
		{0xe0001, 0xe0001},
		{0xe0020, 0xe007f},
	};

	for (size_t i = 0; i < sizeof(harmful) / sizeof(harmful[0]); i++) {
		if (character <= harmful[i].last)
			return character >= harmful[i].first;
	}
	return false;
}

void pf_text_clean(char *out, size_t capacity, const char *text)
{
	while (*text) {
		uint32_t character;
		size_t length = pf_text_decode(text, &character);
		bool keep = length > 0 && !pf_text_is_harmful(character);
		const char *from = keep ? text : REPLACEMENT;
		size_t n = keep ? length : strlen(REPLACEMENT);

		if (n >= capacity)
			break;
		memcpy(out, from, n);
		out += n;
		capacity -= n;
		text += length > 0 ? length : 1;
	}
	*out = '\0';
}
