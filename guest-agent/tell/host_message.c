// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The host is trusted more than the guest is by it, but its bytes come through a port that anything
 * on the host may open: they are checked here once. A message of the host is some 30 bytes; what
 * needs more memory than MEMORY_LIMIT is none.
 */
#include "guest-agent/tell/host_message.h"
#include "common/pb_alloc.h"
#include "proto/agent.pb-c.h"

#define MEMORY_LIMIT (16u * 1024u)

static void take_hello(const Pagefusion__HostHello *hello, PfHostMessage *message)
{
	if (hello->session_id == 0 || hello->protocol == 0 || hello->window == 0)
		return;
	message->kind = PF_HOST_MESSAGE_HELLO;
	message->session_id = hello->session_id;
	message->window = hello->window < PF_HOST_MAX_WINDOW ? hello->window : PF_HOST_MAX_WINDOW;
}

static void take_ack(const Pagefusion__Ack *ack, PfHostMessage *message)
{
	if (ack->session_id == 0)
		return;
	message->kind = PF_HOST_MESSAGE_ACK;
	message->session_id = ack->session_id;
	message->frames = ack->frames;
}

void pf_host_message_parse(const uint8_t *payload, size_t size, PfHostMessage *message)
{
	Pagefusion__HostMessage *unpacked;
	PfPbAlloc alloc;

	*message = (PfHostMessage){.kind = PF_HOST_MESSAGE_INVALID};
	pf_pb_alloc_init(&alloc, MEMORY_LIMIT);
	unpacked = pagefusion__host_message__unpack(&alloc.base, size, payload);
	if (!unpacked)
		return;
	if (unpacked->body_case == PAGEFUSION__HOST_MESSAGE__BODY_HELLO && unpacked->hello)
		take_hello(unpacked->hello, message);
	else if (unpacked->body_case == PAGEFUSION__HOST_MESSAGE__BODY_ACK && unpacked->ack)
		take_ack(unpacked->ack, message);
	pagefusion__host_message__free_unpacked(unpacked, &alloc.base);
}
