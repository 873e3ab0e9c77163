/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The host's end of the guest channel.
 *
 * A session begins with our hello, which carries a new random id, and ends with the next one: when
 * the channel is opened anew, or when the guest knocks because its agent has just started. Its
 * states:
 *
 *   GREETING  our hello is queued or on its way. Only the agent's hello is heard.
 *   RUNNING   the agent's hello was valid and the sink knows it. Modules, hints and the rest are
 *             heard.
 *   MUTE      the guest's page size is not ours, or its agent knows an older protocol only. The
 *             sink knows the hello and hears nothing more.
 *
 * In every state, frames that carry the session's id are acknowledged, also those that are dropped:
 * an acknowledgement says what was read and never what it was good for. Output is made when it is
 * asked for, one frame at a time, and made anew as long as no byte of it was sent: a newer hello or
 * acknowledgement takes the place of the older one, and output cannot pile up.
 *
 * The window is the guest's to keep: it gets acknowledgements as its frames are read. What we check
 * is that a guest which does not take its acknowledgements stops sending too. Twice the window
 * leaves room for frames of a session before this one.
 *
 * A guest that reboots in mid-frame leaves the reader waiting for the rest (common/frame.c). The
 * new agent knocks and then waits for our hello, so nothing else would ever follow. Therefore, when
 * the bytes that came end with a whole knock, the frame that they would belong to is taken as torn.
 */
#include "host-service/decide/session.h"
#include "common/frame.h"
#include "common/pb_alloc.h"
#include "common/text.h"
#include "proto/agent.pb-c.h"

#define DECODE_LIMIT_BYTES  (8u << 20)
#define BOOT_ID_SIZE        16u
#define MAX_OUTPUT_FRAME    64u
#define FLOOD_FRAMES        (2u * PF_SESSION_WINDOW_FRAMES)
#define KNOCK_PAYLOAD_BYTES 2u

typedef Pagefusion__AgentMessage AgentMessage;

typedef enum SessionState {
	GREETING,
	RUNNING,
	MUTE,
} SessionState;

struct PfSession {
	const PfSessionSink *sink;
	void *userdata;
	uint64_t (*new_session_id)(void *userdata);

	PfFrameReader reader;
	PfSessionCounters counters; /* frames and skipped_bytes are the reader's */
	uint8_t knock[PF_FRAME_HEADER_SIZE + KNOCK_PAYLOAD_BYTES];

	SessionState state;
	uint64_t id;
	uint64_t frames; /* of this session */
	PfGuestRange ram[PF_SESSION_MAX_RAM_RANGES];
	size_t n_ram;
	GArray *module_pages; /* uint64_t by module id, 0: not declared */

	gboolean hello_due, ack_due;
	uint8_t output[MAX_OUTPUT_FRAME]; /* one frame, partly sent */
	size_t output_size, output_sent;
	uint64_t heard;           /* frames, of any session, but no knocks */
	uint64_t heard_at_output; /* when the frame in output was made */
	uint64_t heard_at_drain;  /* as above, of the last one that was sent to its end */
};

static void begin(PfSession *session)
{
	session->id = session->new_session_id(session->userdata);
	session->state = GREETING;
	session->frames = 0;
	session->n_ram = 0;
	g_array_set_size(session->module_pages, 0);
	session->hello_due = TRUE;
	session->ack_due = FALSE;
}

/* A knock is always these bytes; they are made once to be recognised in a torn frame. */
static void make_knock(PfSession *session)
{
	Pagefusion__Knock knock = PAGEFUSION__KNOCK__INIT;
	AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	uint8_t *payload = session->knock + PF_FRAME_HEADER_SIZE;
	size_t size;
	int r;

	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_KNOCK;
	message.knock = &knock;
	g_assert(pagefusion__agent_message__get_packed_size(&message) == KNOCK_PAYLOAD_BYTES);
	size = pagefusion__agent_message__pack(&message, payload);
	r = pf_frame_write_header(session->knock, payload, size);
	g_assert(r == PF_FRAME_OK);
}

PfSession *pf_session_new(
	const PfSessionSink *sink, void *userdata, uint64_t (*new_session_id)(void *userdata))
{
	PfSession *session = g_new0(PfSession, 1);

	session->sink = sink;
	session->userdata = userdata;
	session->new_session_id = new_session_id;
	session->module_pages = g_array_new(FALSE, TRUE, sizeof(uint64_t));
	pf_frame_reader_init(&session->reader);
	make_knock(session);
	pf_session_open(session);
	return session;
}

void pf_session_free(PfSession *session)
{
	if (!session)
		return;
	pf_frame_reader_deinit(&session->reader);
	g_array_unref(session->module_pages);
	g_free(session);
}

void pf_session_open(PfSession *session)
{
	pf_frame_reader_reset(&session->reader);
	session->output_size = session->output_sent = 0;
	session->heard_at_drain = session->heard;
	begin(session);
}

/* The agent has just started. A hello of which nothing was sent yet is answer enough. */
static void on_knock(PfSession *session)
{
	if (!session->hello_due)
		begin(session);
}

/* first + n, both below end and n not 0, without overflow. */
static gboolean range_fits(uint64_t first, uint64_t n, uint64_t end)
{
	return n > 0 && first < end && n <= end - first;
}

static gboolean take_ram(PfSession *session, const Pagefusion__AgentHello *hello)
{
	uint64_t behind = 0;

	if (hello->n_ram == 0 || hello->n_ram > PF_SESSION_MAX_RAM_RANGES)
		return FALSE;
	for (size_t i = 0; i < hello->n_ram; i++) {
		const Pagefusion__RamRange *range = hello->ram[i];

		if (range->first_gfn < behind ||
			!range_fits(range->first_gfn, range->n_pages, PF_GFN_END))
			return FALSE;
		behind = range->first_gfn + range->n_pages;
		session->ram[i].first.v = range->first_gfn;
		session->ram[i].n_pages = range->n_pages;
	}
	session->n_ram = hello->n_ram;
	return TRUE;
}

static gboolean on_hello(PfSession *session, const Pagefusion__AgentHello *hello)
{
	char version[PF_SESSION_MAX_NAME + 1], kernel[PF_SESSION_MAX_NAME + 1];
	PfGuestInfo info = {
		.agent_version = version,
		.kernel = kernel,
		.page_size = hello->page_size,
		.protocol = hello->protocol,
		.ram = session->ram,
	};

	if (hello->boot_id.len != BOOT_ID_SIZE || !take_ram(session, hello))
		return FALSE;
	pf_text_clean(version, sizeof(version), hello->agent_version);
	pf_text_clean(kernel, sizeof(kernel), hello->kernel);
	info.n_ram = session->n_ram;
	session->state = hello->page_size == PF_PAGE_SIZE && hello->protocol >= PF_SESSION_PROTOCOL
				 ? RUNNING
				 : MUTE;
	session->sink->started(session->userdata, &info);
	return TRUE;
}

/* 0: not declared. */
static uint64_t module_pages(const PfSession *session, uint32_t id)
{
	return id < session->module_pages->len ? g_array_index(session->module_pages, uint64_t, id)
					       : 0;
}

static gboolean on_module(PfSession *session, const Pagefusion__Module *module)
{
	char name[PF_SESSION_MAX_NAME + 1];
	PfModuleInfo info = {
		.build_id = module->build_id.len > 0 ? module->build_id.data : NULL,
		.build_id_size = module->build_id.len,
		.name = name,
		.n_pages = module->n_pages,
	};

	pf_text_clean(name, sizeof(name), module->name);
	if (module->id >= PF_SESSION_MAX_MODULES || info.build_id_size > PF_SESSION_MAX_BUILD_ID ||
		info.n_pages == 0 || info.n_pages > PF_SESSION_MAX_MODULE_PAGES)
		return FALSE;
	if (!info.build_id && !*name) /* nothing to know it by */
		return FALSE;
	if (module->id >= session->module_pages->len)
		g_array_set_size(session->module_pages, module->id + 1);
	g_array_index(session->module_pages, uint64_t, module->id) = info.n_pages;
	session->sink->module(session->userdata, module->id, &info);
	return TRUE;
}

static gboolean in_ram(const PfSession *session, uint64_t gfn, uint64_t n_pages)
{
	for (size_t i = 0; i < session->n_ram; i++) {
		uint64_t first = session->ram[i].first.v;

		if (gfn >= first && range_fits(gfn, n_pages, first + session->ram[i].n_pages))
			return TRUE;
	}
	return FALSE;
}

static void on_run(PfSession *session, uint32_t module_id, const Pagefusion__Run *run)
{
	size_t n_pages = run->digests.len / PF_DIGEST_SIZE;

	if (n_pages == 0 || run->digests.len % PF_DIGEST_SIZE != 0 ||
		!range_fits(run->file_page, n_pages, module_pages(session, module_id)) ||
		!in_ram(session, run->gfn, n_pages)) {
		session->counters.refused_hints += MAX(n_pages, 1);
		return;
	}
	session->sink->hints(session->userdata, module_id, run->file_page, (PfGfn){run->gfn},
		(uint32_t)n_pages, (const PfDigest *)run->digests.data);
}

static gboolean on_hints(PfSession *session, const Pagefusion__Hints *hints)
{
	for (size_t i = 0; i < hints->n_runs; i++)
		on_run(session, hints->module_id, hints->runs[i]);
	return TRUE;
}

/* Ascending and disjoint: then one pass is enough for all of them, however many a guest names. */
static gboolean take_ranges(
	const Pagefusion__Withdrawn *withdrawn, uint64_t n_pages, GArray *ranges)
{
	uint64_t end = 0;

	for (size_t i = 0; i < withdrawn->n_pages; i++) {
		PfFileRange range = {withdrawn->pages[i]->first_page, withdrawn->pages[i]->n_pages};

		if (!range_fits(range.first_page, range.n_pages, n_pages) || range.first_page < end)
			return FALSE;
		end = range.first_page + range.n_pages;
		g_array_append_val(ranges, range);
	}
	return TRUE;
}

static gboolean on_withdrawn(PfSession *session, const Pagefusion__Withdrawn *withdrawn)
{
	g_autoptr(GArray) ranges = g_array_new(FALSE, FALSE, sizeof(PfFileRange));
	uint32_t id = withdrawn->module_id;
	uint64_t n_pages = module_pages(session, id);
	PfFileRange all = {0, n_pages};

	if (n_pages == 0 || !take_ranges(withdrawn, n_pages, ranges))
		return FALSE;
	if (withdrawn->n_pages == 0) {
		g_array_index(session->module_pages, uint64_t, id) = 0;
		g_array_append_val(ranges, all);
	}
	session->sink->withdrawn(
		session->userdata, id, (const PfFileRange *)(void *)ranges->data, ranges->len);
	return TRUE;
}

static gboolean on_report_end(PfSession *session, const Pagefusion__ReportEnd *end)
{
	session->sink->reported(session->userdata, end->n_modules, end->n_pages);
	return TRUE;
}

/* A message of this session; FALSE when it is not valid, or not now. */
static gboolean on_message(PfSession *session, const AgentMessage *message)
{
	if (message->body_case == PAGEFUSION__AGENT_MESSAGE__BODY_HELLO)
		return session->state == GREETING && on_hello(session, message->hello);
	if (session->state != RUNNING)
		return FALSE;
	switch (message->body_case) {
	case PAGEFUSION__AGENT_MESSAGE__BODY_MODULE:
		return on_module(session, message->module);
	case PAGEFUSION__AGENT_MESSAGE__BODY_HINTS:
		return on_hints(session, message->hints);
	case PAGEFUSION__AGENT_MESSAGE__BODY_WITHDRAWN:
		return on_withdrawn(session, message->withdrawn);
	case PAGEFUSION__AGENT_MESSAGE__BODY_REPORT_END:
		return on_report_end(session, message->report_end);
	default:
		return FALSE;
	}
}

static gboolean is_knock(const AgentMessage *message)
{
	return message->session_id == 0 &&
	       message->body_case == PAGEFUSION__AGENT_MESSAGE__BODY_KNOCK;
}

static int on_frame(PfSession *session, const uint8_t *payload, size_t size)
{
	PfPbAlloc alloc;
	AgentMessage *message;
	gboolean valid;

	pf_pb_alloc_init(&alloc, DECODE_LIMIT_BYTES);
	message = pagefusion__agent_message__unpack(&alloc.base, size, payload);
	if (message && is_knock(message)) {
		on_knock(session);
		valid = TRUE;
	} else {
		gboolean ours = message && message->session_id == session->id;

		session->heard++;
		session->frames += ours;
		session->ack_due |= ours;
		valid = ours && on_message(session, message);
	}
	session->counters.dropped += !valid;
	pagefusion__agent_message__free_unpacked(message, &alloc.base);
	g_assert(alloc.used == 0);
	return session->heard - session->heard_at_drain > FLOOD_FRAMES ? PF_SESSION_E_FLOOD
								       : PF_SESSION_OK;
}

static int read_frames(PfSession *session)
{
	const uint8_t *payload;
	size_t size;

	while (pf_frame_reader_next(&session->reader, &payload, &size) == PF_FRAME_OK) {
		int r = on_frame(session, payload, size);

		if (r != PF_SESSION_OK)
			return r;
	}
	return PF_SESSION_OK;
}

static void find_torn_knock(PfSession *session)
{
	PfFrameReader *reader = &session->reader;
	size_t left = reader->end - reader->start;
	size_t size = sizeof(session->knock);

	if (left < size || memcmp(reader->data + reader->end - size, session->knock, size) != 0)
		return;
	reader->skipped_bytes += left - size;
	reader->n_frames++;
	pf_frame_reader_reset(reader);
	on_knock(session);
}

int pf_session_feed(PfSession *session, const uint8_t *data, size_t size)
{
	while (size > 0) {
		uint8_t *room;
		size_t n;
		int r = pf_frame_reader_reserve(&session->reader, &room, &n);

		if (r < 0)
			return r;
		n = MIN(n, size);
		memcpy(room, data, n);
		pf_frame_reader_commit(&session->reader, n);
		data += n;
		size -= n;
		r = read_frames(session);
		if (r != PF_SESSION_OK)
			return r;
	}
	find_torn_knock(session);
	return PF_SESSION_OK;
}

/* Makes the next frame of output from what is due. */
static void make_output(PfSession *session)
{
	Pagefusion__HostMessage message = PAGEFUSION__HOST_MESSAGE__INIT;
	Pagefusion__HostHello hello = PAGEFUSION__HOST_HELLO__INIT;
	Pagefusion__Ack ack = PAGEFUSION__ACK__INIT;
	uint8_t *payload = session->output + PF_FRAME_HEADER_SIZE;
	size_t size;
	int r;

	if (session->hello_due) {
		hello.session_id = session->id;
		hello.protocol = PF_SESSION_PROTOCOL;
		hello.window = PF_SESSION_WINDOW_FRAMES;
		message.body_case = PAGEFUSION__HOST_MESSAGE__BODY_HELLO;
		message.hello = &hello;
	} else {
		ack.session_id = session->id;
		ack.frames = session->frames;
		message.body_case = PAGEFUSION__HOST_MESSAGE__BODY_ACK;
		message.ack = &ack;
	}
	size = pagefusion__host_message__get_packed_size(&message);
	g_assert(size <= MAX_OUTPUT_FRAME - PF_FRAME_HEADER_SIZE);
	pagefusion__host_message__pack(&message, payload);
	r = pf_frame_write_header(session->output, payload, size);
	g_assert(r == PF_FRAME_OK);
	session->output_size = PF_FRAME_HEADER_SIZE + size;
	session->heard_at_output = session->heard;
}

const uint8_t *pf_session_output(PfSession *session, size_t *size)
{
	if (session->output_sent == 0) {
		session->output_size = 0;
		if (session->hello_due || session->ack_due)
			make_output(session);
	}
	*size = session->output_size - session->output_sent;
	return session->output + session->output_sent;
}

void pf_session_sent(PfSession *session, size_t n)
{
	g_assert(n <= session->output_size - session->output_sent);
	if (n == 0)
		return;
	if (session->output_sent == 0) {
		/* A hello goes before an acknowledgement, and there is none to give before it has
		 * gone. */
		if (session->hello_due)
			session->hello_due = FALSE;
		else
			session->ack_due = FALSE;
	}
	session->output_sent += n;
	if (session->output_sent == session->output_size) {
		session->heard_at_drain = session->heard_at_output;
		session->output_size = session->output_sent = 0;
	}
}

void pf_session_get_counters(const PfSession *session, PfSessionCounters *counters)
{
	*counters = session->counters;
	counters->frames = session->reader.n_frames;
	counters->skipped_bytes = session->reader.skipped_bytes;
}
