// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * What the host says: the input as the payload of a message, and as a stream of them (a length byte
 * before each) to a conversation that has something to tell and must keep to the window. A length of 0
 * is no message: what happens to the agent then stands in the byte after it.
 */
#include "common/frame.h"
#include "guest-agent/tell/conversation.h"
#include "guest-agent/tell/host_message.h"
#include <stdlib.h>
#include <string.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static PfState files;
static const PfFacts facts = {.kernel = "6.1", .ram = {.ranges = {{{1}, 1 << 20}}, .n = 1}};

static void make_files(void)
{
	pf_state_init(&files);
	pf_state_begin(&files, PF_CLASS_CACHE, true);
	for (uint32_t i = 0; i < 100; i++) {
		const PfFileKey key = {.inode = i + 1};
		const PfFileStamp stamp = {.size = 4096};
		PfObserved page = {.gfn = {1000 + i}};
		PfFile *file;
		bool fresh;

		if (pf_state_see(&files, &key, &stamp, 0, "file", &file, &fresh) < 0 ||
			pf_file_commit(file, 0, 1, &page, 1) < 0)
			abort();
	}
	pf_state_end(&files);
}

static void feed(PfConversation *conversation, const uint8_t *payload, size_t size)
{
	uint8_t frame[PF_FRAME_HEADER_SIZE + 255];

	if (size == 0)
		return;
	memcpy(frame + PF_FRAME_HEADER_SIZE, payload, size);
	if (pf_frame_write_header(frame, frame + PF_FRAME_HEADER_SIZE, size) != PF_FRAME_OK ||
		pf_conversation_feed(conversation, frame, PF_FRAME_HEADER_SIZE + size, 0) < 0)
		abort();
}

/* No hello can have opened more than the largest window; without one it knocks, once. */
static void drain(PfConversation *conversation)
{
	const uint8_t *data;
	size_t size, frames = 0;

	while (pf_conversation_output(conversation, &data, &size) == 0 && size > 0) {
		if (++frames > (pf_conversation_active(conversation) ? PF_HOST_MAX_WINDOW + 1 : 3))
			abort();
		pf_conversation_sent(conversation, size);
	}
}

/* What is sent in part only has to be gone on with. */
static void send_some(PfConversation *conversation)
{
	const uint8_t *data;
	size_t size;

	if (pf_conversation_output(conversation, &data, &size) == 0 && size > 1)
		pf_conversation_sent(conversation, size / 2);
}

static void happen(PfConversation *conversation, unsigned what)
{
	switch (what % 6) {
	case 0:
	case 1:
		pf_conversation_knock(conversation, what % 6 == 1);
		break;
	case 2:
		pf_conversation_restart(conversation);
		break;
	case 3:
		pf_conversation_lost(conversation);
		break;
	case 4:
		send_some(conversation);
		break;
	default:
		drain(conversation);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	PfConversation *conversation;
	PfHostMessage message;

	pf_host_message_parse(data, size, &message);
	if (message.kind != PF_HOST_MESSAGE_INVALID && message.session_id == 0)
		abort();
	if (files.n == 0)
		make_files();
	conversation = pf_conversation_new(&files, &facts);
	if (!conversation)
		return 0;
	while (size > 1) {
		size_t length = MIN(data[0], size - 1);

		if (length == 0) {
			happen(conversation, data[1]);
			length = 1;
		} else {
			feed(conversation, data + 1, length);
			if (data[0] % 2)
				drain(conversation);
		}
		data += 1 + length;
		size -= 1 + length;
	}
	pf_conversation_free(conversation);
	return 0;
}
