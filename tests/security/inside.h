/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Processes that enter the sandbox and do one thing there. */
#include "host-service/daemon/sandbox.h"

#define INSIDE_UID    64321
#define INSIDE_GID    64322
#define INSIDE_MEMORY (G_GUINT64_CONSTANT(64) << 20)

/* An outcome that is no number of an error: the kernel has killed it. */
#define INSIDE_SIGNAL 256

/* Forks, enters, calls act(), and returns what that has returned (0 to 199), or INSIDE_SIGNAL + the signal. */
int inside(int (*act)(void *userdata), void *userdata);

/* The same with the process left running, and with a descriptor more; fd may be -1. */
pid_t inside_start(int (*act)(void *userdata), void *userdata, int fd);
int inside_end(pid_t pid);
