// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/text.h"
#include <string.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static void test_clean(void **state)
{
	static const struct {
		const char *text, *clean;
	} cases[] = {
		{"libc.so.6", "libc.so.6"},
		{"", ""},
		{"Gr\xc3\xbc\xc3\x9f", "Gr\xc3\xbc\xc3\x9f"},
		{"\xe2\x82\xac \xf0\x9f\x98\x80", "\xe2\x82\xac \xf0\x9f\x98\x80"},
		{"a\nb\x7f\x1f", "a?b??"},
		{"\xc2\x85", "??"},
		{"\xc0\xaf", "??"},
		{"\xe0\x80\xaf", "???"},
		{"\xed\xa0\x80", "???"},
		{"\xf4\x90\x80\x80", "????"},
		{"\xf0\x80\x80\x80", "????"},
		{"\xf5\x80\x80\x80", "????"},
		{"\xe2\x82", "??"},
		{"\xff", "?"},
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
	pf_text_clean(out, 1, "x");
	assert_string_equal(out, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_clean), cmocka_unit_test(test_cut)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
