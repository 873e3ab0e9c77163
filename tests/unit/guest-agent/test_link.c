// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The port's life by a clock of the test's own: what pf_channel_open() gives is the test's (the
 * linker puts it in the place of the real one), one end of a socket pair whose other end is the
 * host.
 */
#include "common/log.h"
#include "guest-agent/tell/link.h"
#include "tests/unit/guest-agent/little_host.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define N_PAGES 10000

int __wrap_pf_channel_open(const char *path);

static PfState files;
static PfFacts facts = {.kernel = "6.1", .ram = {.ranges = {{{1}, 1 << 20}}, .n = 1}};
static PfConversation *conversation;
static PfLink way;
static LittleHost host;
static int peer, open_result, n_opened, n_lines;
static char opened[1024]; /* path of the port that was opened last */

/* open_result, or a port when that is 0. */
int __wrap_pf_channel_open(const char *path)
{
	int fds[2], size = 4096;

	n_opened++;
	assert_true(strlen(path) < sizeof(opened));
	strcpy(opened, path);
	if (open_result < 0)
		return open_result;
	if (peer >= 0)
		close(peer);
	assert_int_equal(
		socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), 0);
	peer = fds[1];
	return fds[0];
}

void __wrap_pf_log(PfLogLevel level, const char *format, ...);
void __wrap_pf_log(PfLogLevel level, const char *format, ...)
{
	n_lines += level <= PF_LOG_INFO;
}

static int setup(void **state)
{
	char wanted[] = "/port"; /* is gone when it is looked for */
	static PfObserved observed[N_PAGES];
	const PfFileKey key = {PF_SOURCE_FILE, 1, 1};
	const PfFileStamp stamp = {.size = N_PAGES * PF_PAGE_SIZE};
	PfFile *file;
	bool fresh;

	pf_state_init(&files);
	pf_state_begin(&files, PF_CLASS_CACHE, true);
	for (uint32_t i = 0; i < N_PAGES; i++)
		observed[i] = (PfObserved){.file_page = i, .gfn = {1000 + i}};
	if (pf_state_see(&files, &key, &stamp, 0, "file", &file, &fresh) < 0 ||
		pf_file_commit(file, 0, N_PAGES, observed, N_PAGES) < 0)
		return -1;
	pf_state_end(&files);
	conversation = pf_conversation_new(&files, &facts);
	if (!conversation)
		return -1;
	little_host_init(&host);
	peer = -1;
	open_result = n_opened = n_lines = 0;
	return pf_link_init(&way, wanted, true, conversation);
}

static int teardown(void **state)
{
	pf_link_deinit(&way);
	if (peer >= 0)
		close(peer);
	pf_conversation_free(conversation);
	pf_state_deinit(&files);
	little_host_deinit(&host);
	return 0;
}

/* One turn of the agent's loop that does not wait; gives what the dispatch did. */
static int turn(int64_t now_ms)
{
	struct pollfd polled;
	int timeout = -1;

	assert_int_equal(pf_link_tend(&way, now_ms), 0);
	assert_int_equal(pf_link_prepare(&way, &polled, &timeout, now_ms), 0);
	assert_true(poll(&polled, 1, 0) >= 0);
	return pf_link_dispatch(&way, &polled, now_ms);
}

static void host_reads(void)
{
	uint8_t buffer[65536];
	ssize_t n;

	while ((n = read(peer, buffer, sizeof(buffer))) > 0)
		little_host_feed(&host, buffer, (size_t)n);
}

/* Turns until neither side has anything left to do. */
static void settle(int64_t now_ms)
{
	for (int i = 0; i < 200; i++) {
		assert_int_equal(turn(now_ms), 0);
		host_reads();
	}
}

static void host_says(uint8_t *frame, size_t size)
{
	assert_int_equal(write(peer, frame, size), size);
	free(frame);
}

static void host_says_hello(uint64_t session_id, uint32_t window)
{
	size_t size;
	uint8_t *frame = little_host_hello(&host, session_id, window, &size);

	host_says(frame, size);
}

static void host_says_ack(uint64_t session_id, uint64_t n)
{
	size_t size;
	uint8_t *frame = little_host_ack(session_id, n, &size);

	host_says(frame, size);
}

static void test_knocks_get_rarer(void **state)
{
	static const int64_t due_ms[] = {2000, 32000, 92000, 212000, 452000, 752000, 1052000};

	settle(0);
	assert_int_equal(host.n_knocks, 1);
	for (size_t i = 0; i < sizeof(due_ms) / sizeof(due_ms[0]); i++) {
		assert_int_equal(pf_link_due_ms(&way), due_ms[i]);
		settle(due_ms[i] - 1);
		assert_int_equal(host.n_knocks, i + 1);
		settle(due_ms[i]);
		assert_int_equal(host.n_knocks, i + 2);
	}
	host_says_hello(1, 64);
	settle(2000000);
	assert_int_equal(pf_link_due_ms(&way), INT64_MAX);
	assert_int_equal(n_opened, 1);
}

static void test_no_port_yet(void **state)
{
	open_result = -ENOENT;
	assert_int_equal(turn(1000), 0);
	assert_false(pf_link_connected(&way));
	assert_int_equal(n_lines, 1);
	for (int64_t now = 1000; now < 61000; now += 100)
		assert_int_equal(turn(now), 0);
	assert_int_equal(n_opened, 12);
	assert_int_equal(n_lines, 1);
	open_result = 0;
	assert_int_equal(pf_link_due_ms(&way), 61000);
	settle(61000);
	assert_int_equal(host.n_knocks, 1);
	assert_int_equal(n_lines, 2);
}

static void test_not_waited_for(void **state)
{
	static const int errors[] = {-ENOENT, -EBUSY, -EACCES};

	way.wait = false;
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		open_result = errors[i];
		assert_int_equal(pf_link_tend(&way, 0), errors[i]);
	}
	assert_int_equal(n_lines, 0);
}

/* Another agent has it, and ends one day. */
static void test_busy(void **state)
{
	open_result = -EBUSY;
	assert_int_equal(turn(0), 0);
	assert_int_equal(turn(5000), 0);
	assert_int_equal(n_lines, 1);
	open_result = 0;
	settle(10000);
	assert_int_equal(host.n_knocks, 1);
}

static void test_other_port(void **state)
{
	settle(0);
	host_says_hello(1, 64);
	settle(0);
	assert_true(pf_conversation_active(conversation));
	/* The same again is no other one. */
	assert_int_equal(pf_link_want(&way, "/port"), 0);
	assert_true(pf_conversation_active(conversation));
	assert_int_equal(pf_link_want(&way, "/other"), 0);
	assert_false(pf_conversation_active(conversation));
	settle(1);
	assert_string_equal(pf_link_path(&way), "/other");
	assert_string_equal(opened, "/other");
	assert_int_equal(n_opened, 2);
}

/* Who wants a port need not keep its name. */
static void test_copy(void **state)
{
	char wanted[] = "/port-of-a-configuration";

	open_result = -ENOENT;
	assert_int_equal(turn(0), 0);
	assert_string_equal(opened, "/port");
	assert_int_equal(pf_link_want(&way, wanted), 0);
	memset(wanted, 'x', sizeof(wanted) - 1);
	assert_int_equal(turn(5000), 0);
	assert_string_equal(opened, "/port-of-a-configuration");
}

/* No name is cut, as the rest might be that of another file. */
static void test_long_path(void **state)
{
	char wanted[sizeof(opened)];

	memset(wanted, 'x', sizeof(wanted) - 1);
	wanted[sizeof(wanted) - 1] = '\0';
	assert_int_equal(pf_link_want(&way, wanted), 0);
	assert_int_equal(turn(0), 0);
	assert_string_equal(opened, wanted);
	assert_string_equal(pf_link_path(&way), wanted);
}

/* The host's end is closed, and open again later. */
static void test_host_comes_back(void **state)
{
	settle(0);
	pf_conversation_lost(conversation);
	way.channel.connected = false;
	assert_int_equal(pf_link_due_ms(&way), INT64_MAX);
	assert_int_equal(turn(100000), 0);
	assert_true(pf_link_connected(&way));
	/* It says hello by itself; only if it does not it is asked. */
	assert_int_equal(pf_link_due_ms(&way), 102000);
}

static void test_heard(void **state)
{
	assert_false(pf_link_heard(&way, 0));
	settle(0);
	assert_false(pf_link_heard(&way, 0));
	host_says_hello(1, 2);
	settle(1000);
	/* Two frames are out, and no more may be. */
	assert_int_equal(host.n_frames, 2);
	assert_true(pf_link_heard(&way, 1000));
	assert_true(pf_link_heard(&way, 30999));
	assert_false(pf_link_heard(&way, 31000));
	host_says_ack(1, 1);
	settle(40000);
	assert_true(pf_link_heard(&way, 40000));
	assert_false(pf_link_heard(&way, 70000));
	host_says_ack(1, 3);
	settle(70000);
	assert_true(pf_link_heard(&way, 70000));
}

/* Nothing waits for the host until now: it is given its time from now on, even when nobody has
 * asked for long. */
static void test_heard_after_a_rest(void **state)
{
	PfConversationCount count;
	struct pollfd polled;
	int timeout = -1;

	settle(0);
	host_says_hello(1, 64);
	settle(0);
	pf_conversation_count(conversation, &count);
	assert_false(count.waiting);
	assert_true(pf_link_heard(&way, 0));
	files.scanned = true;
	assert_int_equal(pf_link_prepare(&way, &polled, &timeout, 100000), 0);
	pf_conversation_count(conversation, &count);
	assert_true(count.waiting);
	assert_true(pf_link_heard(&way, 100000));
	assert_true(pf_link_heard(&way, 129999));
	assert_false(pf_link_heard(&way, 130000));
}

/* One frame got lost on the way and is never acknowledged: that is no silence. */
static void test_lost_frame(void **state)
{
	settle(0);
	host_says_hello(1, 64);
	settle(0);
	assert_int_equal(host.n_ends, 1);
	host_says_ack(1, host.n_frames - 1);
	settle(0);
	assert_true(pf_link_heard(&way, 0));
	assert_true(pf_link_heard(&way, 1000000));
}

/* It is there but does not read. */
static void test_host_does_not_read(void **state)
{
	assert_int_equal(turn(0), 0);
	assert_int_equal(turn(0), 0);
	host_says_hello(1, 64);
	for (int i = 0; i < 50; i++)
		assert_int_equal(turn(0), 0);
	assert_true(pf_link_heard(&way, 0));
	assert_false(pf_link_heard(&way, 30000));
	assert_true(pf_link_connected(&way));
	settle(40000);
	assert_int_equal(host.n_ends, 1);
	assert_true(pf_link_heard(&way, 40000));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_knocks_get_rarer, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_port_yet, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_waited_for, setup, teardown),
		cmocka_unit_test_setup_teardown(test_busy, setup, teardown),
		cmocka_unit_test_setup_teardown(test_other_port, setup, teardown),
		cmocka_unit_test_setup_teardown(test_copy, setup, teardown),
		cmocka_unit_test_setup_teardown(test_long_path, setup, teardown),
		cmocka_unit_test_setup_teardown(test_host_comes_back, setup, teardown),
		cmocka_unit_test_setup_teardown(test_heard, setup, teardown),
		cmocka_unit_test_setup_teardown(test_heard_after_a_rest, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lost_frame, setup, teardown),
		cmocka_unit_test_setup_teardown(test_host_does_not_read, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
