/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the service shows of itself, on the bus and in metrics. */
#include "host-service/decide/fusion.h"
#include "host-service/wire/broker.h"

/* What is known of a VM's guest additions. */
typedef enum PfAdditionsState {
	PF_ADDITIONS_NEVER_SEEN,
	PF_ADDITIONS_CONNECTED,
	PF_ADDITIONS_SILENT,  /* the agent has ended, or does not answer */
	PF_ADDITIONS_TOO_OLD, /* and connected */
} PfAdditionsState;

/* What of a view has no pointers: it is copied whole, wherever a view goes. */
typedef struct PfVmFigures {
	gboolean shim_connected;
	PfThp thp;             /* in force: never PF_THP_DEFAULT */
	PfFusionVmStats stats; /* zeros while the VM does not run */
	PfShimState shim;      /* as the shim last said, zeros before */
	guint64 paused_ms; /* nothing was read from the VM, because it asked for too much; so far */
	PfAdditionsState additions;
	guint64 additions_since; /* seconds since the epoch; 0: never seen */
} PfVmFigures;

/* A VM; valid during the call that hands it out. */
typedef struct PfVmView {
	const PfDomain *domain;
	const char *reason; /* why it is not fusing, one sentence; empty when it is, or may at any
			       moment */
	const char *agent_version; /* empty: no agent was heard of */
	const char *kernel;        /* the guest's, empty likewise */
	PfVmFigures figures;
} PfVmView;

typedef struct PfHostView {
	PfFusionStats stats;
	guint64 store_allocated_kib; /* memory of all stores, by the kernel's count */
	guint64 store_swapped_kib;   /* of it, swapped out */
	gboolean pressure;           /* the host is short of memory */
} PfHostView;
