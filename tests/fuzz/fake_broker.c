/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/fuzz/fake_broker.h"
#include "host-service/wire/broker_protocol.h"
#include "host-service/wire/packet.h"
#include "tests/fuzz/hostile_qemu.h"
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

int fake_broker_open(FakeBroker *broker)
{
	int fds[2];

	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0);
	broker->socket = fds[0];
	return fds[1];
}

/* The descriptor that is asked for, or -1 with the answer's error set. */
static int open_device(const FakeBroker *broker, PfBrokerMessage *answer)
{
	if (broker->trouble & FAKE_NO_USERFAULTFD)
		answer->error = G_IO_ERROR_NOT_SUPPORTED;
	else if (broker->trouble & FAKE_NO_DEVICE)
		answer->error = G_IO_ERROR_FAILED;
	else
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	return -1;
}

static int open_channel(const FakeBroker *broker, const char *uuid, PfBrokerMessage *answer)
{
	if (!(broker->trouble & FAKE_NO_CHANNEL))
		return broker->open_channel(broker->userdata, uuid);
	answer->error = G_IO_ERROR_CONNECTION_REFUSED;
	return -1;
}

static void translate(
	const FakeBroker *broker, const PfBrokerRequest *request, PfBrokerMessage *answer)
{
	answer->n_hvas = request->n_ranges;
	if (broker->trouble & FAKE_NO_ADDRESS)
		answer->error = G_IO_ERROR_FAILED;
	for (uint32_t i = 0; i < request->n_ranges && !(broker->trouble & FAKE_NOT_LINEAR); i++)
		answer->body.hvas[i].v =
			broker->locate(broker->userdata, request->vm, request->ranges[i]);
}

static void answer_request(FakeBroker *broker, const PfBrokerRequest *request)
{
	PfBrokerMessage answer = {PF_BROKER_MAGIC, PF_BROKER_ANSWER, request->id, -1};
	int fd = -1;

	g_strlcpy(answer.text, "the broker's reason", sizeof answer.text);
	switch (request->type) {
	case PF_BROKER_OPEN_USERFAULTFD:
		fd = open_device(broker, &answer);
		break;
	case PF_BROKER_OPEN_CHANNEL:
		fd = open_channel(broker, request->vm, &answer);
		break;
	default:
		MUST(request->type == PF_BROKER_TRANSLATE);
		translate(broker, request, &answer);
	}
	MUST(pf_packet_send(broker->socket, &answer, sizeof answer, fd) == 0);
	if (fd >= 0)
		close(fd);
}

gboolean fake_broker_serve(FakeBroker *broker)
{
	gboolean served = FALSE;
	PfBrokerRequest request;
	size_t n_fds;
	ssize_t n;
	int fd;

	while (!(broker->trouble & FAKE_SILENT) && (n = pf_packet_receive(broker->socket, &request,
							    sizeof request, &fd, &n_fds)) > 0) {
		MUST(pf_broker_check_request(&request, (size_t)n, n_fds));
		answer_request(broker, &request);
		served = TRUE;
	}
	return served;
}
