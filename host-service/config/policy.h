/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What a trust group allows its VMs: when a page becomes a frame, and how much of the service one VM may use. A VM that
 * reaches a limit is slowed, or some of its hints are not taken; nobody else notices. Sizes are in parts of the VM's
 * memory, so that one policy fits VMs of all sizes.
 */
#include "host-service/config/thp.h"
#include <glib.h>

typedef struct PfPolicy {
	guint admission; /* VMs of the group that must hint a digest before it gets a frame; 1: at once ("any") */
	PfThp thp;           /* of VMs that do not say otherwise; not PF_THP_DEFAULT */
	guint64 bytes_per_s; /* on the guest channel */
	guint64 hints_per_s; /* pages named on the guest channel, withdrawn ones included */
	guint cpu_percent; /* of one processor, for the messages of one VM, its guest's and its QEMU's */
	guint candidates_percent; /* pages hinted and not fused, of the VM's pages */
	guint frames_percent;     /* frames made of this VM's pages, of the VM's pages */
	guint index_memory_percent; /* the service's memory for what is known of the VM, of the VM's memory */
} PfPolicy;

#define PF_POLICY_MAX_ADMISSION 64u

/* What the rates let through at once, after a time of quiet, in seconds of the rate. */
#define PF_POLICY_BURST_S 8u

#define PF_POLICY_DEFAULTS                                                                         \
	((PfPolicy){.admission = 2,                                                                \
		.thp = PF_THP_BALANCED,                                                            \
		.bytes_per_s = 16u << 20,                                                          \
		.hints_per_s = 200000,                                                             \
		.cpu_percent = 5,                                                                  \
		.candidates_percent = 75,                                                          \
		.frames_percent = 50,                                                              \
		.index_memory_percent = 4})
