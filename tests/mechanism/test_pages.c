/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Kinds of pages: what the kernel has done to a page before it is to be fused. Each kind has its result, the bytes stay
 * as they are, and when the page is an ordinary one again it is fused.
 */
#include "tests/mechanism/host.h"
#include "tests/mechanism/mech.h"
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cmocka.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define N          64u
#define HUGE_PAGES 512u /* pages in a huge page */
#define HUGE_BYTES (HUGE_PAGES * PF_PAGE_SIZE)
#define THP        "/sys/kernel/mm/transparent_hugepage/"
#define KSM        "/sys/kernel/mm/ksm/"
#define KPF_KSM    21 /* linux/kernel-page-flags.h */
#define WAIT_S     20

static uint8_t *page_of(uint8_t *block, size_t i)
{
	return block + i * PF_PAGE_SIZE;
}

static void nap(void)
{
	usleep(1000);
}

/* A write, after which the bytes are what they were. */
static void write_nothing_new(volatile uint8_t *page)
{
	page[5] ^= 1;
	page[5] ^= 1;
}

/* A block without huge pages, of pages with seeds first_seed.. */
static uint8_t *small_page_block(uint64_t first_seed)
{
	uint8_t *block = mech_block(N);

	assert_int_equal(pf_core_madvise(block, N * PF_PAGE_SIZE, MADV_NOHUGEPAGE), 0);
	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(block, i), first_seed + i);
	return block;
}

static PfFrame publish_run(uint64_t seed, size_t n_pages)
{
	PfFrame first = mech_publish_seed(seed);

	for (size_t i = 1; i < n_pages; i++)
		mech_publish_seed(seed + i);
	return first;
}

/* A page that was written out a moment ago may be under way still. */
static PfShimResult fuse_when_settled(uint8_t *page, PfFrame frame)
{
	double deadline = mech_now() + WAIT_S;
	PfShimResult result;

	while ((result = mech_fuse_page(page, frame)) == PF_SHIM_BUSY && mech_now() < deadline)
		nap();
	return result;
}

/* The run [0, 8) of the block: all but page 3 are fused, that one has this result; nothing has other bytes. */
static void expect_all_but_the_third(
	uint8_t *block, PfFrame frame, uint64_t seed, PfShimResult third, bool third_may_be_read)
{
	uint8_t results[8];

	mech_fuse(block, frame, 8, results);
	for (size_t i = 0; i < 8; i++) {
		assert_int_equal(results[i], i == 3 ? third : PF_SHIM_DONE);
		assert_int_equal(mech_is_file_page(page_of(block, i)), i != 3);
		if (i != 3 || third_may_be_read)
			assert_true(mech_holds(page_of(block, i), seed + i));
	}
}

static void test_swapped_out(void **state)
{
	uint8_t *block = small_page_block(100);
	PfFrame frame = publish_run(100, 8);
	double deadline = mech_now() + WAIT_S;

	if (!host_swap_on()) {
		print_message("no swap here: %s\n", host_why());
		skip();
	}
	while (!host_is_swapped(page_of(block, 3)) && mech_now() < deadline)
		madvise(page_of(block, 3), PF_PAGE_SIZE, MADV_PAGEOUT);
	assert_true(host_is_swapped(page_of(block, 3)));
	expect_all_but_the_third(block, frame, 100, PF_SHIM_NOT_PRESENT, false);
	/* Asking did not bring it back, and a capture does not either. */
	assert_int_equal(
		pf_core_capture((PfHva){(uintptr_t)page_of(block, 3)}, -1, 0), PF_SHIM_NOT_PRESENT);
	assert_true(host_is_swapped(page_of(block, 3)));
	assert_true(mech_holds(page_of(block, 3), 103));
	assert_int_equal(
		fuse_when_settled(page_of(block, 3), (PfFrame){frame.v + 3}), PF_SHIM_DONE);
	assert_true(mech_is_file_page(page_of(block, 3)));
	assert_true(mech_holds(page_of(block, 3), 103));
	mech_block_free(block, N);
}

/* Pages beside a swapped-out one are revoked, and that one comes back as it was. */
static void test_swapped_neighbours(void **state)
{
	uint8_t *block = small_page_block(200);
	PfFrame frame = publish_run(200, 8);
	double deadline = mech_now() + WAIT_S;

	if (!host_swap_on())
		skip();
	assert_int_equal(mech_fuse_page(page_of(block, 4), (PfFrame){frame.v + 4}), PF_SHIM_DONE);
	while (!(host_is_swapped(page_of(block, 3)) && host_is_swapped(page_of(block, 5))) &&
		mech_now() < deadline) {
		madvise(page_of(block, 3), PF_PAGE_SIZE, MADV_PAGEOUT);
		madvise(page_of(block, 5), PF_PAGE_SIZE, MADV_PAGEOUT);
	}
	assert_true(host_is_swapped(page_of(block, 3)));
	write_nothing_new(page_of(block, 4));
	assert_false(mech_is_file_page(page_of(block, 4)));
	for (size_t i = 0; i < N; i++)
		assert_true(mech_holds(page_of(block, i), 200 + i));
	mech_block_free(block, N);
}

/* It takes no memory, so fusing it gains nothing; but it is a page like others, and never anything but zeros. */
static void check_zero_page(bool huge)
{
	uint8_t *block = mech_block(HUGE_PAGES), zeros[PF_PAGE_SIZE] = {0};
	PfFrame zero = mech_publish(zeros), other = mech_publish_seed(300);
	PfShimResult result;

	if (!huge)
		assert_int_equal(pf_core_madvise(block, HUGE_BYTES, MADV_NOHUGEPAGE), 0);
	for (size_t i = 0; i < 8; i++)
		assert_true(mech_is_zero(page_of(block, i)));
	/* Anonymous memory would have been counted as such. */
	assert_int_equal(host_smaps_kib(block, HUGE_BYTES, "Anonymous"), 0);
	assert_true(mech_is_present(page_of(block, 2)));
	result = mech_fuse_page(page_of(block, 2), other);
	/* Linux before 6.9 does not move it; and in pagemap a huge page of zeros looks like a file's. */
	assert_true(result == PF_SHIM_DIFFERENT || result == PF_SHIM_BUSY ||
		    (huge && result == PF_SHIM_NOT_PRESENT));
	assert_true(mech_is_zero(page_of(block, 2)));
	if (result == PF_SHIM_DIFFERENT) {
		assert_int_equal(mech_fuse_page(page_of(block, 2), zero), PF_SHIM_DONE);
		assert_true(mech_is_file_page(page_of(block, 2)));
	}
	for (size_t i = 0; i < 8; i++)
		assert_true(mech_is_zero(page_of(block, i)));
	/* Written to, they are ordinary pages. */
	for (size_t i = 0; i < 8; i++)
		mech_fill(page_of(block, i), 300);
	for (size_t i = 0; i < 8; i++) {
		assert_int_equal(mech_fuse_page(page_of(block, i), other), PF_SHIM_DONE);
		assert_true(mech_holds(page_of(block, i), 300));
	}
	assert_true(mech_is_zero(page_of(block, 8)));
	mech_block_free(block, HUGE_PAGES);
}

static void test_shared_zero_page(void **state)
{
	check_zero_page(false);
}

static void test_huge_zero_page(void **state)
{
	check_zero_page(true);
}

static bool is_ksm_page(const void *page)
{
	int fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	uint64_t pfn = mech_pfn(page), flags = 0;

	assert_true(fd >= 0);
	if (pfn != 0)
		assert_int_equal(pread(fd, &flags, sizeof(flags), (off_t)(pfn * sizeof(flags))),
			sizeof(flags));
	close(fd);
	return flags >> KPF_KSM & 1;
}

static bool start_ksm(void)
{
	return host_set(KSM "sleep_millisecs", "1") && host_set(KSM "pages_to_scan", "10000") &&
	       host_set(KSM "run", "1");
}

static void test_merged_by_ksm(void **state)
{
	uint8_t *block = small_page_block(400);
	PfFrame frame = publish_run(400, 8);
	double deadline = mech_now() + WAIT_S;

	mech_fill(page_of(block, 40), 403);
	if (access(KSM "run", F_OK) < 0) {
		print_message("this kernel has no KSM\n");
		skip();
	}
	if (!start_ksm())
		fail_msg("%s", host_why());
	while (!is_ksm_page(page_of(block, 3)) && mech_now() < deadline)
		nap();
	assert_true(is_ksm_page(page_of(block, 3)));
	assert_int_equal(mech_pfn(page_of(block, 3)), mech_pfn(page_of(block, 40)));
	expect_all_but_the_third(block, frame, 400, PF_SHIM_BUSY, true);
	assert_true(mech_holds(page_of(block, 40), 403));
	/* QEMU takes it back, or the guest writes: private again. */
	assert_int_equal(pf_core_madvise(block, N * PF_PAGE_SIZE, MADV_UNMERGEABLE), 0);
	write_nothing_new(page_of(block, 3));
	assert_false(is_ksm_page(page_of(block, 3)));
	assert_int_equal(mech_fuse_page(page_of(block, 3), (PfFrame){frame.v + 3}), PF_SHIM_DONE);
	for (size_t i = 0; i < N; i++)
		assert_true(mech_holds(page_of(block, i), i == 40 ? 403 : 400 + i));
	mech_block_free(block, N);
}

/* AddressSanitizer makes mlock() do nothing: so these are system calls. */
static void test_mlocked(void **state)
{
	uint8_t *block = small_page_block(500);
	PfFrame frame = publish_run(500, 8);

	assert_int_equal(syscall(SYS_mlock, page_of(block, 3), PF_PAGE_SIZE), 0);
	expect_all_but_the_third(block, frame, 500, PF_SHIM_FAILED, true);
	assert_int_equal(syscall(SYS_munlock, page_of(block, 3), PF_PAGE_SIZE), 0);
	assert_int_equal(mech_fuse_page(page_of(block, 3), (PfFrame){frame.v + 3}), PF_SHIM_DONE);
	assert_true(mech_holds(page_of(block, 3), 503));
	mech_block_free(block, N);
}

/* Locking what is fused writes to it as the kernel does it: a revoke, and no deadlock. */
static void test_mlock_over_fused(void **state)
{
	uint8_t *block = small_page_block(600), results[8];
	PfFrame frame = publish_run(600, 8);

	mech_fuse(block, frame, 8, results);
	assert_int_equal(syscall(SYS_mlock, page_of(block, 2), 3 * PF_PAGE_SIZE), 0);
	for (size_t i = 0; i < 8; i++)
		assert_true(mech_holds(page_of(block, i), 600 + i));
	for (size_t i = 0; i < 8; i++) {
		mech_fill(page_of(block, i), 700 + i);
		assert_true(mech_holds(page_of(block, i), 700 + i));
	}
	assert_int_equal(syscall(SYS_munlock, page_of(block, 2), 3 * PF_PAGE_SIZE), 0);
	mech_block_free(block, N);
}

static void test_not_present(void **state)
{
	uint8_t *block = small_page_block(800);
	PfFrame frame = publish_run(800, 8);

	assert_int_equal(pf_core_madvise(page_of(block, 3), PF_PAGE_SIZE, MADV_DONTNEED), 0);
	expect_all_but_the_third(block, frame, 800, PF_SHIM_NOT_PRESENT, false);
	assert_false(mech_is_present(page_of(block, 3)));
	mech_fill(page_of(block, 3), 803);
	assert_int_equal(mech_fuse_page(page_of(block, 3), (PfFrame){frame.v + 3}), PF_SHIM_DONE);
	assert_true(mech_holds(page_of(block, 3), 803));
	mech_block_free(block, N);
}

/* Huge pages */

static uint64_t huge_kib(uint8_t *block, size_t length)
{
	return host_smaps_kib(block, length, "AnonHugePages");
}

/* The kernel may be busy with a page, or break a huge one again, on its own account: that passes. */
static void make_huge(uint8_t *start, size_t n)
{
	double deadline = mech_now() + WAIT_S;

	while (huge_kib(start, n * HUGE_BYTES) != n * HUGE_BYTES / 1024) {
		for (size_t i = 0; i < n; i++)
			if (pf_core_madvise(start + i * HUGE_BYTES, HUGE_BYTES, MADV_COLLAPSE) <
					0 &&
				errno != EAGAIN && errno != EBUSY && errno != ENOMEM)
				fail_msg("MADV_COLLAPSE: %s", strerror(errno));
		if (mech_now() > deadline)
			fail_msg("the kernel makes no huge pages");
		nap();
	}
}

/* A block of n huge pages, filled with seeds 1000..; or none: the kernel makes none. */
static uint8_t *huge_block(size_t n)
{
	uint8_t *block = mech_block(n * HUGE_PAGES);
	char enabled[64];

	host_read(THP "enabled", enabled, sizeof(enabled));
	if (strstr(enabled, "[never]") && !host_set(THP "enabled", "madvise"))
		fail_msg("%s", host_why());
	for (size_t i = 0; i < n * HUGE_PAGES; i++)
		mech_fill(page_of(block, i), 1000 + i);
	make_huge(block, n);
	return block;
}

static void expect_contents(uint8_t *block, size_t n_pages)
{
	for (size_t i = 0; i < n_pages; i++)
		assert_true(mech_holds(page_of(block, i), 1000 + i));
}

/* The host may hold a reference to a huge page for a moment, on its own account: that is BUSY, and passes. */
static void fuse_in_huge_page(uint8_t *page, PfFrame frame)
{
	double deadline = mech_now() + WAIT_S;
	PfShimResult result;

	while ((result = mech_fuse_page(page, frame)) == PF_SHIM_BUSY && mech_now() < deadline)
		nap();
	assert_int_equal(result, PF_SHIM_DONE);
}

/* A page mapped over a part of a huge page frees nothing as long as the huge page is in one piece. */
static void test_huge_page_memory_is_freed(void **state)
{
	enum { HUGE = 8 };
	PfFrame frame = publish_run(1000, HUGE * HUGE_PAGES);
	double deadline = mech_now() + WAIT_S;
	uint64_t before;
	uint8_t *block;

	if (!host_cgroup_enter()) {
		print_message("no memory cgroup here: %s\n", host_why());
		skip();
	}
	block = huge_block(HUGE);
	host_cgroup_leave();
	before = host_cgroup_bytes();
	for (size_t i = 0; i < HUGE; i++) {
		size_t page = i * HUGE_PAGES + 100;

		fuse_in_huge_page(page_of(block, page), (PfFrame){frame.v + page});
	}
	assert_int_equal(huge_kib(block, HUGE * HUGE_BYTES), 0);
	while (before - host_cgroup_bytes() < HUGE * PF_PAGE_SIZE && mech_now() < deadline)
		nap();
	print_message("%zu pages fused, one of each huge page: %lu bytes freed\n", (size_t)HUGE,
		before - host_cgroup_bytes());
	assert_true(before - host_cgroup_bytes() >= HUGE * PF_PAGE_SIZE);
	assert_true(before - host_cgroup_bytes() <= 2 * HUGE * PF_PAGE_SIZE);
	expect_contents(block, HUGE * HUGE_PAGES);
	mech_block_free(block, HUGE * HUGE_PAGES);
}

/* The VMA around the range, from /proc/self/maps: where it ends and begins. */
static void vma_around(const uint8_t *page, uintptr_t *start, uintptr_t *end)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512];
	bool found = false;

	*start = *end = 0;
	assert_non_null(maps);
	while (!found && fgets(line, sizeof(line), maps))
		found = sscanf(line, "%lx-%lx ", start, end) == 2 && (uintptr_t)page >= *start &&
			(uintptr_t)page < *end;
	fclose(maps);
	assert_true(found);
}

/*
 * Fuses pages of the middle one of three huge pages, makes them private in one of two ways, and wants it huge again.
 * false: one of the others was broken. The host may do that too, but not again and again.
 */
static bool is_huge_again(const size_t *fused, size_t n_fused, bool by_writing)
{
	uint8_t *block = huge_block(3), *middle = block + HUGE_BYTES;
	PfFrame frame = publish_run(1000, 3 * HUGE_PAGES);
	char before[256], after[256];
	uintptr_t start, end;
	bool others_are;

	mech_vm_flags(middle, before);
	for (size_t i = 0; i < n_fused; i++)
		fuse_in_huge_page(
			page_of(middle, fused[i]), (PfFrame){frame.v + HUGE_PAGES + fused[i]});
	for (size_t i = 0; by_writing && i < n_fused; i++)
		write_nothing_new(page_of(middle, fused[i]));
	if (!by_writing)
		pf_core_release((PfHva){(uintptr_t)middle}, HUGE_PAGES);
	vma_around(middle, &start, &end);
	assert_true(start <= (uintptr_t)middle);
	assert_true(end >= (uintptr_t)middle + HUGE_BYTES);
	mech_vm_flags(middle, after);
	assert_string_equal(after, before);
	/* Also the neighbours of a page at the edge. */
	others_are = huge_kib(block, 3 * HUGE_BYTES) == 2 * HUGE_BYTES / 1024;
	if (others_are)
		make_huge(block, 3);
	expect_contents(block, 3 * HUGE_PAGES);
	mech_block_free(block, 3 * HUGE_PAGES);
	return others_are;
}

static void check_huge_again(const size_t *fused, size_t n_fused, bool by_writing)
{
	for (int i = 0; i < 5; i++)
		if (is_huge_again(fused, n_fused, by_writing))
			return;
	fail_msg("a huge page was broken that has no fused page, or could not be made huge again");
}

static const size_t some_pages[] = {0, 1, 7, 255, 256, 300, 510, 511};

static void test_released_is_huge_again(void **state)
{
	check_huge_again((const size_t[]){100}, 1, false);
	check_huge_again(some_pages, sizeof(some_pages) / sizeof(some_pages[0]), false);
}

static void test_revoked_is_huge_again(void **state)
{
	check_huge_again((const size_t[]){100}, 1, true);
	check_huge_again(some_pages, sizeof(some_pages) / sizeof(some_pages[0]), true);
}

static int drop_lost(void **state)
{
	mech_drop_lost();
	return 0;
}

int main(void)
{
#define TEST(test) cmocka_unit_test_teardown(test, drop_lost)
	const struct CMUnitTest tests[] = {
		TEST(test_not_present),
		TEST(test_swapped_out),
		TEST(test_swapped_neighbours),
		TEST(test_shared_zero_page),
		TEST(test_huge_zero_page),
		TEST(test_merged_by_ksm),
		TEST(test_mlocked),
		TEST(test_mlock_over_fused),
		TEST(test_huge_page_memory_is_freed),
		TEST(test_released_is_huge_again),
		TEST(test_revoked_is_huge_again),
	};
#undef TEST

	host_start();
	mech_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
