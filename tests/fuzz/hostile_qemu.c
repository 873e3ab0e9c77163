/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/fuzz/hostile_qemu.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A packet of the service's. */
typedef struct Packet {
	int fd; /* -1: none came */
	size_t size;
	union {
		PfShimHeader header;
		uint8_t bytes[PF_SHIM_MAX_MESSAGE];
	};
} Packet;

static uint8_t answer[PF_SHIM_MAX_MESSAGE];

void broken_rule(const char *what, const char *file, int line)
{
	fprintf(stderr, "%s:%d: %s\n", file, line, what);
	abort();
}

void qemu_init(HostileQemu *qemu, uint64_t ram_at,
	bool (*frame_exists)(void *userdata, uint64_t frame), void *userdata)
{
	*qemu = (HostileQemu){.ram_at = ram_at,
		.socket = -1,
		.store = -1,
		.staging = -1,
		.frame_exists = frame_exists,
		.userdata = userdata};
	g_queue_init(&qemu->inbox);
	qemu->orders = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	for (unsigned i = 0; i < QEMU_PAGES; i++)
		qemu->map[i] = -1;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void free_packet(Packet *packet)
{
	close_fd(&packet->fd);
	g_free(packet);
}

void qemu_disconnect(HostileQemu *qemu)
{
	Packet *packet;

	while ((packet = g_queue_pop_head(&qemu->inbox)))
		free_packet(packet);
	g_array_set_size(qemu->orders, 0);
	qemu->capture = 0;
	close_fd(&qemu->staging);
	close_fd(&qemu->socket);
}

void qemu_deinit(HostileQemu *qemu)
{
	qemu_disconnect(qemu);
	close_fd(&qemu->store);
	g_array_unref(qemu->orders);
}

int qemu_connect(HostileQemu *qemu)
{
	int fds[2];

	qemu_disconnect(qemu);
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0);
	qemu->socket = fds[0];
	return fds[1];
}

/* What is ordered, and whether it may be */

static void check_pages(const HostileQemu *qemu, uint64_t hva, uint64_t n_pages)
{
	/* What was reported and does not lie in QEMU in one piece. */
	if (hva == 0)
		return;
	MUST(hva % PF_PAGE_SIZE == 0 && hva >= qemu->ram_at);
	MUST((hva - qemu->ram_at) / PF_PAGE_SIZE + n_pages <= QEMU_PAGES);
}

static void check_capture(const HostileQemu *qemu, const PfShimCapture *pages, size_t n)
{
	MUST(qemu->staging >= 0 && n > 0 && n <= PF_SHIM_MAX_CAPTURE);
	for (size_t i = 0; i < n; i++) {
		check_pages(qemu, pages[i].hva, 1);
		MUST(pages[i].slot < PF_SHIM_MAX_CAPTURE);
	}
}

static void check_fuse(const HostileQemu *qemu, const PfShimRun *runs, size_t n)
{
	MUST(qemu->store >= 0 && n > 0 && n <= PF_SHIM_MAX_RUNS);
	for (size_t i = 0; i < n; i++) {
		check_pages(qemu, runs[i].hva, runs[i].n_pages);
		MUST(runs[i].n_pages > 0 && runs[i].n_pages <= PF_SHIM_RUN_PAGES);
		for (uint32_t k = 0; k < runs[i].n_pages; k++)
			MUST(qemu->frame_exists(qemu->userdata, runs[i].frame + k));
	}
}

static void count_order(HostileQemu *qemu, const PfShimHeader *header)
{
	if (header->type == PF_SHIM_CAPTURE) {
		MUST(qemu->capture == 0);
		qemu->capture = header->id;
	}
	for (guint i = 0; i < qemu->orders->len; i++)
		MUST(g_array_index(qemu->orders, uint64_t, i) != header->id);
	g_array_append_val(qemu->orders, header->id);
	MUST(qemu->orders->len <= QEMU_MAX_ORDERS);
}

static void take_store(HostileQemu *qemu, Packet *packet)
{
	MUST((fcntl(packet->fd, F_GETFL) & O_ACCMODE) == O_RDONLY);
	memcpy(qemu->group_id, packet->bytes + sizeof packet->header, sizeof qemu->group_id);
	close_fd(&qemu->store);
	qemu->store = packet->fd;
	packet->fd = -1;
}

static void take_staging(HostileQemu *qemu, Packet *packet)
{
	close_fd(&qemu->staging);
	qemu->staging = packet->fd;
	packet->fd = -1;
}

static void check_packet(HostileQemu *qemu, Packet *packet)
{
	const void *data = packet->bytes + sizeof packet->header;
	size_t size = packet->size - sizeof packet->header;
	uint16_t type = packet->header.type;
	bool wants_fd = type == PF_SHIM_ATTACH || type == PF_SHIM_STORE || type == PF_SHIM_STAGING;

	MUST(packet->header.magic == PF_SHIM_MAGIC && packet->header.length == packet->size);
	MUST(packet->header.n_fds == wants_fd && (packet->fd >= 0) == wants_fd);
	switch (type) {
	case PF_SHIM_CAPTURE:
		check_capture(qemu, data, size / sizeof(PfShimCapture));
		count_order(qemu, &packet->header);
		break;
	case PF_SHIM_FUSE:
		check_fuse(qemu, data, size / sizeof(PfShimRun));
		count_order(qemu, &packet->header);
		break;
	case PF_SHIM_STORE:
		MUST(size == sizeof(PfShimStore));
		take_store(qemu, packet);
		break;
	case PF_SHIM_STAGING:
		take_staging(qemu, packet);
		break;
	default:
		MUST(type == PF_SHIM_ATTACH || type == PF_SHIM_RELEASE || type == PF_SHIM_LIST);
	}
}

/* false: nothing there, or the service has closed the connection. */
static bool receive_packet(HostileQemu *qemu, Packet *packet)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = {packet->bytes, sizeof packet->bytes};
	struct msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control};
	ssize_t n = recvmsg(qemu->socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n == 0)
		qemu_disconnect(qemu);
	if (n <= 0)
		return false;
	MUST(!(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)));
	MUST((size_t)n >= sizeof packet->header);
	packet->size = (size_t)n;
	packet->fd = -1;
	if (CMSG_FIRSTHDR(&message))
		memcpy(&packet->fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof packet->fd);
	return true;
}

void qemu_receive(HostileQemu *qemu)
{
	static Packet packet;

	while (qemu->socket >= 0 && receive_packet(qemu, &packet)) {
		check_packet(qemu, &packet);
		g_queue_push_tail(&qemu->inbox, g_memdup2(&packet, sizeof packet));
	}
}

/* What it says */

static void forget_order(HostileQemu *qemu, uint64_t id)
{
	for (guint i = 0; i < qemu->orders->len; i++) {
		if (g_array_index(qemu->orders, uint64_t, i) != id)
			continue;
		g_array_remove_index(qemu->orders, i);
		if (qemu->capture == id)
			qemu->capture = 0;
		return;
	}
}

void qemu_send(HostileQemu *qemu, uint16_t type, uint64_t id, const void *data, size_t size, int fd)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	PfShimHeader header = {
		PF_SHIM_MAGIC, type, fd >= 0, (uint32_t)(sizeof header + size), 0, id};
	struct iovec parts[] = {{&header, sizeof header}, {(void *)data, size}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

	if (fd >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof control;
		*CMSG_FIRSTHDR(&message) = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd),
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &fd, sizeof fd);
	}
	/* The service takes it, or it ends the connection: in both cases the order is no longer out. */
	if (type == PF_SHIM_CAPTURED || type == PF_SHIM_FUSED)
		forget_order(qemu, id);
	/* It fails once the other end has closed. */
	if (qemu->socket >= 0)
		(void)sendmsg(qemu->socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void send_answer(
	HostileQemu *qemu, uint16_t type, uint64_t id, size_t n, const uint8_t *lie, size_t size)
{
	for (size_t i = 0; i < MIN(n, size); i++)
		answer[i] ^= lie[i];
	qemu_send(qemu, type, id, answer, n, -1);
}

void qemu_return_store(HostileQemu *qemu, int fd)
{
	PfShimStore store = {{0}};

	memcpy(store.group_id, qemu->group_id, sizeof store.group_id);
	qemu_send(qemu, PF_SHIM_STORE_RETURN, 0, &store, sizeof store, fd);
	if (fd < 0 || fd == qemu->store)
		return;
	/* From now on it is this one that it has. */
	close_fd(&qemu->store);
	qemu->store = fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

void qemu_hello(HostileQemu *qemu, const uint8_t *lie, size_t size)
{
	PfShimHello hello = {.version = PF_SHIM_VERSION,
		.version_oldest = PF_SHIM_VERSION,
		.flags = qemu->store >= 0 ? PF_SHIM_HAS_STORE : 0,
		.page_size = PF_PAGE_SIZE};

	memcpy(answer, &hello, sizeof hello);
	send_answer(qemu, PF_SHIM_HELLO, 0, sizeof hello, lie, size);
	if (qemu->store >= 0 && size == 0)
		qemu_return_store(qemu, qemu->store);
}

void qemu_lose(HostileQemu *qemu, unsigned first, unsigned n, PfShimLoss loss)
{
	PfShimLost lost[QEMU_PAGES];
	size_t n_lost = 0;

	for (unsigned i = first; i < MIN(first + n, QEMU_PAGES); i++) {
		if (qemu->map[i] < 0)
			continue;
		lost[n_lost++] = (PfShimLost){
			qemu->ram_at + i * PF_PAGE_SIZE, (uint64_t)qemu->map[i], 1, loss};
		qemu->map[i] = -1;
	}
	if (n_lost > 0)
		qemu_send(qemu, PF_SHIM_LOST, 0, lost, n_lost * sizeof *lost, -1);
}

/* What it does */

/* The number of the page, which check_pages() has found to be one. */
static unsigned page_at(const HostileQemu *qemu, uint64_t hva)
{
	return (unsigned)((hva - qemu->ram_at) / PF_PAGE_SIZE);
}

static size_t capture(HostileQemu *qemu, const PfShimCapture *pages, size_t n)
{
	uint8_t page[PF_PAGE_SIZE];

	for (size_t i = 0; i < n; i++) {
		answer[i] = PF_SHIM_NOT_RAM;
		if (pages[i].hva == 0)
			continue;
		memset(page, qemu->ram[page_at(qemu, pages[i].hva)], sizeof page);
		MUST(pwrite(qemu->staging, page, sizeof page, pages[i].slot * PF_PAGE_SIZE) ==
			(ssize_t)sizeof page);
		answer[i] = PF_SHIM_DONE;
	}
	return n;
}

static uint8_t fuse_page(HostileQemu *qemu, unsigned page, uint64_t frame)
{
	uint8_t byte;

	if (qemu->map[page] >= 0)
		return PF_SHIM_NOT_PRIVATE;
	MUST(pread(qemu->store, &byte, 1, (off_t)(frame * PF_PAGE_SIZE)) == 1);
	if (byte != qemu->ram[page])
		return PF_SHIM_DIFFERENT;
	qemu->map[page] = (int64_t)frame;
	return PF_SHIM_DONE;
}

static size_t fuse(HostileQemu *qemu, const PfShimRun *runs, size_t n_runs)
{
	size_t n = 0;

	for (size_t i = 0; i < n_runs; i++)
		for (uint32_t k = 0; k < runs[i].n_pages; k++)
			answer[n++] = runs[i].hva == 0
					      ? PF_SHIM_NOT_RAM
					      : fuse_page(qemu, page_at(qemu, runs[i].hva) + k,
							runs[i].frame + k);
	return n;
}

static void release(HostileQemu *qemu, const PfShimRange *ranges, size_t n)
{
	if (n == 0)
		qemu_lose(qemu, 0, QEMU_PAGES, PF_SHIM_LOST_RELEASED);
	for (size_t i = 0; i < n; i++)
		if (ranges[i].n_pages > 0 && ranges[i].hva >= qemu->ram_at)
			qemu_lose(qemu,
				(unsigned)MIN(
					(ranges[i].hva - qemu->ram_at) / PF_PAGE_SIZE, QEMU_PAGES),
				(unsigned)MIN(ranges[i].n_pages, QEMU_PAGES),
				PF_SHIM_LOST_RELEASED);
}

static size_t list(const HostileQemu *qemu)
{
	PfShimListed *listed = (PfShimListed *)answer;
	PfShimRun *runs = (PfShimRun *)(listed + 1);
	uint32_t n = 0;

	for (unsigned i = 0; i < QEMU_PAGES; i++)
		if (qemu->map[i] >= 0)
			runs[n++] = (PfShimRun){
				qemu->ram_at + i * PF_PAGE_SIZE, (uint64_t)qemu->map[i], 1, 0};
	*listed = (PfShimListed){0, n};
	return sizeof *listed + n * sizeof *runs;
}

bool qemu_obey(HostileQemu *qemu, const uint8_t *lie, size_t size)
{
	Packet *packet = g_queue_pop_head(&qemu->inbox);
	const void *data = packet ? packet->bytes + sizeof packet->header : NULL;
	size_t length = packet ? packet->size - sizeof packet->header : 0;
	uint64_t id = packet ? packet->header.id : 0;

	if (!packet)
		return false;
	memset(answer, 0, sizeof answer);
	switch (packet->header.type) {
	case PF_SHIM_ATTACH:
		send_answer(qemu, PF_SHIM_READY, id, sizeof(PfShimReady), lie, size);
		break;
	case PF_SHIM_CAPTURE:
		length = capture(qemu, data, length / sizeof(PfShimCapture));
		send_answer(qemu, PF_SHIM_CAPTURED, id, length, lie, size);
		break;
	case PF_SHIM_FUSE:
		length = fuse(qemu, data, length / sizeof(PfShimRun));
		send_answer(qemu, PF_SHIM_FUSED, id, length, lie, size);
		break;
	case PF_SHIM_RELEASE:
		release(qemu, data, length / sizeof(PfShimRange));
		qemu_send(qemu, PF_SHIM_RELEASED, id, NULL, 0, -1);
		break;
	case PF_SHIM_LIST:
		send_answer(qemu, PF_SHIM_LISTED, id, list(qemu), lie, size);
		break;
	}
	free_packet(packet);
	return true;
}
