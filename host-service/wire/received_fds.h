/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Descriptors that come with messages: whoever wants none of them has to close them (closer.h). */
#include "host-service/wire/closer.h"
#include <sys/socket.h>

/* Room for every descriptor that one message can carry (SCM_MAX_FD): what does not fit is closed by the kernel, in our
 * thread. */
#define PF_RECEIVED_FDS_MAX 253

/* With so many of a sender's not closed yet, nothing more is read of him. */
#define PF_RECEIVED_FDS_MAX_PENDING 256

typedef union PfReceivedFds {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(PF_RECEIVED_FDS_MAX * sizeof(int))];
} PfReceivedFds;

/* Takes the descriptors out of a received message and has closer close them. Returns how many there were. */
unsigned pf_received_fds_drop(struct msghdr *message, PfCloser *closer);

/* The same, but for the first one: *fd is the caller's then; -1: there was none. */
unsigned pf_received_fds_take(struct msghdr *message, PfCloser *closer, int *fd);

/* Closes a socket, which may hold messages that nobody has read, or memory in another thread. */
void pf_received_fds_close_later(int fd);
