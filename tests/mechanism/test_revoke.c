/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Revoking: the guest writes to a fused page and has a private one with the old bytes and the
 * write. */
#include "tests/mechanism/mech.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#define N 256u

static uint8_t *page_of(uint8_t *block, size_t i)
{
	return block + i * PF_PAGE_SIZE;
}

/* Fills n pages and fuses them, as one run where `together`, else each to a frame away from the
 * others. */
static PfFrame fill_and_fuse(uint8_t *start, size_t n, uint64_t seed, bool together)
{
	PfFrame first = {0};

	for (size_t i = 0; i < n; i++) {
		PfFrame frame;

		mech_fill(page_of(start, i), seed + i);
		if (!together)
			mech_skip_frames(1);
		frame = mech_publish_seed(seed + i);
		if (i == 0)
			first = frame;
		if (!together)
			assert_int_equal(mech_fuse_page(page_of(start, i), frame), PF_SHIM_DONE);
	}
	for (size_t i = 0; together && i < n; i += PF_SHIM_RUN_PAGES) {
		uint8_t results[PF_SHIM_RUN_PAGES];
		size_t count = n - i < PF_SHIM_RUN_PAGES ? n - i : PF_SHIM_RUN_PAGES;

		mech_fuse(page_of(start, i), (PfFrame){first.v + i}, (uint32_t)count, results);
		for (size_t j = 0; j < count; j++)
			assert_int_equal(results[j], PF_SHIM_DONE);
	}
	return first;
}

static void test_write_makes_private(void **state)
{
	uint8_t *block = mech_block(N);
	PfFrame frame = fill_and_fuse(page_of(block, 7), 1, 70, true);
	volatile uint8_t *byte = page_of(block, 7) + 1000;
	uint8_t old = *byte;
	PfShimLost lost;
	PfShimState before, after;

	pf_core_state(&before, false);
	*byte = (uint8_t)(old + 1);
	assert_int_equal(*byte, (uint8_t)(old + 1));
	assert_true(mech_wait_lost(page_of(block, 7), &lost));
	assert_int_equal(lost.hva, (uintptr_t)page_of(block, 7));
	assert_int_equal(lost.frame, frame.v);
	assert_int_equal(lost.n_pages, 1);
	assert_int_equal(lost.loss, PF_SHIM_LOST_REVOKED);
	assert_false(mech_is_file_page(page_of(block, 7)));
	assert_false(mech_in_file_vma(page_of(block, 7)));
	*byte = old;
	assert_true(mech_holds(page_of(block, 7), 70));
	pf_core_state(&after, false);
	assert_int_equal(after.fused_pages, before.fused_pages - 1);
	assert_int_equal(after.revoked_pages, before.revoked_pages + 1);
	/* It is ordinary memory again and can be fused again. */
	assert_int_equal(mech_fuse_page(page_of(block, 7), frame), PF_SHIM_DONE);
	assert_true(mech_holds(page_of(block, 7), 70));
	mech_block_free(block, N);
	mech_drop_lost();
}

static void test_reading_does_not_revoke(void **state)
{
	uint8_t *block = mech_block(N);
	uint64_t pfn;

	fill_and_fuse(block, 8, 90, true);
	pfn = mech_pfn(block);
	for (int i = 0; i < 100; i++)
		for (size_t j = 0; j < 8; j++)
			assert_true(mech_holds(page_of(block, j), 90 + j));
	assert_int_equal(mech_pfn(block), pfn);
	assert_true(mech_is_file_page(block));
	mech_block_free(block, N);
	mech_drop_lost();
}

static void test_other_block_keeps_the_frame(void **state)
{
	uint8_t *a = mech_block(N), *b = mech_block(N);
	PfFrame frame = fill_and_fuse(a, 1, 110, true);
	PfShimLost lost;
	uint64_t pfn;

	mech_fill(b, 110);
	assert_int_equal(mech_fuse_page(b, frame), PF_SHIM_DONE);
	pfn = mech_pfn(b);
	assert_int_equal(mech_pfn(a), pfn);
	mech_fill(a, 111);
	assert_true(mech_holds(a, 111));
	assert_true(mech_holds(b, 110));
	assert_true(mech_is_file_page(b));
	assert_int_equal(mech_pfn(b), pfn);
	assert_true(mech_wait_lost(a, &lost));
	mech_block_free(a, N);
	mech_block_free(b, N);
	mech_drop_lost();
}

static void test_middle_of_a_run(void **state)
{
	uint8_t *block = mech_block(N);
	PfShimLost lost;

	fill_and_fuse(block, 9, 120, true);
	mech_fill(page_of(block, 4), 5000);
	for (size_t i = 0; i < 9; i++) {
		assert_true(mech_holds(page_of(block, i), i == 4 ? 5000 : 120 + i));
		assert_int_equal(mech_is_file_page(page_of(block, i)), i != 4);
	}
	assert_true(mech_wait_lost(page_of(block, 4), &lost));
	/* Its neighbours can still be revoked. */
	mech_fill(page_of(block, 3), 5001);
	mech_fill(page_of(block, 5), 5002);
	for (size_t i = 0; i < 9; i++)
		assert_true(mech_holds(page_of(block, i), i == 3   ? 5001
							  : i == 4 ? 5000
							  : i == 5 ? 5002
								   : 120 + i));
	mech_block_free(block, N);
	mech_drop_lost();
}

static void check_flags(size_t first, size_t n, bool together)
{
	uint8_t *block = mech_block(N);
	char before[256], after[256];
	PfShimLost lost;

	mech_fill(page_of(block, first), 1);
	mech_vm_flags(page_of(block, first), before);
	assert_non_null(strstr(before, " dc"));
	assert_non_null(strstr(before, " dd"));
	fill_and_fuse(page_of(block, first), n, 200, together);
	mech_vm_flags(page_of(block, first), after);
	assert_non_null(strstr(after, " dc"));
	assert_non_null(strstr(after, " dd"));
	for (size_t i = 0; i < n; i++)
		*page_of(block, first + i) ^= 1;
	assert_true(mech_wait_lost(page_of(block, first + n - 1), &lost));
	for (size_t i = 0; i < n; i++) {
		mech_vm_flags(page_of(block, first + i), after);
		assert_string_equal(after, before);
	}
	mech_block_free(block, N);
	mech_drop_lost();
}

static void test_vma_flags(void **state)
{
	check_flags(10, 1, true);
	check_flags(0, 1, true);
	check_flags(N - 1, 1, true);
	check_flags(0, N, true);
	check_flags(100, 8, true);
	check_flags(100, 8, false);
}

static void check_maps_come_back(uint8_t *block)
{
	size_t before, fused, after;
	PfShimLost lost;

	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(block, i), i);
	before = mech_n_maps();
	for (size_t i = 1; i < N; i += 4)
		fill_and_fuse(page_of(block, i), 1, 300 + i, false);
	fused = mech_n_maps();
	assert_true(fused >= before + 2 * (N / 4) - 2);
	for (size_t i = 1; i < N; i += 4)
		*page_of(block, i) ^= 1;
	for (size_t i = 1; i < N; i += 4)
		assert_true(mech_wait_lost(page_of(block, i), &lost));
	after = mech_n_maps();
	print_message("maps %zu, fused %zu, revoked %zu\n", before, fused, after);
	assert_true(after <= before + 8);
	for (size_t i = 0; i < N; i++) {
		if (i % 4 == 1)
			*page_of(block, i) ^= 1;
		assert_true(mech_holds(page_of(block, i), i % 4 == 1 ? 300 + i : i));
	}
	mech_block_free(block, N);
	mech_drop_lost();
}

static void test_maps_come_back(void **state)
{
	check_maps_come_back(mech_block(N));
}

/* The kernel puts new mappings into the hole beside guest RAM, and could take them for a part of it. */
static void test_hole_beside_the_block(void **state)
{
	uint8_t *block = mech_block(N), *fillers[1024], *hole = NULL;
	size_t n = 0;

	/* Holes above it are taken first. */
	while (n < 1024 && hole != block - PF_PAGE_SIZE) {
		hole = mmap(NULL, PF_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		assert_true(hole != MAP_FAILED);
		fillers[n++] = hole;
	}
	if (hole == block - PF_PAGE_SIZE) {
		munmap(fillers[--n], PF_PAGE_SIZE);
		check_maps_come_back(block);
	} else {
		print_message("there is no hole beside the block\n");
		mech_block_free(block, N);
	}
	while (n > 0)
		munmap(fillers[--n], PF_PAGE_SIZE);
}

static void test_runs_from_the_edge(void **state)
{
	uint8_t *block = mech_block(N);
	size_t before, fused, after;
	PfShimLost lost;

	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(block, i), i);
	before = mech_n_maps();
	for (size_t i = 4; i + 16 <= N; i += 16) {
		mech_skip_frames(1);
		fill_and_fuse(page_of(block, i), 8, 400 + i, true);
	}
	fused = mech_n_maps();
	for (size_t i = 4; i + 16 <= N; i += 16)
		for (size_t j = 0; j < 8; j++)
			*page_of(block, i + j) ^= 1;
	for (size_t i = 4; i + 16 <= N; i += 16)
		assert_true(mech_wait_lost(page_of(block, i + 7), &lost));
	after = mech_n_maps();
	print_message("maps %zu, fused %zu, revoked %zu\n", before, fused, after);
	assert_true(after <= before + 8);
	mech_block_free(block, N);
	mech_drop_lost();
}

/* The kernel is the writer: a system call stores into a fused page. */
static void test_written_by_a_system_call(void **state)
{
	uint8_t *block = mech_block(N);
	int pipes[2];

	fill_and_fuse(block, 2, 500, true);
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(write(pipes[1], "0123456789", 10), 10);
	assert_int_equal(read(pipes[0], page_of(block, 1) - 5, 10), 10);
	assert_memory_equal(page_of(block, 1) - 5, "0123456789", 10);
	close(pipes[0]);
	close(pipes[1]);
	mech_block_free(block, N);
	mech_drop_lost();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_write_makes_private),
		cmocka_unit_test(test_reading_does_not_revoke),
		cmocka_unit_test(test_other_block_keeps_the_frame),
		cmocka_unit_test(test_middle_of_a_run),
		cmocka_unit_test(test_vma_flags),
		cmocka_unit_test(test_maps_come_back),
		cmocka_unit_test(test_hole_beside_the_block),
		cmocka_unit_test(test_runs_from_the_edge),
		cmocka_unit_test(test_written_by_a_system_call),
	};

	mech_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
