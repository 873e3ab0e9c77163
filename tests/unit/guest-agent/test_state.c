// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/state.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static PfState files;

static int setup(void **state)
{
	pf_state_init(&files);
	return 0;
}

static int teardown(void **state)
{
	pf_state_deinit(&files);
	return 0;
}

static PfFile *see(ino_t inode, int64_t pages, time_t mtime, bool fresh)
{
	struct stat st = {.st_dev = 7,
		.st_ino = inode,
		.st_size = pages * 4096,
		.st_mtim = {.tv_sec = mtime}};
	PfFile *file;
	bool is_fresh;

	assert_int_equal(pf_state_see(&files, &st, "file", &file, &is_fresh), 0);
	assert_int_equal(is_fresh, fresh);
	return file;
}

/* n pages from first on, at gfn and following; a page's digest is its number and version. */
static void commit(PfFile *file, uint32_t first, uint64_t gfn, size_t n, uint8_t version)
{
	PfObserved observed[16] = {0};

	for (size_t i = 0; i < n; i++) {
		observed[i].file_page = first + (uint32_t)i;
		observed[i].gfn.v = gfn + i;
		observed[i].digest.bytes[0] = (uint8_t)(first + i);
		observed[i].digest.bytes[1] = version;
	}
	assert_int_equal(pf_file_commit(file, observed, n), 0);
}

/* As if the report had told everything. */
static void tell(PfFile *file)
{
	for (size_t i = 0; i < file->n; i++)
		file->pages[i].told = file->pages[i].gfn;
	file->declared = file->n_resident > 0;
	file->outdated = false;
	file->dirty = false;
}

static void scan_end(void)
{
	pf_state_end(&files);
}

static void test_new_file(void **state)
{
	PfFile *file;

	pf_state_begin(&files);
	file = see(1, 10, 1, true);
	assert_int_equal(file->n_pages, 10);
	assert_null(pf_file_find(file, 2));
	commit(file, 2, 100, 3, 0);
	scan_end();
	assert_true(file->dirty && files.scanned);
	assert_int_equal(pf_file_find(file, 4)->gfn.v, 102);
	assert_int_equal(pf_file_find(file, 4)->digest.bytes[0], 4);
	assert_null(pf_file_find(file, 5));
}

static void test_page_moved_and_gone(void **state)
{
	PfFile *file;

	pf_state_begin(&files);
	file = see(1, 10, 1, true);
	commit(file, 0, 100, 4, 0);
	scan_end();
	tell(file);

	pf_state_begin(&files);
	assert_ptr_equal(see(1, 10, 1, false), file);
	commit(file, 0, 100, 4, 0);
	scan_end();
	assert_false(file->dirty);

	pf_state_begin(&files);
	see(1, 10, 1, false);
	commit(file, 1, 200, 2, 0);
	scan_end();
	assert_true(file->dirty);
	assert_int_equal(file->n_resident, 2);
	assert_int_equal(pf_file_find(file, 1)->gfn.v, 200);
	assert_int_equal(pf_file_find(file, 1)->told.v, 101);
	/* Evicted pages keep their digests: they are not hashed again when they come back. */
	assert_int_equal(pf_file_find(file, 0)->gfn.v, 0);
	assert_int_equal(pf_file_find(file, 0)->told.v, 100);
	assert_int_equal(pf_file_find(file, 3)->digest.bytes[0], 3);
}

static void test_file_changed(void **state)
{
	PfFile *file;

	pf_state_begin(&files);
	file = see(1, 10, 1, true);
	commit(file, 0, 100, 4, 0);
	scan_end();
	tell(file);

	pf_state_begin(&files);
	assert_ptr_equal(see(1, 10, 2, true), file);
	assert_null(pf_file_find(file, 0));
	commit(file, 0, 100, 4, 1);
	scan_end();
	assert_true(file->dirty && file->outdated);
	/* To be told again although nothing moved: the host dropped what was written. */
	assert_int_equal(pf_file_find(file, 0)->told.v, 0);
	assert_int_equal(pf_file_find(file, 0)->digest.bytes[1], 1);

	pf_state_begin(&files);
	see(1, 11, 2, true);
}

static void test_file_vanished(void **state)
{
	PfFile *kept, *gone;

	pf_state_begin(&files);
	kept = see(1, 10, 1, true);
	gone = see(2, 10, 1, true);
	commit(kept, 0, 100, 4, 0);
	commit(gone, 0, 200, 4, 0);
	scan_end();
	tell(kept);
	tell(gone);

	pf_state_begin(&files);
	see(1, 10, 1, false);
	commit(kept, 0, 100, 4, 0);
	scan_end();
	assert_false(kept->dirty);
	assert_true(gone->dirty);
	assert_int_equal(gone->n_resident, 0);
	tell(gone);

	/* It comes back unchanged: its digests are still known. */
	pf_state_begin(&files);
	assert_ptr_equal(see(2, 10, 1, false), gone);
	assert_non_null(pf_file_find(gone, 3));
}

static void test_cancelled(void **state)
{
	PfFile *file;

	pf_state_begin(&files);
	file = see(1, 10, 1, true);
	commit(file, 0, 100, 4, 0);
	scan_end();
	tell(file);
	pf_state_begin(&files);
	pf_state_cancel(&files);
	assert_false(file->dirty);
	assert_int_equal(file->n_resident, 4);
}

static void test_idle_limit(void **state)
{
	static PfObserved observed[PF_STATE_MAX_IDLE_PAGES + 1];
	PfFile *big, *small;

	for (uint32_t i = 0; i <= PF_STATE_MAX_IDLE_PAGES; i++)
		observed[i] = (PfObserved){.file_page = i, .gfn = {i + 1}};
	pf_state_begin(&files);
	big = see(1, PF_STATE_MAX_IDLE_PAGES + 1, 1, true);
	assert_int_equal(pf_file_commit(big, observed, PF_STATE_MAX_IDLE_PAGES + 1), 0);
	small = see(2, 10, 1, true);
	commit(small, 0, 500000, 4, 0);
	scan_end();
	assert_int_equal(big->n, PF_STATE_MAX_IDLE_PAGES + 1);

	/* Nobody maps the big one: its digests go, and so does the file; those of the small one
	 * stay. */
	pf_state_begin(&files);
	see(2, 10, 1, false);
	commit(small, 0, 500000, 1, 0);
	scan_end();
	assert_int_equal(files.n, 1);
	assert_int_equal(small->n, 4);
	see(1, PF_STATE_MAX_IDLE_PAGES + 1, 1, true);
}

static void test_idle_limit_mapped(void **state)
{
	static PfObserved observed[PF_STATE_MAX_IDLE_PAGES + 2];
	PfFile *file;

	for (uint32_t i = 0; i < PF_STATE_MAX_IDLE_PAGES + 2; i++)
		observed[i] = (PfObserved){.file_page = i, .gfn = {i + 1}};
	pf_state_begin(&files);
	file = see(1, PF_STATE_MAX_IDLE_PAGES + 2, 1, true);
	assert_int_equal(pf_file_commit(file, observed, PF_STATE_MAX_IDLE_PAGES + 2), 0);
	scan_end();
	tell(file);
	file->pages[5].told = PF_NO_GFN;

	pf_state_begin(&files);
	see(1, PF_STATE_MAX_IDLE_PAGES + 2, 1, false);
	commit(file, 0, 1, 1, 0);
	scan_end();
	/* Only the one the host has not heard of could be forgotten yet. */
	assert_int_equal(file->n, PF_STATE_MAX_IDLE_PAGES + 1);
	assert_null(pf_file_find(file, 5));
	assert_non_null(pf_file_find(file, 6));
}

static void test_forget_told(void **state)
{
	PfFile *file;

	pf_state_begin(&files);
	file = see(1, 10, 1, true);
	commit(file, 0, 100, 4, 0);
	scan_end();
	tell(file);
	files.scanned = false;
	pf_state_forget_told(&files);
	assert_true(file->dirty && !file->declared && files.scanned);
	assert_int_equal(pf_file_find(file, 0)->told.v, 0);
	assert_int_equal(pf_file_find(file, 0)->gfn.v, 100);
}

static void test_ids(void **state)
{
	uint32_t id, last = 0;

	for (uint32_t i = 0; i < PF_SESSION_MAX_MODULES; i++) {
		assert_true(pf_state_take_id(&files, &id));
		assert_true(id < PF_SESSION_MAX_MODULES && (i == 0 || id == last + 1));
		last = id;
	}
	assert_false(pf_state_take_id(&files, &id));
	pf_state_release_id(&files, 4711);
	assert_true(pf_state_take_id(&files, &id));
	assert_int_equal(id, 4711);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_new_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_page_moved_and_gone, setup, teardown),
		cmocka_unit_test_setup_teardown(test_file_changed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_file_vanished, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cancelled, setup, teardown),
		cmocka_unit_test_setup_teardown(test_idle_limit, setup, teardown),
		cmocka_unit_test_setup_teardown(test_idle_limit_mapped, setup, teardown),
		cmocka_unit_test_setup_teardown(test_forget_told, setup, teardown),
		cmocka_unit_test_setup_teardown(test_ids, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
