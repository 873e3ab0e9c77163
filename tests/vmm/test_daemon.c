/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The program pagefusiond as a process: its start, its end, and others of its kind. */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define WAIT_US      (10 * G_USEC_PER_SEC)
#define LOG_SIZE     65536 /* where gcov counts, the service has much to complain of in its sandbox */
#define GRACE_US     (2 * G_USEC_PER_SEC - 10000) /* of the program, less its rounding */
#define SERVICE_USER "64321"

typedef struct Daemon {
	pid_t pid;
	int log; /* its standard error */
} Daemon;

typedef struct Rig {
	char dir[32];
	char socket[64];
} Rig;

static int set_up(void **state)
{
	Rig *rig = g_new0(Rig, 1);

	strcpy(rig->dir, "/tmp/pf-daemon-XXXXXX");
	assert_non_null(g_mkdtemp(rig->dir));
	snprintf(rig->socket, sizeof rig->socket, "%s/shim.sock", rig->dir);
	*state = rig;
	return 0;
}

static int tear_down(void **state)
{
	static const char *const names[] = {
		"shim.sock", "shim.sock.lock", "libvirt", "conf", "notify"};
	Rig *rig = *state;

	for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
		g_autofree char *path = g_build_filename(rig->dir, names[i], NULL);

		g_unlink(path);
	}
	assert_int_equal(g_rmdir(rig->dir), 0);
	g_free(rig);
	return 0;
}

/* With options of a list that NULL ends, after those that all have. prepare() is called in its process; NULL: nothing is. */
static Daemon start_prepared(
	const Rig *rig, const char *uri, const char *const *options, void (*prepare)(void))
{
	const char *argv[24] = {"pagefusiond", "--no-bus", "--connect", uri, "--run-dir", rig->dir};
	size_t n = 6;
	Daemon daemon;
	int log[2];

	while (*options && n + 1 < G_N_ELEMENTS(argv))
		argv[n++] = *options++;
	assert_int_equal(pipe(log), 0);
	daemon.pid = fork();
	assert_true(daemon.pid >= 0);
	if (daemon.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(log[1], STDERR_FILENO);
		close(log[0]);
		close(log[1]);
		if (prepare)
			prepare();
		execv(PF_TEST_PAGEFUSIOND, (char *const *)argv);
		_exit(127);
	}
	close(log[1]);
	daemon.log = log[0];
	return daemon;
}

static Daemon start_with(const Rig *rig, const char *uri, const char *const *options)
{
	return start_prepared(rig, uri, options, NULL);
}

static Daemon start(const Rig *rig, const char *uri)
{
	static const char *const options[] = {"--user", SERVICE_USER, NULL};

	return start_with(rig, uri, options);
}

static bool accepts_shims(const Rig *rig)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	bool connected;

	g_strlcpy(address.sun_path, rig->socket, sizeof address.sun_path);
	connected = connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
	close(fd);
	return connected;
}

static void wait_until_it_listens(const Rig *rig)
{
	gint64 deadline = g_get_monotonic_time() + WAIT_US;

	while (!accepts_shims(rig)) {
		if (g_get_monotonic_time() > deadline)
			fail_msg("pagefusiond does not listen");
		g_usleep(1000);
	}
}

/* Its exit status, which must come in time; all that it said is in log. */
static int end_of(Daemon *daemon, char *log, size_t size)
{
	gint64 deadline = g_get_monotonic_time() + WAIT_US;
	size_t used = 0;
	int status;
	ssize_t n;

	while (waitpid(daemon->pid, &status, WNOHANG) == 0) {
		if (g_get_monotonic_time() > deadline) {
			kill(daemon->pid, SIGKILL);
			waitpid(daemon->pid, NULL, 0);
			fail_msg("pagefusiond does not end");
		}
		g_usleep(1000);
	}
	while ((n = read(daemon->log, log + used, size - 1 - used)) > 0)
		used += (size_t)n;
	log[used] = 0;
	close(daemon->log);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void test_second_one(void **state)
{
	Rig *rig = *state;
	Daemon first = start(rig, "test:///default"), second;
	char log[LOG_SIZE];

	wait_until_it_listens(rig);
	second = start(rig, "test:///default");
	assert_int_equal(end_of(&second, log, sizeof log), 1);
	assert_non_null(strstr(log, "another pagefusiond uses /tmp/pf-daemon-"));
	assert_true(accepts_shims(rig));
	kill(first.pid, SIGTERM);
	assert_int_equal(end_of(&first, log, sizeof log), 0);
	assert_int_equal(access(rig->socket, F_OK), -1);
}

/* A libvirtd that takes connections and never says anything. However often it is asked to end, a change of a definition
 * that may be on its way has the time it has. */
static void test_ends_while_libvirt_hangs(void **state)
{
	Rig *rig = *state;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	g_autofree char *uri = g_strdup_printf("qemu+unix:///system?socket=%s/libvirt", rig->dir);
	int libvirt = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), broker;
	Daemon daemon;
	gint64 begin;
	char log[LOG_SIZE];

	snprintf(address.sun_path, sizeof address.sun_path, "%s/libvirt", rig->dir);
	assert_int_equal(bind(libvirt, (struct sockaddr *)&address, sizeof address), 0);
	assert_int_equal(listen(libvirt, 1), 0);
	daemon = start(rig, uri);
	broker = accept(libvirt, NULL, NULL);
	assert_true(broker >= 0);
	wait_until_it_listens(rig);
	begin = g_get_monotonic_time();
	for (int i = 0; i < 50; i++) {
		kill(daemon.pid, SIGTERM);
		g_usleep(10000);
	}
	assert_int_equal(end_of(&daemon, log, sizeof log), 0);
	assert_non_null(strstr(log, "hangs in libvirt"));
	assert_true(g_get_monotonic_time() - begin >= GRACE_US);
	close(broker);
	close(libvirt);
}

/* A signal wakes the main loop up through the main context's own descriptor, from another thread.
 * If the broker had that one too, it would take some of the wake-ups. */
static void test_wake_ups_are_its_own(void **state)
{
	Rig *rig = *state;
	char log[LOG_SIZE];

	for (int i = 0; i < 20; i++) {
		Daemon daemon = start(rig, "test:///default");

		wait_until_it_listens(rig);
		kill(daemon.pid, SIGTERM);
		assert_int_equal(end_of(&daemon, log, sizeof log), 0);
		assert_null(strstr(log, "hangs"));
	}
}

static void test_ignores_broken_pipes(void **state)
{
	Rig *rig = *state;
	Daemon daemon = start(rig, "test:///default");
	g_autofree char *path = g_strdup_printf("/proc/%d/status", daemon.pid);
	g_autofree char *status = NULL;
	const char *ignored;
	char log[LOG_SIZE];

	wait_until_it_listens(rig);
	assert_true(g_file_get_contents(path, &status, NULL, NULL));
	ignored = strstr(status, "SigIgn:\t");
	assert_non_null(ignored);
	assert_true(
		g_ascii_strtoull(ignored + strlen("SigIgn:\t"), NULL, 16) & 1ull << (SIGPIPE - 1));
	kill(daemon.pid, SIGTERM);
	assert_int_equal(end_of(&daemon, log, sizeof log), 0);
}

/* Its children */

typedef struct Child {
	pid_t pid;
	int fd; /* a pidfd */
} Child;

static bool is_named(pid_t pid, const char *name)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/comm", pid);
	g_autofree char *comm = NULL;

	return g_file_get_contents(path, &comm, NULL, NULL) && strcmp(g_strchomp(comm), name) == 0;
}

/* 0: not yet. */
static pid_t find_child(const Daemon *daemon, const char *name)
{
	g_autofree char *path =
		g_strdup_printf("/proc/%d/task/%d/children", daemon->pid, daemon->pid);
	g_autofree char *text = NULL;
	g_auto(GStrv) numbers = NULL;

	if (!g_file_get_contents(path, &text, NULL, NULL))
		return 0;
	numbers = g_strsplit(text, " ", -1);
	for (char **number = numbers; *number; number++) {
		pid_t pid = (pid_t)g_ascii_strtoll(*number, NULL, 10);

		if (pid > 0 && is_named(pid, name))
			return pid;
	}
	return 0;
}

static Child wait_for_child(const Daemon *daemon, const char *name)
{
	gint64 deadline = g_get_monotonic_time() + WAIT_US;
	Child child;

	while ((child.pid = find_child(daemon, name)) == 0) {
		if (g_get_monotonic_time() > deadline)
			fail_msg("pagefusiond has no process %s", name);
		g_usleep(1000);
	}
	child.fd = pidfd_open(child.pid, 0);
	assert_true(child.fd >= 0);
	return child;
}

static void expect_end(Child *child)
{
	struct pollfd event = {.fd = child->fd, .events = POLLIN};

	assert_int_equal(poll(&event, 1, (int)(WAIT_US / 1000)), 1);
	close(child->fd);
}

static unsigned uid_of(pid_t pid)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/status", pid);
	g_autofree char *status = NULL;
	const char *line;

	assert_true(g_file_get_contents(path, &status, NULL, NULL));
	line = strstr(status, "\nUid:\t");
	assert_non_null(line);
	return (unsigned)g_ascii_strtoull(line + strlen("\nUid:\t"), NULL, 10);
}

static void test_one_ends_all_end(void **state)
{
	static const struct {
		const char *name, *other, *message;
	} ends[] = {
		{"pf-service", "pf-broker", "the service process was ended by signal 9"},
		{"pf-broker", "pf-service", "the broker process was ended by signal 9"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(ends); i++) {
		Rig *rig = *state;
		Daemon daemon = start(rig, "test:///default");
		Child child = wait_for_child(&daemon, ends[i].name),
		      other = wait_for_child(&daemon, ends[i].other);
		char log[LOG_SIZE];

		wait_until_it_listens(rig);
		kill(child.pid, SIGKILL);
		assert_int_equal(end_of(&daemon, log, sizeof log), 1);
		assert_non_null(strstr(log, ends[i].message));
		assert_non_null(strstr(log, ": the others end too, to be started anew\n"));
		assert_null(strstr(log, "hangs"));
		expect_end(&child);
		expect_end(&other);
		assert_int_equal(access(rig->socket, F_OK), -1);
	}
}

/* One that does not end is not waited for, and does not outlive the others. */
static void test_service_hangs(void **state)
{
	Rig *rig = *state;
	Daemon daemon = start(rig, "test:///default");
	Child service = wait_for_child(&daemon, "pf-service");
	char log[LOG_SIZE];

	wait_until_it_listens(rig);
	kill(service.pid, SIGSTOP);
	kill(daemon.pid, SIGTERM);
	assert_int_equal(end_of(&daemon, log, sizeof log), 0);
	assert_non_null(strstr(log, "the service process hangs: it is killed"));
	expect_end(&service);
}

/* Whether the process has this file open. */
static bool has_open(pid_t pid, const char *path)
{
	g_autofree char *name = g_strdup_printf("/proc/%d/fd", pid);
	g_autoptr(GDir) dir = g_dir_open(name, 0, NULL);
	const char *fd;

	while (dir && (fd = g_dir_read_name(dir))) {
		g_autofree char *link = g_build_filename(name, fd, NULL);
		g_autofree char *target = g_file_read_link(link, NULL);

		if (g_strcmp0(target, path) == 0)
			return true;
	}
	return false;
}

static void wait_until_it_is_written(const char *path, pid_t pid)
{
	g_autofree char *begin = g_strdup_printf("%d ", pid);
	gint64 deadline = g_get_monotonic_time() + WAIT_US;

	for (;;) {
		g_autofree char *text = NULL;

		if (g_file_get_contents(path, &text, NULL, NULL) && g_str_has_prefix(text, begin))
			return;
		if (g_get_monotonic_time() > deadline)
			fail_msg("%s does not name process %d", path, pid);
		g_usleep(1000);
	}
}

static void test_killed_takes_all_along(void **state)
{
	Rig *rig = *state;
	Daemon first = start(rig, "test:///default"), second;
	Child broker = wait_for_child(&first, "pf-broker"),
	      service = wait_for_child(&first, "pf-service");
	g_autofree char *lock = g_strconcat(rig->socket, ".lock", NULL);
	char log[LOG_SIZE];

	wait_until_it_listens(rig);
	/* As long as it lives and may write to the stores, the next service does not begin; and no other one can. */
	wait_until_it_is_written(lock, service.pid);
	assert_false(has_open(service.pid, lock));
	assert_false(has_open(broker.pid, lock));
	kill(first.pid, SIGKILL);
	/* At once, as systemd may. The socket and the lock's file are left, and no hindrance. */
	second = start(rig, "test:///default");
	expect_end(&broker);
	expect_end(&service);
	waitpid(first.pid, NULL, 0);
	close(first.log);
	service = wait_for_child(&second, "pf-service");
	close(service.fd);
	wait_until_it_listens(rig);
	kill(second.pid, SIGTERM);
	assert_int_equal(end_of(&second, log, sizeof log), 0);
	assert_null(strstr(log, "another pagefusiond"));
}

/* What systemd keeps */

#define KEPT_NAME "store-0123456789abcdef0123456789abcdef"

static const char *notify_path;

static void hand_over_as_systemd(void)
{
	char pid[16];

	snprintf(pid, sizeof pid, "%d", getpid());
	setenv("LISTEN_PID", pid, 1);
	setenv("LISTEN_FDS", "3", 1);
	setenv("LISTEN_FDNAMES", "other:store-default:" KEPT_NAME, 1);
	setenv("NOTIFY_SOCKET", notify_path, 1);
	for (int fd = 3; fd < 6; fd++)
		dup2(STDERR_FILENO, fd);
}

/* The socket of one that hears what the daemon notifies it of. */
static int listen_as_systemd(const Rig *rig)
{
	struct timeval patience = {.tv_sec = WAIT_US / G_USEC_PER_SEC};
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof address.sun_path, "%s/notify", rig->dir);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
	return fd;
}

/* It comes through to the service, which does not like this one, and says so to systemd. What only looks like a store of
 * ours does not get so far. */
static void test_kept_store(void **state)
{
	static const char *const options[] = {"--user", SERVICE_USER, NULL};
	Rig *rig = *state;
	g_autofree char *path = g_build_filename(rig->dir, "notify", NULL);
	int systemd = listen_as_systemd(rig);
	Daemon daemon;
	char log[LOG_SIZE], message[256] = "";

	notify_path = path;
	daemon = start_prepared(rig, "test:///default", options, hand_over_as_systemd);
	assert_true(recv(systemd, message, sizeof message - 1, 0) > 0);
	assert_string_equal(message, "FDSTOREREMOVE=1\nFDNAME=" KEPT_NAME);
	close(systemd);
	wait_until_it_listens(rig);
	kill(daemon.pid, SIGTERM);
	assert_int_equal(end_of(&daemon, log, sizeof log), 0);
	assert_non_null(strstr(log, "kept for us was " KEPT_NAME ": no store of ours"));
	assert_null(strstr(log, "other"));
	assert_null(strstr(log, "store-default"));
}

/* Options and configuration */

/* Its one line, of what it says when it cannot start. */
static void expect_refusal(
	const Rig *rig, const char *const *options, int status, const char *message)
{
	Daemon daemon = start_with(rig, "test:///default", options);
	char log[LOG_SIZE];

	assert_int_equal(end_of(&daemon, log, sizeof log), status);
	if (!strstr(log, message))
		fail_msg("\"%s\" does not say \"%s\"", log, message);
	assert_ptr_equal(strchr(log, '\n'), log + strlen(log) - 1);
}

static char *write_config(const Rig *rig, const char *text)
{
	char *path = g_build_filename(rig->dir, "conf", NULL);

	assert_true(g_file_set_contents(path, text, -1, NULL));
	return path;
}

static void test_wrong_policy(void **state)
{
	static const char *const wrong[] = {"some", "default", ""};

	for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
		const char *const options[] = {"--thp", wrong[i], NULL};

		expect_refusal(*state, options, 2, "give it preserve, balanced or all");
	}
}

static void test_wrong_user(void **state)
{
	static const char *const nobody[] = {"--user", "nobody-has-this-name", NULL};
	static const char *const root[] = {"--user", "root", NULL};

	expect_refusal(*state, nobody, 1, "'nobody-has-this-name'");
	expect_refusal(*state, root, 1, "'root'");
}

static void test_wrong_configuration(void **state)
{
	Rig *rig = *state;
	static const char *const missing[] = {"--config", "/nonexistent/conf", NULL};
	g_autofree char *path = write_config(rig, "[service]\ncolour=green\n");
	const char *const unknown[] = {"--config", path, NULL};

	expect_refusal(rig, missing, 2, "/nonexistent/conf");
	expect_refusal(rig, unknown, 2, "colour");
}

/* How the service's process is started: with a descriptor, which nobody else has. */
static void test_option_of_its_own(void **state)
{
	static const char *const closed[] = {"--service-fd", "1000", NULL};
	static const char *const another[] = {"--service-fd", "2", NULL};

	expect_refusal(*state, closed, 1, "this process is started by pagefusiond itself");
	expect_refusal(*state, another, 1, "this process is started by pagefusiond itself");
}

static void expect_user(const Rig *rig, const char *const *options, unsigned uid)
{
	Daemon daemon = start_with(rig, "test:///default", options);
	gint64 deadline = g_get_monotonic_time() + WAIT_US;
	Child service = wait_for_child(&daemon, "pf-service");
	char log[LOG_SIZE];

	/* It begins as root. */
	while (uid_of(service.pid) != uid) {
		if (g_get_monotonic_time() > deadline)
			fail_msg("the service's process is %u's, not %u's", uid_of(service.pid),
				uid);
		g_usleep(1000);
	}
	kill(daemon.pid, SIGTERM);
	assert_int_equal(end_of(&daemon, log, sizeof log), 0);
	expect_end(&service);
}

static void test_options_override_the_configuration(void **state)
{
	Rig *rig = *state;
	g_autofree char *path = write_config(rig, "[service]\nuser=64322\n");
	const char *const file[] = {"--config", path, NULL};
	const char *const both[] = {"--config", path, "--user", SERVICE_USER, NULL};

	expect_user(rig, file, 64322);
	expect_user(rig, both, 64321);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_second_one),
		TEST(test_ends_while_libvirt_hangs),
		TEST(test_wake_ups_are_its_own),
		TEST(test_ignores_broken_pipes),
		TEST(test_one_ends_all_end),
		TEST(test_service_hangs),
		TEST(test_killed_takes_all_along),
		TEST(test_kept_store),
		TEST(test_wrong_policy),
		TEST(test_wrong_user),
		TEST(test_wrong_configuration),
		TEST(test_option_of_its_own),
		TEST(test_options_override_the_configuration),
	};
#undef TEST

	/* What a shell ignores would be inherited. */
	signal(SIGPIPE, SIG_DFL);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
