/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Packets of a SOCK_SEQPACKET socket, each whole or not at all, with at most one descriptor. */
#include "host-service/wire/closer.h"
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

/*
 * Sends one packet; fd goes with it unless it is -1 (it is not consumed). 0, -EAGAIN when the socket is nonblocking and
 * full, or another -errno.
 */
int pf_packet_send(int socket, const void *packet, size_t size, int fd);

/* The same, of a packet that lies in parts. */
int pf_packet_send_parts(int socket, const struct iovec *parts, size_t n_parts, int fd);

/*
 * Receives one packet of at most size bytes. Returns its length (more than size: it was cut), 0 at the end of the stream,
 * or -errno; all that the peer has sent before its end comes before that end. *fd: the descriptor that came with it (the
 * caller owns it), or -1. *n_fds: how many came, of which only one is kept; SIZE_MAX when some could not be taken. The
 * others are closed in another thread, and so should that one be where the peer is not trusted (received_fds.h).
 */
ssize_t pf_packet_receive(int socket, void *packet, size_t size, int *fd, size_t *n_fds);

/* The same; closer closes the others: the peer is one of many, and must not hold up what others have sent. */
ssize_t pf_packet_receive_closing(
	int socket, void *packet, size_t size, PfCloser *closer, int *fd, size_t *n_fds);
