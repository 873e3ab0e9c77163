/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/stress/vmm.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

typedef struct Thread {
	pthread_t id;
	Work work;
	StressRandom random;
	StressThread *shown;
} Thread;

static Thread threads[STRESS_MAX_THREADS];
static unsigned n_threads;

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void sleep_us(unsigned us)
{
	nanosleep(&(struct timespec){us / 1000000u, us % 1000000u * 1000l}, NULL);
}

void pace(StressRandom *random, uint64_t cycles, unsigned wanted, unsigned limit_us)
{
	static _Atomic uint64_t started_ns;
	uint64_t now = now_ns(), none = 0, due;

	atomic_compare_exchange_strong(&started_ns, &none, now);
	due = (now - started_ns) / 1000000 * wanted / 1000;
	sleep_us(stress_below(random, cycles < due ? limit_us / 4 : limit_us));
}

static void *run(void *userdata)
{
	Thread *thread = userdata;

	prctl(PR_SET_NAME, thread->shown->name);
	thread->shown->tid = gettid();
	thread->work(thread->shown, &thread->random);
	thread->shown->tid = 0;
	return NULL;
}

void thread_start(const char *name, Work work)
{
	Thread *thread = &threads[n_threads];

	if (n_threads == STRESS_MAX_THREADS)
		abort();
	*thread = (Thread){.work = work,
		.random = stress_random(shared->seed, vm_index, n_threads),
		.shown = &me->threads[n_threads]};
	snprintf(thread->shown->name, sizeof thread->shown->name, "%s", name);
	if (pthread_create(&thread->id, NULL, run, thread) != 0)
		abort();
	n_threads++;
}

void threads_join(void)
{
	while (n_threads > 0)
		pthread_join(threads[--n_threads].id, NULL);
}
