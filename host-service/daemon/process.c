/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A process of pagefusiond is a fork of the first one, in the same binary: there is no second program to install, to find
 * and to trust. What the first process has open is not for the others (systemd's stores can be written to, the broker's
 * socket for definitions is root's equal), so a child closes everything that it was not given by name.
 *
 * What it cannot close is the first one's memory. A fork has the same addresses, the same stack canary and the same
 * pointer guard for as long as it lives, so who has taken over one process would know how to take over the next. The
 * broker may know: it is root and trusted as the first one is. The service must not, and is executed anew
 * (pf_process_execute()). Its environment is made, not inherited: what somebody has set for the first process
 * (LD_PRELOAD, a bus, systemd's socket) is not for it.
 *
 * The kernel kills a child whose parent dies. It does so only for a parent that dies after the child has asked for it,
 * hence the second look at who the parent is; and it forgets about it when a process changes its user, hence the
 * function that asks again.
 */
#include "host-service/daemon/process.h"
#include "common/log.h"
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* In a child: who started it. */
static pid_t its_starter;

void pf_process_die_with_parent(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != its_starter)
		_exit(EXIT_FAILURE);
}

static int compare_fds(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

/* A copy in order, of which the first is STDERR_FILENO; n counts it. */
static int *sorted_fds(const int *fds, size_t *n)
{
	int *sorted;
	size_t n_fds = 0;

	while (fds[n_fds] >= 0)
		n_fds++;
	sorted = g_new(int, n_fds + 1);
	memcpy(sorted, fds, n_fds * sizeof(*sorted));
	sorted[n_fds] = STDERR_FILENO;
	qsort(sorted, n_fds + 1, sizeof(*sorted), compare_fds);
	*n = n_fds + 1;
	return sorted;
}

static void close_all_but(const int *fds)
{
	size_t n, i;
	g_autofree int *keep = sorted_fds(fds, &n);

	for (i = 0; i + 1 < n; i++)
		if (keep[i] >= STDERR_FILENO && keep[i + 1] > keep[i] + 1)
			close_range((unsigned)keep[i] + 1, (unsigned)keep[i + 1] - 1, 0);
	close_range((unsigned)keep[n - 1] + 1, UINT_MAX, 0);
}

static void ignore_signals(void)
{
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
}

static gboolean fail(const char *what, int code, GError **error)
{
	g_set_error(
		error, G_IO_ERROR, g_io_error_from_errno(code), "%s: %s", what, g_strerror(code));
	return FALSE;
}

/* 0 in the child, which then is what the header says, but for its name. */
static pid_t fork_child(const char *name, const int *fds, GError **error)
{
	pid_t parent = getpid(), child;
	int code;

	/* What is in a buffer would be written by both. */
	fflush(NULL);
	child = fork();
	code = errno;
	if (child < 0) {
		g_autofree char *what = g_strdup_printf("the process %s cannot be started", name);

		fail(what, code, error);
		return -1;
	}
	if (child > 0)
		return child;
	its_starter = parent;
	pf_process_die_with_parent();
	ignore_signals();
	close_all_but(fds);
	return 0;
}

pid_t pf_process_start(const char *name, const int *fds, int (*run)(void *userdata), void *userdata,
	GError **error)
{
	pid_t child = fork_child(name, fds, error);

	if (child != 0)
		return child;
	prctl(PR_SET_NAME, name);
	exit(run(userdata));
}

pid_t pf_process_execute(const char *name, const int *fds, const char *const *arguments,
	const char *const *environment, GError **error)
{
	pid_t child = fork_child(name, fds, error);

	if (child != 0)
		return child;
	for (const int *fd = fds; *fd >= 0; fd++)
		fcntl(*fd, F_SETFD, 0);
	execve("/proc/self/exe", (char *const *)arguments, (char *const *)environment);
	pf_error("the process %s cannot be executed: %s: /proc has to be there", name,
		g_strerror(errno));
	_exit(EXIT_FAILURE);
}

void pf_process_resume(const char *name, pid_t starter)
{
	its_starter = starter;
	pf_process_die_with_parent();
	prctl(PR_SET_NAME, name);
}

gboolean pf_process_socket_pair(int fds[2], GError **error)
{
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0)
		return TRUE;
	return fail("a pair of sockets cannot be made", errno, error);
}
