/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Packets that wait: their order, their descriptors, their number. */
#include "packet_rig.h"
#include "host-service/wire/packet.h"
#include "host-service/wire/packet_queue.h"
#include <errno.h>
#include <string.h>

#define N 1000 /* more than a socket takes */

static void put_number(PfPacketQueue *queue, unsigned number, int fd)
{
	pf_packet_queue_put(queue, &number, sizeof(number), fd);
}

static void expect_number(int socket, unsigned number, gboolean with_fd)
{
	unsigned got;
	size_t n_fds;
	int fd;

	assert_int_equal(pf_packet_receive(socket, &got, sizeof(got), &fd, &n_fds), sizeof(got));
	assert_int_equal(got, number);
	assert_int_equal(n_fds, with_fd ? 1 : 0);
	if (fd >= 0)
		close(fd);
}

static gboolean has_packet(int socket)
{
	return poll(&(struct pollfd){.fd = socket, .events = POLLIN}, 1, 0) == 1;
}

/* Nothing is lost and nothing overtakes, and what was sent is closed here. */
static void test_order(void **state)
{
	PfPacketQueue queue;
	unsigned taken = 0;
	int ends[2], seen[N], r;

	open_ends(ends);
	pf_packet_queue_init(&queue, N);
	for (unsigned i = 0; i < N; i++)
		put_number(&queue, i, i % 100 ? -1 : open_watched(&seen[i]));
	assert_false(has_packet(ends[1]));
	r = pf_packet_queue_flush(&queue, ends[0]);
	assert_int_equal(r, -EAGAIN);
	assert_false(pf_packet_queue_is_empty(&queue));
	do {
		while (has_packet(ends[1])) {
			expect_number(ends[1], taken, taken % 100 == 0);
			taken++;
		}
		r = pf_packet_queue_flush(&queue, ends[0]);
		assert_true(r == 0 || r == -EAGAIN);
	} while (has_packet(ends[1]));
	assert_int_equal(r, 0);
	assert_int_equal(taken, N);
	assert_true(pf_packet_queue_is_empty(&queue));
	for (unsigned i = 0; i < N; i += 100)
		assert_is_closed(seen[i]);
	close_ends(ends);
}

/* Of several sizes, and what is put in is a copy. */
static void test_copies(void **state)
{
	char text[] = "packet", got[16];
	PfPacketQueue queue;
	size_t n_fds;
	int ends[2], fd;

	open_ends(ends);
	pf_packet_queue_init(&queue, N);
	pf_packet_queue_put(&queue, text, 6, -1);
	memset(text, 'x', 6);
	pf_packet_queue_put(&queue, text, 3, -1);
	memset(text, 'y', 6);
	assert_int_equal(pf_packet_queue_flush(&queue, ends[0]), 0);
	assert_int_equal(pf_packet_receive(ends[1], got, sizeof(got), &fd, &n_fds), 6);
	assert_memory_equal(got, "packet", 6);
	assert_int_equal(pf_packet_receive(ends[1], got, sizeof(got), &fd, &n_fds), 3);
	assert_memory_equal(got, "xxx", 3);
	close_ends(ends);
}

static void test_bound(void **state)
{
	PfPacketQueue queue;
	int ends[2], seen;

	open_ends(ends);
	pf_packet_queue_init(&queue, 3);
	for (unsigned i = 0; i < 3; i++) {
		assert_false(pf_packet_queue_is_full(&queue));
		put_number(&queue, i, -1);
	}
	assert_true(pf_packet_queue_is_full(&queue));
	assert_int_equal(pf_packet_queue_flush(&queue, ends[0]), 0);
	assert_false(pf_packet_queue_is_full(&queue));
	for (unsigned i = 0; i < 3; i++)
		put_number(&queue, i, -1);
	/* It closes what it loses, and sends nothing any more. */
	put_number(&queue, 3, open_watched(&seen));
	assert_is_closed(seen);
	for (unsigned i = 0; i < 3; i++)
		expect_number(ends[1], i, FALSE);
	assert_int_equal(pf_packet_queue_flush(&queue, ends[0]), -EOVERFLOW);
	assert_int_equal(pf_packet_queue_flush(&queue, ends[0]), -EOVERFLOW);
	assert_false(has_packet(ends[1]));
	pf_packet_queue_clear(&queue);
	assert_int_equal(pf_packet_queue_flush(&queue, ends[0]), 0);
	put_number(&queue, 7, -1);
	assert_int_equal(pf_packet_queue_flush(&queue, ends[0]), 0);
	expect_number(ends[1], 7, FALSE);
	close_ends(ends);
}

static void test_clear(void **state)
{
	PfPacketQueue queue;
	int ends[2], seen[2];

	open_ends(ends);
	pf_packet_queue_init(&queue, 2);
	put_number(&queue, 0, open_watched(&seen[0]));
	put_number(&queue, 1, open_watched(&seen[1]));
	assert_is_open(seen[0]);
	pf_packet_queue_clear(&queue);
	assert_is_closed(seen[0]);
	assert_is_closed(seen[1]);
	assert_true(pf_packet_queue_is_empty(&queue));
	assert_int_equal(pf_packet_queue_flush(&queue, ends[0]), 0);
	assert_false(has_packet(ends[1]));
	close_ends(ends);
}

static void test_peer_is_gone(void **state)
{
	PfPacketQueue queue;
	int ends[2], seen;

	open_ends(ends);
	pf_packet_queue_init(&queue, 2);
	put_number(&queue, 0, open_watched(&seen));
	close(ends[1]);
	assert_int_equal(pf_packet_queue_flush(&queue, ends[0]), -EPIPE);
	assert_is_open(seen);
	pf_packet_queue_clear(&queue);
	assert_is_closed(seen);
	close(ends[0]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_copies),
		cmocka_unit_test(test_bound),
		cmocka_unit_test(test_clear),
		cmocka_unit_test(test_peer_is_gone),
	};

	alarm(60); /* a packet that never comes */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
