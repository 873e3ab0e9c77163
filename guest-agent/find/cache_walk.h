/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Finds system files that are in the page cache, without bringing anything in: neither directories, nor inodes,
 * nor pages. */
#include "guest-agent/find/found.h"
#include "guest-agent/find/mounts.h"

/* NULL, or why it is not possible on this kernel: a text to show. */
const char *pf_cache_walk_impossible(void);

/*
 * Walks the directories below paths (NULL-terminated; what does not exist is left out), never leaving local
 * file systems, and hands over the regular files that may have resident pages; found->fd is the callee's. step is
 * called now and then with 0 pages hashed. mounts must not be refreshed meanwhile. 0, what found or step returned, or
 * -ENOMEM.
 */
int pf_cache_walk(
	char *const *paths, const PfMounts *mounts, PfFoundFile found, PfStep step, void *userdata);
