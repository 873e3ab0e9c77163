// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Events are taken at most once a second, all that have come by then, and in between they are not
 * even waited for: programs may start as fast as they like, that does not wake the agent up. Where the kernel does not
 * tell, it is asked again now and then: it may have been short of memory.
 */
#include "guest-agent/find/watch.h"
#include "common/log.h"
#include <string.h>

#define TAKE_MS      1000
#define TRY_AGAIN_MS (5 * 60 * 1000)

static void miss(PfWatch *watch, int error)
{
	if (!watch->missed)
		pf_info("programs that start are noticed at the next pass only: the kernel does "
			"not say when they do (%s)",
			strerror(-error));
	watch->missed = true;
}

static void try(PfWatch *watch)
{
	int r = pf_process_events_new(&watch->events);

	if (r < 0) {
		watch->events = NULL;
		miss(watch, r);
	}
}

static void stop(PfWatch *watch)
{
	pf_process_events_free(watch->events);
	watch->events = NULL;
}

void pf_watch_begin(PfWatch *watch)
{
	if (watch->wanted)
		return;
	watch->wanted = true;
	watch->next_try_ms = 0;
	try(watch);
}

void pf_watch_end(PfWatch *watch)
{
	watch->wanted = false;
	stop(watch);
}

int pf_watch_fd(PfWatch *watch, int64_t now_ms)
{
	if (watch->wanted && !watch->events && now_ms >= watch->next_try_ms) {
		watch->next_try_ms = now_ms + TRY_AGAIN_MS;
		try(watch);
	}
	return watch->events && now_ms >= watch->next_take_ms ? pf_process_events_fd(watch->events)
							      : -1;
}

int64_t pf_watch_due_ms(const PfWatch *watch, int64_t now_ms)
{
	if (watch->wanted && !watch->events)
		return watch->next_try_ms;
	return watch->events && now_ms < watch->next_take_ms ? watch->next_take_ms : PF_PACE_NEVER;
}

void pf_watch_take(PfWatch *watch, PfPace *pace, int64_t now_ms)
{
	pid_t pids[PF_PACE_MAX_PENDING];
	uint64_t n_ended;
	bool lost;
	int n = pf_process_events_take(watch->events, pids, PF_PACE_MAX_PENDING, &n_ended, &lost);

	watch->next_take_ms = now_ms + TAKE_MS;
	if (n < 0) {
		miss(watch, n);
		watch->next_try_ms = now_ms + TRY_AGAIN_MS;
		stop(watch);
		return;
	}
	pf_pace_started(pace, pids, (size_t)n, now_ms);
	pf_pace_ended(pace, n_ended, now_ms);
	if (lost)
		pf_pace_lost(pace, now_ms);
}
