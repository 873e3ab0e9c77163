/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Runs what may never come back (a file whose server is gone) in another thread, with a deadline. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct PfWorker PfWorker;

#define PF_WORKER_MAX_LEFT 4 /* jobs that are left behind at the same time */

typedef struct PfJob {
	void (*run)(struct PfJob *job);
	/* Called, in the worker's thread, when a job that was left behind comes back after all: it
	 * belongs to nobody then. */
	void (*discard)(struct PfJob *job);
} PfJob;

int pf_worker_new(PfWorker **worker, int timeout_ms);

/* Does not wait for jobs that were left behind. */
void pf_worker_free(PfWorker *worker);

/*
 * Runs a job; the caller waits. 0: it has run, and is the caller's as before. -ETIMEDOUT: it has
 * not come back in time and is the worker's now, to be discarded. -EBUSY: too many are left behind, or
 * no thread could be started; it was not begun. -ENOMEM: nor then.
 */
int pf_worker_run(PfWorker *worker, PfJob *job);

/* Jobs that are left behind now. */
size_t pf_worker_left(const PfWorker *worker);

/* How long jobs were waited for, all in all. */
int64_t pf_worker_waited_us(const PfWorker *worker);
