/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The block devices on which mounted file systems lie. */
#include "guest-agent/find/found.h"
#include "guest-agent/find/mounts.h"

/*
 * Hands over each block device with a mounted file system, once; found->fd is the callee's. mounts must not be
 * refreshed meanwhile. 0, what found returned, or -ENOMEM.
 */
int pf_block_cache_walk(const PfMounts *mounts, PfFoundFile found, void *userdata);
