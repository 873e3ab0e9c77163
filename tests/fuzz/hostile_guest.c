/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/fuzz/hostile_guest.h"
#include "proto/agent.pb-c.h"
#include "proto/limits.h"
#include "tests/fuzz/hostile_qemu.h"
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FRAME 65536

void guest_init(HostileGuest *guest)
{
	*guest = (HostileGuest){.channel = -1};
	pf_frame_reader_init(&guest->reader);
}

void guest_close(HostileGuest *guest)
{
	if (guest->channel >= 0)
		close(guest->channel);
	guest->channel = -1;
	guest->session_id = 0;
}

void guest_deinit(HostileGuest *guest)
{
	guest_close(guest);
	pf_frame_reader_deinit(&guest->reader);
}

void guest_attach(HostileGuest *guest, int channel)
{
	guest_close(guest);
	pf_frame_reader_deinit(&guest->reader);
	pf_frame_reader_init(&guest->reader);
	guest->channel = channel;
}

static void take_message(HostileGuest *guest, const uint8_t *payload, size_t size)
{
	Pagefusion__HostMessage *message = pagefusion__host_message__unpack(NULL, size, payload);

	if (!message)
		abort();
	if (message->body_case == PAGEFUSION__HOST_MESSAGE__BODY_HELLO) {
		MUST(message->hello->session_id != 0 && message->hello->window > 0);
		guest->session_id = message->hello->session_id;
		guest->n_hellos++;
	} else {
		MUST(message->body_case == PAGEFUSION__HOST_MESSAGE__BODY_ACK);
		MUST(message->ack->session_id == guest->session_id);
	}
	pagefusion__host_message__free_unpacked(message, NULL);
}

void guest_receive(HostileGuest *guest)
{
	const uint8_t *payload;
	uint8_t *room;
	size_t n;

	while (guest->channel >= 0) {
		ssize_t size;

		MUST(pf_frame_reader_reserve(&guest->reader, &room, &n) == 0);
		size = recv(guest->channel, room, n, MSG_DONTWAIT);
		if (size == 0)
			guest_close(guest);
		if (size <= 0)
			break;
		pf_frame_reader_commit(&guest->reader, (size_t)size);
		while (pf_frame_reader_next(&guest->reader, &payload, &n) == PF_FRAME_OK)
			take_message(guest, payload, n);
	}
	MUST(guest->reader.skipped_bytes == 0);
}

void guest_raw(HostileGuest *guest, const uint8_t *bytes, size_t size)
{
	/* What there is no room for is lost, and the rest is rubbish: that too may happen. */
	if (guest->channel >= 0 && size > 0)
		(void)send(guest->channel, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void send_frame(HostileGuest *guest, uint8_t *frame, size_t size)
{
	if (size == 0)
		return;
	MUST(pf_frame_write_header(frame, frame + PF_FRAME_HEADER_SIZE, size) == PF_FRAME_OK);
	guest_raw(guest, frame, PF_FRAME_HEADER_SIZE + size);
}

void guest_body(HostileGuest *guest, const uint8_t *bytes, size_t size)
{
	static const uint8_t session_tag = 1 << 3 | 1;
	uint8_t *frame = g_malloc(PF_FRAME_HEADER_SIZE + 9 + size);
	uint64_t id = GUINT64_TO_LE(guest->session_id);

	frame[PF_FRAME_HEADER_SIZE] = session_tag;
	memcpy(frame + PF_FRAME_HEADER_SIZE + 1, &id, sizeof id);
	memcpy(frame + PF_FRAME_HEADER_SIZE + 9, bytes, size);
	send_frame(guest, frame, 9 + size);
	g_free(frame);
}

static void send_message(HostileGuest *guest, Pagefusion__AgentMessage *message)
{
	static uint8_t frame[MAX_FRAME];

	message->session_id = guest->session_id;
	MUST(pagefusion__agent_message__get_packed_size(message) <=
		sizeof frame - PF_FRAME_HEADER_SIZE);
	send_frame(guest, frame,
		pagefusion__agent_message__pack(message, frame + PF_FRAME_HEADER_SIZE));
}

void guest_knock(HostileGuest *guest)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Knock knock = PAGEFUSION__KNOCK__INIT;

	guest->session_id = 0;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_KNOCK;
	message.knock = &knock;
	send_message(guest, &message);
}

void guest_hello(HostileGuest *guest, uint32_t page_size, const PfGuestRange *ram, size_t n_ram)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__AgentHello hello = PAGEFUSION__AGENT_HELLO__INIT;
	Pagefusion__RamRange ranges[PF_SESSION_MAX_RAM_RANGES],
		*pointers[PF_SESSION_MAX_RAM_RANGES];
	uint8_t boot_id[16] = {1};

	MUST(n_ram <= PF_SESSION_MAX_RAM_RANGES);
	for (size_t i = 0; i < n_ram; i++) {
		ranges[i] = (Pagefusion__RamRange)PAGEFUSION__RAM_RANGE__INIT;
		ranges[i].first_gfn = ram[i].first.v;
		ranges[i].n_pages = ram[i].n_pages;
		pointers[i] = &ranges[i];
	}
	hello.protocol = PF_SESSION_PROTOCOL;
	hello.boot_id = (ProtobufCBinaryData){sizeof boot_id, boot_id};
	hello.agent_version = (char *)"1";
	hello.kernel = (char *)"6.1";
	hello.page_size = page_size;
	hello.n_ram = n_ram;
	hello.ram = pointers;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_HELLO;
	message.hello = &hello;
	send_message(guest, &message);
}

void guest_module(HostileGuest *guest, uint32_t id, uint8_t build_id, uint64_t n_pages)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Module module = PAGEFUSION__MODULE__INIT;

	module.id = id;
	module.build_id = (ProtobufCBinaryData){1, &build_id};
	module.name = (char *)"module";
	module.n_pages = n_pages;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_MODULE;
	message.module = &module;
	send_message(guest, &message);
}

void guest_hints(HostileGuest *guest, uint32_t id, uint64_t file_page, uint64_t gfn,
	const PfDigest *digests, size_t n)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Hints hints = PAGEFUSION__HINTS__INIT;
	Pagefusion__Run run = PAGEFUSION__RUN__INIT, *runs[] = {&run};

	run.file_page = file_page;
	run.gfn = gfn;
	run.digests = (ProtobufCBinaryData){n * sizeof *digests, (uint8_t *)digests};
	hints.module_id = id;
	hints.n_runs = 1;
	hints.runs = runs;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_HINTS;
	message.hints = &hints;
	send_message(guest, &message);
}

void guest_withdraws(HostileGuest *guest, uint32_t id, uint64_t first_page, uint64_t n_pages)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Withdrawn withdrawn = PAGEFUSION__WITHDRAWN__INIT;
	Pagefusion__PageRange range = PAGEFUSION__PAGE_RANGE__INIT, *ranges[] = {&range};

	range.first_page = first_page;
	range.n_pages = n_pages;
	withdrawn.module_id = id;
	withdrawn.n_pages = n_pages > 0;
	withdrawn.pages = ranges;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_WITHDRAWN;
	message.withdrawn = &withdrawn;
	send_message(guest, &message);
}

void guest_report_end(HostileGuest *guest)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__ReportEnd end = PAGEFUSION__REPORT_END__INIT;

	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_REPORT_END;
	message.report_end = &end;
	send_message(guest, &message);
}
