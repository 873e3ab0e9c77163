// SPDX-License-Identifier: LGPL-2.1-or-later
/* The program as it is called: what its options and its configuration file do, and how it ends. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static char said[16384]; /* on standard output and standard error */

/* Exit status of the program. */
static int run(const char *const *arguments)
{
	const char *argv[8] = {PF_TEST_AGENT};
	int fds[2], status;
	size_t n = 0;
	ssize_t got;
	pid_t child;

	for (size_t i = 0; arguments[i]; i++)
		argv[i + 1] = arguments[i];
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		dup2(fds[1], STDOUT_FILENO);
		dup2(fds[1], STDERR_FILENO);
		execv(argv[0], (char *const *)argv);
		_exit(127);
	}
	close(fds[1]);
	while ((got = read(fds[0], said + n, sizeof(said) - 1 - n)) > 0)
		n += (size_t)got;
	said[n] = '\0';
	close(fds[0]);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

typedef struct Call {
	const char *arguments[6];
	int status;
	const char *text; /* is said */
} Call;

static void assert_calls(const Call *calls, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		int status = run(calls[i].arguments);

		if (status != calls[i].status || !strstr(said, calls[i].text))
			fail_msg("call %zu (%s): exit status %d, wanted %d and \"%s\":\n%s", i,
				calls[i].arguments[0], status, calls[i].status, calls[i].text,
				said);
	}
}

#define SEE "; see pagefusion-agent --help\n"

static void wrong_options_are_told(void **state)
{
	static const Call calls[] = {
		{{"--nothing"}, 2, "unrecognized option '--nothing'\n"},
		{{"--config"}, 2, "requires an argument\n"},
		{{"--wait=1"}, 2, "doesn't allow an argument\n"},
		{{"something"}, 2, "unexpected argument something" SEE},
		{{"--interval", "0"}, 2, "--interval must be 1 to 86400 seconds, not 0" SEE},
		{{"--interval", "86401"}, 2,
			"--interval must be 1 to 86400 seconds, not 86401" SEE},
		{{"--interval", "1s"}, 2, "--interval must be 1 to 86400 seconds, not 1s" SEE},
		{{"--interval", "-1"}, 2, "--interval must be 1 to 86400 seconds, not -1" SEE},
		{{"--dump=all"}, 2, "--dump knows only =digests, not =all" SEE},
		{{"--json"}, 2, "--json goes with --status, --check or --dump" SEE},
		{{"--status", "--config", "/nowhere"}, 2, "--config has no effect on --status" SEE},
		{{"--port", "/x", "--status"}, 2, "--port has no effect on --status" SEE},
		{{"--status", "--interval", "5"}, 2, "--interval has no effect on --status" SEE},
		{{"--status", "--wait"}, 2, "--wait has no effect on --status" SEE},
		{{"--status", "--debug"}, 2, "--debug has no effect on --status" SEE},
		{{"--check", "--interval", "5"}, 2, "--interval has no effect on --check" SEE},
		{{"--check", "--wait"}, 2, "--wait has no effect on --check" SEE},
		{{"--dump", "--port", "/x"}, 2, "--port has no effect on --dump" SEE},
		{{"--dump", "--interval", "5"}, 2, "--interval has no effect on --dump" SEE},
		{{"--wait", "--dump=digests"}, 2, "--wait has no effect on --dump" SEE},
		{{"--status", "--check"}, 2,
			"one thing at a time: --status, --check or --dump" SEE},
		{{"--check", "--dump"}, 2, "one thing at a time: --status, --check or --dump" SEE},
	};

	assert_calls(calls, sizeof(calls) / sizeof(calls[0]));
}

static void it_says_what_it_is(void **state)
{
	static const Call calls[] = {
		{{"--version"}, 0, "pagefusion-agent "},
		{{"--help"}, 0, "Usage: pagefusion-agent [OPTION...]\n"},
		{{"--status", "--help"}, 0, "  --check  "},
	};

	assert_calls(calls, sizeof(calls) / sizeof(calls[0]));
}

/* Exit status 2, with which nothing starts it again. */
static void a_wrong_configuration_ends_it(void **state)
{
	char path[] = "/tmp/pf-agent-options-XXXXXX";
	int fd = mkstemp(path);
	const Call calls[] = {
		{{"--config", path}, 2,
			":2: [agent] interval: cannot be '0': give it a number of seconds from 1 to "
			"86400\n"},
		{{"--dump", "--config", path}, 2, ":2: [agent] interval: "},
		{{"--dump", "--json", "--config", path}, 2, ":2: [agent] interval: "},
		{{"--config", "/nowhere/agent.conf"}, 2,
			"/nowhere/agent.conf: No such file or directory\n"},
		{{"--config", "/"}, 2, "/: Is a directory\n"},
		/* Which is one of the things that --check looks at. */
		{{"--check", "--config", path}, 1,
			"missing  configuration   /tmp/pf-agent-options-"},
	};

	assert_true(fd >= 0);
	assert_int_equal(write(fd, "[agent]\ninterval = 0\n", 21), 21);
	close(fd);
	assert_calls(calls, sizeof(calls) / sizeof(calls[0]));
	unlink(path);
}

static void the_port_of_the_command_line_counts(void **state)
{
	char path[] = "/tmp/pf-agent-options-XXXXXX";
	int fd = mkstemp(path);
	const Call calls[] = {
		{{"--check", "--config", path}, 1, "/nowhere/of-file: not there: "},
		{{"--check", "--config", path, "--port", "/nowhere/of-option"}, 1,
			"/nowhere/of-option: not there: "},
	};
	const Call roots_calls[] = {
		{{"--config", path}, 1, "/nowhere/of-file: "},
		{{"--config", path, "--port", "/nowhere/of-option"}, 1, "/nowhere/of-option: "},
	};

	assert_true(fd >= 0);
	assert_int_equal(write(fd, "[agent]\nport = /nowhere/of-file\n", 32), 32);
	close(fd);
	assert_calls(calls, sizeof(calls) / sizeof(calls[0]));
	/* Without root it does not come to that. */
	if (geteuid() == 0)
		assert_calls(roots_calls, sizeof(roots_calls) / sizeof(roots_calls[0]));
	unlink(path);
}

static void the_check_is_json(void **state)
{
	static const char *const check[] = {
		"--check", "--json", "--config", "/dev/null", "--port", "/nowhere", NULL};

	assert_int_equal(run(check), 1);
	assert_ptr_equal(strstr(said, "[\n{\"check\":\"configuration\",\"result\":\"ok\","), said);
	assert_string_equal(said + strlen(said) - 4, "}\n]\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(wrong_options_are_told),
		cmocka_unit_test(it_says_what_it_is),
		cmocka_unit_test(a_wrong_configuration_ends_it),
		cmocka_unit_test(the_port_of_the_command_line_counts),
		cmocka_unit_test(the_check_is_json),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
