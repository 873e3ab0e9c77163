// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/dump.h"
#include "guest-agent/json.h"
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
	pf_json_string(out, "a\"b\\c\n\x01\xc3\xbc");
	fclose(out);
	assert_string_equal(text, "\"a\\\"b\\\\c\\u000a\\u0001\xc3\xbc\"");
}

static PfFile *see(PfState *files, const PfFileKey *key, const char *name)
{
	const PfFileStamp stamp = {.size = 8 * 4096 - 5};
	PfFile *file;
	bool fresh;

	assert_int_equal(pf_state_see(files, key, &stamp, 0, name, &file, &fresh), 0);
	return file;
}

static void add_files(PfState *files)
{
	const PfFileKey library = {.inode = 1}, nothing = {.inode = 2};
	const PfFileKey device = {.source = PF_SOURCE_BLOCK_DEVICE};
	const PfObserved observed[] = {
		{.file_page = 2, .gfn = {100}, .digest = {{0xab}}},
		{.file_page = 3, .gfn = {101}},
		{.file_page = 4, .gfn = {200}},
		{.file_page = 6, .gfn = {201}},
	};
	PfFile *file;

	pf_state_begin(files, PF_CLASS_CACHE, true);
	file = see(files, &library, "lib\".so");
	assert_int_equal(pf_file_set_build_id(file, (const uint8_t *)"\x0f\xa0", 2), 0);
	assert_int_equal(pf_file_commit(file, 0, 8, observed, 4), 0);
	see(files, &nothing, "nothing resident");
	pf_state_end(files);
	for (size_t pass = 0; pass < 2; pass++) {
		pf_state_begin(files, PF_CLASS_BUFFERS, true);
		file = see(files, &device, "block:vda");
		assert_int_equal(pf_file_commit(file, 0, 8, observed + pass, 2), 0);
		pf_state_end(files);
	}
}

static void test_object(void **state)
{
	static const char wanted[] =
		"{\"agent_version\":\"" PF_VERSION "\",\"page_size\":4096,\"boot_id\":\"boot\","
		"\"ram\":[{\"first_gfn\":1,\"pages\":158},{\"first_gfn\":256,\"pages\":1000}],"
		"\"modules\":[\n"
		"{\"name\":\"lib\\\".so\",\"class\":\"cache\",\"build_id\":\"0fa0\",\"file_pages\":8,\"runs\":["
		"{\"file_page\":2,\"gfn\":100,\"pages\":2},{\"file_page\":4,\"gfn\":200,\"pages\":"
		"1},"
		"{\"file_page\":6,\"gfn\":201,\"pages\":1}]},\n"
		"{\"name\":\"block:vda\",\"class\":\"buffers\",\"build_id\":\"\",\"file_pages\":8,"
		"\"runs\":[{\"file_page\":3,\"gfn\":101,\"pages\":1}]}\n"
		"],\"classes\":{\"mapped\":{\"pages\":0,\"modules_count\":0},"
		"\"cache\":{\"pages\":4,\"modules_count\":1},"
		"\"buffers\":{\"pages\":1,\"modules_count\":1},"
		"\"kernel\":{\"pages\":0,\"modules_count\":0}},\"unsteady_pages\":1,"
		"\"pages\":5,\"modules_count\":2,\"hashed_pages\":4,\"scan_ms\":7}\n";
	PfFacts facts = {
		.boot_id_text = "boot", .ram = {.ranges = {{{1}, 158}, {{256}, 1000}}, .n = 2}};
	PfScanStats stats = {.n_hashed = 4, .duration_ms = 7};
	char text[4096] = "";
	FILE *out = fmemopen(text, sizeof(text), "w");
	PfState files;

	pf_state_init(&files);
	add_files(&files);
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
