// SPDX-License-Identifier: LGPL-2.1-or-later
/* Jobs that wait for a byte in a pipe stand for those that wait for a server. */
#include "guest-agent/find/worker.h"
#include "guest-agent/find/guard.h"
#include "common/page.h"
#include "worker_clock.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define TIMEOUT_MS 1000 /* worker_clock.h says when it passes */

typedef struct Waiter {
	PfJob job;
	int wait_for; /* or -1: comes back at once */
	int tell;     /* a byte is written here when it is discarded */
	pthread_t thread;
	unsigned n_runs;
} Waiter;

static int way_in[2], way_out[2];

/* The test library's asserts are for its own thread. */
static void must(bool fact)
{
	if (!fact)
		abort();
}

static void waiter_run(PfJob *job)
{
	Waiter *waiter = (Waiter *)job;
	char byte;

	waiter->thread = pthread_self();
	waiter->n_runs++;
	if (waiter->wait_for < 0)
		return;
	worker_clock_stuck();
	must(read(waiter->wait_for, &byte, 1) == 1);
}

static void waiter_discard(PfJob *job)
{
	Waiter *waiter = (Waiter *)job;
	int tell = waiter->tell;

	free(waiter);
	must(write(tell, "", 1) == 1);
}

static Waiter *waiter_new(int wait_for)
{
	Waiter *waiter = calloc(1, sizeof(*waiter));

	assert_non_null(waiter);
	waiter->job = (PfJob){waiter_run, waiter_discard};
	waiter->wait_for = wait_for;
	waiter->tell = way_out[1];
	return waiter;
}

static int setup(void **state)
{
	return pipe2(way_in, O_CLOEXEC) < 0 || pipe2(way_out, O_CLOEXEC) < 0;
}

static int teardown(void **state)
{
	for (size_t i = 0; i < 2; i++) {
		close(way_in[i]);
		close(way_out[i]);
	}
	return 0;
}

static PfWorker *worker_new(int timeout_ms)
{
	PfWorker *worker;

	assert_int_equal(pf_worker_new(&worker, timeout_ms), 0);
	return worker;
}

/* Lets one of the jobs come back, and waits until it was discarded. */
static void release_one(void)
{
	char byte;

	assert_int_equal(write(way_in[1], "", 1), 1);
	assert_int_equal(read(way_out[0], &byte, 1), 1);
}

/* A job counts as left until its thread is done with it. */
static void wait_for_left(const PfWorker *worker, size_t n)
{
	for (unsigned i = 0; i < 10000 && pf_worker_left(worker) != n; i++)
		usleep(1000);
	assert_int_equal(pf_worker_left(worker), n);
}

static void test_one_thread_for_all(void **state)
{
	PfWorker *worker = worker_new(TIMEOUT_MS);
	Waiter *waiter = waiter_new(-1);
	pthread_t first;

	assert_int_equal(pf_worker_run(worker, &waiter->job), 0);
	first = waiter->thread;
	assert_false(pthread_equal(first, pthread_self()));
	for (unsigned i = 0; i < 1000; i++)
		assert_int_equal(pf_worker_run(worker, &waiter->job), 0);
	assert_int_equal(waiter->n_runs, 1001);
	assert_true(pthread_equal(first, waiter->thread));
	assert_int_equal(pf_worker_left(worker), 0);
	free(waiter);
	pf_worker_free(worker);
}

int __real_pthread_create(
	pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *data);
int __wrap_pthread_create(
	pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *data);

static int create_error; /* 0: none */

int __wrap_pthread_create(
	pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *data)
{
	return create_error ? create_error : __real_pthread_create(thread, attributes, run, data);
}

/* Users can have so many processes that there are none left for us: the job is not begun. */
static void test_no_thread(void **state)
{
	static const int errors[] = {EAGAIN, ENOMEM};
	PfJob job = {NULL, NULL};
	PfWorker *worker;

	assert_int_equal(pf_worker_new(&worker, 1000), 0);
	for (size_t i = 0; i < 2; i++) {
		create_error = errors[i];
		assert_int_equal(pf_worker_run(worker, &job), -EBUSY);
	}
	create_error = 0;
	pf_worker_free(worker);
}

static void test_left_behind(void **state)
{
	PfWorker *worker = worker_new(TIMEOUT_MS);
	Waiter *stuck = waiter_new(way_in[0]), *waiter = waiter_new(-1);
	pthread_t first;

	assert_int_equal(pf_worker_run(worker, &waiter->job), 0);
	first = waiter->thread;
	assert_int_equal(pf_worker_run(worker, &stuck->job), -ETIMEDOUT);
	assert_int_equal(pf_worker_left(worker), 1);
	assert_int_equal(pf_worker_run(worker, &waiter->job), 0);
	assert_false(pthread_equal(first, waiter->thread));
	release_one();
	wait_for_left(worker, 0);
	assert_int_equal(pf_worker_run(worker, &waiter->job), 0);
	free(waiter);
	pf_worker_free(worker);
}

static int64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* A time of which the nanoseconds run over into the seconds, most of the time. */
static void test_deadline(void **state)
{
	const int timeout_ms = 995;
	PfWorker *worker = worker_new(timeout_ms);
	int64_t start = now_us();

	worker_clock_set_real(true);
	assert_int_equal(pf_worker_run(worker, &waiter_new(way_in[0])->job), -ETIMEDOUT);
	worker_clock_set_real(false);
	assert_in_range(now_us() - start, timeout_ms * 1000, 60 * 1000000);
	release_one();
	wait_for_left(worker, 0);
	pf_worker_free(worker);
}

static void test_not_too_many(void **state)
{
	PfWorker *worker = worker_new(TIMEOUT_MS);
	Waiter *waiter = waiter_new(-1);

	for (unsigned i = 0; i < PF_WORKER_MAX_LEFT; i++)
		assert_int_equal(pf_worker_run(worker, &waiter_new(way_in[0])->job), -ETIMEDOUT);
	assert_int_equal(pf_worker_left(worker), PF_WORKER_MAX_LEFT);
	assert_int_equal(pf_worker_run(worker, &waiter->job), -EBUSY);
	assert_int_equal(waiter->n_runs, 0);
	release_one();
	wait_for_left(worker, PF_WORKER_MAX_LEFT - 1);
	assert_int_equal(pf_worker_run(worker, &waiter->job), 0);
	assert_int_equal(waiter->n_runs, 1);
	for (unsigned i = 1; i < PF_WORKER_MAX_LEFT; i++)
		release_one();
	wait_for_left(worker, 0);
	free(waiter);
	pf_worker_free(worker);
}

static void test_outlives_the_worker(void **state)
{
	PfWorker *worker = worker_new(TIMEOUT_MS);

	assert_int_equal(pf_worker_run(worker, &waiter_new(way_in[0])->job), -ETIMEDOUT);
	assert_int_equal(pf_worker_run(worker, &waiter_new(way_in[0])->job), -ETIMEDOUT);
	pf_worker_free(worker);
	release_one();
	release_one();
}

static void test_never_used(void **state)
{
	PfWorker *worker = worker_new(TIMEOUT_MS);

	assert_int_equal(pf_worker_left(worker), 0);
	pf_worker_free(worker);
	pf_worker_free(NULL);
}

typedef struct Masked {
	PfJob job;
	sigset_t blocked;
} Masked;

static void masked_run(PfJob *job)
{
	pthread_sigmask(SIG_SETMASK, NULL, &((Masked *)job)->blocked);
}

static void test_signals(void **state)
{
	PfWorker *worker = worker_new(TIMEOUT_MS);
	Masked masked = {.job = {.run = masked_run}};
	sigset_t own;

	assert_int_equal(pf_worker_run(worker, &masked.job), 0);
	assert_true(sigismember(&masked.blocked, SIGTERM));
	assert_true(sigismember(&masked.blocked, SIGCHLD));
	assert_false(sigismember(&masked.blocked, SIGBUS));
	pthread_sigmask(SIG_SETMASK, NULL, &own);
	assert_false(sigismember(&own, SIGTERM));
	pf_worker_free(worker);
}

/* Copies out of a file that is too short, until it is told to stop. */
typedef struct Copier {
	PfJob job;
	const uint8_t *map;
	atomic_bool stop;
	unsigned n_wrong;
	int done;
} Copier;

static void copier_run(PfJob *job)
{
	Copier *copier = (Copier *)job;
	uint8_t byte;

	worker_clock_stuck();
	while (!atomic_load(&copier->stop))
		copier->n_wrong += pf_guard_copy(&byte, copier->map, 1) != -EFAULT;
}

static void copier_discard(PfJob *job)
{
	must(write(((Copier *)job)->done, "", 1) == 1);
}

static void test_sigbus_in_two_threads(void **state)
{
	PfWorker *worker = worker_new(TIMEOUT_MS);
	int fd = memfd_create("short", MFD_CLOEXEC);
	Copier copier = {.job = {copier_run, copier_discard}, .done = way_out[1]};
	uint8_t byte, *map = mmap(NULL, 2 * PF_PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);

	/* The test library has its own handler for each test. */
	assert_int_equal(pf_guard_init(), 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(ftruncate(fd, PF_PAGE_SIZE), 0);
	copier.map = map + PF_PAGE_SIZE;
	assert_int_equal(pf_worker_run(worker, &copier.job), -ETIMEDOUT);
	for (unsigned i = 0; i < 20000; i++) {
		assert_int_equal(pf_guard_copy(&byte, map, 1), 0);
		assert_int_equal(pf_guard_copy(&byte, map + PF_PAGE_SIZE, 1), -EFAULT);
	}
	atomic_store(&copier.stop, true);
	assert_int_equal(read(way_out[0], &byte, 1), 1);
	assert_int_equal(copier.n_wrong, 0);
	pf_worker_free(worker);
	munmap(map, 2 * PF_PAGE_SIZE);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_one_thread_for_all, setup, teardown),
		cmocka_unit_test(test_no_thread),
		cmocka_unit_test_setup_teardown(test_left_behind, setup, teardown),
		cmocka_unit_test_setup_teardown(test_deadline, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_too_many, setup, teardown),
		cmocka_unit_test_setup_teardown(test_outlives_the_worker, setup, teardown),
		cmocka_unit_test_setup_teardown(test_never_used, setup, teardown),
		cmocka_unit_test_setup_teardown(test_signals, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sigbus_in_two_threads, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
