// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/report.h"
#include "tests/unit/guest-agent/little_host.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define SESSION 99

static PfState files;
static PfReport *report;
static LittleHost host;
static PfFacts facts = {.kernel = "6.1", .ram = {.ranges = {{{1}, 1 << 20}}, .n = 1}};

static int setup(void **state)
{
	const uint8_t *frame;
	uint8_t *hello;
	size_t size;

	pf_state_init(&files);
	report = pf_report_new(&files);
	little_host_init(&host);
	hello = little_host_hello(&host, SESSION, 8, &size);
	free(hello);
	if (!report || pf_report_hello(report, SESSION, &facts, &frame, &size) != PF_REPORT_OK)
		return -1;
	little_host_feed(&host, frame, size);
	return 0;
}

static int teardown(void **state)
{
	pf_report_free(report);
	pf_state_deinit(&files);
	little_host_deinit(&host);
	return 0;
}

/* Gives all frames there are to the host and returns their number. */
static size_t tell(void)
{
	const uint8_t *frame;
	size_t size, n = 0;
	int r;

	while ((r = pf_report_next(report, SESSION, &frame, &size)) == PF_REPORT_OK) {
		assert_true(size <= PF_REPORT_MAX_FRAME);
		little_host_feed(&host, frame, size);
		n++;
	}
	assert_int_equal(r, PF_REPORT_E_IDLE);
	assert_int_equal(host.n_stale, 0);
	return n;
}

static PfFile *see(ino_t inode, time_t mtime)
{
	struct stat st = {.st_ino = inode, .st_size = 10000 * 4096, .st_mtim = {.tv_sec = mtime}};
	char name[] = "file0";
	PfFile *file;
	bool fresh;

	name[4] = (char)('0' + inode);
	assert_int_equal(pf_state_see(&files, &st, name, &file, &fresh), 0);
	return file;
}

/* n pages from page first on; page p lies at gfn + (p - first) * stride. */
static void commit(PfFile *file, uint32_t first, uint64_t gfn, size_t n, uint64_t stride)
{
	PfObserved *observed = calloc(n + 1, sizeof(*observed));

	assert_non_null(observed);
	for (size_t i = 0; i < n; i++) {
		observed[i].file_page = first + (uint32_t)i;
		observed[i].gfn.v = gfn + i * stride;
		memcpy(observed[i].digest.bytes, &observed[i].file_page, sizeof(uint32_t));
	}
	assert_int_equal(pf_file_commit(file, observed, n), 0);
	free(observed);
}

static void end(void)
{
	pf_state_end(&files);
}

/* The host looks for these very bytes (proto/PROTOCOL.md). */
static void test_knock(void **state)
{
	static const uint8_t knock[] = {
		0x50, 0x46, 0x47, 0x31, 0x02, 0x00, 0x00, 0x00, 0x26, 0x1d, 0x26, 0x94, 0x12, 0x00};
	const uint8_t *frame;
	size_t size;

	assert_int_equal(pf_report_knock(report, &frame, &size), PF_REPORT_OK);
	assert_int_equal(size, sizeof(knock));
	assert_memory_equal(frame, knock, sizeof(knock));
}

static void test_all(void **state)
{
	PfFile *file;

	pf_state_begin(&files);
	file = see(1, 1);
	file->build_id_size = 20;
	commit(file, 5, 1000, 10, 1);
	commit(see(2, 1), 0, 2000, 3, 2);
	end();
	/* Two modules, a frame of hints each, the end. */
	assert_int_equal(tell(), 5);
	assert_int_equal(host.n_ends, 1);
	assert_int_equal(little_host_pages(&host), 13);
	assert_string_equal(host.modules[0].name, "file1");
	assert_int_equal(host.modules[0].build_id_size, 20);
	assert_int_equal(host.modules[0].n_pages, 10000);
	assert_int_equal(host.modules[0].gfns[14].v, 1009);
	assert_int_equal(host.modules[0].digests[14].bytes[0], 14);
	assert_int_equal(host.modules[1].gfns[2].v, 2004);
	assert_int_equal(tell(), 0);
}

static void test_changes_only(void **state)
{
	PfFile *file;

	pf_state_begin(&files);
	file = see(1, 1);
	commit(file, 0, 1000, 10, 1);
	end();
	tell();

	pf_state_begin(&files);
	see(1, 1);
	commit(file, 0, 1000, 10, 1);
	end();
	assert_int_equal(tell(), 1);
	assert_int_equal(host.n_ends, 2);

	/* Pages 0 to 3 go, 4 and 5 change places, 6 to 9 stay. */
	pf_state_begin(&files);
	see(1, 1);
	commit(file, 4, 1004, 6, 1);
	file->pages[4].gfn.v = 1005;
	file->pages[5].gfn.v = 1004;
	end();
	assert_int_equal(tell(), 3);
	assert_int_equal(host.n_withdrawals, 1);
	assert_int_equal(host.modules[0].gfns[3].v, 0);
	assert_int_equal(host.modules[0].gfns[4].v, 1005);
	assert_int_equal(host.modules[0].gfns[5].v, 1004);
	assert_int_equal(little_host_pages(&host), 6);
	assert_int_equal(host.modules[0].n_declarations, 1);
}

static void test_changed_file(void **state)
{
	PfFile *file;

	pf_state_begin(&files);
	file = see(1, 1);
	commit(file, 0, 1000, 10, 1);
	end();
	tell();
	pf_state_begin(&files);
	see(1, 2);
	commit(file, 0, 1000, 10, 1);
	end();
	assert_int_equal(tell(), 3);
	assert_int_equal(host.modules[0].n_declarations, 2);
	assert_int_equal(little_host_pages(&host), 10);
}

static void test_vanished_file(void **state)
{
	pf_state_begin(&files);
	commit(see(1, 1), 0, 1000, 10, 1);
	commit(see(2, 1), 0, 2000, 10, 1);
	end();
	tell();
	pf_state_begin(&files);
	commit(see(2, 1), 0, 2000, 10, 1);
	end();
	assert_int_equal(tell(), 2);
	assert_false(host.modules[0].declared);
	assert_int_equal(little_host_pages(&host), 10);

	/* And comes back, under whatever id. */
	pf_state_begin(&files);
	commit(see(1, 1), 0, 1000, 10, 1);
	commit(see(2, 1), 0, 2000, 10, 1);
	end();
	assert_int_equal(tell(), 3);
	assert_int_equal(little_host_pages(&host), 20);
}

static void test_changed_and_gone(void **state)
{
	pf_state_begin(&files);
	commit(see(1, 1), 0, 1000, 10, 1);
	end();
	tell();
	pf_state_begin(&files);
	commit(see(1, 2), 0, 0, 0, 1);
	end();
	assert_int_equal(tell(), 2);
	assert_false(host.modules[0].declared);
}

static void test_big(void **state)
{
	PfFile *file;

	pf_state_begin(&files);
	file = see(1, 1);
	commit(file, 0, 1000, 10000, 1);
	commit(see(2, 1), 0, 100000, 10000, 3);
	end();
	tell();
	assert_int_equal(little_host_pages(&host), 20000);
	assert_true(host.biggest_frame > PF_REPORT_MAX_FRAME / 2);
	assert_true(host.n_hint_frames >= 20000 * 32 / PF_REPORT_MAX_FRAME);

	/* Every other page goes: as many ranges. */
	pf_state_begin(&files);
	see(1, 1);
	commit(see(2, 1), 0, 100000, 10000, 3);
	for (size_t i = 0; i < file->n; i += 2)
		file->pages[i].gfn = PF_NO_GFN;
	file->n_resident = 5000;
	file->dirty = true;
	end();
	tell();
	assert_int_equal(little_host_pages(&host), 15000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_knock, setup, teardown),
		cmocka_unit_test_setup_teardown(test_all, setup, teardown),
		cmocka_unit_test_setup_teardown(test_changes_only, setup, teardown),
		cmocka_unit_test_setup_teardown(test_changed_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_vanished_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_changed_and_gone, setup, teardown),
		cmocka_unit_test_setup_teardown(test_big, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
