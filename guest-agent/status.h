/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What pagefusion-agent --status shows: filled in by the agent that runs, which serves it on a unix
 * socket, once as JSON and once for people. */
#include "guest-agent/state.h"
#include <stdio.h>

#define PF_AGENT_STATUS_SOCKET "/run/pagefusion-agent/status"

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
	uint64_t cpu_us;          /* of the process, all in all */
	uint64_t rss_anon_kib, rss_file_kib;
} PfAgentStatus;

typedef struct PfStatusServer {
	int fd;    /* listening, nonblocking; owned. -1: none */
	int spare; /* given up for a moment when the process has no descriptor left; owned */
	char path[108];
} PfStatusServer;

/* Listens; makes the directory when it is missing, and takes the place of a socket on which nobody
 * listens. 0 or -errno: then server->fd is -1. */
int pf_status_server_init(PfStatusServer *server, const char *path);
void pf_status_server_deinit(PfStatusServer *server); /* removes the socket */

/* Somebody has connected: answers and hangs up. Never waits for the other side. */
void pf_status_server_answer(PfStatusServer *server, const PfAgentStatus *status);

/* CPU time and memory of this process. */
void pf_status_measure(PfAgentStatus *status);

/* One JSON object and a newline; lines for people. now is the real time. */
void pf_status_write_json(FILE *out, const PfAgentStatus *status, time_t now);
void pf_status_write_text(FILE *out, const PfAgentStatus *status, time_t now);

/* Whether an agent runs that has a socket there: 0; -ENOENT or -ECONNREFUSED when none does; another
 * -errno. */
int pf_status_probe(const char *path);

/* pagefusion-agent --status: asks the agent that runs and writes its answer, as JSON or for people.
 * An exit status; says on standard error what is wrong. */
int pf_status_show(FILE *out, const char *path, bool json);
