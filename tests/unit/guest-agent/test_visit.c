// SPDX-License-Identifier: LGPL-2.1-or-later
/* What a visit finds, also of a file that changes under its hands. */
#include "guest-agent/find/look.h"
#include "visited_file.h"
#include "common/digest.h"
#include "common/log.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define N_PAGES    40
#define MANY_PAGES (2 * PF_LOOK_PAGES + 10)

static VisitedFile v;

/* Done between mincore() and the touch, and while pages are hashed. */
static void (*after_mincore)(uint8_t *resident);
static void (*before_hash)(void);

int __real_mincore(void *address, size_t size, unsigned char *resident);
int __wrap_mincore(void *address, size_t size, unsigned char *resident);
int __real_pf_hasher_page(PfHasher *hasher, const void *page, PfDigest *digest);
int __wrap_pf_hasher_page(PfHasher *hasher, const void *page, PfDigest *digest);

static int mincore_error; /* 0: none */

int __wrap_mincore(void *address, size_t size, unsigned char *resident)
{
	void (*act)(uint8_t *) = after_mincore;
	int r = __real_mincore(address, size, resident);

	if (mincore_error != 0) {
		errno = mincore_error;
		return -1;
	}
	after_mincore = NULL;
	if (act)
		act(resident);
	return r;
}

int __wrap_pf_hasher_page(PfHasher *hasher, const void *page, PfDigest *digest)
{
	void (*act)(void) = before_hash;

	before_hash = NULL;
	if (act)
		act();
	return __real_pf_hasher_page(hasher, page, digest);
}

static unsigned n_warnings;

void __wrap_pf_log(PfLogLevel level, const char *format, ...);

void __wrap_pf_log(PfLogLevel level, const char *format, ...)
{
	n_warnings += level == PF_LOG_WARNING;
}

static int setup(void **state)
{
	return visited_file_open(&v, PF_SOURCE_FILE, N_PAGES);
}

static int setup_volatile(void **state)
{
	return visited_file_open(&v, PF_SOURCE_BLOCK_DEVICE, N_PAGES);
}

static int setup_many(void **state)
{
	return visited_file_open(&v, PF_SOURCE_FILE, MANY_PAGES);
}

static int teardown(void **state)
{
	visited_file_close(&v);
	return 0;
}

static unsigned n_known(void)
{
	return (unsigned)v.file->n_reportable;
}

static void test_finds_all(void **state)
{
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(v.n_hashed, MANY_PAGES);
	assert_int_equal(v.n_steps, 3);
	assert_int_equal(n_known(), MANY_PAGES);
	for (unsigned i = 0; i < MANY_PAGES; i++)
		visited_file_assert_page(&v, i, 1);
}

static void test_only_resident(void **state)
{
	uint8_t resident[N_PAGES];

	visited_file_evict(&v, 3, 10);
	visited_file_map_resident(&v, resident, N_PAGES);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	for (unsigned i = 0; i < N_PAGES; i++)
		assert_int_equal(pf_file_find(v.file, i) != NULL, resident[i]);
	assert_in_range(n_known(), 1, N_PAGES - 1);
	/* The visit itself brought nothing in. */
	assert_int_equal(visited_file_count_resident(&v, N_PAGES), n_known());
}

static void test_mapped_only(void **state)
{
	pf_file_join(v.file, PF_CLASS_MAPPED, 1);
	assert_int_equal(pf_page_ranges_add(&v.file->mapped, 2, 3), 0);
	assert_int_equal(pf_page_ranges_add(&v.file->mapped, 20, 1), 0);
	assert_int_equal(pf_page_ranges_add(&v.file->mapped, N_PAGES - 1, 100), 0);
	assert_int_equal(
		pf_visitor_visit(v.visitor, NULL, v.file, v.fd, &v.facts.ram, NULL, NULL), 0);
	assert_int_equal(n_known(), 5);
	visited_file_assert_page(&v, 2, 1);
	visited_file_assert_page(&v, 4, 1);
	visited_file_assert_page(&v, 20, 1);
	visited_file_assert_page(&v, N_PAGES - 1, 1);
}

static void test_never_hashed_twice(void **state)
{
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(v.n_hashed, N_PAGES);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(v.n_hashed, 0);
	assert_int_equal(v.n_steps, 1);
	/* They come back to other frames. */
	visited_file_evict(&v, 0, N_PAGES);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(n_known(), 0);
	assert_int_equal(posix_fadvise(v.fd, 0, 0, POSIX_FADV_RANDOM), 0);
	assert_int_equal(pread(v.fd, (char[1]){0}, 1, 7 * PF_PAGE_SIZE), 1);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(v.n_hashed, 0);
	assert_int_equal(n_known(), 1);
	visited_file_assert_page(&v, 7, 1);
}

static void test_volatile(void **state)
{
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(v.n_hashed, N_PAGES);
	assert_int_equal(n_known(), 0);
	visited_file_write(&v, 5, 2, 2);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(v.n_hashed, N_PAGES);
	assert_int_equal(n_known(), N_PAGES - 2);
	visited_file_assert_page(&v, 5, 2);
	visited_file_assert_page(&v, 7, 1);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(n_known(), N_PAGES);
}

static void test_huge_sparse_file(void **state)
{
	const uint64_t n_pages = 1ull << 28, far = 123456789;

	visited_file_evict(&v, 0, N_PAGES);
	assert_int_equal(ftruncate(v.fd, 0), 0);
	assert_int_equal(ftruncate(v.fd, (off_t)(n_pages * PF_PAGE_SIZE)), 0);
	visited_file_write(&v, 9, 1, 1);
	assert_int_equal(pwrite(v.fd, "x", 1, (off_t)(far * PF_PAGE_SIZE)), 1);
	assert_int_equal(pwrite(v.fd, "x", 1, (off_t)((n_pages - 1) * PF_PAGE_SIZE)), 1);
	visited_file_renew(&v);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(v.n_hashed, 3);
	assert_in_range(v.n_steps, 3, 4);
	assert_int_equal(n_known(), 3);
	visited_file_assert_page(&v, 9, 1);
	assert_non_null(pf_file_find(v.file, far));
	assert_non_null(pf_file_find(v.file, n_pages - 1));
}

/* What a visit skips, because nothing is there, was there once. */
static void test_skipped_is_gone(void **state)
{
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(n_known(), MANY_PAGES);
	visited_file_evict(&v, 0, MANY_PAGES - 10);
	assert_true(visited_file_count_resident(&v, PF_LOOK_PAGES) == 0);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_in_range(n_known(), 1, PF_LOOK_PAGES);
	assert_int_equal(n_known(), visited_file_count_resident(&v, MANY_PAGES));
	assert_int_equal(v.n_hashed, 0);
	assert_int_equal(v.file->n, MANY_PAGES);
}

static void cut_the_file(uint8_t *resident)
{
	assert_int_equal(ftruncate(v.fd, 5 * PF_PAGE_SIZE), 0);
}

static void test_truncated_before_the_touch(void **state)
{
	after_mincore = cut_the_file;
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(n_known(), 5);
	visited_file_assert_page(&v, 4, 1);
	/* It is no trouble of the disk. */
	assert_int_equal(n_warnings, 0);
}

static void cut_and_write_again(void)
{
	assert_int_equal(ftruncate(v.fd, 5 * PF_PAGE_SIZE), 0);
	visited_file_write(&v, 5, N_PAGES - 5, 2);
}

/* The first page is hashed when the others are replaced: their frame numbers are those of pages that are gone. */
static void test_replaced_while_hashing(void **state)
{
	before_hash = cut_and_write_again;
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_in_range(n_known(), 5, N_PAGES - 1);
	for (unsigned i = 0; i < N_PAGES; i++) {
		if (pf_file_find(v.file, i))
			visited_file_assert_page(&v, i, i < 5 ? 1 : 2);
	}
	visited_file_renew(&v);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(n_known(), N_PAGES);
	visited_file_assert_page(&v, 6, 2);
}

static void test_grown(void **state)
{
	visited_file_write(&v, N_PAGES, N_PAGES, 1);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(n_known(), N_PAGES);
	visited_file_renew(&v);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(n_known(), 2 * N_PAGES);
}

static void test_shrunk(void **state)
{
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(ftruncate(v.fd, 7 * PF_PAGE_SIZE), 0);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(n_known(), 7);
}

static int stop_at_second(void *userdata, uint64_t n_hashed)
{
	return ++*(unsigned *)userdata == 2 ? 1 : 0;
}

static void test_given_up(void **state)
{
	unsigned calls = 0;

	pf_file_join(v.file, PF_CLASS_CACHE, 1);
	assert_int_equal(pf_visitor_visit(v.visitor, NULL, v.file, v.fd, &v.facts.ram,
				 stop_at_second, &calls),
		1);
	assert_int_equal(calls, 2);
	assert_int_equal(n_known(), 2 * PF_LOOK_PAGES);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(v.n_hashed, 10);
}

static void test_other_ram(void **state)
{
	v.facts.ram = (PfRam){.ranges = {{{1ull << 39}, 1}}, .n = 1};
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(v.n_hashed, 0);
	assert_int_equal(v.file->n, 0);
}

/* A file that cannot be mapped is left as it is. */
/* What the kernel or the file's server says is no trouble of ours. */
static void test_no_memory_for_its_window(void **state)
{
	static const int errors[] = {ENOMEM, EAGAIN, EMFILE, EIO};

	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		mincore_error = errors[i];
		assert_int_equal(visited_file_visit(&v, NULL), 0);
	}
	mincore_error = 0;
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(n_known(), N_PAGES);
}

static void test_unreadable(void **state)
{
	int readable = v.fd;

	assert_int_equal(visited_file_visit(&v, NULL), 0);
	v.fd = open(v.path, O_WRONLY | O_CLOEXEC);
	assert_true(v.fd >= 0);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(n_known(), N_PAGES);
	close(v.fd);
	v.fd = -1;
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(n_known(), N_PAGES);
	v.fd = readable;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_finds_all, setup_many, teardown),
		cmocka_unit_test_setup_teardown(test_only_resident, setup, teardown),
		cmocka_unit_test_setup_teardown(test_mapped_only, setup, teardown),
		cmocka_unit_test_setup_teardown(test_never_hashed_twice, setup, teardown),
		cmocka_unit_test_setup_teardown(test_volatile, setup_volatile, teardown),
		cmocka_unit_test_setup_teardown(test_huge_sparse_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_skipped_is_gone, setup_many, teardown),
		cmocka_unit_test_setup_teardown(test_truncated_before_the_touch, setup, teardown),
		cmocka_unit_test_setup_teardown(test_replaced_while_hashing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_grown, setup, teardown),
		cmocka_unit_test_setup_teardown(test_shrunk, setup, teardown),
		cmocka_unit_test_setup_teardown(test_given_up, setup_many, teardown),
		cmocka_unit_test_setup_teardown(test_other_ram, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_memory_for_its_window, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unreadable, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
