/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A session with a guest that says anything, and a sink that checks every promise of
 * host-service/decide/session.h. The input is a list of records (records.h).
 */
#include "common/frame.h"
#include "host-service/decide/session.h"
#include "proto/agent.pb-c.h"
#include "records.h"

#include <stdlib.h>

enum {
	OP_RAW,     /* feed the bytes as they are */
	OP_FRAME,   /* feed them as a payload */
	OP_MESSAGE, /* the same, with the session's id put before them: the body of a message */
	OP_TORN,    /* feed them as a payload, but only the first half of the frame */
	OP_OUTPUT,  /* take as many bytes of output as the record is long */
	OP_DRAIN,   /* take all output */
	OP_OPEN,    /* open the channel anew */
	N_OPERATIONS
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct Guest {
	PfSession *session;
	uint64_t session_id;
	gboolean started; /* with our page size */
	gboolean mute;    /* with another */
	PfGuestRange ram[PF_SESSION_MAX_RAM_RANGES];
	size_t n_ram;
	GHashTable *modules; /* id + 1 to the number of pages */
	uint64_t heard;      /* frames that the sink has heard of, hints left out */
	gboolean in_output;  /* a part of the newest output was taken */
	uint64_t at_output;  /* heard when it began */
	uint64_t drained;    /* the same of the newest that was taken whole: those are answered */
} Guest;

static void check(gboolean holds)
{
	if (!holds)
		abort();
}

/* A guest may send twice the window without taking what we say; the frame that is one too many is heard still. */
static void count_frame(Guest *guest)
{
	check(++guest->heard - guest->drained <= 2 * PF_SESSION_WINDOW_FRAMES + 1);
}

static void check_text(const char *text)
{
	check(strlen(text) <= PF_SESSION_MAX_NAME && g_utf8_validate(text, -1, NULL));
	for (const char *p = text; *p; p = g_utf8_next_char(p))
		check(!g_unichar_iscntrl(g_utf8_get_char(p)));
}

static void open_channel(Guest *guest)
{
	pf_session_open(guest->session);
	guest->in_output = FALSE;
	guest->drained = guest->heard;
}

static uint64_t new_session_id(void *userdata)
{
	Guest *guest = userdata;

	guest->started = guest->mute = FALSE;
	g_hash_table_remove_all(guest->modules);
	return ++guest->session_id;
}

static void on_started(void *userdata, const PfGuestInfo *info)
{
	Guest *guest = userdata;
	uint64_t behind = 0;

	count_frame(guest);
	check(!guest->started && !guest->mute);
	check(info->n_ram >= 1 && info->n_ram <= PF_SESSION_MAX_RAM_RANGES);
	check_text(info->agent_version);
	check_text(info->kernel);
	for (size_t i = 0; i < info->n_ram; i++) {
		const PfGuestRange *range = &info->ram[i];

		check(range->first.v >= behind && range->n_pages > 0);
		behind = range->first.v + range->n_pages;
		check(behind > range->first.v && behind <= PF_GFN_END);
		guest->ram[i] = *range;
	}
	guest->n_ram = info->n_ram;
	guest->started = info->page_size == PF_PAGE_SIZE && info->protocol >= PF_SESSION_PROTOCOL;
	guest->mute = !guest->started;
}

static uint64_t pages_of(const Guest *guest, uint32_t module_id)
{
	return GPOINTER_TO_SIZE(
		g_hash_table_lookup(guest->modules, GSIZE_TO_POINTER((gsize)module_id + 1)));
}

static void on_module(void *userdata, uint32_t id, const PfModuleInfo *info)
{
	Guest *guest = userdata;
	volatile uint8_t last;

	count_frame(guest);
	check(guest->started && id < PF_SESSION_MAX_MODULES);
	check_text(info->name);
	check(info->n_pages >= 1 && info->n_pages <= PF_SESSION_MAX_MODULE_PAGES);
	check(info->build_id_size <= 64 && !info->build_id == !info->build_id_size);
	check(info->build_id || *info->name);
	last = info->build_id ? info->build_id[info->build_id_size - 1] : 0;
	(void)last;
	g_hash_table_insert(guest->modules, GSIZE_TO_POINTER((gsize)id + 1),
		GSIZE_TO_POINTER((gsize)info->n_pages));
}

static gboolean in_ram(const Guest *guest, PfGfn gfn, uint64_t n_pages)
{
	for (size_t i = 0; i < guest->n_ram; i++) {
		uint64_t first = guest->ram[i].first.v;
		uint64_t end = first + guest->ram[i].n_pages;

		if (gfn.v >= first && gfn.v < end && n_pages <= end - gfn.v)
			return TRUE;
	}
	return FALSE;
}

static void on_hints(void *userdata, uint32_t id, uint64_t file_page, PfGfn gfn, uint32_t n_pages,
	const PfDigest *digests)
{
	Guest *guest = userdata;
	uint64_t module_pages = pages_of(guest, id);
	volatile uint8_t last;

	check(guest->started && n_pages > 0);
	check(file_page < module_pages && n_pages <= module_pages - file_page);
	check(in_ram(guest, gfn, n_pages));
	last = digests[n_pages - 1].bytes[PF_DIGEST_SIZE - 1];
	(void)last;
}

static void on_withdrawn(void *userdata, uint32_t id, const PfFileRange *ranges, size_t n_ranges)
{
	Guest *guest = userdata;
	uint64_t module_pages = pages_of(guest, id);

	count_frame(guest);
	check(guest->started && n_ranges > 0);
	for (size_t i = 0; i < n_ranges; i++) {
		check(ranges[i].n_pages > 0 && ranges[i].first_page < module_pages);
		check(ranges[i].n_pages <= module_pages - ranges[i].first_page);
		check(i == 0 ||
			ranges[i].first_page - ranges[i - 1].first_page >= ranges[i - 1].n_pages);
	}
}

static void on_reported(void *userdata, uint64_t n_modules, uint64_t n_pages)
{
	Guest *guest = userdata;

	count_frame(guest);
	check(guest->started);
}

static const PfSessionSink sink = {
	.started = on_started,
	.module = on_module,
	.hints = on_hints,
	.withdrawn = on_withdrawn,
	.reported = on_reported,
};

static void feed(Guest *guest, const uint8_t *bytes, size_t size)
{
	int r = pf_session_feed(guest->session, bytes, size);

	check(r == PF_SESSION_OK || r == PF_SESSION_E_FLOOD);
	if (r == PF_SESSION_E_FLOOD)
		open_channel(guest);
}

static void feed_frame(Guest *guest, const Record *record, gboolean message, gboolean torn)
{
	g_autoptr(GByteArray) frame = g_byte_array_new();
	static const uint8_t session_tag = 1 << 3 | 1;
	uint64_t id = GUINT64_TO_LE(guest->session_id);
	uint8_t header[PF_FRAME_HEADER_SIZE] = {0};

	g_byte_array_append(frame, header, sizeof(header));
	if (message) {
		g_byte_array_append(frame, &session_tag, 1);
		g_byte_array_append(frame, (const uint8_t *)&id, sizeof(id));
	}
	g_byte_array_append(frame, record->bytes, (guint)record->size);
	if (frame->len == sizeof(header))
		return;
	check(pf_frame_write_header(frame->data, frame->data + sizeof(header),
		      frame->len - sizeof(header)) == PF_FRAME_OK);
	feed(guest, frame->data, torn ? frame->len / 2 : frame->len);
}

/* Takes up to max bytes; the whole output is never more than a few small frames. */
static void take_output(Guest *guest, size_t max)
{
	size_t taken = 0;

	for (;;) {
		size_t there, size;

		pf_session_output(guest->session, &there);
		check(taken + there <= 256);
		size = MIN(there, max - taken);
		if (size == 0)
			return;
		if (!guest->in_output)
			guest->at_output = guest->heard;
		pf_session_sent(guest->session, size);
		taken += size;
		guest->in_output = size < there;
		if (!guest->in_output)
			guest->drained = guest->at_output;
	}
}

static void run(Guest *guest, const Record *record)
{
	switch (record->operation % N_OPERATIONS) {
	case OP_RAW:
		feed(guest, record->bytes, record->size);
		break;
	case OP_FRAME:
		feed_frame(guest, record, FALSE, FALSE);
		break;
	case OP_MESSAGE:
		feed_frame(guest, record, TRUE, FALSE);
		break;
	case OP_TORN:
		feed_frame(guest, record, TRUE, TRUE);
		break;
	case OP_OUTPUT:
		take_output(guest, record->size);
		break;
	case OP_DRAIN:
		take_output(guest, SIZE_MAX);
		break;
	case OP_OPEN:
		open_channel(guest);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	Guest guest = {.modules = g_hash_table_new(NULL, NULL)};
	PfSessionCounters counters;
	Record record;

	guest.session = pf_session_new(&sink, &guest, new_session_id);
	while (next_record(&data, &size, &record))
		run(&guest, &record);
	take_output(&guest, SIZE_MAX);
	pf_session_get_counters(guest.session, &counters);
	check(counters.dropped <= counters.frames);
	pf_session_free(guest.session);
	g_hash_table_unref(guest.modules);
	return 0;
}
