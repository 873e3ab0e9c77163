/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/service/store.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "store_sweep.h"

#define LABEL_KIB 4

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
		512, 513, 520, 16384, 32767, 32768, 1ull << 25, (1ull << 32) - 1};

	for (size_t i = 0; i < G_N_ELEMENTS(frames); i++)
		assert_int_equal(
			pf_store_write(store, (PfFrame){frames[i]}, filled_page((uint8_t)(i + 1))),
			0);
	for (size_t i = 0; i < G_N_ELEMENTS(frames); i++) {
		assert_int_equal(
			pf_store_write(store, (PfFrame){frames[i]}, filled_page(0xee)), -EEXIST);
		assert_frame_is(store, frames[i], filled_page((uint8_t)(i + 1)));
	}
	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB + 4 * G_N_ELEMENTS(frames));
	assert_int_equal(pf_store_n_frames(store), G_N_ELEMENTS(frames));
}

static void test_behind_the_end(void **state)
{
	PfStore *store = *state;

	assert_int_equal(pf_store_write(store, (PfFrame){1ull << 32}, filled_page(1)), -ENOSPC);
	assert_int_equal(pf_store_write(store, (PfFrame){UINT64_MAX}, filled_page(1)), -ENOSPC);
	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB);
}

static void test_before_the_first(void **state)
{
	static const uint64_t frames[] = {0, 1, PF_STORE_FIRST_FRAME - 1};
	uint8_t page[PF_PAGE_SIZE];

	for (size_t i = 0; i < G_N_ELEMENTS(frames); i++) {
		assert_int_equal(
			pf_store_write(*state, (PfFrame){frames[i]}, filled_page(1)), -EINVAL);
		assert_int_equal(pf_store_read(*state, (PfFrame){frames[i]}, page), -ENOENT);
	}
	assert_int_equal(pf_store_first_own(*state), PF_STORE_FIRST_FRAME);
	assert_int_equal(pf_store_allocated_kib(*state), LABEL_KIB);
	assert_int_equal(pf_store_n_frames(*state), 0);
}

static void test_vms_can_only_read(void **state)
{
	PfStore *store = *state;
	int fd = pf_store_readonly_fd(store);
	struct stat status;
	uint8_t *map;

	assert_int_equal(pf_store_write(store, (PfFrame){515}, filled_page(0x33)), 0);
	assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(fstat(fd, &status), 0);
	assert_int_equal(status.st_mode & 07777, 0600);
	assert_int_equal(pwrite(fd, "x", 1, 0), -1);
	assert_ptr_equal(
		mmap(NULL, PF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	assert_int_equal(errno, EACCES);

	map = mmap(NULL, PF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 515 * PF_PAGE_SIZE);
	assert_ptr_not_equal(map, MAP_FAILED);
	map[0] = 0x44;
	assert_frame_is(store, 515, filled_page(0x33));
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
	limit.rlim_cur = 517 * PF_PAGE_SIZE + 100;
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	assert_int_equal(pf_store_write(store, (PfFrame){517}, filled_page(0x55)), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);

	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB);
	assert_int_equal(pf_store_n_frames(store), 0);
	assert_int_equal(pf_store_write(store, (PfFrame){517}, filled_page(0x66)), 0);
	assert_frame_is(store, 517, filled_page(0x66));
	assert_int_equal(pf_store_write(store, (PfFrame){517}, filled_page(0x77)), -EEXIST);
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
	g_autofree char *long_group = g_strnfill(255, '/');

	assert_non_null(strstr(name, "memfd:pagefusion-default"));
	odd = pf_store_new(long_group, NULL);
	assert_non_null(odd);
	odd_name = link_of(odd);
	assert_non_null(strstr(odd_name, "memfd:pagefusion-____"));
	assert_true(strlen(odd_name) < 256);
	assert_string_equal(pf_store_group(odd), long_group);
	assert_memory_not_equal(pf_store_id(store), pf_store_id(odd), 16);
	pf_store_free(odd);
}

/* A name that were cut could become another group's. */
static void test_no_name(void **unused)
{
	g_autofree char *long_group = g_strnfill(256, 'g');
	const char *names[] = {"", long_group, "not UTF-8: \xff"};

	for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
		g_autoptr(GError) error = NULL;

		assert_null(pf_store_new(names[i], &error));
		assert_true(g_error_matches(error, G_FILE_ERROR, G_FILE_ERROR_INVAL));
	}
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

static void test_descriptors(void **state)
{
	struct stat writable, readonly;

	assert_int_equal(fcntl(pf_store_fd(*state), F_GETFL) & O_ACCMODE, O_RDWR);
	assert_int_equal(fcntl(pf_store_fd(*state), F_GETFD), FD_CLOEXEC);
	assert_int_equal(fstat(pf_store_fd(*state), &writable), 0);
	assert_int_equal(fstat(pf_store_readonly_fd(*state), &readonly), 0);
	assert_int_equal(writable.st_ino, readonly.st_ino);
}

static void test_read(void **state)
{
	PfStore *store = *state;
	uint8_t page[PF_PAGE_SIZE] = {0};

	assert_int_equal(pf_store_write(store, (PfFrame){600}, filled_page(0x66)), 0);
	assert_int_equal(pf_store_read(store, (PfFrame){600}, page), 0);
	assert_memory_equal(page, filled_page(0x66), PF_PAGE_SIZE);
	assert_int_equal(pf_store_read(store, (PfFrame){599}, page), -ENOENT);
	assert_int_equal(pf_store_read(store, (PfFrame){601}, page), -ENOENT);
	assert_int_equal(pf_store_read(store, (PfFrame){1ull << 32}, page), -ENOENT);
	assert_int_equal(pf_store_read(store, (PfFrame){UINT64_MAX}, page), -ENOENT);
	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB + 4);
}

static void test_dropped_is_used(void **state)
{
	PfStore *store = *state;
	uint8_t page[PF_PAGE_SIZE];

	for (uint64_t frame = 700; frame < 703; frame++)
		assert_int_equal(pf_store_write(store, (PfFrame){frame}, filled_page(0x77)), 0);
	pf_store_drop(store, (PfFrame){701});
	assert_int_equal(pf_store_n_frames(store), 2);
	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB + 8);
	assert_int_equal(pf_store_write(store, (PfFrame){701}, filled_page(0x88)), -EEXIST);
	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB + 8);
	assert_int_equal(pf_store_read(store, (PfFrame){701}, page), -ENOENT);
	assert_frame_is(store, 700, filled_page(0x77));
	assert_frame_is(store, 702, filled_page(0x77));
}

/* Memory of the whole host that is in tmpfs, memfds and the like. */
static int64_t host_shmem_kib(void)
{
	g_autofree char *text = NULL;
	const char *line;

	assert_true(g_file_get_contents("/proc/meminfo", &text, NULL, NULL));
	line = strstr(text, "\nShmem:");
	assert_non_null(line);
	return g_ascii_strtoll(line + strlen("\nShmem:"), NULL, 10);
}

/* The host has its memory back. Others use such memory too: of the measurements of half a minute one has to be undisturbed. */
static void test_memory_goes_back(void **state)
{
	enum { FRAMES = 16384, KIB = 4 * FRAMES, TOLERANCE_KIB = KIB / 8 };
	uint64_t frame = PF_STORE_FIRST_FRAME;
	gint64 end = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;
	gboolean seen = FALSE;

	while (!seen && g_get_monotonic_time() < end) {
		int64_t before = host_shmem_kib(), full;

		for (int i = 0; i < FRAMES; i++)
			assert_int_equal(pf_store_write(*state, (PfFrame){frame + (unsigned)i},
						 filled_page(1)),
				0);
		full = host_shmem_kib();
		for (int i = 0; i < FRAMES; i++, frame++)
			pf_store_drop(*state, (PfFrame){frame});
		assert_int_equal(pf_store_allocated_kib(*state), LABEL_KIB);
		seen = ABS(full - before - KIB) < TOLERANCE_KIB &&
		       ABS(full - host_shmem_kib() - KIB) < TOLERANCE_KIB;
	}
	assert_true(seen);
	assert_int_equal(pf_store_n_frames(*state), 0);
}

/* A VM reads where nothing is: that costs us a page each time. */
static void touch_holes(const PfStore *store, uint64_t first_frame, uint64_t n)
{
	const uint8_t *map = mmap(NULL, n * PF_PAGE_SIZE, PROT_READ, MAP_PRIVATE,
		pf_store_readonly_fd(store), (off_t)(first_frame * PF_PAGE_SIZE));

	assert_ptr_not_equal(map, MAP_FAILED);
	for (uint64_t i = 0; i < n; i++)
		assert_int_equal(*(volatile const uint8_t *)(map + i * PF_PAGE_SIZE), 0);
	munmap((void *)map, n * PF_PAGE_SIZE);
}

static void test_sweep(void **state)
{
	PfStore *store = *state;
	static const uint64_t frames[] = {512, 1500, 1501, 1ull << 31};
	uint8_t page[PF_PAGE_SIZE];

	for (size_t i = 0; i < G_N_ELEMENTS(frames); i++)
		assert_int_equal(pf_store_write(store, (PfFrame){frames[i]}, filled_page(0x11)), 0);
	assert_int_equal(sweep(store), 0);
	touch_holes(store, 1, 511);
	touch_holes(store, 1000, 500);
	touch_holes(store, 1502, 500);
	touch_holes(store, (1ull << 32) - 10, 10);
	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB + 4 * (1521 + 4));
	/* It is not there because somebody has looked. */
	assert_int_equal(pf_store_read(store, (PfFrame){1000}, page), -ENOENT);

	assert_int_equal(sweep(store), 4 * 1521);
	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB + 4 * 4);
	for (size_t i = 0; i < G_N_ELEMENTS(frames); i++)
		assert_frame_is(store, frames[i], filled_page(0x11));
	assert_int_equal(pf_store_write(store, (PfFrame){1000}, filled_page(0x22)), 0);
}

/* A VM touches every other page, and many: no call stands still for long, and each goes on where the last one ended. */
static void test_sweep_in_turns(void **state)
{
	enum { TOUCHED = 60000, FIRST = 1u << 20, LONG = 20 };
	PfStore *store = *state;
	unsigned n_turns = 0, n_long = 0;
	uint64_t freed_kib = 1;
	bool more;

	assert_false(pf_store_sweep(store, 1000, &freed_kib));
	assert_int_equal(freed_kib, 0);
	assert_int_equal(pf_store_write(store, (PfFrame){FIRST + 1}, filled_page(0x11)), 0);
	for (uint64_t i = 0; i < TOUCHED; i++)
		touch_holes(store, FIRST + 2 * i, 1);
	pf_store_start_sweep(store);
	do {
		gint64 start_us = g_get_monotonic_time();

		assert_true(pf_store_is_sweeping(store));
		more = pf_store_sweep(store, 0, &freed_kib);
		n_long += g_get_monotonic_time() - start_us > LONG * 1000;
		n_turns++;
	} while (more);
	assert_false(pf_store_is_sweeping(store));
	/* The kernel may have taken some of them back itself: they are clean. */
	assert_in_range(freed_kib, 1, 4 * TOUCHED);
	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB + 4);
	assert_frame_is(store, FIRST + 1, filled_page(0x11));
	print_message("%u turns, %u of more than %u ms\n", n_turns, n_long, LONG);
	/* Whole stretches, not page by page; and one call that was held up by others proves nothing. */
	assert_in_range(n_turns, 2 * TOUCHED / 4096, 100);
	assert_true(n_long <= 2);
}

/* Whoever touches what is behind, or before, does not keep it from ending. */
static void test_sweep_ends(void **state)
{
	enum { STEP = 8192, FIRST = 1u << 20, N = 64 };
	PfStore *store = *state;
	uint64_t freed_kib;
	unsigned n_turns = 0;

	for (uint64_t i = 0; i < N; i++)
		touch_holes(store, FIRST + i * STEP, 1);
	pf_store_start_sweep(store);
	while (pf_store_sweep(store, 0, &freed_kib)) {
		touch_holes(store, FIRST, 1);
		touch_holes(store, FIRST - 1, 1);
		assert_true(++n_turns <= N);
	}
	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB + 4 * 2);
	assert_int_equal(sweep(store), 4 * 2);
}

/* Swap */

typedef struct Swap {
	char path[64];
	pid_t keeper; /* turns it off when our end of its pipe is closed, however we end */
	int pipe;
} Swap;

/* Room for 16 MiB, made as mkswap does it (include/linux/swap.h). */
static bool write_swap_file(int fd)
{
	enum { PAGES = 4096 };
	static uint8_t page[PF_PAGE_SIZE];
	const uint32_t header[] = {1, PAGES - 1, 0};

	memset(page, 0, sizeof page);
	for (int i = 1; i < PAGES; i++)
		if (pwrite(fd, page, sizeof page, (off_t)i * (off_t)PF_PAGE_SIZE) != sizeof page)
			return false;
	memcpy(page + 1024, header, sizeof header);
	memcpy(page + PF_PAGE_SIZE - 10, "SWAPSPACE2", 10);
	return pwrite(fd, page, sizeof page, 0) == sizeof page && fsync(fd) == 0;
}

static void keep_until_closed(const Swap *swap, int pipe_end)
{
	char byte;

	setsid();
	signal(SIGPIPE, SIG_IGN);
	if (swapon(swap->path, 0) < 0) {
		unlink(swap->path);
		_exit(1);
	}
	if (write(pipe_end, "1", 1) == 1)
		while (read(pipe_end, &byte, 1) < 0 && errno == EINTR)
			;
	swapoff(swap->path);
	unlink(swap->path);
	_exit(0);
}

/* -1: it cannot be had here. */
static int swap_on(Swap *swap)
{
	int fd, ends[2];
	char byte;

	g_strlcpy(swap->path, "/var/tmp/pf-test-swap-XXXXXX", sizeof swap->path);
	if (geteuid() != 0 || (fd = mkostemp(swap->path, O_CLOEXEC)) < 0)
		return -1;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	swap->keeper = write_swap_file(fd) ? fork() : -1;
	close(fd);
	if (swap->keeper == 0) {
		close(ends[0]);
		keep_until_closed(swap, ends[1]);
	}
	close(ends[1]);
	swap->pipe = ends[0];
	if (swap->keeper < 0)
		unlink(swap->path);
	else if (read(swap->pipe, &byte, 1) == 1)
		return 0;
	close(swap->pipe);
	if (swap->keeper > 0)
		waitpid(swap->keeper, NULL, 0);
	return -1;
}

static void swap_off(const Swap *swap)
{
	int status;

	close(swap->pipe);
	assert_int_equal(waitpid(swap->keeper, &status, 0), swap->keeper);
	assert_int_equal(status, 0);
	assert_int_equal(access(swap->path, F_OK), -1);
}

/* What the kernel says of this map's file. */
static uint64_t smaps_swap_kib(const void *map)
{
	g_autofree char *text = NULL;
	g_autofree char *start = g_strdup_printf("\n%lx-", (unsigned long)map);
	const char *at;

	assert_true(g_file_get_contents("/proc/self/smaps", &text, NULL, NULL));
	at = strstr(text, start);
	assert_non_null(at);
	at = strstr(at, "\nSwap:");
	assert_non_null(at);
	return g_ascii_strtoull(at + strlen("\nSwap:"), NULL, 10);
}

static void test_swapped(void **state)
{
	enum { FRAMES = 256 };
	PfStore *store = *state;
	uint8_t page[PF_PAGE_SIZE];
	uint64_t swapped;
	uint8_t *map;
	Swap swap;

	for (unsigned i = 0; i < FRAMES; i++)
		assert_int_equal(
			pf_store_write(store, (PfFrame){512 + i}, filled_page((uint8_t)(i | 1))),
			0);
	assert_int_equal(pf_store_swapped_kib(store), 0);
	if (swap_on(&swap) < 0) {
		print_message("no swap file can be had here\n");
		skip();
	}
	map = mmap(NULL, FRAMES * PF_PAGE_SIZE, PROT_READ, MAP_SHARED, pf_store_readonly_fd(store),
		512 * PF_PAGE_SIZE);
	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(madvise(map, FRAMES * PF_PAGE_SIZE, MADV_POPULATE_READ), 0);
	assert_int_equal(madvise(map, FRAMES * PF_PAGE_SIZE, MADV_PAGEOUT), 0);
	swapped = pf_store_swapped_kib(store);
	print_message("%lu of %u KiB are swapped out\n", (unsigned long)swapped, 4 * FRAMES);
	assert_true(swapped >= 4 * FRAMES / 2);
	assert_int_equal(swapped, smaps_swap_kib(map));
	/* Still ours, and still the same. */
	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB + 4 * FRAMES);
	assert_int_equal(sweep(store), 0);
	for (unsigned i = 0; i < FRAMES; i++) {
		assert_int_equal(pf_store_read(store, (PfFrame){512 + i}, page), 0);
		assert_memory_equal(page, filled_page((uint8_t)(i | 1)), PF_PAGE_SIZE);
	}
	munmap(map, FRAMES * PF_PAGE_SIZE);
	swap_off(&swap);
	assert_int_equal(pf_store_swapped_kib(store), 0);
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
		STORE_TEST(test_before_the_first),
		STORE_TEST(test_descriptors),
		STORE_TEST(test_read),
		STORE_TEST(test_dropped_is_used),
		STORE_TEST(test_memory_goes_back),
		STORE_TEST(test_sweep),
		STORE_TEST(test_sweep_in_turns),
		STORE_TEST(test_sweep_ends),
		STORE_TEST(test_swapped),
		STORE_TEST(test_name),
		cmocka_unit_test(test_no_name),
		cmocka_unit_test(test_error_is_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
