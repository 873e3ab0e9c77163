/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
#include <stddef.h>

/* Installs the handler that pf_guard_copy() needs; once a process. 0 or -errno. */
int pf_guard_init(void);

/*
 * Copies size bytes out of a mapped file. 0, or -EFAULT when the file ends before them by now or
 * cannot be read. In any thread that does not block SIGBUS.
 */
int pf_guard_copy(void *to, const void *from, size_t size);
