/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* QEMU gives memory up, or maps something else there: zeros, and never a frame's bytes again. */
#include "tests/mechanism/mech.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#define N 64u

static uint8_t *page_of(uint8_t *block, size_t i)
{
	return block + i * PF_PAGE_SIZE;
}

/* A block of pages with seeds 0.., of which n from first on are fused. */
static uint8_t *fused_block(size_t first, uint32_t n, PfFrame *frame)
{
	uint8_t *block = mech_block(N), results[PF_SHIM_RUN_PAGES];

	mech_drop_lost();
	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(block, i), i);
	*frame = mech_publish_seed(first);
	for (size_t i = 1; i < n; i++)
		mech_publish_seed(first + i);
	mech_fuse(page_of(block, first), *frame, n, results);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(results[i], PF_SHIM_DONE);
	return block;
}

static void expect_lost(uint8_t *block, size_t first, size_t n, uint64_t frame)
{
	PfShimLost lost;

	for (size_t i = 0; i < n; i++) {
		assert_true(mech_wait_lost(page_of(block, first + i), &lost));
		assert_int_equal(lost.loss, PF_SHIM_LOST_DISCARDED);
		assert_int_equal(lost.frame + ((uintptr_t)page_of(block, first + i) - lost.hva) /
						      PF_PAGE_SIZE,
			frame + i);
	}
}

/* Pages [first, first + n) read as zeros, all others as they were filled, and all of them can be
 * written. */
static void expect_zeros(uint8_t *block, size_t first, size_t n)
{
	for (size_t i = 0; i < N; i++) {
		if (i >= first && i < first + n)
			assert_true(mech_is_zero(page_of(block, i)));
		else
			assert_true(mech_holds(page_of(block, i), i));
	}
	for (size_t i = 0; i < N; i++) {
		mech_fill(page_of(block, i), 7000 + i);
		assert_true(mech_holds(page_of(block, i), 7000 + i));
	}
}

static void test_dontneed_run(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(8, 8, &frame);

	assert_int_equal(pf_core_madvise(page_of(block, 8), 8 * PF_PAGE_SIZE, MADV_DONTNEED), 0);
	expect_lost(block, 8, 8, frame.v);
	expect_zeros(block, 8, 8);
	mech_block_free(block, N);
}

static void test_dontneed_part_of_a_run(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(8, 8, &frame);

	assert_int_equal(pf_core_madvise(page_of(block, 10), 3 * PF_PAGE_SIZE, MADV_DONTNEED), 0);
	expect_lost(block, 10, 3, frame.v + 2);
	assert_true(mech_is_file_page(page_of(block, 9)));
	assert_true(mech_is_file_page(page_of(block, 13)));
	expect_zeros(block, 10, 3);
	mech_block_free(block, N);
}

static void test_dontneed_everything(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(8, 8, &frame);
	PfShimState before, after;

	pf_core_state(&before, false);
	assert_int_equal(pf_core_madvise(block, N * PF_PAGE_SIZE, MADV_DONTNEED), 0);
	expect_lost(block, 8, 8, frame.v);
	pf_core_state(&after, false);
	assert_int_equal(after.fused_pages, before.fused_pages - 8);
	assert_int_equal(after.discarded_pages, before.discarded_pages + 8);
	expect_zeros(block, 0, N);
	/* Ordinary memory: it can be fused again. */
	mech_fill(page_of(block, 8), 8);
	assert_int_equal(mech_fuse_page(page_of(block, 8), frame), PF_SHIM_DONE);
	mech_block_free(block, N);
}

static void test_madv_free(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(8, 8, &frame);

	assert_int_equal(pf_core_madvise(page_of(block, 6), 8 * PF_PAGE_SIZE, MADV_FREE), 0);
	expect_lost(block, 8, 6, frame.v);
	for (size_t i = 6; i < 14; i++) {
		/* The kernel may or may not have taken the page yet. */
		assert_true(mech_is_zero(page_of(block, i)) || mech_holds(page_of(block, i), i));
		assert_false(mech_is_file_page(page_of(block, i)));
		assert_false(mech_in_file_vma(page_of(block, i)));
		mech_fill(page_of(block, i), 8000);
		assert_true(mech_holds(page_of(block, i), 8000));
	}
	assert_true(mech_is_file_page(page_of(block, 14)));
	mech_block_free(block, N);
}

/* The kernel refuses it on anonymous memory, and so nothing may be lost. */
static void test_remove(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(8, 8, &frame);

	errno = 0;
	assert_int_equal(pf_core_madvise(page_of(block, 8), 4 * PF_PAGE_SIZE, MADV_REMOVE), -1);
	assert_int_equal(errno, EINVAL);
	for (size_t i = 0; i < N; i++)
		assert_true(mech_holds(page_of(block, i), i));
	mech_block_free(block, N);
}

static void test_bad_arguments_are_the_kernels_to_refuse(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(8, 8, &frame);

	errno = 0;
	assert_int_equal(pf_core_madvise(block + 100, PF_PAGE_SIZE, MADV_DONTNEED), -1);
	assert_int_equal(errno, EINVAL);
	errno = 0;
	assert_int_equal(pf_core_munmap(block + 100, PF_PAGE_SIZE), -1);
	assert_int_equal(errno, EINVAL);
	errno = 0;
	assert_int_equal(pf_core_madvise(page_of(block, 8), PF_PAGE_SIZE, 9999), -1);
	assert_int_equal(errno, EINVAL);
	assert_int_equal(pf_core_madvise(page_of(block, 8), 0, MADV_DONTNEED), 0);
	for (size_t i = 0; i < N; i++)
		assert_true(mech_holds(page_of(block, i), i));
	mech_block_free(block, N);
}

/* A length that is no multiple of the page size is rounded up by the kernel: so is ours. */
static void test_length_is_rounded_up(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(8, 8, &frame);

	assert_int_equal(pf_core_madvise(page_of(block, 8), PF_PAGE_SIZE + 1, MADV_DONTNEED), 0);
	expect_lost(block, 8, 2, frame.v);
	expect_zeros(block, 8, 2);
	mech_block_free(block, N);
}

static void test_munmap(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(8, 8, &frame), results[8];
	uint8_t *again;

	assert_int_equal(pf_core_munmap(page_of(block, 10), 4 * PF_PAGE_SIZE), 0);
	expect_lost(block, 10, 4, frame.v + 2);
	mech_fuse(page_of(block, 8), frame, 8, results);
	for (size_t i = 2; i < 6; i++)
		assert_true(results[i] == PF_SHIM_NOT_RAM || results[i] == PF_SHIM_NOT_PRESENT);
	assert_true(mech_holds(page_of(block, 9), 9));
	assert_true(mech_holds(page_of(block, 14), 14));
	again = pf_core_mmap(page_of(block, 10), 4 * PF_PAGE_SIZE, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	assert_ptr_equal(again, page_of(block, 10));
	expect_zeros(block, 10, 4);
	mech_block_free(block, N);
}

static void test_mmap_fixed(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(8, 8, &frame), *again;

	again = pf_core_mmap(page_of(block, 6), 8 * PF_PAGE_SIZE, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	assert_ptr_equal(again, page_of(block, 6));
	expect_lost(block, 8, 6, frame.v);
	assert_true(mech_is_file_page(page_of(block, 14)));
	expect_zeros(block, 6, 8);
	mech_block_free(block, N);
}

/* A file of QEMU's own over guest RAM is not ours to fuse or to write to. */
static void test_file_over_a_block(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(8, 8, &frame), *again, page[PF_PAGE_SIZE];
	int fd = memfd_create("qemu's own", MFD_CLOEXEC);
	PfShimResult result;

	assert_true(fd >= 0);
	mech_fill(page, 8);
	assert_int_equal(pwrite(fd, page, sizeof(page), 0), sizeof(page));
	again = pf_core_mmap(page_of(block, 8), PF_PAGE_SIZE, PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_FIXED, fd, 0);
	assert_ptr_equal(again, page_of(block, 8));
	assert_true(mech_holds(page_of(block, 8), 8));
	result = mech_fuse_page(page_of(block, 8), frame);
	assert_int_not_equal(result, PF_SHIM_DONE);
	mech_fill(page_of(block, 8), 9000);
	assert_int_equal(pread(fd, page, sizeof(page), 0), sizeof(page));
	assert_true(mech_holds(page, 9000));
	for (size_t i = 9; i < 16; i++)
		assert_true(mech_holds(page_of(block, i), i));
	close(fd);
	mech_block_free(block, N);
}

static void test_mremap(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(8, 4, &frame), *moved, *target;
	PfShimLost lost;

	target = mmap(NULL, 4 * PF_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(target != MAP_FAILED);
	moved = pf_core_mremap(page_of(block, 8), 4 * PF_PAGE_SIZE, 4 * PF_PAGE_SIZE,
		MREMAP_MAYMOVE | MREMAP_FIXED, target);
	assert_ptr_equal(moved, target);
	for (size_t i = 0; i < 4; i++) {
		assert_true(mech_wait_lost(page_of(block, 8 + i), &lost));
		assert_int_equal(lost.loss, PF_SHIM_LOST_RELEASED);
		assert_true(mech_holds(page_of(moved, i), 8 + i));
		mech_fill(page_of(moved, i), 9500 + i);
		assert_true(mech_holds(page_of(moved, i), 9500 + i));
	}
	assert_int_equal(munmap(moved, 4 * PF_PAGE_SIZE), 0);
	mech_block_free(block, N);
}

static void test_mremap_over_fused(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(8, 4, &frame), *moved;
	uint8_t *source = mmap(
		NULL, 2 * PF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(source != MAP_FAILED);
	mech_fill(source, 9600);
	mech_fill(page_of(source, 1), 9601);
	moved = pf_core_mremap(source, 2 * PF_PAGE_SIZE, 2 * PF_PAGE_SIZE,
		MREMAP_MAYMOVE | MREMAP_FIXED, page_of(block, 9));
	assert_ptr_equal(moved, page_of(block, 9));
	expect_lost(block, 9, 2, frame.v + 1);
	assert_true(mech_holds(page_of(block, 8), 8));
	assert_true(mech_holds(page_of(block, 9), 9600));
	assert_true(mech_holds(page_of(block, 10), 9601));
	assert_true(mech_holds(page_of(block, 11), 11));
	for (size_t i = 8; i < 12; i++) {
		mech_fill(page_of(block, i), 9700 + i);
		assert_true(mech_holds(page_of(block, i), 9700 + i));
	}
	mech_block_free(block, N);
}

static void test_block_goes_away(void **state)
{
	PfFrame frame;
	uint8_t *block = fused_block(8, 8, &frame);
	PfShimState before, after;

	pf_core_state(&before, false);
	mech_block_free(block, N);
	expect_lost(block, 8, 8, frame.v);
	pf_core_state(&after, false);
	assert_int_equal(after.fused_pages, before.fused_pages - 8);
	assert_true(mech_fuse_page(page_of(block, 8), frame) != PF_SHIM_DONE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_dontneed_run),
		cmocka_unit_test(test_dontneed_part_of_a_run),
		cmocka_unit_test(test_dontneed_everything),
		cmocka_unit_test(test_madv_free),
		cmocka_unit_test(test_remove),
		cmocka_unit_test(test_bad_arguments_are_the_kernels_to_refuse),
		cmocka_unit_test(test_length_is_rounded_up),
		cmocka_unit_test(test_munmap),
		cmocka_unit_test(test_mmap_fixed),
		cmocka_unit_test(test_file_over_a_block),
		cmocka_unit_test(test_mremap),
		cmocka_unit_test(test_mremap_over_fused),
		cmocka_unit_test(test_block_goes_away),
	};

	mech_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
