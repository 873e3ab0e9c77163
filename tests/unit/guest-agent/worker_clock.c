// SPDX-License-Identifier: LGPL-2.1-or-later
#include "worker_clock.h"
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static atomic_uint *n_stuck; /* shared with processes that are forked */
static unsigned n_passed;
static bool is_real;

int __real_pthread_cond_timedwait(
	pthread_cond_t *cond, pthread_mutex_t *lock, const struct timespec *deadline);
int __wrap_pthread_cond_timedwait(
	pthread_cond_t *cond, pthread_mutex_t *lock, const struct timespec *deadline);

__attribute__((constructor)) static void make_counter(void)
{
	n_stuck = mmap(
		NULL, sizeof(*n_stuck), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (n_stuck == MAP_FAILED)
		abort();
}

void worker_clock_stuck(void)
{
	atomic_fetch_add(n_stuck, 1);
}

void worker_clock_set_real(bool real)
{
	is_real = real;
}

static struct timespec soon(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_nsec += 2000000;
	if (t.tv_nsec >= 1000000000) {
		t.tv_sec++;
		t.tv_nsec -= 1000000000;
	}
	return t;
}

int __wrap_pthread_cond_timedwait(
	pthread_cond_t *cond, pthread_mutex_t *lock, const struct timespec *deadline)
{
	int r;

	do {
		struct timespec slice = soon();

		if (!is_real && atomic_load(n_stuck) > n_passed) {
			n_passed++;
			return ETIMEDOUT;
		}
		r = __real_pthread_cond_timedwait(cond, lock, is_real ? deadline : &slice);
	} while (r == ETIMEDOUT && !is_real);
	if (r == ETIMEDOUT)
		n_passed++;
	return r;
}
