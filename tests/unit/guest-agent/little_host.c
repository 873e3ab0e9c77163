// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/guest-agent/little_host.h"
#include "proto/agent.pb-c.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

void little_host_init(LittleHost *host)
{
	memset(host, 0, sizeof(*host));
	pf_frame_reader_init(&host->reader);
}

void little_host_deinit(LittleHost *host)
{
	pf_frame_reader_deinit(&host->reader);
}

/* A hint replaces what was said of its gfn before. */
static void take_page(LittleHost *host, PfGfn *place, uint64_t gfn)
{
	assert_true(gfn > 0 && gfn < LITTLE_HOST_RAM);
	if (host->owners[gfn] && host->owners[gfn]->v == gfn)
		host->owners[gfn]->v = 0;
	host->owners[gfn] = place;
	place->v = gfn;
}

static void take_module(LittleHost *host, const Pagefusion__Module *said)
{
	LittleModule *module = &host->modules[said->id];
	size_t declarations = module->n_declarations;

	assert_true(said->id < LITTLE_HOST_MODULES);
	assert_true(said->n_pages > 0 && strlen(said->name) < sizeof(module->name));
	memset(module, 0, sizeof(*module));
	module->declared = true;
	module->n_pages = said->n_pages;
	module->build_id_size = said->build_id.len;
	strcpy(module->name, said->name);
	module->n_declarations = declarations + 1;
}

static void take_hints(LittleHost *host, const Pagefusion__Hints *hints)
{
	LittleModule *module = &host->modules[hints->module_id];

	assert_true(hints->module_id < LITTLE_HOST_MODULES && module->declared);
	assert_true(hints->n_runs > 0);
	host->n_hint_frames++;
	for (size_t r = 0; r < hints->n_runs; r++) {
		const Pagefusion__Run *run = hints->runs[r];
		size_t n = run->digests.len / PF_DIGEST_SIZE;

		assert_true(n > 0 && run->digests.len % PF_DIGEST_SIZE == 0);
		assert_true(run->file_page + n <= module->n_pages &&
			    run->file_page + n <= LITTLE_HOST_PAGES);
		for (size_t i = 0; i < n; i++) {
			take_page(host, &module->gfns[run->file_page + i], run->gfn + i);
			memcpy(module->digests[run->file_page + i].bytes,
				run->digests.data + i * PF_DIGEST_SIZE, PF_DIGEST_SIZE);
		}
	}
}

static void take_withdrawn(LittleHost *host, const Pagefusion__Withdrawn *withdrawn)
{
	LittleModule *module = &host->modules[withdrawn->module_id];

	assert_true(withdrawn->module_id < LITTLE_HOST_MODULES && module->declared);
	host->n_withdrawals++;
	if (withdrawn->n_pages == 0) {
		memset(module, 0, sizeof(*module));
		return;
	}
	for (size_t r = 0; r < withdrawn->n_pages; r++) {
		const Pagefusion__PageRange *range = withdrawn->pages[r];

		assert_true(range->n_pages > 0 &&
			    range->first_page + range->n_pages <= module->n_pages);
		for (uint64_t i = 0; i < range->n_pages; i++)
			module->gfns[range->first_page + i].v = 0;
	}
}

static size_t count_modules(const LittleHost *host)
{
	size_t count = 0;

	for (size_t m = 0; m < LITTLE_HOST_MODULES; m++)
		count += host->modules[m].declared;
	return count;
}

static void take_hello(LittleHost *host, const Pagefusion__AgentHello *hello)
{
	assert_int_equal(host->n_frames, 1);
	assert_int_equal(hello->boot_id.len, 16);
	assert_int_equal(hello->page_size, PF_PAGE_SIZE);
	assert_true(hello->n_ram > 0);
	host->n_hellos++;
}

static void take_message(LittleHost *host, const Pagefusion__AgentMessage *message)
{
	if (message->body_case == PAGEFUSION__AGENT_MESSAGE__BODY_KNOCK) {
		host->n_knocks++;
		return;
	}
	if (message->session_id != host->session_id) {
		host->n_stale++;
		return;
	}
	host->n_frames++;
	assert_true(
		host->n_frames > 1 || message->body_case == PAGEFUSION__AGENT_MESSAGE__BODY_HELLO);
	switch (message->body_case) {
	case PAGEFUSION__AGENT_MESSAGE__BODY_HELLO:
		take_hello(host, message->hello);
		break;
	case PAGEFUSION__AGENT_MESSAGE__BODY_MODULE:
		take_module(host, message->module);
		break;
	case PAGEFUSION__AGENT_MESSAGE__BODY_HINTS:
		take_hints(host, message->hints);
		break;
	case PAGEFUSION__AGENT_MESSAGE__BODY_WITHDRAWN:
		take_withdrawn(host, message->withdrawn);
		break;
	case PAGEFUSION__AGENT_MESSAGE__BODY_REPORT_END:
		assert_int_equal(message->report_end->n_modules, count_modules(host));
		assert_int_equal(message->report_end->n_pages, little_host_pages(host));
		host->n_ends++;
		break;
	default:
		fail_msg("a message without a body");
	}
}

void little_host_feed(LittleHost *host, const uint8_t *data, size_t size)
{
	while (size > 0) {
		const uint8_t *payload;
		uint8_t *buffer;
		size_t room;

		assert_int_equal(pf_frame_reader_reserve(&host->reader, &buffer, &room), 0);
		if (room > size)
			room = size;
		memcpy(buffer, data, room);
		pf_frame_reader_commit(&host->reader, room);
		data += room;
		size -= room;
		while (pf_frame_reader_next(&host->reader, &payload, &room) == PF_FRAME_OK) {
			Pagefusion__AgentMessage *message =
				pagefusion__agent_message__unpack(NULL, room, payload);

			assert_non_null(message);
			if (room + PF_FRAME_HEADER_SIZE > host->biggest_frame)
				host->biggest_frame = room + PF_FRAME_HEADER_SIZE;
			take_message(host, message);
			pagefusion__agent_message__free_unpacked(message, NULL);
		}
	}
}

static uint8_t *frame(const Pagefusion__HostMessage *message, size_t *size)
{
	size_t payload = pagefusion__host_message__get_packed_size(message);
	uint8_t *bytes = malloc(PF_FRAME_HEADER_SIZE + payload);

	assert_non_null(bytes);
	pagefusion__host_message__pack(message, bytes + PF_FRAME_HEADER_SIZE);
	assert_int_equal(
		pf_frame_write_header(bytes, bytes + PF_FRAME_HEADER_SIZE, payload), PF_FRAME_OK);
	*size = PF_FRAME_HEADER_SIZE + payload;
	return bytes;
}

uint8_t *little_host_hello(LittleHost *host, uint64_t session_id, uint32_t window, size_t *size)
{
	Pagefusion__HostMessage message = PAGEFUSION__HOST_MESSAGE__INIT;
	Pagefusion__HostHello hello = PAGEFUSION__HOST_HELLO__INIT;

	host->session_id = session_id;
	host->n_frames = 0;
	memset(host->modules, 0, sizeof(host->modules));
	hello.session_id = session_id;
	hello.protocol = 1;
	hello.window = window;
	message.body_case = PAGEFUSION__HOST_MESSAGE__BODY_HELLO;
	message.hello = &hello;
	return frame(&message, size);
}

uint8_t *little_host_ack(uint64_t session_id, uint64_t frames, size_t *size)
{
	Pagefusion__HostMessage message = PAGEFUSION__HOST_MESSAGE__INIT;
	Pagefusion__Ack ack = PAGEFUSION__ACK__INIT;

	ack.session_id = session_id;
	ack.frames = frames;
	message.body_case = PAGEFUSION__HOST_MESSAGE__BODY_ACK;
	message.ack = &ack;
	return frame(&message, size);
}

size_t little_host_pages(const LittleHost *host)
{
	size_t count = 0;

	for (size_t m = 0; m < LITTLE_HOST_MODULES; m++) {
		for (size_t i = 0; i < LITTLE_HOST_PAGES; i++)
			count += host->modules[m].gfns[i].v != 0;
	}
	return count;
}
