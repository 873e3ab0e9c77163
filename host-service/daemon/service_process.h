/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The process that the service is: what parses what guests and QEMU processes send, in its sandbox. It is executed anew. */
#include "host-service/daemon/sandbox.h"
#include "host-service/service/groups.h"
#include "host-service/service/service.h"

/* What it is given. The descriptors stay the caller's, whose process has no use for most of them then. */
typedef struct PfServiceProcess {
	const PfConfig *config;
	gboolean debug; /* whether it logs more */
	PfFusionConfig fusion;
	PfSandbox sandbox;
	int broker_fd, front_fd; /* the service's ends */
	int shim_fd;             /* of a PfShimSocket */
	const PfKeptStore *kept;
	size_t n_kept;
} PfServiceProcess;

/*
 * Starts it: the program, with the option PF_SERVICE_PROCESS_OPTION and a number. It ends when the front or the broker
 * closes its end. Its pid, or -1 with error set. As pf_process_execute().
 */
pid_t pf_service_process_start(const PfServiceProcess *process, GError **error);

#define PF_SERVICE_PROCESS_OPTION "service-fd"

/* What the program does that got this option: it serves until its end, whose exit status is returned. */
int pf_service_process_run(int handover_fd);
