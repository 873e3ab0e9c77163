// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/tell/report.h"
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

static void begin(void)
{
	pf_state_begin(&files, PF_CLASS_CACHE, true);
}

static PfFile *see(ino_t inode, time_t mtime)
{
	PfFileKey key = {.inode = inode};
	PfFileStamp stamp = {.size = 10000 * 4096, .mtime = {.tv_sec = mtime}};
	char name[] = "file0";
	PfFile *file;
	bool fresh;

	name[4] = (char)('0' + inode);
	assert_int_equal(pf_state_see(&files, &key, &stamp, 0, name, &file, &fresh), 0);
	return file;
}

static PfObserved observed[10000];

/* Page i of the file, to be committed: it lies at gfn, and its digest is its number. */
static void observe(size_t n, uint32_t i, uint64_t gfn)
{
	observed[n] = (PfObserved){.file_page = i, .gfn = {gfn}};
	memcpy(observed[n].digest.bytes, &i, sizeof(i));
}

/* All that is resident: n pages from page first on; page p lies at gfn + (p - first) * stride. */
static void commit(PfFile *file, uint32_t first, uint64_t gfn, uint32_t n, uint64_t stride)
{
	for (uint32_t i = 0; i < n; i++)
		observe(i, first + i, gfn + i * stride);
	assert_int_equal(pf_file_commit(file, 0, file->n_pages, observed, n), 0);
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
	const uint8_t build_id[20] = {1, 2, 3};
	PfFile *file;

	begin();
	file = see(1, 1);
	assert_int_equal(pf_file_set_build_id(file, build_id, sizeof(build_id)), 0);
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

	begin();
	file = see(1, 1);
	commit(file, 0, 1000, 10, 1);
	end();
	tell();

	begin();
	see(1, 1);
	commit(file, 0, 1000, 10, 1);
	end();
	assert_int_equal(tell(), 1);
	assert_int_equal(host.n_ends, 2);

	/* Pages 0 to 3 go, 4 and 5 change places, 6 to 9 stay. */
	begin();
	see(1, 1);
	for (uint32_t i = 4; i < 10; i++)
		observe(i - 4, i, i == 4 ? 1005 : i == 5 ? 1004 : 1000 + i);
	assert_int_equal(pf_file_commit(file, 0, 10, observed, 6), 0);
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

	begin();
	file = see(1, 1);
	commit(file, 0, 1000, 10, 1);
	end();
	tell();
	begin();
	see(1, 2);
	commit(file, 0, 1000, 10, 1);
	end();
	assert_int_equal(tell(), 3);
	assert_int_equal(host.modules[0].n_declarations, 2);
	assert_int_equal(little_host_pages(&host), 10);
}

static void test_vanished_file(void **state)
{
	begin();
	commit(see(1, 1), 0, 1000, 10, 1);
	commit(see(2, 1), 0, 2000, 10, 1);
	end();
	tell();
	begin();
	commit(see(2, 1), 0, 2000, 10, 1);
	end();
	assert_int_equal(tell(), 2);
	assert_false(host.modules[0].declared);
	assert_int_equal(little_host_pages(&host), 10);

	/* And comes back, under whatever id. */
	begin();
	commit(see(1, 1), 0, 1000, 10, 1);
	commit(see(2, 1), 0, 2000, 10, 1);
	end();
	assert_int_equal(tell(), 3);
	assert_int_equal(little_host_pages(&host), 20);
}

static void test_changed_and_gone(void **state)
{
	begin();
	commit(see(1, 1), 0, 1000, 10, 1);
	end();
	tell();
	begin();
	commit(see(1, 2), 0, 0, 0, 1);
	end();
	assert_int_equal(tell(), 2);
	assert_false(host.modules[0].declared);
}

/* Frames are full, and not too full; and so many runs and ranges need several. */
static void test_big(void **state)
{
	PfFile *file;

	begin();
	file = see(1, 1);
	commit(file, 0, 1000, 10000, 1);
	commit(see(2, 1), 0, 100000, 10000, 3);
	end();
	assert_true(tell() < 20);
	assert_int_equal(little_host_pages(&host), 20000);
	assert_true(host.biggest_frame > PF_REPORT_MAX_FRAME / 2);

	/* Every other page goes: as many ranges. */
	begin();
	see(2, 1);
	see(1, 1);
	for (uint32_t i = 0; i < 5000; i++)
		observe(i, 2 * i + 1, 1000 + 2 * i + 1);
	assert_int_equal(pf_file_commit(file, 0, 10000, observed, 5000), 0);
	end();
	assert_true(tell() <= 6);
	assert_int_equal(little_host_pages(&host), 15000);
}

static void see_device(uint8_t contents)
{
	PfFileKey key = {.source = PF_SOURCE_BLOCK_DEVICE};
	PfFileStamp stamp = {.size = 10 * 4096};
	PfFile *file;
	bool fresh;

	pf_state_begin(&files, PF_CLASS_BUFFERS, true);
	assert_int_equal(pf_state_see(&files, &key, &stamp, 0, "block:vda", &file, &fresh), 0);
	for (uint32_t i = 0; i < 4; i++)
		observe(i, i, 1000 + i);
	observed[2].digest.bytes[1] = contents;
	assert_int_equal(pf_file_commit(file, 0, 10, observed, 4), 0);
	end();
}

/* Only pages that held still are told; one that changes is taken back, and told again later. */
static void test_unsteady(void **state)
{
	see_device(0);
	assert_int_equal(tell(), 1); /* only the end */
	assert_int_equal(host.modules[0].n_declarations, 0);
	see_device(0);
	assert_int_equal(tell(), 3);
	assert_int_equal(little_host_pages(&host), 4);
	see_device(1);
	assert_int_equal(tell(), 2);
	assert_int_equal(little_host_pages(&host), 3);
	assert_int_equal(host.modules[0].gfns[2].v, 0);
	see_device(1);
	assert_int_equal(tell(), 2);
	assert_int_equal(host.modules[0].gfns[2].v, 1002);
	assert_int_equal(host.modules[0].digests[2].bytes[1], 1);
}

/* Without a free id a file is told later, and the end does not count it. */
static void test_no_id(void **state)
{
	uint32_t id;

	for (uint32_t i = 0; i < PF_SESSION_MAX_MODULES; i++)
		assert_true(pf_state_take_id(&files, &id));
	begin();
	commit(see(1, 1), 0, 1000, 10, 1);
	end();
	assert_int_equal(tell(), 1);
	assert_int_equal(little_host_pages(&host), 0);
	pf_state_release_id(&files, 3);
	begin();
	commit(see(1, 1), 0, 1000, 10, 1);
	end();
	assert_int_equal(tell(), 3);
	assert_true(host.modules[3].declared);
	assert_int_equal(little_host_pages(&host), 10);
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
		cmocka_unit_test_setup_teardown(test_unsteady, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_id, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
