/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What pagefusion-agent --status shows: filled in by the agent that runs, which serves it on a unix
 * socket, once as JSON and once for people. */
#include "guest-agent/state.h"
#include <stdio.h>

/* Of the last pass of a class. */
typedef struct PfPassStatus {
	bool on;                /* in the configuration */
	const char *impossible; /* why it cannot be looked for here, or NULL; not owned */
	uint64_t n_passes;
	time_t ended; /* of the last; real time */
	uint64_t cpu_us, duration_ms, n_hashed;
	uint64_t n_files, n_pages; /* reported or to be reported */
} PfPassStatus;

typedef struct PfAgentStatus {
	pid_t pid;
	time_t started;   /* real time, as all that follow */
	const char *port; /* path; empty while there is none. Not owned */
	bool connected;   /* somebody has the host's end open */
	bool session;
	time_t since; /* of the session, or of its end; 0: there was none yet */
	uint64_t n_sessions;
	uint64_t bytes_sent, frames_sent, frames_acknowledged; /* frames: of this session */
	PfPassStatus classes[PF_N_CLASSES];
	bool process_events;      /* new programs are noticed when they start */
	uint64_t n_new_processes; /* looked at for that reason */
	uint64_t n_hashed;        /* pages */
	uint64_t n_left_behind;   /* files that did not answer */
	uint64_t n_left_out;      /* files whose owners have too many, by the last passes */
	uint64_t cpu_us;          /* of the process, all in all */
	uint64_t rss_anon_kib, rss_file_kib;
} PfAgentStatus;

/* One JSON object and a newline; lines for people. now is the real time. */
void pf_status_write_json(FILE *out, const PfAgentStatus *status, time_t now);
void pf_status_write_text(FILE *out, const PfAgentStatus *status, time_t now);
