/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Two ends for packets, and descriptors of which one sees when they are closed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

/* Both nonblocking. */
static inline void open_ends(int ends[2])
{
	assert_int_equal(
		socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
}

static inline void close_ends(const int ends[2])
{
	close(ends[0]);
	close(ends[1]);
}

/* The end to be given away; *seen becomes readable when nobody has it any more. */
static inline int open_watched(int *seen)
{
	int fds[2];

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	*seen = fds[0];
	return fds[1];
}

/* Another thread may be about to close it. */
static inline void assert_is_closed(int seen)
{
	struct pollfd end = {.fd = seen};

	assert_int_equal(poll(&end, 1, 10000), 1);
	assert_true(end.revents & POLLHUP);
	close(seen);
}

static inline void assert_is_open(int seen)
{
	struct pollfd end = {.fd = seen};

	assert_int_equal(poll(&end, 1, 0), 0);
}
