/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Packets and their descriptors, also those of a peer that is gone. */
#include "packet_rig.h"
#include "host-service/wire/packet.h"
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>

/* The next packet is this text; the descriptor that came with it, or -1. */
static int expect(int socket, const char *text)
{
	char bytes[64];
	size_t n_fds;
	int fd;
	ssize_t n = pf_packet_receive(socket, bytes, sizeof(bytes), &fd, &n_fds);

	assert_int_equal(n, strlen(text));
	assert_memory_equal(bytes, text, strlen(text));
	assert_int_equal(n_fds, fd >= 0 ? 1 : 0);
	return fd;
}

static ssize_t receive_nothing(int socket)
{
	char byte;
	size_t n_fds = 7;
	int fd = 7;
	ssize_t n = pf_packet_receive(socket, &byte, 1, &fd, &n_fds);

	assert_int_equal(fd, -1);
	assert_int_equal(n_fds, 0);
	return n;
}

static void send_text(int socket, const char *text, int fd)
{
	assert_int_equal(pf_packet_send(socket, text, strlen(text), fd), 0);
}

static void test_packets_stay_whole(void **state)
{
	const struct iovec parts[] = {{(void *)"one", 3}, {(void *)"", 0}, {(void *)" packet", 7}};
	char bytes[4];
	size_t n_fds;
	int ends[2], fd;

	open_ends(ends);
	assert_int_equal(receive_nothing(ends[1]), -EAGAIN);
	send_text(ends[0], "first", -1);
	assert_int_equal(pf_packet_send_parts(ends[0], parts, 3, -1), 0);
	send_text(ends[0], "too long", -1);
	assert_int_equal(expect(ends[1], "first"), -1);
	assert_int_equal(expect(ends[1], "one packet"), -1);
	assert_int_equal(pf_packet_receive(ends[1], bytes, sizeof(bytes), &fd, &n_fds), 8);
	assert_memory_equal(bytes, "too ", 4);
	assert_int_equal(receive_nothing(ends[1]), -EAGAIN);
	close_ends(ends);
}

static void test_full_socket(void **state)
{
	unsigned sent = 0;
	int ends[2], r;

	open_ends(ends);
	while ((r = pf_packet_send(ends[0], "x", 1, -1)) == 0)
		sent++;
	assert_int_equal(r, -EAGAIN);
	for (; sent > 0; sent--)
		assert_int_equal(expect(ends[1], "x"), -1);
	assert_int_equal(receive_nothing(ends[1]), -EAGAIN);
	close_ends(ends);
}

static void test_descriptor(void **state)
{
	int ends[2], seen, given, taken;

	open_ends(ends);
	given = open_watched(&seen);
	send_text(ends[0], "take it", given);
	assert_int_equal(fcntl(given, F_GETFD), FD_CLOEXEC);
	close(given);
	taken = expect(ends[1], "take it");
	assert_true(taken >= 0);
	assert_int_equal(fcntl(taken, F_GETFD), FD_CLOEXEC);
	assert_is_open(seen);
	close(taken);
	assert_is_closed(seen);
	close_ends(ends);
}

/* What no sender of ours makes. */
static void send_two(int socket, int first, int second)
{
	const int fds[2] = {first, second};
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(fds))];
	} control = {0};
	struct iovec part = {(void *)"x", 1};
	struct msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control)};

	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(&control.header), fds, sizeof(fds));
	assert_int_equal(sendmsg(socket, &message, 0), 1);
}

static void test_two_descriptors(void **state)
{
	int ends[2], seen[2], given[2], fd;
	size_t n_fds;
	char byte;

	open_ends(ends);
	given[0] = open_watched(&seen[0]);
	given[1] = open_watched(&seen[1]);
	send_two(ends[0], given[0], given[1]);
	close_ends(given);
	assert_int_equal(pf_packet_receive(ends[1], &byte, 1, &fd, &n_fds), 1);
	assert_int_equal(n_fds, 2);
	assert_true(fd >= 0);
	assert_is_closed(seen[1]);
	assert_is_open(seen[0]);
	close(fd);
	assert_is_closed(seen[0]);
	close_ends(ends);
}

/* This process may have no more descriptors: the packet comes, and says that something of it has not. */
static void test_no_room_for_a_descriptor(void **state)
{
	struct rlimit before, none;
	int ends[2], seen, given, fd;
	size_t n_fds;
	char byte;

	open_ends(ends);
	given = open_watched(&seen);
	send_text(ends[0], "x", given);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	none = (struct rlimit){0, before.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	assert_int_equal(pf_packet_receive(ends[1], &byte, 1, &fd, &n_fds), 1);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_int_equal(fd, -1);
	assert_true(n_fds == SIZE_MAX);
	close(given);
	assert_is_closed(seen);
	close_ends(ends);
}

/* It has not read what we sent: what it said before it ended is heard all the same. */
static void hears_all(bool unread, bool nonblocking)
{
	int ends[2], seen, given, taken;

	open_ends(ends);
	if (!nonblocking)
		assert_int_equal(fcntl(ends[0], F_SETFL, 0), 0);
	if (unread)
		send_text(ends[0], "unread", -1);
	given = open_watched(&seen);
	send_text(ends[1], "first", -1);
	send_text(ends[1], "last", given);
	close(given);
	close(ends[1]);
	assert_int_equal(expect(ends[0], "first"), -1);
	taken = expect(ends[0], "last");
	assert_true(taken >= 0);
	close(taken);
	assert_is_closed(seen);
	assert_int_equal(receive_nothing(ends[0]), 0);
	assert_int_equal(receive_nothing(ends[0]), 0);
	assert_int_equal(pf_packet_send(ends[0], "x", 1, -1), -EPIPE);
	close(ends[0]);
}

static void test_last_words(void **state)
{
	for (int i = 0; i < 4; i++)
		hears_all(i & 1, i & 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_packets_stay_whole),
		cmocka_unit_test(test_full_socket),
		cmocka_unit_test(test_descriptor),
		cmocka_unit_test(test_two_descriptors),
		cmocka_unit_test(test_no_room_for_a_descriptor),
		cmocka_unit_test(test_last_words),
	};

	alarm(60); /* a packet that never comes */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
