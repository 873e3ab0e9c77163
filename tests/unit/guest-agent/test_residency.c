// SPDX-License-Identifier: LGPL-2.1-or-later
/* Needs root, for an overlay. */
#include "guest-agent/find/residency.h"
#include "common/page.h"
#include "little_fuse.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define CACHESTAT 451
#define TEBIBYTE  (1ull << 40)

static char path[64];
static int file_fd;
static unsigned n_calls;
static bool old_kernel;

long __real_syscall(long number, ...);
long __wrap_syscall(long number, long a, long b, long c, long d);

/* Counts the calls of cachestat(), which old kernels do not have. */
long __wrap_syscall(long number, long a, long b, long c, long d)
{
	n_calls += number == CACHESTAT;
	if (number == CACHESTAT && old_kernel) {
		errno = ENOSYS;
		return -1;
	}
	return __real_syscall(number, a, b, c, d);
}

static int setup(void **state)
{
	strcpy(path, "/var/tmp/pagefusion-test-XXXXXX");
	file_fd = mkostemp(path, O_CLOEXEC);
	n_calls = 0;
	return file_fd < 0 || ftruncate(file_fd, TEBIBYTE) < 0;
}

static int teardown(void **state)
{
	close(file_fd);
	unlink(path);
	return 0;
}

/* A written page is resident. */
static void write_page(uint64_t page)
{
	assert_int_equal(pwrite(file_fd, "x", 1, (off_t)(page * PF_PAGE_SIZE)), 1);
}

static void test_huge_sparse_file(void **state)
{
	static const uint64_t pages[] = {5, 1234567, TEBIBYTE / PF_PAGE_SIZE - 1};
	const uint64_t end = TEBIBYTE / PF_PAGE_SIZE;
	uint64_t first = 0;

	assert_false(pf_residency_possible(file_fd, 0, end));
	assert_int_equal(pf_residency_next(file_fd, 0, end), end);
	for (size_t i = 0; i < 3; i++)
		write_page(pages[i]);
	n_calls = 0;
	for (size_t i = 0; i < 3; i++) {
		first = pf_residency_next(file_fd, first, end);
		assert_int_equal(first, pages[i]);
		first++;
	}
	assert_int_equal(pf_residency_next(file_fd, first, end), end);
	assert_in_range(n_calls, 3, 3 * 60);
}

static void test_dense_file(void **state)
{
	for (unsigned i = 100; i < 200; i++)
		write_page(i);
	assert_int_equal(pf_residency_next(file_fd, 0, 1000), 100);
	n_calls = 0;
	for (unsigned i = 100; i < 200; i++)
		assert_int_equal(pf_residency_next(file_fd, i, 1000), i);
	assert_int_equal(n_calls, 100);
	assert_int_equal(pf_residency_next(file_fd, 200, 1000), 1000);
}

static void test_edges(void **state)
{
	write_page(10);
	assert_int_equal(pf_residency_next(file_fd, 0, 10), 10);
	assert_int_equal(pf_residency_next(file_fd, 0, 11), 10);
	assert_int_equal(pf_residency_next(file_fd, 10, 10), 10);
	assert_int_equal(pf_residency_next(file_fd, 11, 12), 12);
	assert_int_equal(pf_residency_next(file_fd, 12, 11), 11);
	assert_false(pf_residency_possible(file_fd, 0, 10));
	assert_false(pf_residency_possible(file_fd, 10, 0));
	assert_true(pf_residency_possible(file_fd, 10, 1));
	assert_true(pf_residency_possible(file_fd, 0, 1000));
	assert_false(pf_residency_possible(file_fd, 11, 1000));
}

/* Each page that is resident is found, wherever it lies. */
static void test_all_patterns(void **state)
{
	bool resident[64] = {false};
	unsigned seed = 1;

	for (unsigned round = 0; round < 20; round++) {
		unsigned page = (unsigned)rand_r(&seed) % 64;

		write_page(page);
		resident[page] = true;
		for (uint64_t first = 0; first < 64; first++) {
			uint64_t next = first;

			while (next < 64 && !resident[next])
				next++;
			assert_int_equal(pf_residency_next(file_fd, first, 64), next);
		}
	}
}

static void make_directory(char *to, size_t size, const char *name)
{
	snprintf(to, size, "%s.d/%s", path, name);
	assert_int_equal(mkdir(to, 0700), 0);
}

/* Its pages are those of the file below, where cachestat() does not look. */
static void test_overlay(void **state)
{
	char lower[96], empty[96], over[96], file[128], options[256];
	int fd;

	snprintf(file, sizeof(file), "%s.d", path);
	assert_int_equal(mkdir(file, 0700), 0);
	make_directory(lower, sizeof(lower), "lower");
	make_directory(empty, sizeof(empty), "empty");
	make_directory(over, sizeof(over), "over");
	snprintf(options, sizeof(options), "lowerdir=%s:%s", lower, empty);
	snprintf(file, sizeof(file), "%s/file", lower);
	fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(write(fd, "x", 1), 1);
	close(fd);
	assert_int_equal(mount("overlay", over, "overlay", 0, options), 0);
	snprintf(file, sizeof(file), "%s/file", over);
	fd = open(file, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_true(pf_residency_possible(fd, 0, 1));
	assert_int_equal(pf_residency_next(fd, 0, 1), 0);
	close(fd);
	assert_int_equal(umount(over), 0);
	snprintf(file, sizeof(file), "%s/file", lower);
	assert_int_equal(unlink(file), 0);
	rmdir(lower);
	rmdir(empty);
	rmdir(over);
	snprintf(file, sizeof(file), "%s.d", path);
	assert_int_equal(rmdir(file), 0);
}

/* The last test: that is remembered. */
static void test_old_kernel(void **state)
{
	old_kernel = true;
	assert_true(pf_residency_possible(file_fd, 0, 10));
	assert_int_equal(pf_residency_next(file_fd, 3, 10), 3);
	assert_int_equal(pf_residency_next(file_fd, 10, 10), 10);
	assert_int_equal(n_calls, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_huge_sparse_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_dense_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_edges, setup, teardown),
		cmocka_unit_test_setup_teardown(test_all_patterns, setup, teardown),
		cmocka_unit_test_setup_teardown(test_overlay, setup, teardown),
		cmocka_unit_test_setup_teardown(test_old_kernel, setup, teardown),
	};

	little_fuse_enter();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
