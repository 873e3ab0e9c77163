/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Table driven, eight bytes a step: table[k][b] is the remainder of byte b followed by k zero
 * bytes, so the eight lookups of a step are independent of each other. The tables are filled before
 * main().
 */
#include "common/crc32c.h"

#define POLYNOMIAL 0x82f63b78u /* Castagnoli's, bits reversed */
#define SLICES     8

static uint32_t table[SLICES][256];

__attribute__((constructor)) static void fill_tables(void)
{
	for (uint32_t byte = 0; byte < 256; byte++) {
		uint32_t crc = byte;

		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (crc & 1 ? POLYNOMIAL : 0);
		table[0][byte] = crc;
	}
	for (int slice = 1; slice < SLICES; slice++) {
		for (int byte = 0; byte < 256; byte++) {
			uint32_t before = table[slice - 1][byte];

			table[slice][byte] = (before >> 8) ^ table[0][before & 0xff];
		}
	}
}

static uint32_t load_le32(const uint8_t *p)
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t step8(uint32_t crc, const uint8_t *p)
{
	uint32_t low = crc ^ load_le32(p);
	uint32_t high = load_le32(p + 4);

	return table[7][low & 0xff] ^ table[6][low >> 8 & 0xff] ^ table[5][low >> 16 & 0xff] ^
	       table[4][low >> 24] ^ table[3][high & 0xff] ^ table[2][high >> 8 & 0xff] ^
	       table[1][high >> 16 & 0xff] ^ table[0][high >> 24];
}

uint32_t pf_crc32c(uint32_t crc, const void *data, size_t size)
{
	const uint8_t *p = data;

	crc = ~crc;
	for (; size >= SLICES; size -= SLICES, p += SLICES)
		crc = step8(crc, p);
	for (; size > 0; size--, p++)
		crc = (crc >> 8) ^ table[0][(crc ^ *p) & 0xff];
	return ~crc;
}
