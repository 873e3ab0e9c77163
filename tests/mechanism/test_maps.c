/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The budget of maps, and a process that runs out of them: see mech_fill_maps(). */
#include "tests/mechanism/host.h"
#include "tests/mechanism/mech.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <cmocka.h>

#define N 64u

static uint8_t *page_of(uint8_t *block, size_t i)
{
	return block + i * PF_PAGE_SIZE;
}

static uint8_t *fused_block(PfFrame *frame, size_t n)
{
	uint8_t *block = mech_block(N);
	PfShimState snapshot;

	/* What an earlier test has used up is there again. */
	pf_core_state(&snapshot, true);
	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(block, i), i);
	*frame = mech_publish_seed(0);
	for (size_t i = 1; i < N; i++)
		mech_publish_seed(i);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(
			mech_fuse_page(page_of(block, i), (PfFrame){frame->v + i}), PF_SHIM_DONE);
	return block;
}

static void test_budget(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(&frame, 4);
	PfShimState snapshot;
	PfShimResult result;

	mech_fill_maps(1000);
	pf_core_state(&snapshot, true);
	result = mech_fuse_page(page_of(block, 20), (PfFrame){frame.v + 20});
	mech_free_maps();
	assert_true(snapshot.maps >= snapshot.maps_budget);
	assert_true(snapshot.maps_budget > 0 && snapshot.maps_budget < mech_max_maps());
	assert_int_equal(result, PF_SHIM_NO_MAPS);
	assert_true(mech_holds(page_of(block, 20), 20));
	assert_false(mech_is_file_page(page_of(block, 20)));
	/* With maps again, it goes on. */
	pf_core_state(&snapshot, true);
	assert_int_equal(mech_fuse_page(page_of(block, 20), (PfFrame){frame.v + 20}), PF_SHIM_DONE);
	mech_block_free(block, N);
	mech_drop_lost();
}

/* The kernel has no map left and the core does not know it: whatever it answers, the page is right.
 */
static void test_fuse_without_maps(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(&frame, 4), results[8];
	PfShimState snapshot;

	mech_fill_maps(0);
	mech_fuse(page_of(block, 20), (PfFrame){frame.v + 20}, 8, results);
	mech_free_maps();
	for (size_t i = 0; i < 8; i++) {
		assert_true(results[i] < PF_SHIM_N_RESULTS);
		assert_true(mech_holds(page_of(block, 20 + i), 20 + i));
		mech_fill(page_of(block, 20 + i), 500 + i);
		assert_true(mech_holds(page_of(block, 20 + i), 500 + i));
	}
	pf_core_state(&snapshot, true);
	assert_int_equal(snapshot.stopped, 0);
	mech_block_free(block, N);
	mech_drop_lost();
}

/*
 * A revoke in the middle of a run needs two maps more. There are none: the kernel copies, and the
 * page is private in a file VMA.
 */
static void test_revoke_without_maps(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(&frame, 32);
	volatile uint8_t *byte = page_of(block, 10) + 77;
	PfShimState before, after;
	PfShimLost lost;
	uint8_t wrote;
	bool file_page;

	pf_core_state(&before, true);
	mech_fill_maps(0);
	*byte ^= 0xff;
	wrote = *byte;
	file_page = mech_is_file_page(page_of(block, 10));
	mech_free_maps();
	assert_false(file_page);
	*byte ^= 0xff;
	assert_int_equal(*byte, (uint8_t)(wrote ^ 0xff));
	assert_true(mech_holds(page_of(block, 10), 10));
	assert_true(mech_wait_lost(page_of(block, 10), &lost));
	assert_int_equal(lost.loss, PF_SHIM_LOST_REVOKED);
	pf_core_state(&after, true);
	assert_int_equal(after.fused_pages, before.fused_pages - 1);
	assert_int_equal(after.revoked_pages, before.revoked_pages + 1);
	assert_true(mech_in_file_vma(page_of(block, 10)));
	/* Never fused again, and never the frame again. */
	assert_int_equal(
		mech_fuse_page(page_of(block, 10), (PfFrame){frame.v + 10}), PF_SHIM_NOT_PRIVATE);
	mech_fill(page_of(block, 10), 4000);
	mech_fill(page_of(block, 9), 4001);
	mech_fill(page_of(block, 11), 4002);
	assert_true(mech_holds(page_of(block, 10), 4000));
	assert_true(mech_holds(page_of(block, 9), 4001));
	assert_true(mech_holds(page_of(block, 11), 4002));
	assert_int_equal(pf_core_madvise(page_of(block, 10), PF_PAGE_SIZE, MADV_DONTNEED), 0);
	assert_true(mech_is_zero(page_of(block, 10)));
	assert_true(mech_holds(page_of(block, 9), 4001));
	mech_fill(page_of(block, 10), 10);
	assert_int_equal(mech_fuse_page(page_of(block, 10), (PfFrame){frame.v + 10}), PF_SHIM_DONE);
	mech_block_free(block, N);
	mech_drop_lost();
}

static void test_discard_without_maps(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(&frame, 32);
	int r;
	bool zero, neighbours;

	mech_fill_maps(0);
	r = pf_core_madvise(page_of(block, 10), 3 * PF_PAGE_SIZE, MADV_DONTNEED);
	zero = mech_is_zero(page_of(block, 10)) && mech_is_zero(page_of(block, 11)) &&
	       mech_is_zero(page_of(block, 12));
	neighbours = mech_holds(page_of(block, 9), 9) && mech_holds(page_of(block, 13), 13);
	mech_free_maps();
	assert_int_equal(r, 0);
	assert_true(zero);
	assert_true(neighbours);
	/* A page that the kernel takes back later must not show the frame either. */
	assert_int_equal(pf_core_madvise(page_of(block, 10), 3 * PF_PAGE_SIZE, MADV_DONTNEED), 0);
	for (size_t i = 10; i < 13; i++) {
		assert_true(mech_is_zero(page_of(block, i)));
		mech_fill(page_of(block, i), 600 + i);
		assert_true(mech_holds(page_of(block, i), 600 + i));
	}
	mech_block_free(block, N);
	mech_drop_lost();
}

static void test_release_without_maps(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(&frame, 32);

	mech_fill_maps(0);
	pf_core_release((PfHva){(uintptr_t)page_of(block, 8)}, 8);
	mech_free_maps();
	for (size_t i = 0; i < N; i++) {
		assert_true(mech_holds(page_of(block, i), i));
		mech_fill(page_of(block, i), 700 + i);
		assert_true(mech_holds(page_of(block, i), 700 + i));
	}
	mech_block_free(block, N);
	mech_drop_lost();
}

/* What became of n pages, one result for all of them. */
static PfShimResult fuse_some(uint8_t *block, PfFrame frame, size_t from, uint32_t n)
{
	uint8_t results[N];

	mech_fuse(page_of(block, from), (PfFrame){frame.v + from}, n, results);
	for (size_t i = 1; i < n; i++)
		assert_int_equal(results[i], results[0]);
	return (PfShimResult)results[0];
}

/* So many sixteenths of the budget are used. */
static void fill_budget(unsigned sixteenths)
{
	PfShimState snapshot;

	pf_core_state(&snapshot, true);
	mech_fill_maps(mech_max_maps() - snapshot.maps_budget / 16 * sixteenths);
	pf_core_state(&snapshot, true);
	assert_true(snapshot.maps > snapshot.maps_budget / 16 * (sixteenths - 1));
	assert_true(snapshot.maps < snapshot.maps_budget / 16 * (sixteenths + 1));
}

/* As the budget fills only longer runs are taken. */
static void test_tiers(void **state)
{
	static const struct {
		unsigned sixteenths;
		uint32_t too_short, long_enough;
	} tiers[] = {{7, 0, 1}, {10, 1, 2}, {13, 3, 4}, {15, 7, 8}, {17, 32, 0}};
	PfShimResult results[5][2];
	PfFrame frame;

	for (size_t i = 0; i < 5; i++) {
		uint8_t *block = fused_block(&frame, 0);

		fill_budget(tiers[i].sixteenths);
		results[i][0] = fuse_some(block, frame, 0, tiers[i].too_short);
		results[i][1] = fuse_some(block, frame, 32, tiers[i].long_enough);
		mech_free_maps();
		if (tiers[i].too_short)
			assert_int_equal(results[i][0], PF_SHIM_NO_MAPS);
		if (tiers[i].long_enough)
			assert_int_equal(results[i][1], PF_SHIM_DONE);
		mech_block_free(block, N);
		mech_drop_lost();
	}
}

/* What counts is the piece that comes of it. */
static void test_tier_of_pieces(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(&frame, 0), results[16];
	PfShimResult before, behind, apart;

	*page_of(block, 20) ^= 1;
	assert_int_equal(fuse_some(block, frame, 40, 7), PF_SHIM_DONE);
	fill_budget(15);
	/* Pages 16 to 19, the different one, and 21 to 31. */
	mech_fuse(page_of(block, 16), (PfFrame){frame.v + 16}, 16, results);
	before = mech_fuse_page(page_of(block, 39), (PfFrame){frame.v + 39});
	behind = mech_fuse_page(page_of(block, 47), (PfFrame){frame.v + 47});
	apart = mech_fuse_page(page_of(block, 49), (PfFrame){frame.v + 49});
	mech_free_maps();
	for (size_t i = 0; i < 16; i++)
		assert_int_equal(results[i], i < 4    ? PF_SHIM_NO_MAPS
					     : i == 4 ? PF_SHIM_DIFFERENT
						      : PF_SHIM_DONE);
	assert_int_equal(before, PF_SHIM_DONE);
	assert_int_equal(behind, PF_SHIM_DONE);
	assert_int_equal(apart, PF_SHIM_NO_MAPS);
	*page_of(block, 20) ^= 1;
	for (size_t i = 0; i < N; i++)
		assert_true(mech_holds(page_of(block, i), i));
	mech_block_free(block, N);
	mech_drop_lost();
}

/* The administrator lowers the limit while a VM runs. */
static void test_lowered_limit(void **state)
{
	char text[32];
	PfFrame frame;
	uint8_t *block = fused_block(&frame, 1);
	size_t lowered = mech_max_maps() / 16 * 15;
	double end = mech_now() + 10;
	PfShimState snapshot;

	pf_core_state(&snapshot, true);
	assert_int_equal(snapshot.maps_budget, mech_max_maps() / 4 * 3);
	snprintf(text, sizeof text, "%zu", lowered);
	if (!host_set("/proc/sys/vm/max_map_count", text)) {
		print_message("%s\n", host_why());
		skip();
	}
	/* Without anybody asking for a new count, and too seldom for the estimate to ask for one. */
	while (snapshot.maps_budget != lowered / 4 * 3 && mech_now() < end) {
		nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
		pf_core_release((PfHva){(uintptr_t)block}, N);
		mech_drop_lost();
		assert_int_equal(mech_fuse_page(block, frame), PF_SHIM_DONE);
		pf_core_state(&snapshot, false);
	}
	assert_int_equal(snapshot.maps_budget, lowered / 4 * 3);
	mech_block_free(block, N);
	mech_drop_lost();
}

/* See maps.c: two maps for each piece that there was, and none for those that were released from their edges. */
static void test_maps_after_release(void **state)
{
	enum { PIECE = 8, PIECES = 64, PAGES = PIECES * PIECE };
	uint8_t *block = mech_block(PAGES), results[PIECE];
	size_t before, fused, after;
	PfShimState snapshot;

	pf_core_state(&snapshot, true);

	assert_int_equal(pf_core_madvise(block, PAGES * PF_PAGE_SIZE, MADV_NOHUGEPAGE), 0);
	for (size_t i = 0; i < PAGES; i++)
		mech_fill(page_of(block, i), i);
	before = mech_n_maps();
	for (int round = 0; round < 4; round++)
		for (size_t i = 0; i < PAGES; i += PIECE) {
			PfFrame frame = mech_publish_seed(i);

			for (size_t k = 1; k < PIECE; k++)
				mech_publish_seed(i + k);
			mech_skip_frames(1);
			mech_fuse(page_of(block, i), frame, PIECE, results);
			for (size_t k = 0; k < PIECE; k++)
				assert_int_equal(results[k], PF_SHIM_DONE);
			if (i + PIECE == PAGES) {
				fused = mech_n_maps();
				assert_true(fused >= before + PIECES - 1);
				if (round == 2)
					/* Now out of the middle. */
					for (size_t at = 4; at < PAGES; at += PIECE)
						*(volatile uint8_t *)page_of(block, at) ^= 0;
				pf_core_release((PfHva){(uintptr_t)block}, PAGES);
				mech_drop_lost();
				after = mech_n_maps();

				if (round == 2)
					assert_true(after <= before + 2 * 2 * PIECES);
				else
					assert_true(after <= before + 4);
			}
		}

	mech_block_free(block, PAGES);
}

/* What was done without a map is counted. */
static void test_ways_out(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(&frame, 32);
	PfShimState before, after;

	pf_core_state(&before, true);
	mech_fill_maps(0);
	/* Now the core knows, and does not try. */
	pf_core_state(&after, true);
	*(volatile uint8_t *)page_of(block, 10) ^= 0;
	pf_core_release((PfHva){(uintptr_t)page_of(block, 15)}, 3);
	pf_core_madvise(page_of(block, 20), PF_PAGE_SIZE, MADV_DONTNEED);
	mech_free_maps();
	pf_core_state(&after, true);
	assert_int_equal(after.ways_out, before.ways_out + 3);
	assert_int_equal(after.written_pages, before.written_pages + 5);
	pf_core_release((PfHva){(uintptr_t)block}, N);
	pf_core_state(&after, true);
	assert_int_equal(after.ways_out, before.ways_out + 3);
	mech_block_free(block, N);
	mech_drop_lost();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_budget),
		cmocka_unit_test(test_fuse_without_maps),
		cmocka_unit_test(test_revoke_without_maps),
		cmocka_unit_test(test_discard_without_maps),
		cmocka_unit_test(test_release_without_maps),
		cmocka_unit_test(test_tiers),
		cmocka_unit_test(test_tier_of_pieces),
		cmocka_unit_test(test_maps_after_release),
		cmocka_unit_test(test_ways_out),
		cmocka_unit_test(test_lowered_limit),
	};

	host_start();
	mech_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
