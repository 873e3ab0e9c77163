/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Fusing: which pages become the frame's, and which are left alone. */
#include "tests/mechanism/mech.h"
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#define N 64u

static uint8_t *page_of(uint8_t *block, size_t i)
{
	return block + i * PF_PAGE_SIZE;
}

static void fill_block(uint8_t *block, size_t n_pages, uint64_t seed)
{
	for (size_t i = 0; i < n_pages; i++)
		mech_fill(page_of(block, i), seed + i);
}

/* The first of n frames with the contents that fill_block() makes. */
static PfFrame publish_run(uint64_t seed, size_t n_pages)
{
	PfFrame first = mech_publish_seed(seed);

	for (size_t i = 1; i < n_pages; i++)
		mech_publish_seed(seed + i);
	return first;
}

static void test_run_shares_one_page(void **state)
{
	uint8_t *a = mech_block(N), *b = mech_block(N), results[8];
	PfFrame frame = publish_run(100, 8);

	fill_block(a, N, 100);
	fill_block(page_of(b, 10), 8, 100);
	mech_fuse(a, frame, 8, results);
	for (int i = 0; i < 8; i++)
		assert_int_equal(results[i], PF_SHIM_DONE);
	mech_fuse(page_of(b, 10), frame, 8, results);
	for (size_t i = 0; i < 8; i++) {
		assert_int_equal(results[i], PF_SHIM_DONE);
		assert_true(mech_holds(page_of(a, i), 100 + i));
		assert_true(mech_holds(page_of(b, 10 + i), 100 + i));
		assert_true(mech_is_file_page(page_of(a, i)));
		assert_true(mech_pfn(page_of(a, i)) != 0);
		assert_int_equal(mech_pfn(page_of(a, i)), mech_pfn(page_of(b, 10 + i)));
	}
	/* What was not in the order is what it was. */
	assert_false(mech_is_file_page(page_of(a, 8)));
	assert_true(mech_holds(page_of(a, 8), 108));
	mech_block_free(a, N);
	mech_block_free(b, N);
}

static void test_longest_run(void **state)
{
	uint8_t *block = mech_block(N), results[PF_SHIM_RUN_PAGES];
	PfFrame frame = publish_run(200, PF_SHIM_RUN_PAGES);

	fill_block(block, N, 200);
	mech_fuse(block, frame, PF_SHIM_RUN_PAGES, results);
	for (size_t i = 0; i < PF_SHIM_RUN_PAGES; i++) {
		assert_int_equal(results[i], PF_SHIM_DONE);
		assert_true(mech_is_file_page(page_of(block, i)));
		assert_true(mech_holds(page_of(block, i), 200 + i));
	}
	mech_block_free(block, N);
}

static void test_different_page_in_a_run(void **state)
{
	uint8_t *block = mech_block(N), results[8];
	PfFrame frame = publish_run(300, 8);

	fill_block(block, N, 300);
	page_of(block, 3)[4095] ^= 1;
	mech_fuse(block, frame, 8, results);
	for (size_t i = 0; i < 8; i++) {
		assert_int_equal(results[i], i == 3 ? PF_SHIM_DIFFERENT : PF_SHIM_DONE);
		assert_int_equal(mech_is_file_page(page_of(block, i)), i != 3);
	}
	page_of(block, 3)[4095] ^= 1;
	assert_true(mech_holds(page_of(block, 3), 303));
	assert_int_equal(mech_fuse_page(page_of(block, 3), (PfFrame){frame.v + 3}), PF_SHIM_DONE);
	mech_block_free(block, N);
}

static void test_first_and_last_different(void **state)
{
	uint8_t *block = mech_block(N), results[4];
	PfFrame frame = publish_run(400, 4);

	fill_block(block, N, 400);
	*page_of(block, 0) ^= 1;
	*page_of(block, 3) ^= 1;
	mech_fuse(block, frame, 4, results);
	assert_int_equal(results[0], PF_SHIM_DIFFERENT);
	assert_int_equal(results[1], PF_SHIM_DONE);
	assert_int_equal(results[2], PF_SHIM_DONE);
	assert_int_equal(results[3], PF_SHIM_DIFFERENT);
	*page_of(block, 0) ^= 1;
	*page_of(block, 3) ^= 1;
	for (size_t i = 0; i < 4; i++)
		assert_true(mech_holds(page_of(block, i), 400 + i));
	mech_block_free(block, N);
}

static void test_not_present(void **state)
{
	uint8_t *block = mech_block(N), results[4];
	PfFrame frame = publish_run(500, 4);

	/* Small pages, so that touching some does not make the others present. */
	assert_int_equal(pf_core_madvise(block, N * PF_PAGE_SIZE, MADV_NOHUGEPAGE), 0);
	fill_block(block, 4, 500);
	assert_int_equal(pf_core_madvise(page_of(block, 2), PF_PAGE_SIZE, MADV_DONTNEED), 0);
	mech_fuse(block, frame, 4, results);
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(results[i], i == 2 ? PF_SHIM_NOT_PRESENT : PF_SHIM_DONE);
	assert_false(mech_is_present(page_of(block, 2)));
	assert_true(mech_is_zero(page_of(block, 2)));
	assert_int_equal(mech_fuse_page(page_of(block, 20), frame), PF_SHIM_NOT_PRESENT);
	mech_block_free(block, N);
}

static void test_zero_page_is_not_taken(void **state)
{
	uint8_t *block = mech_block(N);
	static const uint8_t zeros[PF_PAGE_SIZE];
	PfFrame frame = mech_publish(zeros);
	PfShimResult result;

	assert_int_equal(pf_core_madvise(block, N * PF_PAGE_SIZE, MADV_NOHUGEPAGE), 0);
	/* Read only: the kernel's shared page of zeros is mapped there. */
	assert_true(mech_is_zero(block));
	result = mech_fuse_page(block, frame);
	assert_true(result == PF_SHIM_DONE || result == PF_SHIM_BUSY || result == PF_SHIM_FAILED ||
		    result == PF_SHIM_NOT_PRESENT);
	assert_true(mech_is_zero(block));
	mech_fill(block, 1);
	assert_true(mech_holds(block, 1));
	mech_block_free(block, N);
}

static void test_outside(void **state)
{
	uint8_t *block = mech_block(N), results[4];
	uint8_t *other = mmap(
		NULL, 4 * PF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	PfFrame frame = publish_run(600, 4);

	assert_true(other != MAP_FAILED);
	fill_block(other, 4, 600);
	fill_block(page_of(block, N - 2), 2, 600);
	mech_fuse(other, frame, 4, results);
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(results[i], PF_SHIM_NOT_RAM);
		assert_true(mech_holds(page_of(other, i), 600 + i));
		assert_false(mech_is_file_page(page_of(other, i)));
	}
	/* Over the end: nothing beyond it is touched. */
	mech_fuse(page_of(block, N - 2), frame, 4, results);
	assert_int_equal(results[2], PF_SHIM_NOT_RAM);
	assert_int_equal(results[3], PF_SHIM_NOT_RAM);
	mech_fuse(block - PF_PAGE_SIZE, frame, 1, results);
	assert_int_equal(results[0], PF_SHIM_NOT_RAM);
	munmap(other, 4 * PF_PAGE_SIZE);
	mech_block_free(block, N);
}

static void test_twice(void **state)
{
	uint8_t *block = mech_block(N), results[4];
	PfFrame frame = publish_run(700, 4);
	PfShimState before, after;

	fill_block(block, N, 700);
	assert_int_equal(mech_fuse_page(page_of(block, 1), (PfFrame){frame.v + 1}), PF_SHIM_DONE);
	pf_core_state(&before, false);
	mech_fuse(block, frame, 4, results);
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(results[i], i == 1 ? PF_SHIM_NOT_PRIVATE : PF_SHIM_DONE);
		assert_true(mech_holds(page_of(block, i), 700 + i));
	}
	pf_core_state(&after, false);
	assert_int_equal(after.fused_pages, before.fused_pages + 3);
	mech_block_free(block, N);
}

static void test_bad_frame(void **state)
{
	static const uint64_t frames[] = {0, 1ull << 52, (1ull << 52) - 1, UINT64_MAX,
		UINT64_MAX - 1, 1ull << 63, (1ull << 51) - 2};
	uint8_t *block = mech_block(N), results[2];
	uint64_t end = mech_store_frames();

	fill_block(block, N, 800);
	for (size_t i = 0; i < sizeof(frames) / sizeof(frames[0]); i++) {
		PfFrame frame = {i == 0 ? end : frames[i]};

		mech_fuse(block, frame, 2, results);
		assert_int_equal(results[0], PF_SHIM_NO_FRAME);
		assert_int_equal(results[1], PF_SHIM_NO_FRAME);
	}
	/* The first is the store's last frame (a hole, so zeros), the second is beyond its end. */
	mech_fuse(block, (PfFrame){end - 1}, 2, results);
	assert_true(results[0] == PF_SHIM_NO_FRAME || results[0] == PF_SHIM_DIFFERENT);
	assert_int_equal(results[1], PF_SHIM_NO_FRAME);
	assert_true(mech_holds(block, 800));
	assert_true(mech_holds(page_of(block, 1), 801));
	assert_false(mech_is_file_page(block));
	mech_block_free(block, N);
}

static void test_absurd_orders(void **state)
{
	uint8_t *block = mech_block(N), results[PF_SHIM_RUN_PAGES + 1];
	PfFrame frame = publish_run(900, PF_SHIM_RUN_PAGES + 1);
	static const uint64_t addresses[] = {
		0, 4096, UINT64_MAX, UINT64_MAX - 4095, UINT64_MAX - 8191, 1ull << 47, 1ull << 63};

	fill_block(block, N, 900);
	results[0] = 0x55;
	pf_core_fuse(
		&(PfShimRun){.hva = (uintptr_t)block, .frame = frame.v, .n_pages = 0}, results);
	assert_int_equal(results[0], 0x55);
	mech_fuse(block, frame, PF_SHIM_RUN_PAGES + 1, results);
	for (size_t i = 0; i < PF_SHIM_RUN_PAGES + 1; i++) {
		assert_true(results[i] > PF_SHIM_DONE && results[i] < PF_SHIM_N_RESULTS);
		assert_false(mech_is_file_page(page_of(block, i)));
	}
	for (size_t i = 0; i < sizeof(addresses) / sizeof(addresses[0]); i++) {
		PfShimRun run = {.hva = addresses[i], .frame = frame.v, .n_pages = 3};

		memset(results, 0xee, sizeof(results));
		pf_core_fuse(&run, results);
		for (size_t j = 0; j < 3; j++)
			assert_int_equal(results[j], PF_SHIM_NOT_RAM);
	}
	mech_fuse(block + 1, frame, 2, results);
	assert_int_equal(results[0], PF_SHIM_NOT_RAM);
	assert_int_equal(results[1], PF_SHIM_NOT_RAM);
	for (size_t i = 0; i < N; i++)
		assert_true(mech_holds(page_of(block, i), 900 + i));
	mech_block_free(block, N);
}

static void test_huge_page_is_split(void **state)
{
	enum { PAGES = 1024 };
	uint8_t *block = mech_block(PAGES), results[4];
	PfFrame frame = publish_run(2100, 4);

	fill_block(block, PAGES, 2000);
	mech_fuse(page_of(block, 100), frame, 4, results);
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(results[i], PF_SHIM_DONE);
		assert_true(mech_is_file_page(page_of(block, 100 + i)));
	}
	for (size_t i = 0; i < PAGES; i++)
		assert_true(mech_holds(page_of(block, i), 2000 + i));
	mech_block_free(block, PAGES);
}

static PfShimRun run_of(const uint8_t *page, PfFrame frame, uint32_t n_pages)
{
	return (PfShimRun){.hva = (uintptr_t)page, .frame = frame.v, .n_pages = n_pages};
}

/* Without leave to break it a huge page is left alone, and what lies beside it is fused. */
static void test_huge_page_is_preserved(void **state)
{
	enum { PAGES = 1024, HUGE = 512 };
	uint8_t *block = mech_block(PAGES), *small = page_of(block, HUGE), results[4];
	PfFrame frame = publish_run(2000 + HUGE - 2, 4);
	PfShimRun run = run_of(small - 2 * PF_PAGE_SIZE, frame, 4);

	/* Behind the core's back, or it would make two blocks of it. */
	assert_int_equal(madvise(small, (PAGES - HUGE) * PF_PAGE_SIZE, MADV_NOHUGEPAGE), 0);
	fill_block(block, PAGES, 2000);
	if (mech_huge_kib(block) != 2048) {
		print_message("the kernel gives no huge page here\n");
		mech_block_free(block, PAGES);
		skip();
	}
	/* Over its end. */
	pf_core_fuse(&run, results);
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(results[i], i < 2 ? PF_SHIM_HUGE : PF_SHIM_DONE);
		assert_int_equal(mech_is_file_page(small + (i - 2) * PF_PAGE_SIZE), i >= 2);
	}
	assert_int_equal(mech_huge_kib(block), 2048);
	run = run_of(page_of(block, 100), frame, 4);
	pf_core_fuse(&run, results);
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(results[i], PF_SHIM_HUGE);
	assert_int_equal(mech_huge_kib(block), 2048);
	/* With leave it is broken, and what was in it is small from then on. */
	mech_fuse(small - 2 * PF_PAGE_SIZE, frame, 1, results);
	assert_int_equal(results[0], PF_SHIM_DONE);
	run = run_of(small - PF_PAGE_SIZE, (PfFrame){frame.v + 1}, 1);
	pf_core_fuse(&run, results);
	assert_int_equal(results[0], PF_SHIM_DONE);
	for (size_t i = 0; i < PAGES; i++)
		assert_true(mech_holds(page_of(block, i), 2000 + i));
	mech_block_free(block, PAGES);
	mech_drop_lost();
}

/* A list of a block that is too large to be looked at in one turn. */
static void test_list_of_a_large_block(void **state)
{
	enum { PAGES = 40000 };
	static const size_t at[] = {0, 16383, 16384, 20000, 32767, 39998};
	uint8_t *block = mech_block(PAGES);
	uint64_t cursor = 0;
	PfShimRun runs[4];
	size_t found = 0;

	assert_int_equal(pf_core_madvise(block, PAGES * PF_PAGE_SIZE, MADV_NOHUGEPAGE), 0);
	for (size_t i = 0; i < 6; i++) {
		mech_fill(page_of(block, at[i]), 3000 + i);
		mech_fill(page_of(block, at[i] + 1), 3100 + i);
	}
	for (size_t i = 0; i < 6; i++) {
		mech_skip_frames(1);
		assert_int_equal(
			mech_fuse_page(page_of(block, at[i]), mech_publish(page_of(block, at[i]))),
			PF_SHIM_DONE);
	}
	while (cursor != UINT64_MAX) {
		size_t n = pf_core_list(&cursor, runs, 4);

		for (size_t i = 0; i < n; i++, found++) {
			assert_int_equal(runs[i].hva, (uintptr_t)page_of(block, at[found]));
			assert_int_equal(runs[i].n_pages, 1);
			assert_int_equal(runs[i].flags, 0);
		}
	}
	assert_int_equal(found, 6);
	mech_block_free(block, PAGES);
	mech_drop_lost();
}

static void test_list(void **state)
{
	uint8_t *block = mech_block(N), results[4];
	PfFrame frame = publish_run(1000, 4);
	uint64_t cursor = 0, pages = 0;
	bool seen = false;
	PfShimRun runs[3];
	PfShimState snapshot;

	fill_block(block, N, 1000);
	mech_fuse(block, frame, 4, results);
	fill_block(page_of(block, 20), 4, 1000);
	for (size_t i = 0; i < 4; i++) /* backwards, so that these are four runs */
		assert_int_equal(mech_fuse_page(page_of(block, 20 + 2 * i),
					 i == 0 ? frame : mech_publish(page_of(block, 20 + 2 * i))),
			PF_SHIM_DONE);
	while (cursor != UINT64_MAX) {
		size_t n = pf_core_list(&cursor, runs, 3);

		assert_true(n <= 3);
		for (size_t i = 0; i < n; i++) {
			pages += runs[i].n_pages;
			seen |= runs[i].hva == (uintptr_t)block && runs[i].frame == frame.v &&
				runs[i].n_pages == 4;
		}
	}
	pf_core_state(&snapshot, true);
	assert_true(seen);
	assert_int_equal(pages, 8);
	assert_int_equal(snapshot.fused_pages, 8);
	assert_int_equal(snapshot.runs, 5);
	assert_int_equal(snapshot.stopped, 0);
	assert_true(snapshot.maps >= mech_n_maps() - 8 && snapshot.maps <= mech_n_maps() + 8);
	mech_block_free(block, N);
}

static void test_capture(void **state)
{
	uint8_t *block = mech_block(N), copy[PF_PAGE_SIZE];
	int fd = memfd_create("staging", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 4 * PF_PAGE_SIZE), 0);
	assert_int_equal(pf_core_madvise(block, N * PF_PAGE_SIZE, MADV_NOHUGEPAGE), 0);
	mech_fill(block, 1100);
	assert_int_equal(
		pf_core_capture((PfHva){(uintptr_t)block}, fd, 2 * PF_PAGE_SIZE), PF_SHIM_DONE);
	assert_int_equal(pread(fd, copy, sizeof(copy), 2 * PF_PAGE_SIZE), sizeof(copy));
	assert_true(mech_holds(copy, 1100));
	assert_int_equal(
		pf_core_capture((PfHva){(uintptr_t)page_of(block, 5)}, fd, 0), PF_SHIM_NOT_PRESENT);
	assert_int_equal(pf_core_capture((PfHva){(uintptr_t)copy}, fd, 0), PF_SHIM_NOT_RAM);
	assert_int_equal(pf_core_capture((PfHva){UINT64_MAX}, fd, 0), PF_SHIM_NOT_RAM);
	close(fd);
	mech_block_free(block, N);
}

static void test_store_must_be_read_only_and_sealed(void **state)
{
	static const uint8_t id[16] = "another";
	uint8_t *block = mech_block(N), got[16];
	int plain = memfd_create("plain", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	PfFrame frame = mech_publish_seed(1200);
	struct stat before, after;

	assert_true(plain >= 0);
	assert_int_equal(ftruncate(plain, 4 * PF_PAGE_SIZE), 0);
	assert_int_equal(pf_core_set_store(fcntl(plain, F_DUPFD_CLOEXEC, 0), id), -EINVAL);
	assert_int_equal(fcntl(plain, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	/* Sealed, but it can be written through this descriptor. */
	assert_int_equal(pf_core_set_store(plain, id), -EINVAL);
	assert_int_equal(pf_core_set_store(open("/dev/null", O_RDONLY | O_CLOEXEC), id), -EINVAL);

	assert_int_equal(fstat(pf_core_get_store(got), &before), 0);
	assert_string_equal((char *)got, "mechanism tests");
	mech_fill(block, 1200);
	assert_int_equal(mech_fuse_page(block, frame), PF_SHIM_DONE);
	assert_int_equal(pf_core_set_store(mech_store_fd(), id), -EBUSY);
	assert_int_equal(fstat(pf_core_get_store(got), &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	assert_true(mech_holds(block, 1200));
	mech_block_free(block, N);
}

static void test_blocks(void **state)
{
	uint8_t *block = mech_block(N);
	void *shared = mmap(
		NULL, 4 * PF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_true(shared != MAP_FAILED);
	assert_int_equal(pf_core_add_block(shared, 4 * PF_PAGE_SIZE), -EINVAL);
	assert_false(pf_core_touches(shared, 4 * PF_PAGE_SIZE));
	assert_true(pf_core_touches(block, 1));
	assert_true(pf_core_touches(block + N * PF_PAGE_SIZE - 1, 4096));
	assert_true(pf_core_touches(block - 4096, 4097));
	/* It may say yes between two blocks; beyond all of them it may not. */
	assert_false(pf_core_touches(NULL, 4096));
	munmap(shared, 4 * PF_PAGE_SIZE);
	mech_block_free(block, N);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_run_shares_one_page),
		cmocka_unit_test(test_longest_run),
		cmocka_unit_test(test_different_page_in_a_run),
		cmocka_unit_test(test_first_and_last_different),
		cmocka_unit_test(test_not_present),
		cmocka_unit_test(test_zero_page_is_not_taken),
		cmocka_unit_test(test_outside),
		cmocka_unit_test(test_twice),
		cmocka_unit_test(test_bad_frame),
		cmocka_unit_test(test_absurd_orders),
		cmocka_unit_test(test_huge_page_is_split),
		cmocka_unit_test(test_huge_page_is_preserved),
		cmocka_unit_test(test_list),

		cmocka_unit_test(test_capture),
		cmocka_unit_test(test_store_must_be_read_only_and_sealed),
		cmocka_unit_test(test_blocks),
		cmocka_unit_test(test_list_of_a_large_block),
	};

	mech_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
