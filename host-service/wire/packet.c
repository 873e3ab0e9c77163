/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A peer that ends while something of ours is unread gives ECONNRESET once, and only then what it has sent before its
 * end. So that is no end yet: the next try has the first of these packets, or the end.
 */
#include "host-service/wire/packet.h"
#include "host-service/wire/received_fds.h"
#include <errno.h>
#include <stdint.h>
#include <string.h>

int pf_packet_send_parts(int socket, const struct iovec *parts, size_t n_parts, int fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = n_parts};
	ssize_t n;

	if (fd >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof(control);
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(int));
	}
	do
		n = sendmsg(socket, &message, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

int pf_packet_send(int socket, const void *packet, size_t size, int fd)
{
	return pf_packet_send_parts(socket, &(struct iovec){(void *)packet, size}, 1, fd);
}

ssize_t pf_packet_receive_closing(
	int socket, void *packet, size_t size, PfCloser *closer, int *fd, size_t *n_fds)
{
	PfReceivedFds control = {0};
	struct iovec part = {.iov_base = packet, .iov_len = size};
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t n;

	*fd = -1;
	*n_fds = 0;
	do
		n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_TRUNC);
	while (n < 0 && (errno == EINTR || errno == ECONNRESET));
	if (n < 0)
		return -errno;
	*n_fds = pf_received_fds_take(&message, closer, fd);
	if (message.msg_flags & MSG_CTRUNC)
		*n_fds = SIZE_MAX;
	return n;
}

ssize_t pf_packet_receive(int socket, void *packet, size_t size, int *fd, size_t *n_fds)
{
	return pf_packet_receive_closing(socket, packet, size, NULL, fd, n_fds);
}
