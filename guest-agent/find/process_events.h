/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Programs that start and processes that end, as the kernel tells them (netlink connector). */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct PfProcessEvents PfProcessEvents;

/* 0; -EPERM without CAP_NET_ADMIN in the initial namespaces; -ENOTSUP when the kernel has no such events; another
 * -errno. */
int pf_process_events_new(PfProcessEvents **events);
void pf_process_events_free(PfProcessEvents *events);

/* To poll for reading. */
int pf_process_events_fd(const PfProcessEvents *events);

/*
 * Takes what has come: up to capacity processes that have started a program, each once. *ended is how many processes
 * have ended. *lost says that some were missed: the socket was full, or more came than there was room for. The
 * number of pids, or a fatal -errno.
 */
int pf_process_events_take(
	PfProcessEvents *events, pid_t *pids, size_t capacity, uint64_t *ended, bool *lost);
