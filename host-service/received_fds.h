/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * Descriptors that a QEMU sends to us. Closing one can take as long as its sender likes (a TCP socket that lingers, a
 * file of a FUSE that does not answer), so it never happens in the main loop's thread: that would stop every VM.
 */
#include <sys/socket.h>

/* Room for every descriptor that one message can carry (SCM_MAX_FD): what does not fit is closed by the kernel, in our
 * thread. */
#define PF_RECEIVED_FDS_MAX 253

typedef union PfReceivedFds {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(PF_RECEIVED_FDS_MAX * sizeof(int))];
} PfReceivedFds;

/* Takes the descriptors out of a received message and has them closed. Returns how many there were. */
unsigned pf_received_fds_drop(struct msghdr *message);

/* The same, but for the first one: *fd is the caller's then; -1: there was none. */
unsigned pf_received_fds_take_first(struct msghdr *message, int *fd);

/* Closes a descriptor in another thread: it may hold messages, and so descriptors, that nobody has read. */
void pf_received_fds_close_later(int fd);
