/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a process of pagefusiond begins with, and with whom it ends. */
#include "host-service/daemon/process.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define WAIT_MS 20000
#define N_FDS   6

/* What is done in a child says 0, or prints what it does not like. */
#define WANT(condition)                                                                            \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "child: %s\n", #condition);                                \
			return 1;                                                                  \
		}                                                                                  \
	} while (0)

static int status_of(pid_t pid)
{
	int status;

	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static int run(const int *fds, int (*function)(void *userdata), void *userdata)
{
	return status_of(pf_process_start("pf-test", fds, function, userdata, NULL));
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

/* Every second one was given, in no order. */
static int look_at_descriptors(void *userdata)
{
	const int *fds = userdata;

	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		WANT(is_open(fd));
	for (int i = 0; i < N_FDS; i++)
		WANT(is_open(fds[i]) == (i % 2 == 0));
	return 0;
}

static void test_descriptors(void **state)
{
	int fds[N_FDS], given[] = {0, 0, 0, 0, STDOUT_FILENO, -1};

	for (int i = 0; i < N_FDS; i++) {
		fds[i] = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 100 + i);
		assert_true(fds[i] >= 0);
	}
	given[0] = fds[4];
	given[1] = fds[0];
	given[2] = fds[2];
	given[3] = fds[0];
	assert_int_equal(run(given, look_at_descriptors, fds), 0);
	for (int i = 0; i < N_FDS; i++)
		close(fds[i]);
}

static int look_at_name_and_signals(void)
{
	static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
	char name[16];
	int signal;

	WANT(prctl(PR_GET_NAME, name) == 0);
	WANT(strcmp(name, "pf-test") == 0);
	WANT(prctl(PR_GET_PDEATHSIG, &signal) == 0 && signal == SIGKILL);
	for (size_t i = 0; i < G_N_ELEMENTS(ignored); i++) {
		struct sigaction action;

		WANT(sigaction(ignored[i], NULL, &action) == 0 && action.sa_handler == SIG_IGN);
	}
	return 0;
}

static int look_at_itself(void *userdata)
{
	WANT(look_at_name_and_signals() == 0);
	WANT(getppid() == *(pid_t *)userdata);
	return 77;
}

static void test_name_and_signals(void **state)
{
	pid_t self = getpid();

	assert_int_equal(run((const int[]){-1}, look_at_itself, &self), 77);
}

/* Ends when nobody is at the other end any more. */
static int hold(void *userdata)
{
	char byte = 'x';

	WANT(write(*(int *)userdata, &byte, 1) == 1);
	WANT(read(*(int *)userdata, &byte, 1) == 0);
	return 0;
}

static void test_dies_with_parent(void **state)
{
	int pair[2], ended;
	struct pollfd watched;
	pid_t parent;
	char byte;

	assert_true(pf_process_socket_pair(pair, NULL));
	parent = fork();
	assert_true(parent >= 0);
	if (parent == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pf_process_start("pf-test", (const int[]){pair[1], -1}, hold, &pair[1], NULL);
		pause();
		_exit(0);
	}
	close(pair[1]);
	assert_int_equal(read(pair[0], &byte, 1), 1);
	kill(parent, SIGKILL);
	assert_int_equal(waitpid(parent, NULL, 0), parent);
	watched = (struct pollfd){.fd = pair[0], .events = POLLIN};
	ended = poll(&watched, 1, WAIT_MS);
	close(pair[0]);
	assert_int_equal(ended, 1);
}

static int ask_when_it_is_too_late(void *userdata)
{
	int fd = *(int *)userdata;
	char byte;

	/* Until our parent is gone. */
	prctl(PR_SET_PDEATHSIG, 0);
	WANT(write(fd, "x", 1) == 1);
	WANT(read(fd, &byte, 1) == 1);
	pf_process_die_with_parent();
	WANT(write(fd, "alive", 5) == 5);
	return 0;
}

/* The kernel sends a signal only when a parent dies after it was asked to. */
static void test_parent_is_dead_already(void **state)
{
	int pair[2];
	pid_t parent;
	char bytes[8];

	assert_true(pf_process_socket_pair(pair, NULL));
	parent = fork();
	assert_true(parent >= 0);
	if (parent == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pf_process_start("pf-test", (const int[]){pair[1], -1}, ask_when_it_is_too_late,
			&pair[1], NULL);
		pause();
		_exit(0);
	}
	close(pair[1]);
	assert_int_equal(read(pair[0], bytes, sizeof bytes), 1);
	kill(parent, SIGKILL);
	assert_int_equal(waitpid(parent, NULL, 0), parent);
	assert_int_equal(write(pair[0], "x", 1), 1);
	assert_int_equal(read(pair[0], bytes, sizeof bytes), 0);
	close(pair[0]);
}

/* Executed */

#define EXECUTED "--executed"

static int execute(int given, int other, pid_t starter)
{
	g_autofree char *first = g_strdup_printf("%d", given);
	g_autofree char *second = g_strdup_printf("%d", other);
	g_autofree char *third = g_strdup_printf("%d", starter);
	const char *const arguments[] = {"test", EXECUTED, first, second, third, NULL};
	const char *const environment[] = {"PF_TEST=1", NULL};

	return status_of(pf_process_execute(
		"pf-test", (const int[]){given, -1}, arguments, environment, NULL));
}

/* What main() does then. */
static int look_after_execution(char **arguments)
{
	WANT(environ[0] && strcmp(environ[0], "PF_TEST=1") == 0 && !environ[1]);
	WANT(is_open(STDIN_FILENO) && is_open(STDOUT_FILENO) && is_open(STDERR_FILENO));
	WANT(is_open(atoi(arguments[0])));
	WANT(!is_open(atoi(arguments[1])));
	pf_process_resume("pf-test", atoi(arguments[2]));
	WANT(look_at_name_and_signals() == 0);
	return 77;
}

static void test_execution(void **state)
{
	int given = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 100),
	    other = fcntl(STDERR_FILENO, F_DUPFD, 200);

	assert_true(given >= 0 && other >= 0);
	assert_int_equal(execute(given, other, getpid()), 77);
	/* Here it still is as it was. */
	assert_int_equal(fcntl(given, F_GETFD), FD_CLOEXEC);
	/* Its parent is not who has started it: that one must be dead. */
	assert_int_equal(execute(given, other, getpid() + 1), EXIT_FAILURE);
	close(given);
	close(other);
}

static void test_socket_pair(void **state)
{
	char bytes[8];
	int pair[2];

	assert_true(pf_process_socket_pair(pair, NULL));
	for (int i = 0; i < 2; i++)
		assert_int_equal(fcntl(pair[i], F_GETFD), FD_CLOEXEC);
	/* Packets stay apart. */
	assert_int_equal(write(pair[0], "ab", 2), 2);
	assert_int_equal(write(pair[0], "c", 1), 1);
	assert_int_equal(read(pair[1], bytes, sizeof bytes), 2);
	close(pair[0]);
	close(pair[1]);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_descriptors),
		cmocka_unit_test(test_name_and_signals),
		cmocka_unit_test(test_dies_with_parent),
		cmocka_unit_test(test_parent_is_dead_already),
		cmocka_unit_test(test_execution),
		cmocka_unit_test(test_socket_pair),
	};

	if (argc == 5 && strcmp(argv[1], EXECUTED) == 0)
		return look_after_execution(argv + 2);

	return cmocka_run_group_tests(tests, NULL, NULL);
}
