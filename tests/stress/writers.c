/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Threads that write, as a vCPU does, but can take the time. One goes round, one jumps; both in bursts, so that the
 * shim and the service get the processor. The third waits for the link's thread to begin with a page, and writes to it
 * a few microseconds later, wherever the fuse is by then.
 */
#include "tests/stress/vmm.h"

#define SPIN_NS 100000u

static _Atomic uintptr_t target; /* address of a run that is being fused | number of its pages */

void writers_target(const void *start, unsigned n)
{
	target = n > 0 ? (uintptr_t)start | n : 0;
}

static void visit(unsigned i)
{
	if (!page_take(i))
		return;
	page_visit(i, (pages[i].state + 1) % STRESS_STATES);
	page_give(i);
}

/* A page of a run: a step and soon after it the way back, so that runs come together again. */
static void visit_run(unsigned i)
{
	if (!page_take(i))
		return;
	page_visit(i, pages[i].state == 0 ? 1 : 0);
	page_give(i);
}

static void visit_any(unsigned i)
{
	if (i >= STRESS_RUN && i < STRESS_DIRECT)
		visit_run(i);
	else
		visit(i);
}

static void go_round(StressThread *thread, StressRandom *random)
{
	unsigned i = STRESS_RING;

	while (!stopping) {
		for (unsigned n = stress_below(random, 24); n > 0; n--) {
			visit(i);
			if (++i == STRESS_RUN)
				i = STRESS_HIGH;
			if (i == STRESS_PAGES)
				i = STRESS_RING;
		}
		beat(thread);
		pace(random, me->revoked, VM_CYCLES_A_SECOND, 40000);
	}
}

static void jump_once(StressRandom *random, unsigned *away, unsigned *n_away)
{
	unsigned kind = stress_below(random, 16);

	if (kind < 1) {
		visit(STRESS_DIRECT + stress_below(random, STRESS_DIRECT_PAGES));
	} else if (kind < 4 && *n_away < 8) {
		unsigned i = STRESS_RUN + stress_below(random, STRESS_DIRECT - STRESS_RUN);

		visit_run(i);
		away[(*n_away)++] = i;
	} else if (kind < 11) {
		visit(STRESS_RING + stress_below(random, STRESS_RUN - STRESS_RING));
	} else {
		visit(STRESS_HIGH + stress_below(random, STRESS_HIGH_PAGES));
	}
}

static void jump(StressThread *thread, StressRandom *random)
{
	unsigned away[8], n_away = 0;

	while (!stopping) {
		for (unsigned n = stress_below(random, 24); n > 0; n--)
			jump_once(random, away, &n_away);
		pace(random, me->revoked, VM_CYCLES_A_SECOND, 40000);
		while (n_away > 0)
			visit_run(away[--n_away]);
		beat(thread);
	}
}

/* A page of the run that is being fused, or -1 when none was in that time. */
static int wait_for_target(StressRandom *random)
{
	uint64_t end = now_ns() + SPIN_NS;

	while (now_ns() < end) {
		uintptr_t run = target;
		unsigned n = run % PF_PAGE_SIZE;

		if (n > 0)
			return page_of_address(
				(void *)(run - n + stress_below(random, n) * PF_PAGE_SIZE));
	}
	return -1;
}

static void race(StressThread *thread, StressRandom *random)
{
	while (!stopping) {
		int i = wait_for_target(random);

		for (unsigned turns = stress_below(random, 4096); i >= 0 && turns > 0; turns--)
			__asm__ volatile("");
		if (i >= 0)
			visit_any((unsigned)i);
		beat(thread);
		sleep_us(stress_below(random, 4000));
	}
}

void writers_start(void)
{
	thread_start("round", go_round);
	thread_start("jump", jump);
	thread_start("race", race);
}
