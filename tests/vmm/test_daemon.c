/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The program pagefusiond as a process: its start, its end, and others of its kind. */
#include <errno.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define WAIT_US (10 * G_USEC_PER_SEC)

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
	static const char *const names[] = {"shim.sock", "shim.sock.lock", "libvirt"};
	Rig *rig = *state;

	for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
		g_autofree char *path = g_build_filename(rig->dir, names[i], NULL);

		g_unlink(path);
	}
	assert_int_equal(g_rmdir(rig->dir), 0);
	g_free(rig);
	return 0;
}

static Daemon start_with_policy(const Rig *rig, const char *uri, const char *thp)
{
	Daemon daemon;
	int log[2];

	assert_int_equal(pipe(log), 0);
	daemon.pid = fork();
	assert_true(daemon.pid >= 0);
	if (daemon.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(log[1], STDERR_FILENO);
		close(log[0]);
		close(log[1]);
		execl(PF_TEST_PAGEFUSIOND, "pagefusiond", "--no-bus", "--connect", uri, "--run-dir",
			rig->dir, "--thp", thp, NULL);
		_exit(127);
	}
	close(log[1]);
	daemon.log = log[0];
	return daemon;
}

static Daemon start(const Rig *rig, const char *uri)
{
	return start_with_policy(rig, uri, "balanced");
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
	char log[4096];

	wait_until_it_listens(rig);
	second = start(rig, "test:///default");
	assert_int_equal(end_of(&second, log, sizeof log), 1);
	assert_non_null(strstr(log, "another pagefusiond uses /tmp/pf-daemon-"));
	assert_true(accepts_shims(rig));
	kill(first.pid, SIGTERM);
	assert_int_equal(end_of(&first, log, sizeof log), 0);
	assert_int_equal(access(rig->socket, F_OK), -1);
	/* A killed one leaves its socket and its lock file, which are no hindrance. */
	first = start(rig, "test:///default");
	wait_until_it_listens(rig);
	kill(first.pid, SIGKILL);
	waitpid(first.pid, NULL, 0);
	close(first.log);
	second = start(rig, "test:///default");
	wait_until_it_listens(rig);
	kill(second.pid, SIGTERM);
	assert_int_equal(end_of(&second, log, sizeof log), 0);
}

/* A libvirtd that takes connections and never says anything. */
static void test_ends_while_libvirt_hangs(void **state)
{
	Rig *rig = *state;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	g_autofree char *uri = g_strdup_printf("qemu+unix:///system?socket=%s/libvirt", rig->dir);
	int libvirt = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), broker;
	Daemon daemon;
	char log[4096];

	snprintf(address.sun_path, sizeof address.sun_path, "%s/libvirt", rig->dir);
	assert_int_equal(bind(libvirt, (struct sockaddr *)&address, sizeof address), 0);
	assert_int_equal(listen(libvirt, 1), 0);
	daemon = start(rig, uri);
	broker = accept(libvirt, NULL, NULL);
	assert_true(broker >= 0);
	wait_until_it_listens(rig);
	kill(daemon.pid, SIGTERM);
	assert_int_equal(end_of(&daemon, log, sizeof log), 0);
	assert_non_null(strstr(log, "hangs in libvirt"));
	close(broker);
	close(libvirt);
}

/* A signal wakes the main loop up through the main context's own descriptor, from another thread.
 * If the broker had that one too, it would take some of the wake-ups. */
static void test_wake_ups_are_its_own(void **state)
{
	Rig *rig = *state;
	char log[4096];

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
	char log[4096];

	wait_until_it_listens(rig);
	assert_true(g_file_get_contents(path, &status, NULL, NULL));
	ignored = strstr(status, "SigIgn:\t");
	assert_non_null(ignored);
	assert_true(
		g_ascii_strtoull(ignored + strlen("SigIgn:\t"), NULL, 16) & 1ull << (SIGPIPE - 1));
	kill(daemon.pid, SIGTERM);
	assert_int_equal(end_of(&daemon, log, sizeof log), 0);
}

static void test_wrong_policy(void **state)
{
	static const char *const wrong[] = {"some", "default", ""};
	char log[4096];

	for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
		Daemon daemon = start_with_policy(*state, "test:///default", wrong[i]);

		assert_int_equal(end_of(&daemon, log, sizeof log), 2);
		assert_non_null(strstr(log, "give it preserve, balanced or all"));
	}
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_second_one),
		TEST(test_ends_while_libvirt_hangs),
		TEST(test_wake_ups_are_its_own),
		TEST(test_ignores_broken_pipes),
		TEST(test_wrong_policy),
	};
#undef TEST

	/* What a shell ignores would be inherited. */
	signal(SIGPIPE, SIG_DFL);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
