/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The clock of a worker's deadlines in the hands of the test: they pass when something is known to hang, and not
 * because the machine is busy. For tests that are linked with --wrap=pthread_cond_timedwait.
 */
#include <stdbool.h>

/* One more job hangs: the deadline that is waited for passes. From any thread. */
void worker_clock_stuck(void);

/* Whether deadlines are as they would be. */
void worker_clock_set_real(bool real);
