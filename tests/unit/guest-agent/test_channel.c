// SPDX-License-Identifier: LGPL-2.1-or-later
/* The channel over a socket pair with small buffers: writes are short or would block, and the
 * host's end closes. */
#include "guest-agent/tell/channel.h"
#include "tests/unit/guest-agent/little_host.h"
#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define N_PAGES 10000

static PfState files;
static PfFacts facts = {.kernel = "6.1", .ram = {.ranges = {{{1}, 1 << 20}}, .n = 1}};
static PfConversation *conversation;
static PfChannel channel;
static LittleHost host;
static int peer;
static bool unplugged; /* reading says so */
static int64_t clock_ms;

ssize_t __real_read(int fd, void *buffer, size_t size);
ssize_t __wrap_read(int fd, void *buffer, size_t size);

ssize_t __wrap_read(int fd, void *buffer, size_t size)
{
	if (!unplugged)
		return __real_read(fd, buffer, size);
	errno = ENODEV;
	return -1;
}

static void connect_pair(void)
{
	int fds[2], size = 4096;

	assert_int_equal(
		socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), 0);
	peer = fds[1];
	pf_channel_init(&channel, fds[0], conversation);
}

static int setup(void **state)
{
	const PfFileKey key = {PF_SOURCE_FILE, 1, 1};
	const PfFileStamp stamp = {.size = N_PAGES * PF_PAGE_SIZE};
	static PfObserved observed[N_PAGES];
	PfFile *file;
	bool fresh;

	signal(SIGPIPE, SIG_IGN);
	clock_ms = 1000;
	pf_state_init(&files);
	pf_state_begin(&files, PF_CLASS_CACHE, true);
	if (pf_state_see(&files, &key, &stamp, 0, "file", &file, &fresh) < 0)
		return -1;
	for (uint32_t i = 0; i < N_PAGES; i++)
		observed[i] = (PfObserved){.file_page = i, .gfn = {1000 + i}};
	if (pf_file_commit(file, 0, N_PAGES, observed, N_PAGES) < 0)
		return -1;
	pf_state_end(&files);
	conversation = pf_conversation_new(&files, &facts);
	little_host_init(&host);
	connect_pair();
	return conversation ? 0 : -1;
}

static int teardown(void **state)
{
	pf_channel_deinit(&channel);
	if (peer >= 0)
		close(peer);
	pf_conversation_free(conversation);
	pf_state_deinit(&files);
	little_host_deinit(&host);
	return 0;
}

/* One turn of the agent's loop that does not wait; gives the timeout the channel asked for. */
static int turn(void)
{
	struct pollfd polled;
	int timeout = -1;

	assert_int_equal(pf_channel_prepare(&channel, &polled, &timeout, clock_ms), 0);
	assert_true(poll(&polled, 1, 0) >= 0);
	assert_int_equal(pf_channel_dispatch(&channel, &polled, clock_ms), 0);
	return timeout;
}

/* The host reads what is there. */
static size_t host_reads(void)
{
	uint8_t buffer[1500];
	ssize_t n;
	size_t total = 0;

	while ((n = read(peer, buffer, sizeof(buffer))) > 0) {
		little_host_feed(&host, buffer, (size_t)n);
		total += (size_t)n;
	}
	return total;
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

static void host_says_ack(uint64_t session_id)
{
	size_t size;
	uint8_t *frame = little_host_ack(session_id, host.n_frames, &size);

	host_says(frame, size);
}

/* Turns until neither side has anything left to do: a turn may only read, so two without bytes for
 * the host. */
static void settle(void)
{
	for (int idle = 0; idle < 2; idle++) {
		turn();
		if (host_reads() > 0)
			idle = -1;
	}
}

static void test_late_acks(void **state)
{
	size_t rounds = 0;

	pf_conversation_knock(conversation, false);
	settle();
	assert_int_equal(host.n_knocks, 1);
	host_says_hello(1, 3);
	while (host.n_ends == 0 && rounds++ < 100) {
		uint64_t before = host.n_frames;

		settle();
		assert_true(host.n_frames - before <= 3);
		host_says_ack(1);
	}
	assert_int_equal(host.n_hellos, 1);
	assert_int_equal(little_host_pages(&host), N_PAGES);
}

static void test_host_does_not_read(void **state)
{
	host_says_hello(1, 64);
	for (int i = 0; i < 10; i++)
		turn();
	assert_true(channel.connected);
	assert_int_equal(host.n_ends, 0);
	settle();
	assert_int_equal(host.n_ends, 1);
}

static void test_second_hello_in_mid_report(void **state)
{
	host_says_hello(1, 64);
	turn();
	turn();
	host_reads();
	assert_int_equal(host.n_hellos, 1);
	assert_int_equal(host.n_ends, 0);
	host_says_hello(2, 64);
	settle();
	assert_int_equal(host.n_hellos, 2);
	assert_int_equal(host.n_ends, 1);
	assert_int_equal(little_host_pages(&host), N_PAGES);
}

static void test_host_closes(void **state)
{
	host_says_hello(1, 64);
	turn();
	close(peer);
	peer = -1;
	for (int i = 0; i < 3; i++)
		turn();
	/* No session, and no busy loop: it wants to look again in a second. */
	assert_false(channel.connected);
	assert_false(pf_conversation_active(conversation));
	assert_int_equal(turn(), 1000);

	pf_channel_deinit(&channel);
	little_host_deinit(&host);
	little_host_init(&host);
	connect_pair();
	host_says_hello(2, 64);
	settle();
	assert_int_equal(host.n_ends, 1);
	assert_int_equal(little_host_pages(&host), N_PAGES);
}

/* As a virtio-serial port does it: reads give 0 bytes, and no more. */
static void test_end_of_input(void **state)
{
	host_says_hello(1, 64);
	settle();
	assert_int_equal(shutdown(peer, SHUT_WR), 0);
	turn();
	assert_false(channel.connected);
	assert_false(pf_conversation_active(conversation));
}

static void test_nothing_to_say(void **state)
{
	struct pollfd polled;
	int timeout = -1;

	assert_int_equal(pf_channel_prepare(&channel, &polled, &timeout, clock_ms), 0);
	assert_int_equal(polled.events, POLLIN);
	assert_int_equal(timeout, -1);
}

/* Once a second for a minute, then less often. */
static void test_host_comes_back(void **state)
{
	struct pollfd polled;
	int timeout = -1;

	shutdown(peer, SHUT_WR);
	turn();
	assert_false(channel.connected);
	clock_ms += 59999;
	assert_int_equal(pf_channel_prepare(&channel, &polled, &timeout, clock_ms), 0);
	assert_int_equal(timeout, 1000);
	assert_int_equal(polled.fd, -1);
	clock_ms++;
	timeout = -1;
	assert_int_equal(pf_channel_prepare(&channel, &polled, &timeout, clock_ms), 0);
	assert_int_equal(timeout, 5000);
	assert_int_equal(polled.fd, -1);
	timeout = 700;
	assert_int_equal(pf_channel_prepare(&channel, &polled, &timeout, clock_ms), 0);
	assert_int_equal(timeout, 700);
	pf_channel_deinit(&channel);
	close(peer);
	connect_pair();
	channel.connected = false;
	assert_int_equal(turn(), 5000);
	assert_true(channel.connected);
	host_says_hello(3, 64);
	settle();
	assert_int_equal(host.n_ends, 1);
}

/* To poll() it looks like one on which nobody listens. */
static void test_unplugged(void **state)
{
	struct pollfd polled;
	int timeout = -1;

	close(peer);
	peer = -1;
	for (int i = 0; i < 3; i++)
		turn();
	assert_false(channel.connected);
	unplugged = true;
	assert_int_equal(pf_channel_prepare(&channel, &polled, &timeout, clock_ms), 0);
	assert_int_equal(pf_channel_dispatch(&channel, &polled, clock_ms), -ENODEV);
	unplugged = false;
}

static void test_no_port(void **state)
{
	assert_int_equal(pf_channel_open("/nowhere/port"), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_late_acks, setup, teardown),
		cmocka_unit_test_setup_teardown(test_host_does_not_read, setup, teardown),
		cmocka_unit_test_setup_teardown(test_second_hello_in_mid_report, setup, teardown),
		cmocka_unit_test_setup_teardown(test_host_closes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_end_of_input, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nothing_to_say, setup, teardown),
		cmocka_unit_test_setup_teardown(test_host_comes_back, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unplugged, setup, teardown),
		cmocka_unit_test(test_no_port),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
