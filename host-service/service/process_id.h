/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What a process is known by over restarts of the service: process ids come again. */
#include <stdbool.h>
#include <stdint.h>

/*
 * A number that no other process has had or will have until the host boots anew: the inode of its pidfd (Linux 6.9).
 * 0 where the kernel has none. 0 or -errno.
 */
int pf_process_id(int pidfd, uint64_t *id);
