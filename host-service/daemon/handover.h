/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the front gives the service's process on its way through exec: one sealed memory file. */
#include "host-service/daemon/service_process.h"

/* What was read from it. */
typedef struct PfHandover {
	PfServiceProcess process; /* config and kept are those below */
	pid_t starter;            /* who has made it */
	PfConfig *config;
	GArray *kept; /* of PfKeptStore, with the names and without the descriptors */
} PfHandover;

/* Made by the process that starts the service. The file's descriptor (close-on-exec), or -1 with error set. */
int pf_handover_write(const PfServiceProcess *process, GError **error);

/*
 * fd stays the caller's. The descriptors that are named in it are close-on-exec from now on, and the caller's. NULL with error set
 * when it is anything but such a file, or one of the descriptors is not open.
 */
PfHandover *pf_handover_read(int fd, GError **error);
void pf_handover_free(PfHandover *handover);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PfHandover, pf_handover_free)
