/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Finds the resident pages of one file: where they are and what they hold. */
#include "guest-agent/facts.h"
#include "guest-agent/find/found.h"
#include "guest-agent/find/worker.h"

typedef struct PfVisitor PfVisitor;

/*
 * 0 and a visitor; -EPERM when the kernel does not tell page frame numbers (no CAP_SYS_ADMIN),
 * another -errno. pf_guard_init() must have been called.
 */
int pf_visitor_new(PfVisitor **visitor);
void pf_visitor_free(PfVisitor *visitor);

/*
 * Looks at what is to be looked at of a file, which is open for reading as fd (not consumed), and commits,
 * a window at a time, what it finds inside ram; step may be NULL. worker as in pf_opening_open(). A file that
 * cannot be mapped or read is left as it is. 0; what step returned; -ETIMEDOUT, -EBUSY as in
 * pf_worker_run(): then what was not looked at is left as it is; another -errno is fatal.
 */
int pf_visitor_visit(PfVisitor *visitor, PfWorker *worker, PfFile *file, int fd, const PfRam *ram,
	PfStep step, void *userdata);
