/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Two threads write, one to even pages and one to odd ones. */
#include "tests/mechanism/mech.h"
#include "tests/mechanism/stress.h"
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#define N_WRITERS 2u
#define PAUSE     200u /* turns of an empty loop between two visits */

static uint8_t *pages;
static uint16_t counters[STRESS_PAGES];
static pthread_t threads[N_WRITERS];
static atomic_bool stopping, pausing;
static atomic_uint n_paused;
static atomic_ulong n_lost, n_visits;

static void wait_while_paused(void)
{
	if (!pausing)
		return;
	n_paused++;
	while (pausing)
		sched_yield();
	n_paused--;
}

static void *write_pages(void *userdata)
{
	size_t parity = (uintptr_t)userdata;
	uint32_t random = (uint32_t)parity * 7919 + 1;

	while (!stopping) {
		size_t i;

		wait_while_paused();
		random = random * 1664525u + 1013904223u;
		i = (random >> 8) % (STRESS_PAGES / N_WRITERS) * N_WRITERS + parity;
		n_lost += stress_check(pages + i * PF_PAGE_SIZE, counters[i]);
		counters[i]++;
		*stress_word(pages + i * PF_PAGE_SIZE, counters[i]) = counters[i];
		n_visits++;
		for (volatile unsigned turn = 0; turn < PAUSE; turn++)
			;
	}
	return NULL;
}

static void start(uint8_t *at)
{
	pages = at;
	for (size_t i = 0; i < STRESS_PAGES; i++)
		counters[i] = STRESS_N_FIRST;
	for (uintptr_t i = 0; i < N_WRITERS; i++)
		if (pthread_create(&threads[i], NULL, write_pages, (void *)i) != 0)
			abort();
}

static void pause_writers(void)
{
	pausing = true;
	while (n_paused < N_WRITERS)
		sched_yield();
}

static void resume(void)
{
	pausing = false;
	while (n_paused > 0)
		sched_yield();
}

static void stop(void)
{
	stopping = true;
	for (size_t i = 0; i < N_WRITERS; i++)
		pthread_join(threads[i], NULL);
}

static uint64_t get_lost(void)
{
	return n_lost;
}

static uint64_t get_visits(void)
{
	return n_visits;
}

static uint16_t counter(size_t page)
{
	return counters[page];
}

int main(int argc, char **argv)
{
	static const StressWriters writers = {
		.start = start,
		.pause = pause_writers,
		.resume = resume,
		.stop = stop,
		.n_lost = get_lost,
		.n_visits = get_visits,
		.counter = counter,
	};

	mech_start();
	return stress_main(argc, argv, &writers, mech_block(STRESS_PAGES));
}
