// SPDX-License-Identifier: LGPL-2.1-or-later
/* That a page was looked at must not show: not on its way through the LRU lists, and not on the disk. */
#include "guest-agent/find/elf_id.h"
#include "visited_file.h"
#include <fcntl.h>
#include <linux/kernel-page-flags.h>
#include <sys/mman.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define N_PAGES 512
#define USED    (1ull << KPF_REFERENCED | 1ull << KPF_ACTIVE)

static VisitedFile v;
static int pretend = -1; /* page that counts as resident, next time */
static int advice, advice_at_unmap;

int __real_mincore(void *address, size_t size, unsigned char *resident);
int __wrap_mincore(void *address, size_t size, unsigned char *resident);
int __real_madvise(void *address, size_t size, int what);
int __wrap_madvise(void *address, size_t size, int what);
int __real_munmap(void *address, size_t size);
int __wrap_munmap(void *address, size_t size);

int __wrap_mincore(void *address, size_t size, unsigned char *resident)
{
	int r = __real_mincore(address, size, resident);

	if (pretend >= 0)
		resident[pretend] = 1;
	pretend = -1;
	return r;
}

int __wrap_madvise(void *address, size_t size, int what)
{
	advice = what;
	return __real_madvise(address, size, what);
}

int __wrap_munmap(void *address, size_t size)
{
	advice_at_unmap = advice;
	advice = -1;
	return __real_munmap(address, size);
}

static int setup(void **state)
{
	return visited_file_open(&v, PF_SOURCE_FILE, N_PAGES);
}

static int teardown(void **state)
{
	visited_file_close(&v);
	return 0;
}

/* Brings all pages in as reading ahead does: none of them counts as used. */
static void read_ahead(void)
{
	visited_file_evict(&v, 0, N_PAGES);
	assert_int_equal(visited_file_count_resident(&v, N_PAGES), 0);
	assert_int_equal(readahead(v.fd, 0, N_PAGES * PF_PAGE_SIZE), 0);
	for (unsigned i = 0; i < 10000 && visited_file_count_resident(&v, N_PAGES) < N_PAGES; i++)
		usleep(1000);
	assert_int_equal(visited_file_count_resident(&v, N_PAGES), N_PAGES);
}

static unsigned count_used(void)
{
	int fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	unsigned n = 0;

	assert_true(fd >= 0);
	assert_int_equal(v.file->n, N_PAGES);
	for (unsigned i = 0; i < N_PAGES; i++) {
		uint64_t flags, gfn = v.file->pages[i].gfn;

		assert_int_equal(pread(fd, &flags, sizeof(flags), (off_t)(gfn * sizeof(flags))),
			sizeof(flags));
		n += (flags & USED) != 0;
	}
	close(fd);
	return n;
}

static void test_lists_are_not_disturbed(void **state)
{
	uint8_t *map;

	read_ahead();
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(visited_file_visit(&v, NULL), 0);
		assert_int_equal(v.n_hashed, i == 0 ? N_PAGES : 0);
		assert_int_equal(count_used(), 0);
	}
	/* Whoever looks without care is noticed. */
	map = mmap(NULL, N_PAGES * PF_PAGE_SIZE, PROT_READ, MAP_SHARED, v.fd, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	for (unsigned i = 0; i < N_PAGES; i++)
		assert_int_equal(*(volatile uint8_t *)(map + i * PF_PAGE_SIZE), 1);
	munmap(map, N_PAGES * PF_PAGE_SIZE);
	assert_true(count_used() > 0);
}

static void test_build_id_neither(void **state)
{
	uint8_t id[PF_SESSION_MAX_BUILD_ID];
	const char *broken;

	read_ahead();
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(pf_elf_id_read(v.fd, id, &broken), 0);
	assert_int_equal(count_used(), 0);
}

/* Kernels before 6.3 look at this advice only, and at the time when the mapping goes. */
static void test_read_in_order_when_unmapped(void **state)
{
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(advice_at_unmap, MADV_SEQUENTIAL);
}

/* A page that is evicted before it is touched comes back, alone. */
static void test_no_neighbours_are_read(void **state)
{
	visited_file_evict(&v, 0, N_PAGES);
	assert_int_equal(pread(v.fd, (char[1]){0}, 0, 0), 0);
	assert_int_equal(posix_fadvise(v.fd, 0, 0, POSIX_FADV_RANDOM), 0);
	assert_int_equal(pread(v.fd, (char[1]){0}, 1, 0), 1);
	assert_int_equal(posix_fadvise(v.fd, 0, 0, POSIX_FADV_NORMAL), 0);
	assert_int_equal(visited_file_count_resident(&v, N_PAGES), 1);
	pretend = 100;
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(visited_file_count_resident(&v, N_PAGES), 2);
	assert_non_null(pf_file_find(v.file, 100));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_lists_are_not_disturbed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_build_id_neither, setup, teardown),
		cmocka_unit_test_setup_teardown(test_read_in_order_when_unmapped, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_neighbours_are_read, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
