/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The process runs out of maps. The test fills them itself: a large area whose pages alternate
 * between two protections has a map a page, and giving the area back gives them all back. Nothing
 * here must allocate memory with mmap while they are gone.
 */
#include "tests/mechanism/mech.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#define N 64u

static uint8_t *area;
static size_t area_pages;

static uint8_t *page_of(uint8_t *block, size_t i)
{
	return block + i * PF_PAGE_SIZE;
}

static size_t max_maps(void)
{
	FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
	size_t value = 0;

	assert_non_null(file);
	assert_int_equal(fscanf(file, "%zu", &value), 1);
	fclose(file);
	return value;
}

/* Splits the area until no more than `left` maps are left; 0: until the kernel refuses. */
static void fill_maps(size_t left)
{
	size_t room = max_maps() - mech_n_maps();

	if (room > 4 * max_maps())
		return;
	area_pages = room + 64;
	area = mmap(NULL, area_pages * PF_PAGE_SIZE, PROT_NONE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_true(area != MAP_FAILED);
	for (size_t i = 1, used = 1; i + 1 < area_pages && used + left < room; i += 2, used += 2)
		if (mprotect(page_of(area, i), PF_PAGE_SIZE, PROT_READ) < 0) {
			assert_int_equal(errno, ENOMEM);
			return;
		}
}

static void free_maps(void)
{
	/* In one piece: an munmap that would split a map can itself be refused. */
	assert_int_equal(munmap(area, area_pages * PF_PAGE_SIZE), 0);
}

static uint8_t *fused_block(PfFrame *frame, size_t n)
{
	uint8_t *block = mech_block(N);

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

	fill_maps(1000);
	pf_core_state(&snapshot, true);
	result = mech_fuse_page(page_of(block, 20), (PfFrame){frame.v + 20});
	free_maps();
	assert_true(snapshot.maps >= snapshot.maps_budget);
	assert_true(snapshot.maps_budget > 0 && snapshot.maps_budget < max_maps());
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

	fill_maps(0);
	mech_fuse(page_of(block, 20), (PfFrame){frame.v + 20}, 8, results);
	free_maps();
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
	fill_maps(0);
	*byte ^= 0xff;
	wrote = *byte;
	file_page = mech_is_file_page(page_of(block, 10));
	free_maps();
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

	fill_maps(0);
	r = pf_core_madvise(page_of(block, 10), 3 * PF_PAGE_SIZE, MADV_DONTNEED);
	zero = mech_is_zero(page_of(block, 10)) && mech_is_zero(page_of(block, 11)) &&
	       mech_is_zero(page_of(block, 12));
	neighbours = mech_holds(page_of(block, 9), 9) && mech_holds(page_of(block, 13), 13);
	free_maps();
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

	fill_maps(0);
	pf_core_release((PfHva){(uintptr_t)page_of(block, 8)}, 8);
	free_maps();
	for (size_t i = 0; i < N; i++) {
		assert_true(mech_holds(page_of(block, i), i));
		mech_fill(page_of(block, i), 700 + i);
		assert_true(mech_holds(page_of(block, i), 700 + i));
	}
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
	};

	mech_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
