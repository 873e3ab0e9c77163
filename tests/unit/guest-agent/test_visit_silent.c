// SPDX-License-Identifier: LGPL-2.1-or-later
/* Visits files whose server keeps silent, or whose medium fails. */
#include "visited_file.h"
#include "little_fuse.h"
#include "common/log.h"
#include "guest-agent/find/guard.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define N_PAGES    40
#define TIMEOUT_MS 1000 /* worker_clock.h says when it passes */

static VisitedFile v; /* a file that answers */
static LittleFuse *fuse;
static int silent_fd;
static PfFile *silent;
static atomic_int pretend = -1; /* page that counts as resident, next time */

int __real_mincore(void *address, size_t size, unsigned char *resident);
int __wrap_mincore(void *address, size_t size, unsigned char *resident);

/* A page that is evicted just after it was seen. */
int __wrap_mincore(void *address, size_t size, unsigned char *resident)
{
	int r = __real_mincore(address, size, resident);
	int page = atomic_exchange(&pretend, -1);

	if (page >= 0)
		resident[page] = 1;
	return r;
}

static unsigned n_warnings;

void __wrap_pf_log(PfLogLevel level, const char *format, ...);

void __wrap_pf_log(PfLogLevel level, const char *format, ...)
{
	n_warnings += level == PF_LOG_WARNING;
}

static int setup(void **state)
{
	PfFileKey key = {.source = PF_SOURCE_FILE};
	PfFileStamp stamp = {.size = N_PAGES * PF_PAGE_SIZE};

	n_warnings = 0;
	if (visited_file_open(&v, PF_SOURCE_FILE, N_PAGES) < 0)
		return -1;
	fuse = little_fuse_new(N_PAGES);
	silent_fd = open(little_fuse_file(fuse), O_RDONLY | O_CLOEXEC);
	silent = pf_file_new(&key);
	if (silent_fd < 0 || !silent || pf_file_renew(silent, &stamp, "silent") < 0)
		return -1;
	pf_file_join(silent, PF_CLASS_CACHE, 1);
	return 0;
}

static int teardown(void **state)
{
	if (silent_fd >= 0)
		close(silent_fd);
	if (fuse)
		little_fuse_free(fuse);
	pf_file_free(silent);
	visited_file_close(&v);
	return 0;
}

static PfWorker *worker_new(void)
{
	PfWorker *worker;

	assert_int_equal(pf_worker_new(&worker, TIMEOUT_MS), 0);
	return worker;
}

static void wait_for_left(const PfWorker *worker, size_t n)
{
	for (unsigned i = 0; i < 10000 && pf_worker_left(worker) != n; i++)
		usleep(1000);
	assert_int_equal(pf_worker_left(worker), n);
}

static unsigned count_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* Some pages are in memory, others are not. */
static void read_some(void)
{
	char byte;

	assert_int_equal(posix_fadvise(silent_fd, 0, 0, POSIX_FADV_RANDOM), 0);
	for (unsigned i = 0; i < N_PAGES; i += 4)
		assert_int_equal(pread(silent_fd, &byte, 1, (off_t)(i * PF_PAGE_SIZE)), 1);
}

static int visit(PfWorker *worker)
{
	/* The test library has its own handler for each test. */
	assert_int_equal(pf_guard_init(), 0);
	return pf_visitor_visit(v.visitor, worker, silent, silent_fd, &v.facts.ram, NULL, NULL);
}

/* The server went, what waited for it came back. */
static void end_server(PfWorker *worker)
{
	little_fuse_free(fuse);
	fuse = NULL;
	wait_for_left(worker, 0);
}

static void test_with_worker(void **state)
{
	PfWorker *worker = worker_new();
	unsigned n = count_fds();

	read_some();
	assert_int_equal(visit(worker), 0);
	assert_int_equal(silent->n_reportable, N_PAGES / 4);
	assert_int_equal(visited_file_visit(&v, worker), 0);
	assert_int_equal(v.file->n_reportable, N_PAGES);
	assert_int_equal(v.n_hashed, N_PAGES);
	for (unsigned i = 0; i < N_PAGES; i++)
		visited_file_assert_page(&v, i, 1);
	assert_int_equal(visited_file_visit(&v, worker), 0);
	assert_int_equal(v.n_hashed, 0);
	pf_worker_free(worker);
	assert_int_equal(count_fds(), n);
}

/* The caller goes on, with its file as it was and its descriptor its own. */
static void assert_goes_on(PfWorker *worker)
{
	void *map;

	assert_int_equal(pf_worker_left(worker), 1);
	assert_int_equal(silent->n_reportable, N_PAGES / 4);
	assert_true(fcntl(silent_fd, F_GETFD) >= 0);
	/* Nobody holds the lock of the address space. */
	map = mmap(NULL, PF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	*(volatile char *)map = 1;
	munmap(map, PF_PAGE_SIZE);
	assert_int_equal(visited_file_visit(&v, worker), 0);
	assert_int_equal(v.file->n_reportable, N_PAGES);
}

static void test_silent_before_the_map(void **state)
{
	PfWorker *worker = worker_new();

	read_some();
	assert_int_equal(visit(worker), 0);
	little_fuse_hold(fuse, FUSE_GETATTR);
	assert_int_equal(visit(worker), -ETIMEDOUT);
	assert_goes_on(worker);
	end_server(worker);
	pf_worker_free(worker);
}

static void test_silent_in_the_touch(void **state)
{
	PfWorker *worker = worker_new();

	read_some();
	assert_int_equal(visit(worker), 0);
	little_fuse_hold(fuse, FUSE_READ);
	pretend = 5;
	assert_int_equal(visit(worker), -ETIMEDOUT);
	assert_goes_on(worker);
	end_server(worker);
	pf_worker_free(worker);
}

static void test_silent_at_the_end(void **state)
{
	PfWorker *worker = worker_new();

	read_some();
	little_fuse_hold(fuse, FUSE_FLUSH);
	assert_int_equal(visit(worker), -ETIMEDOUT);
	assert_goes_on(worker);
	end_server(worker);
	pf_worker_free(worker);
}

/* Nothing of the visitor is used by what it left behind. */
static void test_visitor_goes_first(void **state)
{
	PfWorker *worker = worker_new();

	little_fuse_hold(fuse, FUSE_READ);
	pretend = 5;
	assert_int_equal(visit(worker), -ETIMEDOUT);
	pf_visitor_free(v.visitor);
	v.visitor = NULL;
	close(silent_fd);
	silent_fd = -1;
	end_server(worker);
	pf_worker_free(worker);
}

static void test_too_many(void **state)
{
	PfWorker *worker = worker_new();
	unsigned n = count_fds();

	little_fuse_hold(fuse, FUSE_GETATTR);
	for (unsigned i = 0; i < PF_WORKER_MAX_LEFT; i++)
		assert_int_equal(visit(worker), -ETIMEDOUT);
	n = count_fds();
	assert_int_equal(visit(worker), -EBUSY);
	assert_int_equal(count_fds(), n);
	assert_int_equal(visited_file_visit(&v, NULL), 0);
	assert_int_equal(v.file->n_reportable, N_PAGES);
	end_server(worker);
	pf_worker_free(worker);
}

/* Which is said once. */
static void test_medium_fails(void **state)
{
	PfWorker *worker = worker_new();

	read_some();
	assert_int_equal(visit(worker), 0);
	assert_int_equal(n_warnings, 0);
	little_fuse_fail(fuse);
	pretend = 5;
	assert_int_equal(visit(worker), 0);
	assert_int_equal(silent->n_reportable, N_PAGES / 4);
	assert_int_equal(n_warnings, 1);
	pretend = 6;
	assert_int_equal(visit(NULL), 0);
	assert_int_equal(silent->n_reportable, N_PAGES / 4);
	assert_null(pf_file_find(silent, 5));
	assert_int_equal(n_warnings, 1);
	pf_worker_free(worker);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_with_worker, setup, teardown),
		cmocka_unit_test_setup_teardown(test_silent_before_the_map, setup, teardown),
		cmocka_unit_test_setup_teardown(test_silent_in_the_touch, setup, teardown),
		cmocka_unit_test_setup_teardown(test_silent_at_the_end, setup, teardown),
		cmocka_unit_test_setup_teardown(test_visitor_goes_first, setup, teardown),
		cmocka_unit_test_setup_teardown(test_too_many, setup, teardown),
		cmocka_unit_test_setup_teardown(test_medium_fails, setup, teardown),
	};

	little_fuse_enter();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
