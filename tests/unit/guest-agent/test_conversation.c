// SPDX-License-Identifier: LGPL-2.1-or-later
#include "common/log.h"
#include "guest-agent/tell/conversation.h"
#include "guest-agent/tell/report.h"
#include "tests/unit/guest-agent/little_host.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static PfState files;
static PfFacts facts = {.kernel = "6.1", .ram = {.ranges = {{{1}, 1 << 20}}, .n = 1}};
static PfConversation *conversation;
static LittleHost host;
static int64_t now_ms;
static unsigned n_said; /* above debug level */

void __wrap_pf_log(PfLogLevel level, const char *format, ...);

void __wrap_pf_log(PfLogLevel level, const char *format, ...)
{
	n_said += level < PF_LOG_DEBUG;
}

/* One file with 10,000 resident pages: more than two full frames. */
static int setup(void **state)
{
	const PfFileKey key = {PF_SOURCE_FILE, 1, 1};
	const PfFileStamp stamp = {.size = 10000 * PF_PAGE_SIZE};
	static PfObserved observed[10000];
	PfFile *file;
	bool fresh;

	pf_state_init(&files);
	pf_state_begin(&files, PF_CLASS_CACHE, true);
	if (pf_state_see(&files, &key, &stamp, 0, "file", &file, &fresh) < 0)
		return -1;
	for (uint32_t i = 0; i < 10000; i++)
		observed[i] = (PfObserved){.file_page = i, .gfn = {1000 + i}};
	if (pf_file_commit(file, 0, 10000, observed, 10000) < 0)
		return -1;
	pf_state_end(&files);
	conversation = pf_conversation_new(&files, &facts);
	little_host_init(&host);
	n_said = 0;
	return conversation ? 0 : -1;
}

static int teardown(void **state)
{
	pf_conversation_free(conversation);
	pf_state_deinit(&files);
	little_host_deinit(&host);
	return 0;
}

static void hello(uint64_t session_id, uint32_t window)
{
	size_t size;
	uint8_t *frame = little_host_hello(&host, session_id, window, &size);

	assert_int_equal(pf_conversation_feed(conversation, frame, size, now_ms), 0);
	free(frame);
}

static void ack(uint64_t session_id, uint64_t frames)
{
	size_t size;
	uint8_t *frame = little_host_ack(session_id, frames, &size);

	assert_int_equal(pf_conversation_feed(conversation, frame, size, now_ms), 0);
	free(frame);
}

/* Moves at most limit bytes to the host, at most chunk at once; gives how many there were. */
static size_t move(size_t limit, size_t chunk)
{
	size_t moved = 0, size;
	const uint8_t *data;

	while (moved < limit) {
		assert_int_equal(pf_conversation_output(conversation, &data, &size), 0);
		if (size == 0)
			break;
		if (size > chunk)
			size = chunk;
		if (size > limit - moved)
			size = limit - moved;
		little_host_feed(&host, data, size);
		pf_conversation_sent(conversation, size);
		moved += size;
	}
	return moved;
}

static void test_silent_before_hello(void **state)
{
	assert_int_equal(move(SIZE_MAX, SIZE_MAX), 0);
	assert_false(pf_conversation_active(conversation));
	ack(1, 0);
	assert_int_equal(move(SIZE_MAX, SIZE_MAX), 0);
}

static void test_knock(void **state)
{
	pf_conversation_knock(conversation, false);
	move(SIZE_MAX, SIZE_MAX);
	assert_int_equal(host.n_knocks, 1);
	assert_int_equal(host.reader.skipped_bytes, 0);
	/* Not once the host has spoken. */
	pf_conversation_knock(conversation, false);
	hello(1, 8);
	pf_conversation_knock(conversation, true);
	move(SIZE_MAX, SIZE_MAX);
	assert_int_equal(host.n_knocks, 1);
	assert_int_equal(host.n_hellos, 1);
}

/* Where RAM is has changed: a knock, once what is half sent is out, and nothing more of this
 * session. */
static void test_restart(void **state)
{
	pf_conversation_restart(conversation); /* no session: nothing to end */
	assert_int_equal(move(SIZE_MAX, SIZE_MAX), 0);
	hello(1, 8);
	assert_int_equal(move(5, 5), 5);
	pf_conversation_restart(conversation);
	assert_false(pf_conversation_active(conversation));
	move(SIZE_MAX, SIZE_MAX);
	assert_int_equal(host.n_hellos, 1);
	assert_int_equal(host.n_knocks, 1);
	assert_int_equal(host.reader.skipped_bytes, 0);
	hello(2, 8);
	move(SIZE_MAX, SIZE_MAX);
	assert_int_equal(host.n_hellos, 2);
	/* Nothing of which a byte was sent is left of the session. */
	pf_conversation_restart(conversation);
	hello(3, 8);
	move(SIZE_MAX, SIZE_MAX);
	assert_int_equal(host.n_hellos, 3);
	assert_int_equal(host.n_knocks, 1);
}

/* A predecessor was killed in the middle of the longest frame: the host waits for the rest of
 * it. */
static void test_flush(void **state)
{
	static uint8_t payload[PF_REPORT_MAX_FRAME - PF_FRAME_HEADER_SIZE];
	uint8_t header[PF_FRAME_HEADER_SIZE];

	memset(payload, 1, sizeof(payload));
	assert_int_equal(pf_frame_write_header(header, payload, sizeof(payload)), PF_FRAME_OK);
	little_host_feed(&host, header, sizeof(header));
	little_host_feed(&host, payload, 1);
	pf_conversation_knock(conversation, false);
	move(SIZE_MAX, SIZE_MAX);
	assert_int_equal(host.n_knocks, 0);
	pf_conversation_knock(conversation, true);
	move(SIZE_MAX, 1000);
	assert_true(host.n_knocks > 0);
}

static void test_window(void **state)
{
	hello(1, 2);
	move(SIZE_MAX, 777);
	/* Our hello counts. */
	assert_int_equal(host.n_frames, 2);
	assert_int_equal(move(SIZE_MAX, 777), 0);
	ack(2, 2); /* another session */
	ack(1, 3); /* more than was sent */
	ack(1, UINT64_MAX);
	assert_int_equal(move(SIZE_MAX, 777), 0);
	ack(1, 1);
	move(SIZE_MAX, 777);
	assert_int_equal(host.n_frames, 3);
	ack(1, 0); /* goes back */
	assert_int_equal(move(SIZE_MAX, 777), 0);
	while (host.n_ends == 0) {
		ack(1, host.n_frames);
		assert_true(move(SIZE_MAX, 777) > 0);
	}
	assert_int_equal(little_host_pages(&host), 10000);
	ack(1, host.n_frames);
	assert_int_equal(move(SIZE_MAX, 777), 0);
}

static void test_second_hello_in_mid_frame(void **state)
{
	hello(1, 8);
	move(100000, 1000); /* somewhere in the first frame of hints */
	assert_int_equal(host.n_hellos, 1);
	assert_int_equal(host.n_ends, 0);
	hello(2, 64);
	move(SIZE_MAX, 1000);
	/* The frame that was begun is finished, for the session that is over; then all is told
	 * anew. */
	assert_int_equal(host.n_stale, 1);
	assert_int_equal(host.reader.skipped_bytes, 0);
	assert_int_equal(host.n_hellos, 2);
	assert_int_equal(host.n_ends, 1);
	assert_int_equal(little_host_pages(&host), 10000);
}

static void test_second_hello_between_frames(void **state)
{
	const uint8_t *data;
	size_t size;

	hello(1, 64);
	/* A frame is made but none of its bytes is out. */
	assert_int_equal(pf_conversation_output(conversation, &data, &size), 0);
	assert_true(size > 0);
	hello(2, 64);
	move(SIZE_MAX, SIZE_MAX);
	assert_int_equal(host.n_stale, 0);
	assert_int_equal(host.n_hellos, 1);
	assert_int_equal(little_host_pages(&host), 10000);
}

static void test_lost(void **state)
{
	hello(1, 64);
	move(100000, 1000);
	pf_conversation_lost(conversation);
	assert_false(pf_conversation_active(conversation));
	assert_int_equal(move(SIZE_MAX, SIZE_MAX), 0);
	little_host_deinit(&host);
	little_host_init(&host);
	hello(2, 64);
	move(SIZE_MAX, SIZE_MAX);
	assert_int_equal(host.n_ends, 1);
	assert_int_equal(little_host_pages(&host), 10000);
}

static void test_count(void **state)
{
	PfConversationCount count;
	size_t moved;

	hello(1, 2);
	moved = move(SIZE_MAX, SIZE_MAX);
	pf_conversation_count(conversation, &count);
	assert_int_equal(count.n_sessions, 1);
	assert_int_equal(count.bytes_sent, moved);
	assert_int_equal(count.frames_sent, 2);
	assert_int_equal(count.frames_acknowledged, 0);
	assert_true(count.waiting); /* for an acknowledgement */
	ack(1, 2);
	pf_conversation_count(conversation, &count);
	assert_int_equal(count.frames_acknowledged, 2);
	assert_false(count.waiting);
	moved += move(100, 100);
	pf_conversation_count(conversation, &count);
	assert_true(count.waiting); /* for the rest to be read */
	hello(2, 64);
	moved += move(SIZE_MAX, SIZE_MAX);
	pf_conversation_count(conversation, &count);
	assert_int_equal(count.n_sessions, 2);
	assert_int_equal(count.bytes_sent, moved);
	assert_int_equal(count.frames_sent, host.n_frames);
	assert_int_equal(count.frames_acknowledged, 0);
	assert_false(count.waiting);
}

static void test_byte_by_byte(void **state)
{
	static const uint8_t rubbish[100] = {0x50, 0x46, 0x47, 0x31, 0xff, 0xff, 0xff, 0xff};
	size_t size;
	uint8_t *frame = little_host_hello(&host, 5, 64, &size);

	assert_int_equal(pf_conversation_feed(conversation, rubbish, sizeof(rubbish), now_ms), 0);
	for (size_t i = 0; i < size; i++)
		assert_int_equal(pf_conversation_feed(conversation, frame + i, 1, now_ms), 0);
	free(frame);
	move(SIZE_MAX, SIZE_MAX);
	assert_int_equal(host.n_ends, 1);
}

/* All that a host in a fault says in one read: the last of it is what it wants. */
static void test_many_hellos(void **state)
{
	PfConversationCount count;
	uint8_t bytes[4096];
	size_t n = 0, size;

	hello(1, 64);
	move(SIZE_MAX, SIZE_MAX);
	for (uint64_t id = 2; id <= 50; id++) {
		uint8_t *frame = little_host_hello(&host, id, 64, &size);

		assert_true(n + size <= sizeof(bytes));
		memcpy(bytes + n, frame, size);
		n += size;
		free(frame);
	}
	/* All but the end of the last one, which another read brings. */
	assert_int_equal(pf_conversation_feed(conversation, bytes, n - 1, now_ms), 0);
	pf_conversation_count(conversation, &count);
	assert_int_equal(count.n_sessions, 2);
	assert_int_equal(pf_conversation_feed(conversation, bytes + n - 1, 1, now_ms), 0);
	pf_conversation_count(conversation, &count);
	assert_int_equal(count.n_sessions, 3);
	move(SIZE_MAX, SIZE_MAX);
	assert_int_equal(host.n_stale, 0);
	assert_int_equal(host.n_hellos, 2);
	assert_int_equal(little_host_pages(&host), 10000);
}

static void test_said_once_a_minute(void **state)
{
	now_ms = 1000000;
	for (uint64_t id = 1; id <= 60; id++, now_ms += 1000) {
		hello(id, 64);
		assert_int_equal(n_said, 1);
	}
	hello(61, 64);
	assert_int_equal(n_said, 2);
	/* An end is said if a beginning was. */
	now_ms += 1000;
	hello(62, 64);
	assert_int_equal(n_said, 2);
	pf_conversation_lost(conversation);
	assert_int_equal(n_said, 3);
	now_ms += 58999;
	hello(63, 64);
	pf_conversation_lost(conversation);
	assert_int_equal(n_said, 3);
	now_ms++;
	hello(64, 64);
	assert_int_equal(n_said, 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_silent_before_hello, setup, teardown),
		cmocka_unit_test_setup_teardown(test_knock, setup, teardown),
		cmocka_unit_test_setup_teardown(test_restart, setup, teardown),
		cmocka_unit_test_setup_teardown(test_flush, setup, teardown),
		cmocka_unit_test_setup_teardown(test_window, setup, teardown),
		cmocka_unit_test_setup_teardown(test_second_hello_in_mid_frame, setup, teardown),
		cmocka_unit_test_setup_teardown(test_second_hello_between_frames, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lost, setup, teardown),
		cmocka_unit_test_setup_teardown(test_count, setup, teardown),
		cmocka_unit_test_setup_teardown(test_byte_by_byte, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many_hellos, setup, teardown),
		cmocka_unit_test_setup_teardown(test_said_once_a_minute, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
