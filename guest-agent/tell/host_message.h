/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the host says (proto/agent.proto), checked. */
#include <stddef.h>
#include <stdint.h>

#define PF_HOST_MAX_WINDOW 64u /* frames; a larger window is taken as this */

typedef enum PfHostMessageKind {
	PF_HOST_MESSAGE_INVALID, /* none of the others, or with impossible contents */
	PF_HOST_MESSAGE_HELLO,
	PF_HOST_MESSAGE_ACK,
} PfHostMessageKind;

typedef struct PfHostMessage {
	PfHostMessageKind kind;
	uint64_t session_id; /* not 0 */
	uint32_t window;     /* hello: 1 to PF_HOST_MAX_WINDOW */
	uint64_t frames;     /* ack */
} PfHostMessage;

/* Parses a frame's payload; without memory it counts as invalid. */
void pf_host_message_parse(const uint8_t *payload, size_t size, PfHostMessage *message);
