/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* When the agent does what, so that nobody notices it. No I/O and no clock: times are milliseconds
 * of one that runs on while the guest sleeps. */
#include "guest-agent/config.h"

#define PF_PACE_NEVER       INT64_MAX
#define PF_PACE_MAX_PENDING 256 /* more new processes than that: a complete pass serves them all */

#define PF_PACE_FIRST_LOOK_MS  800   /* a new program has mapped its libraries by then */
#define PF_PACE_SECOND_LOOK_MS 2500  /* and what it opened first */
#define PF_PACE_SETTLE_MS      10000 /* between the two passes that show what holds still */

/* Why a pass is made. */
typedef enum PfPaceReason {
	PF_PACE_ASKED,   /* first of its class, or somebody wants it: costs what it costs */
	PF_PACE_EVENT,   /* programs started or ended */
	PF_PACE_ROUTINE, /* the interval is over */
	PF_PACE_N_REASONS,
} PfPaceReason;

typedef enum PfWork {
	PF_WORK_NONE,
	PF_WORK_LOOK, /* at the processes that pf_pace_take() gives */
	PF_WORK_PASS,
} PfWork;

typedef struct PfTurn {
	PfWork work;
	PfPageClass class;   /* of a pass */
	PfPaceReason reason; /* of a pass */
	int64_t due_ms;      /* not before; PF_PACE_NEVER with PF_WORK_NONE */
} PfTurn;

typedef struct PfPace {
	uint64_t hash_limit; /* bytes a second */
	unsigned cpu_limit_permyriad;
	int64_t interval_ms[PF_N_CLASSES];

	int64_t hash_credit; /* bytes that may be hashed at once; negative: too many were */
	int64_t hash_ms;     /* when the credit was that */

	int64_t routine_from_ms; /* earlier routine work is paid for then */
	int64_t event_credit_us; /* of CPU, for work that events cause */
	int64_t event_ms;
	int64_t ripe_ms; /* a pass that begins earlier may miss what programs map that were missed */

	int64_t due_ms[PF_N_CLASSES][PF_PACE_N_REASONS];
	bool on[PF_N_CLASSES];
	uint64_t n_passes[PF_N_CLASSES]; /* since it is on */

	struct {
		pid_t pid;
		bool second;
		int64_t due_ms;
	} pending[PF_PACE_MAX_PENDING];
	size_t n_pending;
} PfPace;

/* Nothing is on. */
void pf_pace_init(PfPace *pace, int64_t now_ms);

/* What holds from now on. Classes that were off and are on are asked for. */
void pf_pace_configure(
	PfPace *pace, const PfAgentConfig *config, unsigned interval_s, int64_t now_ms);

/* The class cannot be looked for here. */
void pf_pace_switch_off(PfPace *pace, PfPageClass class);

/* A pass of each class that is on, at once. */
void pf_pace_ask(PfPace *pace, int64_t now_ms);

/* Processes started a program; some may have been missed; n processes ended. */
void pf_pace_started(PfPace *pace, const pid_t *pids, size_t n, int64_t now_ms);
void pf_pace_lost(PfPace *pace, int64_t now_ms);
void pf_pace_ended(PfPace *pace, uint64_t n, int64_t now_ms);

/* What is to be done next, and when. */
PfTurn pf_pace_next(const PfPace *pace, int64_t now_ms);

/* The processes to be looked at now; room for PF_PACE_MAX_PENDING. */
size_t pf_pace_take(PfPace *pace, pid_t *pids, int64_t now_ms);

/* A pass begins, and serves what has been wanted so far. What is wanted while it is made is not its business. */
void pf_pace_begin(PfPace *pace, PfPageClass class, int64_t now_ms);

/* A turn was done and took that much CPU time; a pass must have begun. */
void pf_pace_done(PfPace *pace, const PfTurn *turn, uint64_t cpu_us, int64_t now_ms);

/* A turn was given up half-way, and took that much CPU time: it is still to be done. */
void pf_pace_given_up(PfPace *pace, const PfTurn *turn, uint64_t cpu_us, int64_t now_ms);

/* Pages were hashed. How long to wait before more are: milliseconds, 0: not at all. */
int64_t pf_pace_hashed(PfPace *pace, uint64_t n_pages, int64_t now_ms);
