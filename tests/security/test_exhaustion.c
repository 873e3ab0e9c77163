/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Nobody uses up the service's descriptors or its places for shims: not a QEMU with descriptors that cannot be closed, not
 * a local user with such ones or with a crowd. VMs that mean no harm are fused meanwhile. The service is the program, in
 * its sandbox, because there is what has to do the closing.
 */
#include "host-service/wire/closer.h"
#include "tests/security/honest.h"
#include "tests/security/hostile.h"
#include "tests/unit/host-service/lingering_socket.h"
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/un.h>
#include <sys/wait.h>

#define STRANGER       12345
#define N_LINGERING    16
#define MANY_FDS       253
#define MANY_PACKETS   200
#define MAX_MORE_FDS   700 /* a message's, those that wait to be closed, and strangers */
#define CROWD          4000
#define CROWD_STACK    32768
#define KNOCK_US       (4 * G_USEC_PER_SEC)
#define LINGER_FOREVER 1000000

static bool has_uid(pid_t pid, uid_t uid)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/status", pid);
	g_autofree char *wanted = g_strdup_printf("\nUid:\t%u\t", uid);
	g_autofree char *status = NULL;

	return g_file_get_contents(path, &status, NULL, NULL) && strstr(status, wanted);
}

/* Of pid and all that descend from it, the first of that user; 0: none. */
static pid_t find_process(pid_t pid, uid_t uid)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/task/%d/children", pid, pid);
	g_autofree char *children = NULL;
	g_auto(GStrv) words = NULL;
	pid_t found = has_uid(pid, uid) ? pid : 0;

	if (found || !g_file_get_contents(path, &children, NULL, NULL))
		return found;
	words = g_strsplit(children, " ", -1);
	for (size_t i = 0; words[i] && words[i][0] && !found; i++)
		found = find_process(atoi(words[i]), uid);
	return found;
}

static bool service_is_there(void *pid)
{
	*(pid_t *)pid = find_process(getpid(), LAB_SERVICE_UID);
	return *(pid_t *)pid > 0;
}

static unsigned count_fds(pid_t pid)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/fd", pid);
	g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
	unsigned n = 0;

	assert_non_null(dir);
	while (g_dir_read_name(dir))
		n++;
	return n;
}

typedef struct Rig {
	Lab *lab;
	pid_t service;
	unsigned n_fds, max_fds;
	LabVm *honest[2];
	pid_t crowd; /* 0: none */
} Rig;

static int set_up(void **state)
{
	Rig *rig = g_new0(Rig, 1);

	signal(SIGPIPE, SIG_IGN);
	rig->lab = lab_new(true);
	assert_true(lab_wait(rig->lab, service_is_there, &rig->service));
	*state = rig;
	return 0;
}

static int tear_down(void **state)
{
	Rig *rig = *state;

	if (rig->crowd > 0 && kill(rig->crowd, SIGKILL) == 0)
		waitpid(rig->crowd, NULL, 0);
	lab_free(rig->lab);
	g_free(rig);
	return 0;
}

static void begin_counting(Rig *rig)
{
	rig->n_fds = count_fds(rig->service);
	rig->max_fds = 0;
}

static bool share(void *userdata)
{
	Rig *rig = userdata;
	unsigned n = count_fds(rig->service);

	rig->max_fds = MAX(n, rig->max_fds);
	return honest_share(rig->honest[0], rig->honest[1]);
}

/* They are let in and fused, by the same process as before. */
static void expect_service(Rig *rig)
{
	pid_t now = 0;

	rig->honest[0] = honest_start(rig->lab, "a", "default");
	rig->honest[1] = honest_start(rig->lab, "b", "default");
	honest_report(rig->honest[0]);
	honest_report(rig->honest[1]);
	if (!lab_wait(rig->lab, share, rig))
		fail_msg("two VMs are not fused; the service has %u descriptors",
			count_fds(rig->service));
	assert_true(service_is_there(&now) && now == rig->service);
}

static void expect_few_fds(const Rig *rig)
{
	if (rig->max_fds > rig->n_fds + MAX_MORE_FDS)
		fail_msg("the service had up to %u descriptors, and %u before", rig->max_fds,
			rig->n_fds);
}

/* Its closing takes eleven days. Returns the other end. */
static int send_lingering(int to)
{
	int peer, fd = lingering_socket(&peer);

	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, LINGER_FOREVER},
				 sizeof(struct linger)),
		0);
	hostile_send(to, "x", 1, fd, 1);
	/* The service has the last descriptor of it now, unless it has not taken it. */
	pf_closer_close(NULL, fd);
	return peer;
}

/* Descriptors into the channel of a guest: first what lingers, then as many as there is room for. */
static void test_channel(void **state)
{
	Rig *rig = *state;
	LabVm *vm = hostile_start(rig->lab, "hostile", "default");
	int channel = hostile_take_fd(vm->pid, atoi(lab_command(vm, "channel")));
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int peers[N_LINGERING];

	begin_counting(rig);
	for (unsigned i = 0; i < N_LINGERING; i++)
		peers[i] = send_lingering(channel);
	assert_int_equal(fcntl(channel, F_SETFL, O_NONBLOCK), 0);
	for (unsigned i = 0; i < MANY_PACKETS; i++) {
		hostile_send(channel, "x", 1, null, MANY_FDS);
		lab_turn(rig->lab, 1);
	}
	expect_service(rig);
	expect_few_fds(rig);
	/* Nobody reads it. */
	assert_int_equal(poll(&(struct pollfd){channel, POLLIN, 0}, 1, 0), 1);
	for (unsigned i = 0; i < N_LINGERING; i++)
		end_lingering(peers[i]);
	close(null);
	close(channel);
}

static int connect_to(const struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0)
		return fd;
	close(fd);
	return -1;
}

/* Connections with descriptors that linger, unread; then as many connections as there can be. */
static void test_stranger(void **state)
{
	Rig *rig = *state;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int peers[N_LINGERING];
	gint64 end;

	strcpy(address.sun_path, lab_shim_socket(rig->lab));
	begin_counting(rig);
	assert_int_equal(seteuid(STRANGER), 0);
	for (unsigned i = 0; i < N_LINGERING; i++) {
		int socket = connect_to(&address);

		assert_true(socket >= 0);
		peers[i] = send_lingering(socket);
		close(socket);
	}
	end = g_get_monotonic_time() + KNOCK_US;
	for (unsigned n = 0; g_get_monotonic_time() < end; n++) {
		close(connect_to(&address));
		if (n % 256 != 0)
			continue;
		assert_int_equal(seteuid(0), 0);
		rig->max_fds = MAX(rig->max_fds, count_fds(rig->service));
		assert_int_equal(seteuid(STRANGER), 0);
	}
	assert_int_equal(seteuid(0), 0);
	expect_service(rig);
	expect_few_fds(rig);
	for (unsigned i = 0; i < N_LINGERING; i++)
		end_lingering(peers[i]);
}

static void *knock(void *address)
{
	for (;;) {
		int fd = connect_to(address);

		if (fd >= 0)
			close(fd);
	}
	return NULL;
}

__attribute__((noreturn)) static void crowd(struct sockaddr_un *address, int ready)
{
	pthread_attr_t attributes;
	pthread_t thread;
	unsigned n = 0;

	if (setgroups(0, NULL) < 0 || setresgid(STRANGER, STRANGER, STRANGER) < 0 ||
		setresuid(STRANGER, STRANGER, STRANGER) < 0)
		_exit(1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, CROWD_STACK);
	for (; n < CROWD; n++)
		if (pthread_create(&thread, &attributes, knock, address) != 0)
			break;
	if (n < CROWD || write(ready, "x", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

/* More wait in connect() than the kernel has places for. */
static void test_crowd(void **state)
{
	Rig *rig = *state;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int ready[2];
	char byte;

	strcpy(address.sun_path, lab_shim_socket(rig->lab));
	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	begin_counting(rig);
	rig->crowd = fork();
	assert_true(rig->crowd >= 0);
	if (rig->crowd == 0)
		crowd(&address, ready[1]);
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	expect_service(rig);
	expect_few_fds(rig);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_channel),
		TEST(test_stranger),
		TEST(test_crowd),
	};
#undef TEST

	if (access("/dev/userfaultfd", F_OK) < 0) {
		fprintf(stderr, "skipped: this kernel has no /dev/userfaultfd\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
