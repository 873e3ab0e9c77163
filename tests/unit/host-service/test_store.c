/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/store.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static int make_store(void **state)
{
	*state = pf_store_new("default", NULL);
	return *state ? 0 : -1;
}

static int free_store(void **state)
{
	pf_store_free(*state);
	return 0;
}

static const uint8_t *filled_page(uint8_t fill)
{
	static uint8_t page[PF_PAGE_SIZE];

	memset(page, fill, sizeof(page));
	return page;
}

static void assert_frame_is(PfStore *store, uint64_t frame, const uint8_t *page)
{
	uint8_t bytes[PF_PAGE_SIZE];

	assert_int_equal(pread(pf_store_readonly_fd(store), bytes, sizeof(bytes),
				 (off_t)(frame << PF_PAGE_SHIFT)),
		sizeof(bytes));
	assert_memory_equal(bytes, page, sizeof(bytes));
}

static void test_write_once(void **state)
{
	PfStore *store = *state;
	static const uint64_t frames[] = {
		0, 1, 8, 16384, 32767, 32768, 1ull << 25, (1ull << 32) - 1};

	for (size_t i = 0; i < G_N_ELEMENTS(frames); i++)
		assert_int_equal(
			pf_store_write(store, (PfFrame){frames[i]}, filled_page((uint8_t)(i + 1))),
			0);
	for (size_t i = 0; i < G_N_ELEMENTS(frames); i++) {
		assert_int_equal(
			pf_store_write(store, (PfFrame){frames[i]}, filled_page(0xee)), -EEXIST);
		assert_frame_is(store, frames[i], filled_page((uint8_t)(i + 1)));
	}
	assert_int_equal(pf_store_allocated_kib(store), 4 * G_N_ELEMENTS(frames));
}

static void test_behind_the_end(void **state)
{
	PfStore *store = *state;

	assert_int_equal(pf_store_write(store, (PfFrame){1ull << 32}, filled_page(1)), -ENOSPC);
	assert_int_equal(pf_store_write(store, (PfFrame){UINT64_MAX}, filled_page(1)), -ENOSPC);
	assert_int_equal(pf_store_allocated_kib(store), 0);
}

static void test_vms_can_only_read(void **state)
{
	PfStore *store = *state;
	int fd = pf_store_readonly_fd(store);
	struct stat status;
	uint8_t *map;

	assert_int_equal(pf_store_write(store, (PfFrame){3}, filled_page(0x33)), 0);
	assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(fstat(fd, &status), 0);
	assert_int_equal(status.st_mode & 07777, 0600);
	assert_int_equal(pwrite(fd, "x", 1, 0), -1);
	assert_ptr_equal(
		mmap(NULL, PF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	assert_int_equal(errno, EACCES);

	map = mmap(NULL, PF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 3 * PF_PAGE_SIZE);
	assert_ptr_not_equal(map, MAP_FAILED);
	map[0] = 0x44;
	assert_frame_is(store, 3, filled_page(0x33));
	munmap(map, PF_PAGE_SIZE);
}

static void test_size_is_sealed(void **state)
{
	int fd = pf_store_readonly_fd(*state);

	assert_int_equal(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW);
}

/* The kernel takes the first 100 bytes of a page and refuses the others. */
static void test_half_a_page_is_none(void **state)
{
	PfStore *store = *state;
	struct rlimit before, limit;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	limit = before;
	limit.rlim_cur = 5 * PF_PAGE_SIZE + 100;
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	assert_int_equal(pf_store_write(store, (PfFrame){5}, filled_page(0x55)), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);

	assert_int_equal(pf_store_allocated_kib(store), 0);
	assert_int_equal(pf_store_write(store, (PfFrame){5}, filled_page(0x66)), 0);
	assert_frame_is(store, 5, filled_page(0x66));
	assert_int_equal(pf_store_write(store, (PfFrame){5}, filled_page(0x77)), -EEXIST);
}

static char *link_of(const PfStore *store)
{
	g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", pf_store_readonly_fd(store));

	return g_file_read_link(path, NULL);
}

static void test_name(void **state)
{
	PfStore *store = *state, *odd;
	g_autofree char *name = link_of(store), *odd_name = NULL;
	g_autofree char *long_group = g_strnfill(4000, '/');

	assert_non_null(strstr(name, "memfd:pagefusion-default"));
	odd = pf_store_new(long_group, NULL);
	assert_non_null(odd);
	odd_name = link_of(odd);
	assert_non_null(strstr(odd_name, "memfd:pagefusion-____"));
	assert_true(strlen(odd_name) < 256);
	assert_memory_not_equal(pf_store_id(store), pf_store_id(odd), 16);
	pf_store_free(odd);
}

/* Out of descriptors, as an example of what can fail. */
static void test_error_is_told(void **state)
{
	g_autoptr(GError) error = NULL;
	struct rlimit before, limit;
	PfStore *store;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	limit = before;
	limit.rlim_cur = 0;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	store = pf_store_new("default", &error);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_null(store);
	assert_true(g_error_matches(error, G_FILE_ERROR, G_FILE_ERROR_MFILE));
}

int main(void)
{
#define STORE_TEST(test) cmocka_unit_test_setup_teardown(test, make_store, free_store)
	const struct CMUnitTest tests[] = {
		STORE_TEST(test_write_once),
		STORE_TEST(test_behind_the_end),
		STORE_TEST(test_vms_can_only_read),
		STORE_TEST(test_size_is_sealed),
		STORE_TEST(test_half_a_page_is_none),
		STORE_TEST(test_name),
		cmocka_unit_test(test_error_is_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
