/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Serves the status of the agent that runs on a unix socket. */
#include "guest-agent/status.h"

#define PF_AGENT_STATUS_SOCKET "/run/pagefusion-agent/status"

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
