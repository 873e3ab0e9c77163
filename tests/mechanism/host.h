/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What a test changes on the host: settings, a swap file, a memory cgroup. All of it is put back
 * when the test's process is gone, whichever way it ended. Functions that return bool say false
 * where this host does not have the thing, and host_why() says what is missing.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Before the first thread is started, and before every other function here. Children that are forked after it must be
 * gone when the test ends. */
void host_start(void);
const char *host_why(void);

/* Writes a setting (a file of /proc or /sys), whose value comes back at the end. */
bool host_set(const char *path, const char *value);
/* The whole file without its last newline; empty when it cannot be read. */
void host_read(const char *path, char *text, size_t size);

/* A swap file of our own that is used before all others. Once a process; later calls change nothing. */
bool host_swap_on(void);
/* Slots of it in use, in pages. */
uint64_t host_swap_used_pages(void);
/* What /proc/self/pagemap says: swapped out. */
bool host_is_swapped(const void *page);

/*
 * A memory cgroup of our own: what this process allocates between enter and leave is charged to it, and stays charged.
 * One at a time; entering again is entering the same one.
 */
bool host_cgroup_enter(void);
void host_cgroup_leave(void);
uint64_t host_cgroup_bytes(void);
/* Has the kernel take out of memory what it can of the cgroup's. Some may stay: call it again. */
void host_cgroup_reclaim(void);

/* A field of /proc/self/smaps in kB, summed over the VMAs that touch the range. */
uint64_t host_smaps_kib(const void *start, size_t length, const char *field);
