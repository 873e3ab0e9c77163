/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "common/crc32c.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint32_t bit_by_bit(const uint8_t *data, size_t size)
{
	uint32_t crc = 0xffffffff;

	for (size_t i = 0; i < size; i++) {
		crc ^= data[i];
		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0);
	}
	return ~crc;
}

/* The vectors of RFC 3720, B.4, and the usual check value. */
static void test_known_values(void **state)
{
	uint8_t bytes[32];

	assert_int_equal(pf_crc32c(0, "123456789", 9), 0xe3069283);
	assert_int_equal(pf_crc32c(0, NULL, 0), 0);
	memset(bytes, 0, sizeof(bytes));
	assert_int_equal(pf_crc32c(0, bytes, sizeof(bytes)), 0x8a9136aa);
	memset(bytes, 0xff, sizeof(bytes));
	assert_int_equal(pf_crc32c(0, bytes, sizeof(bytes)), 0x62a8ab43);
	for (int i = 0; i < 32; i++)
		bytes[i] = (uint8_t)i;
	assert_int_equal(pf_crc32c(0, bytes, sizeof(bytes)), 0x46dd794e);
}

static void test_every_length_and_alignment(void **state)
{
	uint8_t bytes[96];

	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i * 167 + 13);
	for (size_t from = 0; from < 16; from++)
		for (size_t size = 0; size <= sizeof(bytes) - from; size++)
			assert_int_equal(
				pf_crc32c(0, bytes + from, size), bit_by_bit(bytes + from, size));
}

static void test_goes_on(void **state)
{
	static const char text[] = "consecutive pages of a module";
	uint32_t whole = pf_crc32c(0, text, sizeof(text));

	for (size_t cut = 0; cut <= sizeof(text); cut++)
		assert_int_equal(
			pf_crc32c(pf_crc32c(0, text, cut), text + cut, sizeof(text) - cut), whole);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_known_values),
		cmocka_unit_test(test_every_length_and_alignment),
		cmocka_unit_test(test_goes_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
