/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The process that the service is: what parses what guests and QEMU processes send, in its sandbox. */
#include "host-service/groups.h"
#include "host-service/sandbox.h"
#include "host-service/service.h"

/* The descriptors stay the caller's, whose process has no use for most of them then. */
typedef struct PfServiceProcess {
	const PfConfig *config;
	PfFusionConfig fusion;
	PfSandbox sandbox;
	int broker_fd, front_fd; /* the service's ends */
	int shim_fd, lock_fd;    /* of a PfShimSocket */
	const PfKeptStore *kept;
	size_t n_kept;
} PfServiceProcess;

/* Starts it; it ends when the front or the broker closes its end. Its pid, or -1 with error set. As pf_process_start(). */
pid_t pf_service_process_start(const PfServiceProcess *process, GError **error);
