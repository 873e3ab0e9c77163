/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How the agent ends, and what it says then. The port is a FIFO; scans and the port's dispatch are
 * the test's own (the linker puts them in the place of the real ones), and fail as it wants.
 */
#include "guest-agent/agent.h"
#include "guest-agent/channel.h"
#include "guest-agent/scan.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

int __wrap_pf_facts_read(PfFacts *facts);
int __wrap_pf_facts_read_ram(PfRam *ram);
int __wrap_pf_scanner_new(PfScanner **scanner, PfState *state);
int __wrap_pf_scanner_run(PfScanner *scanner, const PfRam *ram, PfScanPause pause, void *userdata,
	PfScanStats *stats);
int __wrap_pf_channel_dispatch(PfChannel *channel, const struct pollfd *poll);

static int scan_result, dispatch_result;

int __wrap_pf_facts_read(PfFacts *facts)
{
	*facts = (PfFacts){.kernel = "6.1"};
	return 0;
}

int __wrap_pf_facts_read_ram(PfRam *ram)
{
	return 0;
}

int __wrap_pf_scanner_new(PfScanner **scanner, PfState *state)
{
	*scanner = NULL;
	return 0;
}

int __wrap_pf_scanner_run(
	PfScanner *scanner, const PfRam *ram, PfScanPause pause, void *userdata, PfScanStats *stats)
{
	*stats = (PfScanStats){0};
	if (pause(userdata) != 0)
		return -ECANCELED;
	return scan_result;
}

int __wrap_pf_channel_dispatch(PfChannel *channel, const struct pollfd *poll)
{
	return dispatch_result;
}

/* Runs the agent in a process of its own, as it blocks signals; what it said on standard error. */
static const char *run(const char *port, int *status)
{
	static char said[4096];
	const PfAgentOptions options = {.port = port, .interval_s = 60};
	size_t n = 0;
	ssize_t got;
	int fds[2];
	pid_t child;

	assert_int_equal(pipe(fds), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		dup2(fds[1], STDERR_FILENO);
		_exit(pf_agent_run(&options));
	}
	close(fds[1]);
	while ((got = read(fds[0], said + n, sizeof(said) - 1 - n)) > 0)
		n += (size_t)got;
	said[n] = '\0';
	close(fds[0]);
	assert_int_equal(waitpid(child, status, 0), child);
	return said;
}

static void check_end(int scan, int dispatch, const char *says)
{
	char directory[] = "/tmp/pf-agent-XXXXXX", port[64];
	const char *said;
	int status;

	assert_non_null(mkdtemp(directory));
	snprintf(port, sizeof(port), "%s/port", directory);
	assert_int_equal(mkfifo(port, 0600), 0);
	scan_result = scan;
	dispatch_result = dispatch;
	said = run(port, &status);
	unlink(port);
	rmdir(directory);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_FAILURE);
	if (!strstr(said, says))
		fail_msg("said \"%s\", wanted \"%s\"", said, says);
}

static void test_scan_fails(void **state)
{
	check_end(-EIO, 0, "cannot read this guest's memory layout: Input/output error");
	check_end(-EBADF, 0, "cannot read this guest's memory layout: Bad file descriptor");
	check_end(-EPERM, 0, "run this as root");
}

/* It is served in the scan's pauses. */
static void test_port_fails(void **state)
{
	check_end(0, -EIO, "/port: Input/output error");
	check_end(0, -ENODEV, "turn page fusion on for this VM on the host");
	check_end(0, -EPERM, "/port: Operation not permitted");
}

static void test_no_port(void **state)
{
	int status;

	assert_non_null(strstr(run("/nonexistent/port", &status), "no virtio-serial port /nonex"));
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_FAILURE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_scan_fails),
		cmocka_unit_test(test_port_fails),
		cmocka_unit_test(test_no_port),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
