/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the broker reads: packets from the service and the front, and QEMU's answers to gpa2hva. What passes the
 * check keeps the promises that the code behind it relies on.
 */
#include "host-service/broker/qemu_process.h"
#include "host-service/wire/broker_protocol.h"
#include "host-service/wire/packet.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
	if (!holds)
		abort();
}

static void check_request(const uint8_t *data, size_t size)
{
	PfBrokerRequest request = {0};

	memcpy(&request, data, MIN(size, sizeof(request)));
	if (!pf_broker_check_request(&request, size, 0))
		return;
	require(size == sizeof(request) && request.id != 0);
	require(strlen(request.vm) < sizeof(request.vm));
	require(pf_broker_may_ask(PF_BROKER_CLIENT_SERVICE, request.type) !=
		pf_broker_may_ask(PF_BROKER_CLIENT_FRONT, request.type));
	if (request.type == PF_BROKER_INSERT_ADDITIONS ||
		request.type == PF_BROKER_EJECT_ADDITIONS) {
		require(request.vm[0] != 0);
		require(request.force <= (request.type == PF_BROKER_EJECT_ADDITIONS));
		return;
	}
	if (request.type == PF_BROKER_MODIFY) {
		require(request.changes != 0 && request.enabled <= 1 && request.thp <= PF_THP_ALL);
		require(strlen(request.group) <= PF_GROUP_NAME_MAX);
		require(pf_group_name_is_valid(request.group) ==
			!!(request.changes & PF_VM_SET_GROUP));
	}
	require(request.type == PF_BROKER_MODIFY || pf_broker_is_uuid(request.vm));
	if (request.type != PF_BROKER_TRANSLATE)
		return;
	require(request.n_ranges >= 1 && request.n_ranges <= PF_SESSION_MAX_RAM_RANGES);
	for (uint32_t i = 0; i < request.n_ranges; i++) {
		uint64_t last = request.ranges[i].first.v + (request.ranges[i].n_pages - 1);

		require(last >= request.ranges[i].first.v && last < PF_GFN_END);
	}
}

static void check_message(const uint8_t *data, size_t size)
{
	PfBrokerMessage message = {0};

	memcpy(&message, data, MIN(size, sizeof(message)));
	if (pf_broker_check_message(&message, size) && message.type == PF_BROKER_DOMAIN)
		require(strlen(message.body.domain.name) < sizeof(message.body.domain.name));
}

static void check_reply(const uint8_t *data, size_t size)
{
	g_autofree char *reply = g_strndup((const char *)data, size);
	PfHva hva = {0};

	if (pf_qemu_parse_gpa2hva(reply, 0x1000, &hva))
		require(hva.v != 0 && hva.v % PF_PAGE_SIZE == 0);
}

/* As a packet: what was sent is what is received, and of descriptors one is kept. */
static void check_socket(const uint8_t *data, size_t size)
{
	PfBrokerRequest request = {0};
	int sockets[2], fd;
	size_t n_fds;
	ssize_t n;

	require(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sockets) ==
		0);
	require(pf_packet_receive(sockets[1], &request, sizeof(request), &fd, &n_fds) == -EAGAIN);
	require(pf_packet_send(sockets[0], data, size, size % 2 ? sockets[0] : -1) == 0);
	n = pf_packet_receive(sockets[1], &request, sizeof(request), &fd, &n_fds);
	require(n == (ssize_t)size && n_fds == size % 2 && (fd >= 0) == (n_fds == 1));
	require(memcmp(&request, data, MIN(size, sizeof(request))) == 0);
	require(!n_fds || !pf_broker_check_request(&request, size, n_fds));
	if (fd >= 0)
		close(fd);
	close(sockets[0]);
	close(sockets[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size > 0 && size < 4096)
		check_socket(data, size);
	check_request(data, size);
	check_message(data, size);
	check_reply(data, size);
	return 0;
}
