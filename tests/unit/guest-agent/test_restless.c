// SPDX-License-Identifier: LGPL-2.1-or-later
/* Files that change again and again. */
#include "guest-agent/state.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define N_PAGES 10

static PfState files;
static PfFile *file;
static time_t mtime; /* of the file, whose utime() we are */

static int setup(void **state)
{
	pf_state_init(&files);
	mtime = 1;
	return 0;
}

static int teardown(void **state)
{
	pf_state_deinit(&files);
	return 0;
}

/* Whether its build-id is to be read. */
static bool see(void)
{
	const PfFileKey key = {.device = 7, .inode = 1};
	const PfFileStamp stamp = {.size = N_PAGES * 4096, .mtime = {.tv_sec = mtime}};
	bool fresh;

	assert_int_equal(pf_state_see(&files, &key, &stamp, 1000, "file", &file, &fresh), 0);
	return fresh;
}

/* What a visit does: gives the number of pages that it had to hash. */
static size_t visit(void)
{
	PfObserved observed[N_PAGES] = {0};
	size_t n, n_hashed = 0;
	const PfPageRange *cover = pf_file_cover(file, &n);

	if (n == 0)
		return 0;
	assert_int_equal(cover[0].n_pages, N_PAGES);
	for (uint32_t i = 0; i < N_PAGES; i++) {
		n_hashed += !pf_file_find(file, i);
		observed[i] = (PfObserved){.file_page = i, .gfn = {100 + i}};
	}
	assert_int_equal(pf_file_commit(file, 0, N_PAGES, observed, N_PAGES), 0);
	return n_hashed;
}

static size_t pass_of(PfPageClass class, bool complete)
{
	size_t n_hashed;
	bool fresh;

	pf_state_begin(&files, class, complete);
	fresh = see();
	if (class == PF_CLASS_MAPPED)
		assert_int_equal(pf_page_ranges_add(&file->mapped, 0, N_PAGES), 0);
	n_hashed = visit();
	/* Its build-id is read when its pages are. */
	assert_int_equal(fresh, n_hashed > 0);
	pf_state_end(&files);
	return n_hashed;
}

static size_t pass(void)
{
	return pass_of(PF_CLASS_MAPPED, true);
}

static size_t look(void)
{
	return pass_of(PF_CLASS_MAPPED, false);
}

static void test_two_changes(void **state)
{
	assert_int_equal(pass(), N_PAGES);
	assert_int_equal(pass(), 0);
	mtime++;
	assert_int_equal(pass(), N_PAGES);
	file->declared = true;
	file->outdated = file->dirty = false;
	assert_int_equal(file->n_reportable, N_PAGES);
	mtime++;
	assert_int_equal(pass(), 0);
	/* The host hears that nothing of it stands. */
	assert_true(file->dirty);
	assert_int_equal(file->n_reportable, 0);
	assert_int_equal(file->n, 0);
	assert_int_equal(pass(), N_PAGES);
	assert_int_equal(file->n_reportable, N_PAGES);
	assert_int_equal(pass(), 0);
}

/* What it has to show grows with its changes: 1, 2, 4, 8 passes, and no more than that. */
static void test_growing_rest(void **state)
{
	static const unsigned rests[] = {0, 1, 2, 4, 8, 8};

	pass();
	for (size_t i = 0; i < sizeof(rests) / sizeof(rests[0]); i++) {
		mtime++;
		for (unsigned n = 0; n < rests[i]; n++)
			assert_int_equal(pass(), 0);
		assert_int_equal(pass(), N_PAGES);
	}
}

/* Each look counts, and passes of other classes that see it do. */
static void test_looks(void **state)
{
	assert_int_equal(pass(), N_PAGES);
	mtime++;
	assert_int_equal(look(), N_PAGES);
	mtime++;
	assert_int_equal(look(), 0);
	mtime++;
	assert_int_equal(look(), 0);
	assert_int_equal(look(), 0);
	assert_int_equal(look(), N_PAGES);
	mtime++;
	for (int i = 0; i < 2; i++) {
		assert_int_equal(pass_of(PF_CLASS_CACHE, true), 0);
		assert_int_equal(look(), 0);
	}
	assert_int_equal(pass_of(PF_CLASS_CACHE, true), N_PAGES);
}

/* Met by several names in one pass, it was seen unchanged once. */
static void test_once_a_pass(void **state)
{
	pass();
	for (int i = 0; i < 3; i++) {
		mtime++;
		pass();
	}
	for (int i = 0; i < 2; i++) {
		assert_true(pf_file_is_restless(file));
		pf_state_begin(&files, PF_CLASS_MAPPED, true);
		for (int n = 0; n < 5; n++)
			assert_int_equal(see(), i == 1 && n == 0);
		pf_state_end(&files);
	}
	assert_false(pf_file_is_restless(file));
}

/* Whatever the rhythm of its changes, not much more than a visit in nine hashes it in the long run. */
static void test_rhythms(void **state)
{
	for (unsigned every = 1; every <= 40; every++) {
		unsigned n_hashes = 0;

		teardown(NULL);
		setup(NULL);
		for (unsigned i = 0; i < 1000; i++) {
			mtime += i % every == 0;
			n_hashes += look() > 0;
		}
		if (n_hashes > 1000 / 9 + 4)
			fail_msg("changed every %u passes: hashed %u times", every, n_hashes);
		assert_true(n_hashes >= (every > 9 ? 1000 / every : 1));
	}
}

/* Changes of long ago are forgotten, but for the last one until 80 passes saw none. */
static void test_calm(void **state)
{
	pass();
	for (int n_quiet = 79; n_quiet <= 80; n_quiet++) {
		for (int i = 0; i < 10; i++) {
			mtime++;
			pass();
		}
		for (int i = 0; i < n_quiet; i++)
			pass();
		mtime++;
		assert_int_equal(pass(), n_quiet == 80 ? N_PAGES : 0);
		/* Forgets what the first round has left of the count. */
		teardown(NULL);
		setup(NULL);
		pass();
	}
	mtime++;
	assert_int_equal(pass(), N_PAGES);
	mtime++;
	assert_int_equal(pass(), 0);
	assert_int_equal(pass(), N_PAGES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_two_changes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_growing_rest, setup, teardown),
		cmocka_unit_test_setup_teardown(test_looks, setup, teardown),
		cmocka_unit_test_setup_teardown(test_once_a_pass, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rhythms, setup, teardown),
		cmocka_unit_test_setup_teardown(test_calm, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
