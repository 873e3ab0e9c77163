// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The host speaks first: a hello opens a session, at any time, and ends the one before. The answer
 * is our hello, then whatever the host was not told, which after a hello is everything that is
 * known; nothing is hashed again for it. Each frame of a session counts, our hello included; no
 * more than the window may be out without an acknowledgement, and a frame is made only when it may
 * be sent, so that it says what is true then. A frame whose first bytes are out is finished even
 * when a new hello comes: the host's reader is in its middle. It counts for the session it belongs
 * to.
 *
 * A host in a fault, or in a fight with another one, may say hello thousands of times a second, each of which would
 * begin everything anew. So of those that came in one read only the last counts, and only one a minute is said aloud.
 *
 * Who sends a knock is waiting for a hello; a hello that comes by itself makes it needless.
 */
#include "guest-agent/tell/conversation.h"
#include "common/frame.h"
#include "common/log.h"
#include "guest-agent/tell/host_message.h"
#include "guest-agent/tell/report.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#define SAY_MS 60000 /* at least between two sessions that are said */

struct PfConversation {
	PfState *state;       /* not owned */
	const PfFacts *facts; /* not owned */
	PfReport *report;
	PfFrameReader reader;

	uint64_t session_id; /* 0: no session */
	uint32_t window;
	uint64_t n_sessions, bytes_sent;
	uint64_t sent, acknowledged; /* frames of this session */
	int64_t say_ms;              /* until then a session is not said */
	bool said;                   /* a session was, and its end was not */
	bool hello_due;
	bool knock_due;
	bool flush_due;

	const uint8_t *out; /* what is left of the frame being sent; the report's */
	size_t out_size;
	bool out_begun; /* its first bytes are out */
};

static const uint8_t zeros[PF_REPORT_MAX_FRAME];

PfConversation *pf_conversation_new(PfState *state, const PfFacts *facts)
{
	PfConversation *conversation = calloc(1, sizeof(*conversation));

	if (!conversation)
		return NULL;
	conversation->state = state;
	conversation->facts = facts;
	pf_frame_reader_init(&conversation->reader);
	conversation->report = pf_report_new(state);
	if (!conversation->report) {
		pf_conversation_free(conversation);
		return NULL;
	}
	return conversation;
}

void pf_conversation_free(PfConversation *conversation)
{
	if (!conversation)
		return;
	pf_report_free(conversation->report);
	pf_frame_reader_deinit(&conversation->reader);
	free(conversation);
}

static void drop_output(PfConversation *conversation)
{
	conversation->out_size = 0;
	conversation->out_begun = false;
	conversation->knock_due = false;
	conversation->flush_due = false;
}

void pf_conversation_knock(PfConversation *conversation, bool flush)
{
	if (conversation->session_id != 0)
		return;
	conversation->knock_due = true;
	conversation->flush_due = flush;
}

void pf_conversation_restart(PfConversation *conversation)
{
	if (conversation->session_id == 0)
		return;
	if (!conversation->out_begun)
		drop_output(conversation);
	conversation->session_id = 0;
	conversation->hello_due = false;
	pf_conversation_knock(conversation, false);
}

static void say_session(PfConversation *conversation, int64_t now_ms)
{
	bool aloud = now_ms >= conversation->say_ms;

	pf_log(aloud ? PF_LOG_INFO : PF_LOG_DEBUG, "the host has opened a session");
	if (!aloud)
		return;
	conversation->said = true;
	conversation->say_ms = now_ms + SAY_MS;
}

static void start_session(PfConversation *conversation, const PfHostMessage *hello, int64_t now_ms)
{
	if (!conversation->out_begun)
		drop_output(conversation);
	conversation->knock_due = false;
	conversation->flush_due = false;
	conversation->session_id = hello->session_id;
	conversation->window = hello->window;
	conversation->n_sessions++;
	conversation->sent = 0;
	conversation->acknowledged = 0;
	conversation->hello_due = true;
	pf_state_forget_told(conversation->state);
	say_session(conversation, now_ms);
}

static void take_ack(PfConversation *conversation, const PfHostMessage *ack)
{
	if (ack->session_id != conversation->session_id || ack->frames > conversation->sent)
		pf_debug("an acknowledgement that fits nothing was ignored");
	else if (ack->frames > conversation->acknowledged)
		conversation->acknowledged = ack->frames;
}

/* The frames that have come in so far. The last hello among them is the caller's. */
static void take_frames(PfConversation *conversation, PfHostMessage *hello)
{
	const uint8_t *payload;
	size_t size;

	while (pf_frame_reader_next(&conversation->reader, &payload, &size) == PF_FRAME_OK) {
		PfHostMessage message;

		pf_host_message_parse(payload, size, &message);
		if (message.kind == PF_HOST_MESSAGE_HELLO)
			*hello = message;
		else if (message.kind == PF_HOST_MESSAGE_ACK)
			take_ack(conversation, &message);
		else
			pf_debug("a frame that is no message was ignored");
	}
}

int pf_conversation_feed(
	PfConversation *conversation, const uint8_t *data, size_t size, int64_t now_ms)
{
	PfFrameReader *reader = &conversation->reader;
	PfHostMessage hello = {.kind = PF_HOST_MESSAGE_INVALID};

	while (size > 0) {
		size_t room;
		uint8_t *buffer;
		int r = pf_frame_reader_reserve(reader, &buffer, &room);

		if (r < 0)
			return r;
		if (room > size)
			room = size;
		memcpy(buffer, data, room);
		pf_frame_reader_commit(reader, room);
		data += room;
		size -= room;
		take_frames(conversation, &hello);
	}
	if (hello.kind == PF_HOST_MESSAGE_HELLO)
		start_session(conversation, &hello, now_ms);
	return 0;
}

static bool window_used_up(const PfConversation *conversation)
{
	return conversation->sent - conversation->acknowledged >= conversation->window;
}

/* The next frame of the session, or PF_REPORT_E_IDLE. */
static int next_frame(PfConversation *conversation)
{
	int r;

	if (window_used_up(conversation))
		return PF_REPORT_E_IDLE;
	if (conversation->hello_due)
		r = pf_report_hello(conversation->report, conversation->session_id,
			conversation->facts, &conversation->out, &conversation->out_size);
	else
		r = pf_report_next(conversation->report, conversation->session_id,
			&conversation->out, &conversation->out_size);
	if (r == PF_REPORT_OK) {
		conversation->hello_due = false;
		conversation->sent++;
	}
	return r;
}

static int fill_output(PfConversation *conversation)
{
	if (conversation->session_id != 0)
		return next_frame(conversation);
	if (conversation->flush_due) {
		conversation->flush_due = false;
		conversation->out = zeros;
		conversation->out_size = sizeof(zeros);
	} else if (conversation->knock_due) {
		conversation->knock_due = false;
		return pf_report_knock(
			conversation->report, &conversation->out, &conversation->out_size);
	}
	return PF_REPORT_OK;
}

int pf_conversation_output(PfConversation *conversation, const uint8_t **data, size_t *size)
{
	if (conversation->out_size == 0) {
		int r = fill_output(conversation);

		if (r < 0)
			return r;
		conversation->out_begun = false;
	}
	*data = conversation->out;
	*size = conversation->out_size;
	return 0;
}

void pf_conversation_sent(PfConversation *conversation, size_t n)
{
	conversation->bytes_sent += n;
	conversation->out += n;
	conversation->out_size -= n;
	conversation->out_begun = conversation->out_size > 0;
}

void pf_conversation_lost(PfConversation *conversation)
{
	if (conversation->session_id != 0)
		pf_log(conversation->said ? PF_LOG_INFO : PF_LOG_DEBUG,
			"the host has closed the channel");
	conversation->said = false;
	drop_output(conversation);
	pf_frame_reader_reset(&conversation->reader);
	conversation->session_id = 0;
	conversation->hello_due = false;
}

bool pf_conversation_active(const PfConversation *conversation)
{
	return conversation->session_id != 0;
}

void pf_conversation_count(const PfConversation *conversation, PfConversationCount *count)
{
	*count = (PfConversationCount){
		.n_sessions = conversation->n_sessions,
		.bytes_sent = conversation->bytes_sent,
		.frames_sent = conversation->sent,
		.frames_acknowledged = conversation->acknowledged,
		.waiting = conversation->out_size > 0 || window_used_up(conversation),
	};
}
