/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The processes of pagefusiond, each of them a fork of the first with a few descriptors of it. One that is not trusted
 * as the first is executes the program anew, so that it shares no secret of memory with the others: its addresses, stack
 * canary and pointer guard are its own.
 */
#include <glib.h>
#include <sys/types.h>

/*
 * Starts one (fork, no exec): it has this name, none of our descriptors but 0, 1, 2 and those of the list (-1 ends it),
 * ignores SIGINT, SIGTERM, SIGHUP and SIGPIPE (the first process ends it in order), and ends with the status of run().
 * It dies with us. The pid, or -1 with error set. To be called before this process has a second thread or a main loop.
 */
pid_t pf_process_start(const char *name, const int *fds, int (*run)(void *userdata), void *userdata,
	GError **error);

/*
 * Starts one that executes this very program (/proc/self/exe, whatever lies at its path by now) with these arguments and
 * this environment, and nothing else of ours: the descriptors of the list keep their numbers. It has to call
 * pf_process_resume() before it does anything for which it must not outlive us. name: for messages. The rest is as above.
 */
pid_t pf_process_execute(const char *name, const int *fds, const char *const *arguments,
	const char *const *environment, GError **error);

/* To be called by one that was executed: from now on it has this name, and dies with starter, which is its parent. */
void pf_process_resume(const char *name, pid_t starter);

/* To be called again by a process that has changed its user, which takes that away: we die with our parent. */
void pf_process_die_with_parent(void);

/* A pair of connected SOCK_SEQPACKET sockets, close-on-exec. */
gboolean pf_process_socket_pair(int fds[2], GError **error);
