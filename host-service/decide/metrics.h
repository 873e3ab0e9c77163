/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The metrics: their names and units, the parsing of what a client asks for, and their values. No
 * I/O.
 */
#include "host-service/wire/view.h"
#include <gio/gio.h>

typedef enum PfMetricId {
	/* of the host */
	PF_METRIC_HOST_SHARED,
	PF_METRIC_HOST_FRAMES,
	PF_METRIC_HOST_FRAMES_FREED,
	PF_METRIC_HOST_REVOKED,
	PF_METRIC_HOST_CANDIDATES,
	PF_METRIC_HOST_HINT_TO_FUSED,
	PF_METRIC_HOST_STORE_ALLOCATED,
	PF_METRIC_HOST_STORE_SWAPPED,
	PF_METRIC_HOST_PRESSURE,
	/* of a VM */
	PF_METRIC_VM_SHARED,
	PF_METRIC_VM_HINTED,
	PF_METRIC_VM_FUSED,
	PF_METRIC_VM_REVOKED,
	PF_METRIC_VM_REFUSED,
	PF_METRIC_VM_OVER_QUOTA,
	PF_METRIC_VM_PAUSED,
	PF_METRIC_VM_BUSY,
	PF_METRIC_VM_DISCARDED,
	PF_METRIC_VM_WRITTEN,
	PF_METRIC_VM_WAYS_OUT,
	PF_METRIC_VM_RUNS,
	PF_METRIC_VM_MAPS,
	PF_METRIC_VM_MAPS_BUDGET,
	PF_METRIC_N
} PfMetricId;

#define PF_METRIC_FIRST_VM     PF_METRIC_VM_SHARED
#define PF_METRIC_MAX_NAME     128 /* bytes of a name or wildcard that a client asks for */
#define PF_METRIC_MAX_PATTERNS 64  /* of them in one query */
#define PF_METRIC_MAX_OBJECT   255 /* bytes */

typedef struct PfMetric {
	const char *name;
	const char *unit;
} PfMetric;

/* id is below PF_METRIC_N. */
const PfMetric *pf_metric_get(PfMetricId id);

typedef enum PfMetricObject {
	PF_METRIC_OBJECT_ALL,  /* "*": the host, then every VM */
	PF_METRIC_OBJECT_HOST, /* "host" */
	PF_METRIC_OBJECT_VM,   /* anything else: the UUID or the name of one VM */
} PfMetricObject;

typedef struct PfMetricQuery {
	PfMetricObject object;
	uint32_t selected; /* bit PfMetricId: asked for, and one of the object's */
} PfMetricQuery;

/*
 * What a client asks for: object, and n_patterns names or wildcards ("*", or whole parts and a
 * final star); none selects all. FALSE with G_IO_ERROR_INVALID_ARGUMENT when a pattern names no
 * metric (the message has the nearest name) or none of the object's.
 */
gboolean pf_metric_query_parse(PfMetricQuery *query, const char *object,
	const char *const *patterns, size_t n_patterns, GError **error);

/* FALSE when there is no value now. */
gboolean pf_metric_host_value(PfMetricId id, const PfHostView *host, uint64_t *value);
gboolean pf_metric_vm_value(PfMetricId id, const PfVmView *vm, uint64_t *value);
