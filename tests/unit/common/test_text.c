/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "common/text.h"
#include <string.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define BAD "\xef\xbf\xbd"

static void test_decode(void **state)
{
	static const struct {
		const char *text;
		size_t length;
		uint32_t character;
	} cases[] = {
		{"a", 1, 'a'},
		{"\xc2\x80", 2, 0x80},
		{"\xdf\xbf", 2, 0x7ff},
		{"\xe0\xa0\x80", 3, 0x800},
		{"\xed\x9f\xbf", 3, 0xd7ff},
		{"\xee\x80\x80", 3, 0xe000},
		{"\xf0\x90\x80\x80", 4, 0x10000},
		{"\xf4\x8f\xbf\xbf", 4, 0x10ffff},
		/* no first byte; cut short */
		{"\x80", 0},
		{"\xff", 0},
		{"\xf8\x88\x80\x80\x80", 0},
		{"\xc3", 0},
		{"\xe2\x82", 0},
		{"\xf0\x9f\x90", 0},
		/* overlong; surrogate; too high */
		{"\xc1\xbf", 0},
		{"\xe0\x9f\xbf", 0},
		{"\xf0\x8f\xbf\xbf", 0},
		{"\xed\xa0\x80", 0},
		{"\xed\xbf\xbf", 0},
		{"\xf4\x90\x80\x80", 0},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint32_t character = 0;

		assert_int_equal(pf_text_decode(cases[i].text, &character), cases[i].length);
		assert_int_equal(character, cases[i].character);
	}
}

static void test_harmful(void **state)
{
	static const uint32_t harmful[] = {0, '\n', 0x1b, 0x1f, 0x7f, 0x9b, 0x9f, 0xad, 0x61c,
		0x200b, 0x200e, 0x2028, 0x2029, 0x202e, 0x2060, 0x2066, 0xfeff, 0xe0001, 0xe0020,
		0xe007f};
	static const uint32_t harmless[] = {' ', 'a', '~', 0xa0, 0xac, 0xae, 0xe9, 0x2010, 0x2027,
		0x202f, 0x2065, 0x20ac, 0xfffd, 0x1f427, 0xe0002, 0xe001f, 0xe0080, 0x10ffff};

	for (size_t i = 0; i < sizeof(harmful) / sizeof(harmful[0]); i++)
		assert_true(pf_text_is_harmful(harmful[i]));
	for (size_t i = 0; i < sizeof(harmless) / sizeof(harmless[0]); i++)
		assert_false(pf_text_is_harmful(harmless[i]));
}

static void test_clean(void **state)
{
	static const struct {
		const char *text, *clean;
	} cases[] = {
		{"libc.so.6", "libc.so.6"},
		{"", ""},
		{"Gr\xc3\xbc\xc3\x9f", "Gr\xc3\xbc\xc3\x9f"},
		{"\xe2\x82\xac \xf0\x9f\x98\x80", "\xe2\x82\xac \xf0\x9f\x98\x80"},
		{"a\nb\x7f", "a" BAD "b" BAD},
		{"\xc2\x85", BAD},     /* U+0085 */
		{"\xe2\x80\xae", BAD}, /* U+202E turns the rest around */
		{"\xc0\xaf", BAD BAD},
		{"\xe2\x82", BAD BAD},
		{"\xffz", BAD "z"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char out[32];

		pf_text_clean(out, sizeof(out), cases[i].text);
		assert_string_equal(out, cases[i].clean);
	}
}

static void test_cut(void **state)
{
	char out[8];

	pf_text_clean(out, 4, "abcdef");
	assert_string_equal(out, "abc");
	pf_text_clean(out, 4, "ab\xc3\xbc");
	assert_string_equal(out, "ab");
	pf_text_clean(out, 4, "a\n");
	assert_string_equal(out, "a");
	pf_text_clean(out, 1, "x");
	assert_string_equal(out, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_decode),
		cmocka_unit_test(test_harmful),
		cmocka_unit_test(test_clean),
		cmocka_unit_test(test_cut),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
