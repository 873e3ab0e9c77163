/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/security/inside.h"
#include "host-service/daemon/process.h"
#include <grp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define NOT_INSIDE 255

typedef struct Act {
	int (*act)(void *userdata);
	void *userdata;
} Act;

static int enter_and_act(void *userdata)
{
	static const PfSandbox sandbox = {INSIDE_UID, INSIDE_GID, INSIDE_MEMORY};
	const Act *act = userdata;
	static const gid_t more = 4;
	g_autoptr(GError) error = NULL;

	/* As root may have them. */
	if (setgroups(1, &more) < 0)
		return NOT_INSIDE;
	if (!pf_sandbox_enter(&sandbox, &error)) {
		fprintf(stderr, "%s\n", error->message);
		return NOT_INSIDE;
	}
	return act->act(act->userdata);
}

pid_t inside_start(int (*act)(void *userdata), void *userdata, int fd)
{
	int fds[] = {fd, -1};
	Act what = {act, userdata};
	pid_t pid = pf_process_start("pf-inside", fds, enter_and_act, &what, NULL);

	assert_true(pid > 0);
	return pid;
}

int inside_end(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_false(WCOREDUMP(status));
	if (WIFSIGNALED(status))
		return INSIDE_SIGNAL + WTERMSIG(status);
	if (WEXITSTATUS(status) == NOT_INSIDE)
		fail_msg("the sandbox cannot be entered");
	return WEXITSTATUS(status);
}

int inside(int (*act)(void *userdata), void *userdata)
{
	return inside_end(inside_start(act, userdata, -1));
}
