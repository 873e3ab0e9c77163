/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/vmm/toy_shim.h"
#include "common/page.h"
#include "proto/shim_protocol.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define RETRY_MS 100

typedef enum Kind { SILENT, FLOOD, COMES } Kind;
static atomic_uint n_orders;
static const char *const kinds[] = {"silent", "flood", "comes"};

static bool say(int fd, PfShimType type, uint64_t id, const void *data, size_t size)
{
	PfShimHeader header = {
		PF_SHIM_MAGIC, (uint16_t)type, 0, (uint32_t)(sizeof(header) + size), 0, id};
	uint8_t packet[sizeof(header) + sizeof(PfShimState)];

	memcpy(packet, &header, sizeof(header));
	if (size > 0)
		memcpy(packet + sizeof(header), data, size);
	return send(fd, packet, sizeof(header) + size, MSG_NOSIGNAL) > 0;
}

/* The descriptors that come with it are not used. */
static bool hear(int fd, PfShimHeader *header)
{
	static union {
		PfShimHeader header;
		uint8_t bytes[PF_SHIM_MAX_MESSAGE];
	} packet;
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = {&packet, sizeof(packet)};
	struct msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control)};
	int came;

	if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC) <= 0)
		return false;
	if (CMSG_FIRSTHDR(&message)) {
		memcpy(&came, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(came));
		close(came);
	}
	*header = packet.header;
	return true;
}

static bool flood(int fd)
{
	static const PfShimState state;

	return say(fd, PF_SHIM_STATE, 0, &state, sizeof(state));
}

static bool has_come(int fd)
{
	struct pollfd event = {fd, POLLIN, 0};

	return poll(&event, 1, 0) > 0;
}

/* Until the connection ends. */
static void converse(int fd, Kind kind)
{
	PfShimHello hello = {.version = PF_SHIM_VERSION,
		.version_oldest = PF_SHIM_VERSION,
		.page_size = PF_PAGE_SIZE};
	PfShimReady ready = {.code = PF_SHIM_READY_OK};
	PfShimHeader header;
	bool good = say(fd, PF_SHIM_HELLO, 0, &hello, sizeof(hello)), attached = false;

	while (good && kind != COMES) {
		if (kind == FLOOD && attached && !has_come(fd)) {
			good = flood(fd);
			continue;
		}
		good = hear(fd, &header);
		n_orders += good && (header.type == PF_SHIM_CAPTURE || header.type == PF_SHIM_FUSE);
		if (good && header.type == PF_SHIM_ATTACH)
			good = attached = say(fd, PF_SHIM_READY, header.id, &ready, sizeof(ready));
	}
}

static struct sockaddr_un service_address(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const char *path = getenv(PF_SHIM_SOCKET_VARIABLE);

	if (path)
		strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	return address;
}

static void *run(void *data)
{
	struct sockaddr_un address = service_address();
	const Kind *kind = data;

	for (;;) {
		int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

		if (fd < 0)
			return NULL;
		if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
			converse(fd, *kind);
		close(fd);
		if (*kind != COMES)
			poll(NULL, 0, RETRY_MS);
	}
}

bool toy_shim_start(const char *kind)
{
	static Kind chosen;
	pthread_t thread;

	while (chosen <= COMES && strcmp(kinds[chosen], kind) != 0)
		chosen++;
	return chosen <= COMES && getenv(PF_SHIM_SOCKET_VARIABLE) &&
	       pthread_create(&thread, NULL, run, &chosen) == 0;
}

unsigned toy_shim_orders(void)
{
	return n_orders;
}

static bool connect_here(int fd)
{
	struct sockaddr_un address = service_address();

	return connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0;
}

/* The socket is both's; its peer is who connects it. */
static bool connect_in_child(int fd)
{
	char connected = 0;
	int told[2];
	pid_t child;

	if (pipe2(told, O_CLOEXEC) < 0)
		return false;
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		connected = connect_here(fd);
		if (write(told[1], &connected, 1) == 1)
			pause();
		_exit(0);
	}
	close(told[1]);
	if (child < 0 || read(told[0], &connected, 1) != 1)
		connected = 0;
	close(told[0]);
	return connected;
}

int toy_shim_connect(bool by_child)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd >= 0 && (by_child ? connect_in_child(fd) : connect_here(fd)))
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}
