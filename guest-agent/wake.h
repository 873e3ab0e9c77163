/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What ends a wait beside the host: signals and time. */
#include <stdbool.h>
#include <stdint.h>

typedef struct PfWake {
	int signals;      /* a signalfd; owned, as the timer */
	int timer;        /* a timerfd; it runs on while the guest sleeps */
	int64_t timer_ms; /* what it is set to; INT64_MAX: nothing */
	bool hangup;      /* SIGHUP has come, and whoever heeds it says so here */
	bool stop;        /* SIGTERM or SIGINT has */
} PfWake;

/* Blocks the signals and takes them from now on. 0; -errno, which leaves what may be deinitialized. */
int pf_wake_init(PfWake *wake);
void pf_wake_deinit(PfWake *wake);

/* When the timer is to run out, in milliseconds of CLOCK_BOOTTIME; INT64_MAX: not at all. */
void pf_wake_set(PfWake *wake, int64_t until_ms);

/* Signals have come. */
void pf_wake_read_signals(PfWake *wake);
