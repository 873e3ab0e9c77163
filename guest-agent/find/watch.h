/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Tells the pace of programs that start and processes that end. */
#include "guest-agent/find/process_events.h"
#include "guest-agent/pace.h"

typedef struct PfWatch {
	PfProcessEvents *events; /* NULL: not watching */
	bool wanted;             /* between begin and end */
	bool missed;             /* they cannot be watched, and that was said */
	int64_t next_take_ms, next_try_ms;
} PfWatch;

/* All zeros is a watch that does not watch. begin and end may be called again and again. */
void pf_watch_begin(PfWatch *watch);
void pf_watch_end(PfWatch *watch);

/* What to poll for reading now, or -1. One that could not watch tries again every few minutes. */
int pf_watch_fd(PfWatch *watch, int64_t now_ms);

/* When that changes by itself; INT64_MAX: not at all. */
int64_t pf_watch_due_ms(const PfWatch *watch, int64_t now_ms);

/* Something has come. */
void pf_watch_take(PfWatch *watch, PfPace *pace, int64_t now_ms);
