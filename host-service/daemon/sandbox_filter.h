/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The system calls of the sandbox, for sandbox.c alone. */

/* Loads the filter for this process, for ever; it needs no right but that nothing executed gets more. 0 or -errno. */
int pf_sandbox_load_filter(void);
