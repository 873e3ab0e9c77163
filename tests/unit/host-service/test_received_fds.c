/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A descriptor that takes its time to close, in a message to us: we do not wait for it. */
#include "host-service/wire/received_fds.h"
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "lingering_socket.h"

static void send_fds(int to, const int *fds, size_t n)
{
	PfReceivedFds control;
	char byte = 0;
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = CMSG_SPACE(n * sizeof *fds)};

	*CMSG_FIRSTHDR(&message) = (struct cmsghdr){.cmsg_len = CMSG_LEN(n * sizeof *fds),
		.cmsg_level = SOL_SOCKET,
		.cmsg_type = SCM_RIGHTS};
	memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), fds, n * sizeof *fds);
	assert_int_equal(sendmsg(to, &message, 0), 1);
}

static unsigned receive_and_drop(int from)
{
	PfReceivedFds control;
	char byte;
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control};

	assert_int_equal(recvmsg(from, &message, MSG_CMSG_CLOEXEC), 1);
	assert_false(message.msg_flags & MSG_CTRUNC);
	return pf_received_fds_drop(&message, NULL);
}

static void test_lingering(void **unused)
{
	int pair[2], peer, fd = lingering_socket(&peer);
	struct timespec before, after;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	send_fds(pair[0], &fd, 1);
	close(fd);
	clock_gettime(CLOCK_MONOTONIC, &before);
	assert_int_equal(receive_and_drop(pair[1]), 1);
	clock_gettime(CLOCK_MONOTONIC, &after);
	/* Closed here, it would have taken all of it. */
	assert_true(after.tv_sec - before.tv_sec < LINGER_S - 2);
	end_lingering(peer);
	close(pair[0]);
	close(pair[1]);
}

static void test_all_are_closed(void **unused)
{
	int pair[2], pipes[2], fds[PF_RECEIVED_FDS_MAX];
	struct pollfd p = {.events = POLLIN};

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	for (size_t i = 0; i < PF_RECEIVED_FDS_MAX; i++)
		fds[i] = pipes[1];
	send_fds(pair[0], fds, PF_RECEIVED_FDS_MAX);
	close(pipes[1]);
	assert_int_equal(receive_and_drop(pair[1]), PF_RECEIVED_FDS_MAX);
	/* When the last writer is closed the pipe ends. */
	p.fd = pipes[0];
	assert_int_equal(poll(&p, 1, 30000), 1);
	assert_true(p.revents & POLLHUP);
	close(pipes[0]);
	close(pair[0]);
	close(pair[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lingering),
		cmocka_unit_test(test_all_are_closed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
