// SPDX-License-Identifier: LGPL-2.1-or-later
/* What the status says in its two forms, and how it gets from the agent to who asks: with an agent
 * that answers in full, in part, in rubbish, not at all, and with none. */
#include "guest-agent/status_server.h"
#include "guest-agent/status_show.h"
#include "pagefusion-version.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define NOW 1700010000

static char directory[] = "/tmp/pf-status-XXXXXX";
static char path[80], parent[64];

static int set_up(void **state)
{
	setenv("TZ", "UTC", 1);
	if (!mkdtemp(directory))
		return -1;
	snprintf(parent, sizeof(parent), "%s/run", directory);
	snprintf(path, sizeof(path), "%s/status", parent);
	return 0;
}

static int tear_down(void **state)
{
	unlink(path);
	rmdir(parent);
	return rmdir(directory);
}

static PfAgentStatus an_agent(void)
{
	return (PfAgentStatus){
		.pid = 612,
		.started = NOW - 7500,
		.port = "/dev/vport0p1",
		.connected = true,
		.session = true,
		.since = NOW - 180,
		.n_sessions = 2,
		.bytes_sent = 3 << 19,
		.frames_sent = 12,
		.frames_acknowledged = 11,
		.classes =
			{
				[PF_CLASS_MAPPED] = {true, NULL, 126, NOW - 42, 18500, 21, 3, 71,
					8101},
				[PF_CLASS_CACHE] = {true, NULL, 0, 0, 0, 0, 0, 0, 0},
				[PF_CLASS_BUFFERS] = {false, NULL, 4, NOW - 90000, 1, 1, 1, 0, 0},
				[PF_CLASS_KERNEL] = {true, "the kernel is locked down"},
			},
		.process_events = true,
		.n_new_processes = 312,
		.n_hashed = 9000,
		.cpu_us = 1500000,
		.rss_anon_kib = 3174,
		.rss_file_kib = 2048,
	};
}

/* What a function writes (free()). */
static char *written(
	void (*write)(FILE *, const PfAgentStatus *, time_t), const PfAgentStatus *status)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	assert_non_null(out);
	write(out, status, NOW);
	assert_int_equal(fclose(out), 0);
	assert_int_equal(strlen(text), size);
	return text;
}

static void assert_written(void (*write)(FILE *, const PfAgentStatus *, time_t),
	const PfAgentStatus *status, const char *expected)
{
	char *text = written(write, status);

	assert_string_equal(text, expected);
	free(text);
}

static void assert_says(const PfAgentStatus *status, const char *expected)
{
	char *text = written(pf_status_write_text, status);

	if (!strstr(text, expected))
		fail_msg("\"%s\" is not in:\n%s", expected, text);
	free(text);
}

static void json_has_every_number(void **state)
{
	PfAgentStatus status = an_agent();

	assert_written(pf_status_write_json, &status,
		"{\"version\":\"" PF_VERSION "\",\"pid\":612,\"now\":1700010000,"
		"\"started\":1700002500,\"port\":\"/dev/vport0p1\",\"connected\":true,"
		"\"session\":true,\"since\":1700009820,\"sessions\":2,\"bytes_sent\":1572864,"
		"\"frames_sent\":12,\"frames_acknowledged\":11,\"process_events\":true,"
		"\"new_processes\":312,\"hashed_pages\":9000,\"left_behind\":0,\"left_out\":0,\"cpu_us\":1500000,"
		"\"rss_anon_kib\":3174,\"rss_file_kib\":2048,\"classes\":{"
		"\"mapped\":{\"on\":true,\"impossible\":null,\"passes\":126,\"ended\":1700009958,"
		"\"duration_ms\":21,\"cpu_us\":18500,\"hashed_pages\":3,\"files\":71,"
		"\"pages\":8101},"
		"\"cache\":{\"on\":true,\"impossible\":null,\"passes\":0,\"ended\":0,"
		"\"duration_ms\":0,\"cpu_us\":0,\"hashed_pages\":0,\"files\":0,\"pages\":0},"
		"\"buffers\":{\"on\":false,\"impossible\":null,\"passes\":4,\"ended\":1699920000,"
		"\"duration_ms\":1,\"cpu_us\":1,\"hashed_pages\":1,\"files\":0,\"pages\":0},"
		"\"kernel\":{\"on\":true,\"impossible\":\"the kernel is locked down\","
		"\"passes\":0,\"ended\":0,\"duration_ms\":0,\"cpu_us\":0,\"hashed_pages\":0,"
		"\"files\":0,\"pages\":0}}}\n");
}

static void text_is_for_people(void **state)
{
	PfAgentStatus status = an_agent();

	assert_written(pf_status_write_text, &status,
		"pagefusion-agent " PF_VERSION " (process 612), running since 2023-11-14 22:55:00 "
		"UTC (2 h 5 min)\n"
		"    Host: listens, since 2023-11-15 00:57:00 UTC (3 min)\n"
		"    Port: /dev/vport0p1\n"
		"   Found: 8101 pages (31.6 MiB) of 71 files; 1.5 MiB sent in 2 sessions\n"
		"Programs: are looked at when they start; 312 so far\n"
		"    Cost: 0.02 % of a CPU (1.50 s; 9000 pages hashed), 3.1 MiB of memory, 2.0 MiB "
		"of files in it\n"
		"\n"
		"class       pages      MiB   files       last pass      took       CPU   hashed\n"
		"mapped       8101     31.6      71        42 s ago     21 ms     18 ms        3\n"
		"cache    not looked at yet\n"
		"buffers  off\n"
		"kernel   not possible here: the kernel is locked down\n");
}

static void text_says_what_to_do(void **state)
{
	PfAgentStatus status = an_agent();

	status.session = false;
	assert_says(&status, "    Host: has opened the port and not said hello yet.");
	assert_says(&status,
		"journalctl -u pagefusiond;\n"
		"          the last session ended 2023-11-15 00:57:00 UTC (3 min ago)\n");
	status.connected = false;
	status.since = 0;
	assert_says(&status, "    Host: does not listen: start pagefusiond there (systemctl start "
			     "pagefusiond)\n");
	status.port = "";
	assert_says(&status, "    Host: cannot be reached: this VM has no port for it.");
	assert_says(&status, "pagefusionctl modifyvm VM --pagefusion on\n    Port: none\n");
	assert_says(&status, "Programs: are looked at while the host listens\n");
	status.session = true;
	status.process_events = false;
	assert_says(&status, "Programs: are found by the next pass only");
	status.n_left_behind = 2;
	assert_says(&status, " Trouble: 2 files did not answer");
	status.n_left_out = 300;
	assert_says(&status,
		"\n Trouble: 300 files are left out, as their owners have too many others\n");
}

/* A clock that was set back, and times of every length. */
static void text_bears_any_time(void **state)
{
	static const struct {
		time_t ago;
		const char *text;
	} times[] = {{0, "(0 s)"}, {59, "(59 s)"}, {60, "(1 min)"}, {3599, "(59 min)"},
		{3600, "(1 h 0 min)"}, {86399, "(23 h 59 min)"}, {86400, "(1 d 0 h)"},
		{86400 * 400 + 7200, "(400 d 2 h)"}, {-3600, "(0 s)"}};
	PfAgentStatus status = an_agent();

	for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
		status.since = NOW - times[i].ago;
		assert_says(&status, times[i].text);
	}
	status.started = NOW + 100;
	assert_says(&status, "    Cost: (1.50 s; ");
}

/* A port's name is the administrator's: no terminal obeys it, and the JSON stays JSON. */
static void names_are_cleaned(void **state)
{
	PfAgentStatus status = an_agent();
	char *text;

	status.port = "/dev/\"\\\x1b[1m\xff\n";
	assert_says(&status, "    Port: /dev/\"\\\xef\xbf\xbd[1m\xef\xbf\xbd\xef\xbf\xbd\n");
	text = written(pf_status_write_json, &status);
	assert_non_null(
		strstr(text, "\"port\":\"/dev/\\\"\\\\\xef\xbf\xbd[1m\xef\xbf\xbd\xef\xbf\xbd\","));
	free(text);
}

static void measures_this_process(void **state)
{
	PfAgentStatus status = {0};
	struct timespec cpu;

	pf_status_measure(&status);
	assert_int_equal(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu), 0);
	assert_in_range(
		status.cpu_us, 1, (uint64_t)cpu.tv_sec * 1000000 + (uint64_t)cpu.tv_nsec / 1000);
	assert_in_range(status.rss_anon_kib, 1, 1 << 20);
	assert_in_range(status.rss_file_kib, 1, 1 << 20);
}

/* --- the socket --- */

/* An agent in a thread: answers once. */
typedef struct Answerer {
	PfStatusServer server;
	PfAgentStatus status;
	const char *raw; /* said in place of an answer */
	size_t raw_size;
	pthread_t thread;
} Answerer;

static void *answer_one(void *userdata)
{
	Answerer *answerer = userdata;
	struct pollfd polled = {.fd = answerer->server.fd, .events = POLLIN};
	int fd;

	if (poll(&polled, 1, 10000) != 1)
		return NULL;
	if (!answerer->raw) {
		pf_status_server_answer(&answerer->server, &answerer->status);
		return NULL;
	}
	fd = accept(answerer->server.fd, NULL, NULL);
	(void)!send(fd, answerer->raw, answerer->raw_size, MSG_NOSIGNAL);
	close(fd);
	return NULL;
}

/* Exit status of --status, and what it wrote (free()). */
static int show(bool json, char **text)
{
	size_t size;
	FILE *out = open_memstream(text, &size);
	int status;

	assert_non_null(out);
	status = pf_status_show(out, path, json);
	assert_int_equal(fclose(out), 0);
	return status;
}

static int ask(Answerer *answerer, bool json, char **text)
{
	int status;

	assert_int_equal(pf_status_server_init(&answerer->server, path), 0);
	assert_int_equal(pthread_create(&answerer->thread, NULL, answer_one, answerer), 0);
	status = show(json, text);
	pthread_join(answerer->thread, NULL);
	pf_status_server_deinit(&answerer->server);
	return status;
}

static void who_asks_gets_the_answer(void **state)
{
	Answerer answerer = {.status = an_agent()};
	char *text;

	assert_int_equal(ask(&answerer, true, &text), 0);
	assert_memory_equal(text, "{\"version\":", 11);
	assert_string_equal(text + strlen(text) - 4, "}}}\n");
	free(text);
	assert_int_equal(ask(&answerer, false, &text), 0);
	assert_memory_equal(text, "pagefusion-agent " PF_VERSION " (process 612)", 30);
	assert_non_null(strstr(text, "\nkernel   not possible here: the kernel is locked down\n"));
	free(text);
}

/* Nothing but complete text is shown; what a newer version adds is left out. */
static void answers_are_checked(void **state)
{
	static const struct {
		const char *raw;
		size_t size;
		const char *json, *text; /* NULL: refused */
	} answers[] = {
#define WHOLE(raw) raw, sizeof(raw)
#define CUT(raw)   raw, sizeof(raw) - 1
		{WHOLE("{}\n\0text\n"), "{}\n", "text\n"},
		{WHOLE("{}\n\0text\n\0more"), "{}\n", "text\n"},
		{CUT("{}\n\0text\n\0more"), "{}\n", "text\n"},
		{CUT("{}\n\0text\n"), NULL, NULL},
		{CUT("{}\n\0"), NULL, NULL},
		{CUT("{}\n"), NULL, NULL},
		{CUT(""), NULL, NULL},
		{WHOLE("old\0text\n"), NULL, NULL},
		{WHOLE("{}\n\0a\x1b[2Jb"), "{}\n", NULL},
		{WHOLE("{\xff}\n\0text\n"), NULL, "text\n"},
		{WHOLE("{}\0"), "{}", ""},
	};

	for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) {
		for (int json = 0; json <= 1; json++) {
			const char *expected = json ? answers[i].json : answers[i].text;
			Answerer answerer = {.raw = answers[i].raw, .raw_size = answers[i].size};
			char *text;

			assert_int_equal(ask(&answerer, json, &text), expected ? 0 : 1);
			assert_string_equal(text, expected ? expected : "");
			free(text);
		}
	}
}

static void a_long_answer_is_no_trouble(void **state)
{
	static char raw[200000];
	Answerer answerer = {.raw = raw, .raw_size = sizeof(raw)};
	char *text;

	memset(raw, 'x', sizeof(raw));
	memcpy(raw, "{}\n", 4);
	assert_int_equal(ask(&answerer, false, &text), 1);
	assert_string_equal(text, "");
	free(text);
}

static void no_agent_is_said(void **state)
{
	PfStatusServer server;
	char *text;

	rmdir(parent);
	assert_int_equal(pf_status_probe(path), -ENOENT);
	assert_int_equal(show(false, &text), 1);
	assert_string_equal(text, "");
	free(text);
	/* One that was killed. */
	assert_int_equal(pf_status_server_init(&server, path), 0);
	assert_int_equal(pf_status_probe(path), 0);
	close(server.fd);
	close(server.spare);
	assert_int_equal(pf_status_probe(path), -ECONNREFUSED);
	assert_int_equal(show(false, &text), 1);
	free(text);
	/* The next one takes its place. */
	assert_int_equal(pf_status_server_init(&server, path), 0);
	assert_int_equal(pf_status_probe(path), 0);
	pf_status_server_deinit(&server);
	assert_int_equal(pf_status_probe(path), -ENOENT);
}

static void the_socket_is_for_root_alone(void **state)
{
	mode_t mask = umask(0);
	PfStatusServer server;
	struct stat status;

	rmdir(parent);
	assert_int_equal(pf_status_server_init(&server, path), 0);
	umask(mask);
	assert_int_equal(stat(path, &status), 0);
	assert_true(S_ISSOCK(status.st_mode));
	assert_int_equal(status.st_mode & 07777, 0600);
	assert_int_equal(stat(parent, &status), 0);
	assert_int_equal(status.st_mode & 07777, 0755);
	assert_int_equal(fcntl(server.fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	assert_int_equal(fcntl(server.fd, F_GETFD), FD_CLOEXEC);
	pf_status_server_deinit(&server);
	assert_int_equal(server.fd, -1);
	assert_int_equal(stat(path, &status), -1);
}

static void what_others_have_is_left_alone(void **state)
{
	PfStatusServer server, second;
	struct stat status;
	char long_path[200];

	assert_int_equal(pf_status_server_init(&server, path), 0);
	assert_int_equal(pf_status_server_init(&second, path), -EADDRINUSE);
	assert_int_equal(second.fd, -1);
	pf_status_server_deinit(&second);
	assert_int_equal(pf_status_probe(path), 0);
	pf_status_server_deinit(&server);
	/* No socket. */
	close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	assert_int_equal(pf_status_server_init(&server, path), -EADDRINUSE);
	assert_int_equal(stat(path, &status), 0);
	unlink(path);
	/* No place. */
	assert_int_equal(pf_status_server_init(&server, "/proc/nowhere/status"), -ENOENT);
	assert_int_equal(server.fd, -1);
	memset(long_path, 'x', sizeof(long_path));
	long_path[0] = '/';
	long_path[sizeof(long_path) - 1] = '\0';
	assert_int_equal(pf_status_server_init(&server, long_path), -ENAMETOOLONG);
	assert_int_equal(pf_status_probe(long_path), -ENAMETOOLONG);
}

static int connect_to(const char *to)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	strcpy(address.sun_path, to);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static bool is_readable(int fd)
{
	struct pollfd polled = {.fd = fd, .events = POLLIN};

	return poll(&polled, 1, 0) == 1;
}

/* Who connects and does not read, or is gone again, holds nobody up. */
static void nobody_is_waited_for(void **state)
{
	PfAgentStatus status = an_agent();
	PfStatusServer server;
	int fds[2];
	char byte;

	assert_int_equal(pf_status_server_init(&server, path), 0);
	for (int i = 0; i < 2; i++)
		fds[i] = connect_to(path);
	close(connect_to(path));
	for (int i = 0; i < 3; i++) {
		assert_true(is_readable(server.fd));
		pf_status_server_answer(&server, &status);
	}
	assert_false(is_readable(server.fd));
	/* Nobody there: nothing happens. */
	pf_status_server_answer(&server, &status);
	assert_true(server.fd >= 0);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(recv(fds[i], &byte, 1, 0), 1);
		assert_int_equal(byte, '{');
		close(fds[i]);
	}
	pf_status_server_deinit(&server);
}

/* The connection would stay, and wake the agent for ever. */
static void it_answers_without_a_free_descriptor(void **state)
{
	PfAgentStatus status = an_agent();
	PfStatusServer server;
	struct rlimit before, none;
	int fd;
	char byte;

	assert_int_equal(pf_status_server_init(&server, path), 0);
	fd = connect_to(path);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	none = before;
	none.rlim_cur = (rlim_t)fd + 1;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	assert_int_equal(open("/dev/null", O_RDONLY | O_CLOEXEC), -1);
	pf_status_server_answer(&server, &status);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_false(is_readable(server.fd));
	assert_true(server.spare >= 0);
	assert_int_equal(recv(fd, &byte, 1, 0), 1);
	close(fd);
	pf_status_server_deinit(&server);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(json_has_every_number),
		cmocka_unit_test(text_is_for_people),
		cmocka_unit_test(text_says_what_to_do),
		cmocka_unit_test(text_bears_any_time),
		cmocka_unit_test(names_are_cleaned),
		cmocka_unit_test(measures_this_process),
		cmocka_unit_test(who_asks_gets_the_answer),
		cmocka_unit_test(answers_are_checked),
		cmocka_unit_test(a_long_answer_is_no_trouble),
		cmocka_unit_test(no_agent_is_said),
		cmocka_unit_test(the_socket_is_for_root_alone),
		cmocka_unit_test(what_others_have_is_left_alone),
		cmocka_unit_test(nobody_is_waited_for),
		cmocka_unit_test(it_answers_without_a_free_descriptor),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
