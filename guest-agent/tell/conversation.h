/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The agent's side of the guest channel (proto/PROTOCOL.md): bytes in, bytes out. No I/O and no
 * clock. */
#include "guest-agent/facts.h"
#include "guest-agent/state.h"
#include <stdbool.h>

typedef struct PfConversation PfConversation;

typedef struct PfConversationCount {
	uint64_t n_sessions, bytes_sent;           /* all in all */
	uint64_t frames_sent, frames_acknowledged; /* of this session, or of the last */
	bool waiting; /* for the host, to read or to acknowledge, before more can be said */
} PfConversationCount;

/* NULL without memory. state and facts must live as long as the conversation. */
PfConversation *pf_conversation_new(PfState *state, const PfFacts *facts);
void pf_conversation_free(PfConversation *conversation);

/*
 * Asks the host for a hello, unless a session stands. With flush, as many zeros as the longest
 * frame has go ahead: a host that still waits for the rest of a frame of our predecessor would take
 * the knock for it otherwise.
 */
void pf_conversation_knock(PfConversation *conversation, bool flush);

/* What only our hello says has changed: ends the session that stands, and asks for a new one. */
void pf_conversation_restart(PfConversation *conversation);

/* Bytes came from the host, in one read; of several hellos in them the last one counts. now_ms is of any clock, the
 * same in all calls. 0 or -ENOMEM. */
int pf_conversation_feed(
	PfConversation *conversation, const uint8_t *data, size_t size, int64_t now_ms);

/*
 * Bytes to send now: *size of them, 0 when there are none or the window is used up. Valid until the
 * next call on this conversation. 0 or -ENOMEM.
 */
int pf_conversation_output(PfConversation *conversation, const uint8_t **data, size_t *size);

/* n bytes of the output were sent. */
void pf_conversation_sent(PfConversation *conversation, size_t n);

/* The host closed the channel: no session, nothing to send until it says hello. */
void pf_conversation_lost(PfConversation *conversation);

/* Whether there is a session. */
bool pf_conversation_active(const PfConversation *conversation);

void pf_conversation_count(const PfConversation *conversation, PfConversationCount *count);
