/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The toy VM makes the connection, so the kernel names it as the peer; the test, which is root, takes a copy of the
 * descriptor. The VM keeps its own: it is closed when the VM ends.
 */
#include "tests/security/hostile.h"
#include "common/page.h"
#include <errno.h>
#include <glib.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#define MAX_COPIES 253u

int hostile_take_fd(pid_t pid, int number)
{
	int process = pidfd_open(pid, 0), fd;

	assert_true(process >= 0);
	fd = pidfd_getfd(process, number, 0);
	close(process);
	assert_true(fd >= 0);
	return fd;
}

int hostile_connect(LabVm *vm)
{
	int number = atoi(lab_command(vm, "connect self"));

	assert_true(number >= 0);
	return hostile_take_fd(vm->pid, number);
}

bool hostile_send(int fd, const void *packet, size_t size, int with, unsigned n_copies)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(MAX_COPIES * sizeof(int))];
	} control;
	struct iovec part = {(void *)packet, size};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	assert_true(n_copies <= MAX_COPIES);
	if (n_copies > 0) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(n_copies * sizeof(int));
		*CMSG_FIRSTHDR(&message) =
			(struct cmsghdr){.cmsg_len = CMSG_LEN(n_copies * sizeof(int)),
				.cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS};
		for (unsigned i = 0; i < n_copies; i++)
			memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)) + i * sizeof(int), &with,
				sizeof(int));
	}
	return sendmsg(fd, &message, MSG_NOSIGNAL) == (ssize_t)size;
}

bool hostile_say(int fd, PfShimType type, uint64_t id, const void *data, size_t size, int with,
	unsigned n_copies)
{
	uint8_t packet[sizeof(PfShimHeader) + 4096];
	PfShimHeader header = {PF_SHIM_MAGIC, (uint16_t)type, (uint16_t)n_copies,
		(uint32_t)(sizeof(header) + size), 0, id};

	assert_true(size <= sizeof(packet) - sizeof(header));
	memcpy(packet, &header, sizeof(header));
	if (size > 0)
		memcpy(packet + sizeof(header), data, size);
	return hostile_send(fd, packet, sizeof(header) + size, with, n_copies);
}

void hostile_hello(int fd, uint32_t flags, uint64_t fused_pages)
{
	PfShimHello hello = {.version = PF_SHIM_VERSION,
		.version_oldest = PF_SHIM_VERSION,
		.flags = flags,
		.page_size = PF_PAGE_SIZE,
		.fused_pages = fused_pages};

	assert_true(hostile_say(fd, PF_SHIM_HELLO, 0, &hello, sizeof(hello), -1, 0));
}

static bool is_readable(void *userdata)
{
	struct pollfd event = {*(int *)userdata, POLLIN, 0};

	return poll(&event, 1, 0) > 0;
}

bool hostile_hear(Lab *lab, int fd, HostileMessage *message)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec parts[] = {{&message->header, sizeof(message->header)},
		{message->data, sizeof(message->data)}};
	struct msghdr packet = {.msg_iov = parts,
		.msg_iovlen = 2,
		.msg_control = &control,
		.msg_controllen = sizeof(control)};
	ssize_t n;

	if (!lab_wait(lab, is_readable, &fd))
		fail_msg("the service neither says anything nor closes the connection");
	message->fd = -1;
	n = recvmsg(fd, &packet, MSG_CMSG_CLOEXEC);
	if (n <= 0)
		return false;
	assert_true((size_t)n >= sizeof(message->header));
	message->size = (size_t)n - sizeof(message->header);
	if (CMSG_FIRSTHDR(&packet))
		memcpy(&message->fd, CMSG_DATA(CMSG_FIRSTHDR(&packet)), sizeof(int));
	return true;
}

void hostile_expect(Lab *lab, int fd, PfShimType type, HostileMessage *message)
{
	if (!hostile_hear(lab, fd, message))
		fail_msg("the service closes the connection, and does not send %d", type);
	assert_int_equal(message->header.type, type);
}

void hostile_expect_end(Lab *lab, int fd, const char *what)
{
	static HostileMessage message;

	if (hostile_hear(lab, fd, &message))
		fail_msg("%s: the service says %u", what, message.header.type);
}

void hostile_expect_silence(int fd)
{
	assert_false(is_readable(&fd));
}

void hostile_get_ready(LabVm *vm, int returned, HostileShim *shim)
{
	const PfShimReady ready = {.code = PF_SHIM_READY_OK};
	const PfShimStore store = {0};
	static HostileMessage message;

	*shim = (HostileShim){.vm = vm, .store = -1};
	shim->fd = hostile_connect(vm);
	hostile_hello(shim->fd, returned >= 0 ? PF_SHIM_HAS_STORE : 0, 0);
	if (returned >= 0) {
		assert_true(hostile_say(
			shim->fd, PF_SHIM_STORE_RETURN, 0, &store, sizeof(store), returned, 1));
		hostile_expect(vm->lab, shim->fd, PF_SHIM_RELEASE, &message);
		assert_int_equal(message.size, 0);
		assert_true(
			hostile_say(shim->fd, PF_SHIM_RELEASED, message.header.id, NULL, 0, -1, 0));
	}
	hostile_expect(vm->lab, shim->fd, PF_SHIM_ATTACH, &message);
	shim->device = message.fd;
	assert_true(hostile_say(
		shim->fd, PF_SHIM_READY, message.header.id, &ready, sizeof(ready), -1, 0));
	hostile_expect(vm->lab, shim->fd, PF_SHIM_STORE, &message);
	shim->store = message.fd;
	hostile_expect(vm->lab, shim->fd, PF_SHIM_STAGING, &message);
	shim->staging = message.fd;
}

void hostile_close(HostileShim *shim)
{
	int fds[] = {shim->fd, shim->device, shim->store, shim->staging};

	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		close(fds[i]);
}

unsigned hostile_count_fds(void)
{
	g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
	unsigned n = 0;

	while (g_dir_read_name(dir))
		n++;
	return n;
}

static bool has_fds(void *userdata)
{
	return hostile_count_fds() == *(unsigned *)userdata;
}

void hostile_expect_fds(Lab *lab, unsigned n, const char *what)
{
	if (!lab_wait(lab, has_fds, &n))
		fail_msg("%s: %u descriptors are open and not %u", what, hostile_count_fds(), n);
}

LabVm *hostile_start(Lab *lab, const char *name, const char *group)
{
	LabVm *vm = lab_start_bare_vm(lab, name, group);

	lab_announce(vm);
	lab_wait_for_session(vm);
	return vm;
}
