// SPDX-License-Identifier: LGPL-2.1-or-later
/* The kernel's own events, and what is not the kernel's. Needs root in the initial namespaces. */
#include "guest-agent/find/process_events.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/connector.h>
#include <linux/netlink.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static PfProcessEvents *events;
static int held[2]; /* programs that were started read from it, and end when it is closed */

static int setup(void **state)
{
	return pf_process_events_new(&events) == 0 && pipe(held) == 0 ? 0 : -1;
}

static int teardown(void **state)
{
	close(held[0]);
	if (held[1] >= 0)
		close(held[1]);
	pf_process_events_free(events);
	return 0;
}

/* Starts a program that lives until held is closed, and waits until it has been started. */
static pid_t start(void)
{
	int started[2];
	pid_t pid;
	char byte;

	assert_int_equal(pipe2(started, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		dup2(held[0], STDIN_FILENO);
		close(held[0]);
		close(held[1]);
		execlp("cat", "cat", NULL);
		_exit(1);
	}
	close(started[1]);
	assert_int_equal(read(started[0], &byte, 1), 0);
	close(started[0]);
	return pid;
}

static void end(pid_t pid)
{
	if (held[1] >= 0)
		close(held[1]);
	held[1] = -1;
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* Other programs start on this machine too. */
static bool contains(const pid_t *pids, int n, pid_t pid)
{
	int count = 0;

	for (int i = 0; i < n; i++)
		count += pids[i] == pid;
	assert_true(count <= 1);
	return count == 1;
}

static void test_start_and_end(void **state)
{
	struct pollfd polled = {.fd = pf_process_events_fd(events), .events = POLLIN};
	pid_t pids[64], pid = start();
	uint64_t ended;
	bool lost;
	int n;

	assert_int_equal(poll(&polled, 1, 1000), 1);
	n = pf_process_events_take(events, pids, 64, &ended, &lost);
	assert_true(contains(pids, n, pid));
	assert_false(lost);
	end(pid);
	n = pf_process_events_take(events, pids, 64, &ended, &lost);
	assert_true(n >= 0);
	assert_false(contains(pids, n, pid));
	assert_true(ended >= 1);
}

/* What has come and gone needs no look. */
static void test_short_life(void **state)
{
	pid_t pids[64], pid = start();
	uint64_t ended;
	bool lost;
	int n;

	end(pid);
	n = pf_process_events_take(events, pids, 64, &ended, &lost);
	assert_true(n >= 0);
	assert_false(contains(pids, n, pid));
	assert_true(ended >= 1);
}

/* As the kernel sends it. */
typedef struct __attribute__((packed)) Datagram {
	struct nlmsghdr netlink;
	struct cb_id id;
	uint32_t seq, ack;
	uint16_t len, flags;
	uint32_t what, cpu, time[2], pid, tgid;
} Datagram;

static void *do_nothing(void *userdata)
{
	return NULL;
}

/* Threads begin and end all the time, and forks are no programs: the socket does not even get
 * them. */
static void test_filter(void **state)
{
	Datagram datagram;
	size_t n = 0;
	pid_t child;
	pthread_t thread;

	for (int i = 0; i < 100; i++) {
		assert_int_equal(pthread_create(&thread, NULL, do_nothing, NULL), 0);
		pthread_join(thread, NULL);
	}
	child = fork();
	assert_true(child >= 0);
	if (child == 0)
		_exit(0);
	assert_int_equal(waitpid(child, NULL, 0), child);
	while (recv(pf_process_events_fd(events), &datagram, sizeof(datagram), 0) > 0) {
		if (datagram.what != 2) {
			assert_int_equal(datagram.what, 0x80000000u);
			assert_int_equal(datagram.pid, datagram.tgid);
		}
		n += datagram.tgid == (uint32_t)child;
	}
	/* Its end; as it has started no program, not its beginning. */
	assert_int_equal(n, 1);
}

static void test_no_room(void **state)
{
	pid_t pids[64], first = start(), second = start();
	uint64_t ended;
	bool lost;

	assert_int_equal(pf_process_events_take(events, pids, 1, &ended, &lost), 1);
	assert_true(lost);
	assert_int_equal(pf_process_events_take(events, pids, 0, &ended, &lost), 0);
	end(first);
	assert_int_equal(waitpid(second, NULL, 0), second);
}

static void test_overflow(void **state)
{
	const int tiny = 1; /* the kernel makes it some 2 KiB */
	uint64_t ended;
	pid_t pids[64];
	bool lost;

	assert_int_equal(setsockopt(pf_process_events_fd(events), SOL_SOCKET, SO_RCVBUF, &tiny,
				 sizeof(tiny)),
		0);
	for (int i = 0; i < 30; i++) {
		pid_t child = fork();

		assert_true(child >= 0);
		if (child == 0)
			_exit(0);
		assert_int_equal(waitpid(child, NULL, 0), child);
	}
	assert_true(pf_process_events_take(events, pids, 64, &ended, &lost) >= 0);
	assert_true(lost);
	assert_true(pf_process_events_take(events, pids, 64, &ended, &lost) >= 0);
	assert_false(lost);
}

static void send_forged(Datagram *forged, size_t size)
{
	struct sockaddr_nl to = {.nl_family = AF_NETLINK};
	socklen_t length = sizeof(to);
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_CONNECTOR);

	assert_true(fd >= 0);
	assert_int_equal(
		getsockname(pf_process_events_fd(events), (struct sockaddr *)&to, &length), 0);
	to.nl_groups = 0;
	assert_int_equal(sendto(fd, forged, size, 0, (struct sockaddr *)&to, sizeof(to)), size);
	close(fd);
}

/* Another process may send to the socket, and short, long or false messages. */
static void test_forged(void **state)
{
	Datagram forged = {
		.netlink = {.nlmsg_len = sizeof(forged), .nlmsg_type = NLMSG_DONE},
		.id = {CN_IDX_PROC, CN_VAL_PROC},
		.len = 24,
		.what = 2,
		.pid = 4194000,
		.tgid = 4194000,
	};
	uint64_t ended;
	pid_t pids[64];
	bool lost;
	int n;

	send_forged(&forged, sizeof(forged));
	send_forged(&forged, sizeof(forged) - 1);
	forged.netlink.nlmsg_len = UINT32_MAX;
	send_forged(&forged, sizeof(forged));
	n = pf_process_events_take(events, pids, 64, &ended, &lost);
	assert_true(n >= 0);
	assert_false(contains(pids, n, 4194000));
}

/* In a namespace where the connector does not answer that is said, instead of waiting for
 * ever. */
static void test_other_namespace(void **state)
{
	pid_t child = fork();
	int status;

	assert_true(child >= 0);
	if (child == 0) {
		PfProcessEvents *others;

		_exit(unshare(CLONE_NEWNET) == 0 ? -pf_process_events_new(&others) : 255);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), EPERM);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		PfProcessEvents *others;
		pid_t grandchild;

		if (unshare(CLONE_NEWPID) < 0)
			_exit(255);
		grandchild = fork();
		if (grandchild == 0)
			_exit(-pf_process_events_new(&others));
		waitpid(grandchild, &status, 0);
		_exit(WEXITSTATUS(status));
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), ENOTSUP);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_start_and_end, setup, teardown),
		cmocka_unit_test_setup_teardown(test_short_life, setup, teardown),
		cmocka_unit_test_setup_teardown(test_filter, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_room, setup, teardown),
		cmocka_unit_test_setup_teardown(test_overflow, setup, teardown),
		cmocka_unit_test_setup_teardown(test_forged, setup, teardown),
		cmocka_unit_test_setup_teardown(test_other_namespace, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
