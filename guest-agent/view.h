/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the agent shows of itself: keeps account of what it does, and answers who asks for it. */
#include "guest-agent/config.h"
#include "guest-agent/find/scan.h"
#include "guest-agent/find/watch.h"
#include "guest-agent/status_server.h"
#include "guest-agent/tell/link.h"

/* What the rest is read from when somebody asks; nothing is owned. */
typedef struct PfViewed {
	const PfAgentConfig *config;
	const PfState *state;
	PfScanner *scanner;
	const PfLink *link;
	const PfWatch *watch;
} PfViewed;

typedef struct PfView {
	PfAgentStatus status;
	PfStatusServer server;
	bool missed; /* nobody can ask, and that was said */
	int64_t next_try_ms, wait_ms;
	int64_t session_ms; /* when the session began */
	bool reported;      /* and that was said */
} PfView;

/* Times are milliseconds of any clock, the same in all calls. */

void pf_view_init(PfView *view);
void pf_view_deinit(PfView *view);

/* Tries to listen when that is due; what goes wrong is logged, and tried again. */
void pf_view_tend(PfView *view, int64_t now_ms);

/* When it is to be tended next; INT64_MAX: not at all. */
int64_t pf_view_due_ms(const PfView *view);

/* A session has begun, the number-th of this agent; the session has ended. */
void pf_view_session_begun(PfView *view, uint64_t number, int64_t now_ms);
void pf_view_session_ended(PfView *view);

/* A pass has ended. */
void pf_view_pass(PfView *view, PfPageClass class, const PfScanStats *stats);

/* Everything was told for the first time, which is said once. */
void pf_view_reported(PfView *view, const PfState *state, int64_t now_ms);

/* Somebody asks, on server.fd. */
void pf_view_answer(PfView *view, const PfViewed *viewed);
