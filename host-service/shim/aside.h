/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The userfaultfds that QEMU has made for itself. Between pf_core_step_aside() and pf_core_come_back() the core has
 * nothing to do with guest RAM; this remembers which descriptor each step was for.
 */
#include "host-service/shim/lock.h"
#include <stdbool.h>

/*
 * QEMU has made this userfaultfd, after pf_core_step_aside(). Stays QEMU's. When it is found closed, that is one
 * pf_core_come_back().
 */
void pf_aside_remember(int uffd) PF_NO_LOCK;

/* Comes back for each one that was closed. Whether any is still open: then look again, once or twice a second. */
bool pf_aside_look(void) PF_NO_LOCK;
