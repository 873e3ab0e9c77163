// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/dump.h"
#include "pagefusion-version.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static void test_string(void **state)
{
	char text[64] = "";
	FILE *out = fmemopen(text, sizeof(text), "w");

	assert_non_null(out);
	pf_dump_string(out, "a\"b\\c\n\x01\xc3\xbc");
	fclose(out);
	assert_string_equal(text, "\"a\\\"b\\\\c\\u000a\\u0001\xc3\xbc\"");
}

static void add_file(PfState *files)
{
	const PfObserved observed[] = {
		{.file_page = 2, .gfn = {100}, .digest = {{0xab}}},
		{.file_page = 3, .gfn = {101}},
		{.file_page = 4, .gfn = {200}},
		{.file_page = 6, .gfn = {201}},
	};
	struct stat st = {.st_ino = 1, .st_size = 8 * 4096 - 5};
	PfFile *file;
	bool fresh;

	pf_state_begin(files);
	assert_int_equal(pf_state_see(files, &st, "lib\".so", &file, &fresh), 0);
	file->build_id_size = 2;
	file->build_id[0] = 0x0f;
	file->build_id[1] = 0xa0;
	assert_int_equal(pf_file_commit(file, observed, 4), 0);
	st.st_ino = 2;
	assert_int_equal(pf_state_see(files, &st, "nothing resident", &file, &fresh), 0);
	pf_state_end(files);
}

static void test_object(void **state)
{
	static const char wanted[] =
		"{\"agent_version\":\"" PF_VERSION "\",\"page_size\":4096,\"boot_id\":\"boot\","
		"\"ram\":[{\"first_gfn\":1,\"pages\":158},{\"first_gfn\":256,\"pages\":1000}],"
		"\"modules\":[\n"
		"{\"name\":\"lib\\\".so\",\"build_id\":\"0fa0\",\"file_pages\":8,\"runs\":["
		"{\"file_page\":2,\"gfn\":100,\"pages\":2},{\"file_page\":4,\"gfn\":200,\"pages\":"
		"1},"
		"{\"file_page\":6,\"gfn\":201,\"pages\":1}]}\n"
		"],\"pages\":4,\"modules_count\":1,\"hashed_pages\":4,\"scan_ms\":7}\n";
	PfFacts facts = {
		.boot_id_text = "boot", .ram = {.ranges = {{{1}, 158}, {{256}, 1000}}, .n = 2}};
	PfScanStats stats = {.n_hashed = 4, .duration_ms = 7};
	char text[4096] = "";
	FILE *out = fmemopen(text, sizeof(text), "w");
	PfState files;

	pf_state_init(&files);
	add_file(&files);
	assert_non_null(out);
	assert_int_equal(pf_dump_write(out, &facts, &files, &stats, false), 0);
	assert_string_equal(text, wanted);
	rewind(out);
	assert_int_equal(pf_dump_write(out, &facts, &files, &stats, true), 0);
	fclose(out);
	assert_non_null(strstr(text, "\"pages\":2,\"digests\":[\"ab000000"));
	pf_state_deinit(&files);
}

static void test_full_disk(void **state)
{
	PfFacts facts = {.boot_id_text = "boot"};
	PfScanStats stats = {0};
	FILE *out = fopen("/dev/full", "w");
	PfState files;

	pf_state_init(&files);
	assert_non_null(out);
	assert_true(pf_dump_write(out, &facts, &files, &stats, false) < 0);
	fclose(out);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_string),
		cmocka_unit_test(test_object),
		cmocka_unit_test(test_full_disk),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
