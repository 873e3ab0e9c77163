// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/find/maps.h"
#include <string.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static int parse(const char *text, PfMapsEntry *entry)
{
	static char line[512];

	strcpy(line, text);
	return pf_maps_parse(line, entry);
}

static void test_library(void **state)
{
	PfMapsEntry e;

	assert_int_equal(parse("7f1c2a600000-7f1c2a628000 r-xp 00028000 fd:01 1835053    "
			       "                /usr/lib/my libc.so.6\n",
				 &e),
		PF_MAPS_OK);
	assert_int_equal(e.start, 0x7f1c2a600000);
	assert_int_equal(e.end, 0x7f1c2a628000);
	assert_int_equal(e.offset, 0x28000);
	assert_true(e.readable && e.executable && !e.writable && !e.shared);
	assert_int_equal(e.major, 0xfd);
	assert_int_equal(e.minor, 1);
	assert_int_equal(e.inode, 1835053);
	assert_string_equal(e.path, "/usr/lib/my libc.so.6");
	assert_string_equal(pf_maps_name(&e), "my libc.so.6");
	assert_true(pf_maps_wanted(&e));
}

static void test_path(void **state)
{
	static const struct {
		const char *written, *path, *name;
	} cases[] = {
		{"/a/b (deleted)\n", "/a/b", "b"},
		{"/a/b\\012c\\012\n", "/a/b\nc\n", "b\nc\n"},
		{"/a/b\\01 (deleted)x", "/a/b\\01 (deleted)x", "b\\01 (deleted)x"},
		{"/ (deleted)", "/", ""},
		{"[vdso]\n", "[vdso]", "[vdso]"},
		{"\n", "", ""},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char line[256] = "1000-2000 r--s 00000000 00:2a 77 ";
		PfMapsEntry e;

		strcat(line, cases[i].written);
		assert_int_equal(pf_maps_parse(line, &e), PF_MAPS_OK);
		assert_string_equal(e.path, cases[i].path);
		assert_string_equal(pf_maps_name(&e), cases[i].name);
	}
}

static void test_wanted(void **state)
{
	static const struct {
		const char *line;
		bool wanted;
	} cases[] = {
		{"1000-2000 r--p 00000000 08:01 5 /f", true},
		{"1000-2000 r-xp 00000000 08:01 5 /f", true},
		{"1000-2000 r--s 00000000 08:01 5 /f", true},
		{"1000-2000 r-xs 00000000 08:01 5 /f", true},
		{"1000-2000 rw-p 00000000 08:01 5 /f", false},
		{"1000-2000 rwxs 00000000 08:01 5 /f", false},
		{"1000-2000 ---p 00000000 08:01 5 /f", false},
		{"1000-2000 r--p 00000000 00:00 0 /f", false},
		{"1000-2000 r--p 00000000 00:00 0", false},
		{"1000-2000 r-xp 00000000 00:00 0 [vdso]", false},
		{"1000-2000 r--s 00000000 00:01 9 /memfd:x (deleted)", false},
		{"1000-2000 r--s 00000000 00:01 9 /SYSV00000000 (deleted)", false},
		{"1000-2000 r--s 00000000 00:05 9 /dev/zero", false},
		{"1000-2000 r--s 00000000 00:05 9 /device", true},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		PfMapsEntry e;

		assert_int_equal(parse(cases[i].line, &e), PF_MAPS_OK);
		assert_int_equal(pf_maps_wanted(&e), cases[i].wanted);
	}
}

static void test_malformed(void **state)
{
	static const char *const lines[] = {
		"",
		"\n",
		"1000",
		"1000-2000",
		"-1000-2000 r--p 00000000 08:01 5 /f",
		" 1000-2000 r--p 00000000 08:01 5 /f",
		"0x1000-0x2000 r--p 00000000 08:01 5 /f",
		"1000-2000 r-p 00000000 08:01 5 /f",
		"1000-2000 r--x 00000000 08:01 5 /f",
		"1000-2000 r--p 00000000 0801 5 /f",
		"1000-2000 r--p 00000000 08:01 a /f",
		"1000-2000 r--p 00000000 08:01 5/f",
		"2000-1000 r--p 00000000 08:01 5 /f",
		"1000-1000 r--p 00000000 08:01 5 /f",
		"1001-2000 r--p 00000000 08:01 5 /f",
		"1000-2000 r--p 00000001 08:01 5 /f",
		"1000-3000 r--p fffffffffffff000 08:01 5 /f",
		"1000-20000000000000000 r--p 00000000 08:01 5 /f",
		"1000-2000 r--p 00000000 100000000:01 5 /f",
		"1000-2000 r--p 00000000 08:01 99999999999999999999 /f",
	};

	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		PfMapsEntry e;

		if (parse(lines[i], &e) != PF_MAPS_E_SYNTAX)
			fail_msg("taken: %s", lines[i]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_library),
		cmocka_unit_test(test_path),
		cmocka_unit_test(test_wanted),
		cmocka_unit_test(test_malformed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
