/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What processes map: which files, and which of their pages. For one pass. */
#include "guest-agent/find/reach.h"
#include "guest-agent/state.h"

typedef struct PfMappings PfMappings;

/* state has begun a pass of the mappings; both must live as long. max_open files are held open at
 * the same time. NULL without memory. */
PfMappings *pf_mappings_new(PfState *state, PfReach *reach, size_t max_open);
void pf_mappings_free(PfMappings *mappings);

/* Collects the mappings of a process, or of all. 0, what step returned, or -ENOMEM; another -errno
 * when there is no /proc. */
int pf_mappings_add(PfMappings *mappings, pid_t pid, PfStep step, void *userdata);
int pf_mappings_add_all(PfMappings *mappings, PfStep step, void *userdata);

/* Whether files could not be opened for lack of privilege. */
bool pf_mappings_refused(const PfMappings *mappings);

/* Visits each file that was collected, and closes it. *n_files counts them. As
 * pf_visitor_visit(). */
int pf_mappings_visit(PfMappings *mappings, PfVisitor *visitor, const PfRam *ram, PfStep step,
	void *userdata, uint64_t *n_files);
