/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Finds the resident pages of one file: where they are and what they hold. */
#include "guest-agent/facts.h"
#include "guest-agent/state.h"

typedef struct PfVisitor PfVisitor;

/*
 * 0 and a visitor; -EPERM when the kernel does not tell page frame numbers (no CAP_SYS_ADMIN),
 * another -errno. pf_guard_init() must have been called.
 */
int pf_visitor_new(PfVisitor **visitor);
void pf_visitor_free(PfVisitor *visitor);

/*
 * Looks at the mapped ranges of the file, which is open for reading as file->fd, and commits what
 * it finds inside ram. A file that cannot be mapped is left as it is. 0 or a fatal -errno.
 */
int pf_visitor_visit(PfVisitor *visitor, PfFile *file, const PfRam *ram);

/* Pages hashed so far. */
uint64_t pf_visitor_hashed(const PfVisitor *visitor);
