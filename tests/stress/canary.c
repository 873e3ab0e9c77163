/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the machine itself costs: a thread that only sleeps a millisecond at a time, and how much later than that it gets
 * on. A writer that waits for a revoke is three such waits behind.
 */
#include "tests/stress/stress.h"
#include <time.h>

#define SLEEP_NS 1000000u

static atomic_bool ending;
static GThread *thread;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static gpointer sleep_and_look(gpointer userdata)
{
	Stress *stress = userdata;

	while (!ending) {
		uint64_t begun = now_ns(), late;

		nanosleep(&(struct timespec){.tv_nsec = SLEEP_NS}, NULL);
		late = now_ns() - begun - SLEEP_NS;
		stress->late[stress_bucket(late)]++;
		stress->late_max_ns = MAX(stress->late_max_ns, late);
	}
	return NULL;
}

void canary_start(Stress *stress)
{
	thread = g_thread_new("canary", sleep_and_look, stress);
}

void canary_stop(void)
{
	ending = true;
	g_clear_pointer(&thread, g_thread_join);
}
