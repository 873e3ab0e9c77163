// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/manners.h"
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

/* 0, or what is not low. */
static int check(void)
{
	if (getpriority(PRIO_PROCESS, 0) < 10)
		return 1;
	if (sched_getscheduler(0) != SCHED_BATCH)
		return 2;
	/* Class 3 is idle. */
	return syscall(SYS_ioprio_get, 1, 0) >> 13 == 3 ? 0 : 3;
}

static void *check_thread(void *userdata)
{
	*(int *)userdata = check();
	return NULL;
}

/* In a process of its own: no way leads back for one that is not root. */
static void test_low_priority(void **state)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		int in_thread = -1, r;
		pthread_t thread;

		pf_manners_set();
		r = check();
		/* Those who wait for silent files inherit it. */
		if (r == 0 && pthread_create(&thread, NULL, check_thread, &in_thread) == 0)
			pthread_join(thread, NULL);
		_exit(r ? r : in_thread ? 10 + in_thread : 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_low_priority),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
