/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One connection at a time. A hello from the host starts a session: the guest answers it at once
 * and from then on sends what it is told to, never more frames than the window allows without an
 * acknowledgement.
 */
#include "tests/vmm/toy_guest.h"
#include "common/frame.h"
#include "proto/agent.pb-c.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define WAIT_S 10

struct ToyGuest {
	int listener, connection;
	const ToyGuestRange *ranges;
	size_t n_ranges;
	PfFrameReader reader;
	uint64_t session_id; /* 0: none */
	uint64_t sent, acknowledged, window;
	const char *version; /* of its agent */
	uint32_t protocol;
};

static void disconnect(ToyGuest *guest)
{
	if (guest->connection >= 0)
		close(guest->connection);
	guest->connection = -1;
	guest->session_id = 0;
	pf_frame_reader_reset(&guest->reader);
}

ToyGuest *toy_guest_new(const char *path, const ToyGuestRange *ranges, size_t n_ranges)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	ToyGuest *guest;
	int fd;

	if (strlen(path) >= sizeof(address.sun_path)) {
		errno = ENAMETOOLONG;
		return NULL;
	}
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return NULL;
	guest = calloc(1, sizeof(*guest));
	if (!guest || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
		listen(fd, 1) < 0) {
		free(guest);
		close(fd);
		return NULL;
	}
	*guest = (ToyGuest){.listener = fd,
		.connection = -1,
		.ranges = ranges,
		.n_ranges = n_ranges,
		.version = "toy",
		.protocol = 1};
	pf_frame_reader_init(&guest->reader);
	return guest;
}

void toy_guest_free(ToyGuest *guest)
{
	disconnect(guest);
	close(guest->listener);
	pf_frame_reader_deinit(&guest->reader);
	free(guest);
}

void toy_guest_set_agent(ToyGuest *guest, const char *version, uint32_t protocol)
{
	guest->version = version;
	guest->protocol = protocol;
}

int toy_guest_listener(const ToyGuest *guest)
{
	return guest->listener;
}

int toy_guest_connection(const ToyGuest *guest)
{
	return guest->connection;
}

bool toy_guest_has_session(const ToyGuest *guest)
{
	return guest->session_id != 0;
}

uint64_t toy_guest_session(const ToyGuest *guest)
{
	return guest->session_id;
}

bool toy_guest_send_raw(ToyGuest *guest, const void *data, size_t size)
{
	const char *bytes = data;

	while (size > 0 && guest->connection >= 0) {
		ssize_t n = send(guest->connection, bytes, size, MSG_NOSIGNAL);

		if (n < 0 && errno != EINTR) {
			disconnect(guest);
		} else if (n > 0) {
			bytes += n;
			size -= (size_t)n;
		}
	}
	return size == 0;
}

static bool send_message(ToyGuest *guest, Pagefusion__AgentMessage *message)
{
	size_t size = pagefusion__agent_message__get_packed_size(message);
	uint8_t *frame = malloc(PF_FRAME_HEADER_SIZE + size);
	bool sent = false;

	if (frame) {
		pagefusion__agent_message__pack(message, frame + PF_FRAME_HEADER_SIZE);
		sent = pf_frame_write_header(frame, frame + PF_FRAME_HEADER_SIZE, size) ==
			       PF_FRAME_OK &&
		       toy_guest_send_raw(guest, frame, PF_FRAME_HEADER_SIZE + size);
	}
	free(frame);
	guest->sent += sent;
	return sent;
}

static void send_hello(ToyGuest *guest)
{
	static uint8_t boot_id[16] = "toy boot";
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__AgentHello hello = PAGEFUSION__AGENT_HELLO__INIT;
	Pagefusion__RamRange ranges[8], *list[8];
	static char kernel[] = "toy";

	for (size_t i = 0; i < guest->n_ranges && i < 8; i++) {
		pagefusion__ram_range__init(&ranges[i]);
		ranges[i].first_gfn = guest->ranges[i].first.v;
		ranges[i].n_pages = guest->ranges[i].n_pages;
		list[i] = &ranges[i];
	}
	hello.protocol = guest->protocol;
	hello.boot_id = (ProtobufCBinaryData){sizeof(boot_id), boot_id};
	hello.agent_version = (char *)guest->version;
	hello.kernel = kernel;
	hello.page_size = PF_PAGE_SIZE;
	hello.n_ram = guest->n_ranges;
	hello.ram = list;
	message.session_id = guest->session_id;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_HELLO;
	message.hello = &hello;
	send_message(guest, &message);
}

static void handle_payload(ToyGuest *guest, const uint8_t *payload, size_t size)
{
	Pagefusion__HostMessage *message = pagefusion__host_message__unpack(NULL, size, payload);

	if (!message)
		return;
	if (message->body_case == PAGEFUSION__HOST_MESSAGE__BODY_HELLO) {
		guest->session_id = message->hello->session_id;
		guest->window = message->hello->window;
		guest->sent = guest->acknowledged = 0;
		send_hello(guest);
	} else if (message->body_case == PAGEFUSION__HOST_MESSAGE__BODY_ACK &&
		   message->ack->session_id == guest->session_id) {
		guest->acknowledged = message->ack->frames;
	}
	pagefusion__host_message__free_unpacked(message, NULL);
}

static void read_connection(ToyGuest *guest)
{
	const uint8_t *payload;
	uint8_t *buffer;
	size_t size;
	ssize_t n;

	if (pf_frame_reader_reserve(&guest->reader, &buffer, &size) < 0)
		return;
	n = recv(guest->connection, buffer, size, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		disconnect(guest);
		return;
	}
	pf_frame_reader_commit(&guest->reader, (size_t)n);
	while (pf_frame_reader_next(&guest->reader, &payload, &size) == PF_FRAME_OK)
		handle_payload(guest, payload, size);
}

void toy_guest_handle(ToyGuest *guest)
{
	struct pollfd events[] = {{guest->listener, POLLIN, 0}, {guest->connection, POLLIN, 0}};

	if (poll(events, 2, 0) <= 0)
		return;
	if (events[1].revents)
		read_connection(guest);
	if (events[0].revents) {
		disconnect(guest);
		guest->connection = accept(guest->listener, NULL, NULL);
	}
}

static time_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

static bool wait_for_window(ToyGuest *guest)
{
	time_t deadline = now_s() + WAIT_S;

	while (guest->session_id == 0 || guest->sent - guest->acknowledged >= guest->window) {
		struct pollfd events[] = {
			{guest->listener, POLLIN, 0}, {guest->connection, POLLIN, 0}};

		if (now_s() > deadline)
			return false;
		poll(events, 2, 100);
		toy_guest_handle(guest);
	}
	return true;
}

bool toy_guest_module(ToyGuest *guest, uint32_t module_id, const char *name, uint64_t n_pages)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Module module = PAGEFUSION__MODULE__INIT;

	if (!wait_for_window(guest))
		return false;
	module.id = module_id;
	module.name = (char *)name;
	module.n_pages = n_pages;
	message.session_id = guest->session_id;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_MODULE;
	message.module = &module;
	return send_message(guest, &message);
}

bool toy_guest_hints(ToyGuest *guest, uint32_t module_id, const ToyGuestRun *runs, size_t n_runs)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Hints hints = PAGEFUSION__HINTS__INIT;
	Pagefusion__Run *list, **pointers;
	bool sent = false;

	if (!wait_for_window(guest))
		return false;
	list = calloc(n_runs, sizeof(*list));
	pointers = calloc(n_runs, sizeof(Pagefusion__Run *));
	for (size_t i = 0; list && pointers && i < n_runs; i++) {
		pagefusion__run__init(&list[i]);
		list[i].file_page = runs[i].file_page;
		list[i].gfn = runs[i].gfn.v;
		list[i].digests = (ProtobufCBinaryData){
			runs[i].n_pages * sizeof(PfDigest), (uint8_t *)runs[i].digests};
		pointers[i] = &list[i];
	}
	hints.module_id = module_id;
	hints.n_runs = n_runs;
	hints.runs = pointers;
	message.session_id = guest->session_id;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_HINTS;
	message.hints = &hints;
	if (list && pointers)
		sent = send_message(guest, &message);
	free(list);
	free(pointers);
	return sent;
}

bool toy_guest_hint(ToyGuest *guest, uint32_t module_id, uint64_t file_page, PfGfn gfn,
	const PfDigest *digests, size_t n_pages)
{
	const ToyGuestRun run = {file_page, gfn, digests, n_pages};

	return toy_guest_hints(guest, module_id, &run, 1);
}

bool toy_guest_withdraw(ToyGuest *guest, uint32_t module_id, uint64_t first_page, uint64_t n_pages)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Withdrawn withdrawn = PAGEFUSION__WITHDRAWN__INIT;
	Pagefusion__PageRange range = PAGEFUSION__PAGE_RANGE__INIT, *list = &range;

	if (!wait_for_window(guest))
		return false;
	range.first_page = first_page;
	range.n_pages = n_pages;
	withdrawn.module_id = module_id;
	withdrawn.n_pages = 1;
	withdrawn.pages = &list;
	message.session_id = guest->session_id;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_WITHDRAWN;
	message.withdrawn = &withdrawn;
	return send_message(guest, &message);
}

bool toy_guest_end_report(ToyGuest *guest)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__ReportEnd end = PAGEFUSION__REPORT_END__INIT;

	if (!wait_for_window(guest))
		return false;
	message.session_id = guest->session_id;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_REPORT_END;
	message.report_end = &end;
	return send_message(guest, &message);
}

bool toy_guest_knock(ToyGuest *guest)
{
	static const uint8_t knock[] = {
		'P', 'F', 'G', '1', 2, 0, 0, 0, 0x26, 0x1d, 0x26, 0x94, 0x12, 0};

	return toy_guest_send_raw(guest, knock, sizeof(knock));
}

uint64_t toy_guest_room(const ToyGuest *guest)
{
	uint64_t out = guest->sent - guest->acknowledged;

	return guest->session_id != 0 && out < guest->window ? guest->window - out : 0;
}
