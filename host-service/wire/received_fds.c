/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/wire/received_fds.h"
#include <string.h>

void pf_received_fds_close_later(int fd)
{
	pf_closer_close(NULL, fd);
}

unsigned pf_received_fds_take(struct msghdr *message, PfCloser *closer, int *first)
{
	unsigned n = 0;

	*first = -1;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0);
			at += sizeof(int), n++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + at, sizeof fd);
			if (n == 0)
				*first = fd;
			else
				pf_closer_close(closer, fd);
		}
	}
	return n;
}

unsigned pf_received_fds_drop(struct msghdr *message, PfCloser *closer)
{
	int first;
	unsigned n = pf_received_fds_take(message, closer, &first);

	pf_closer_close(closer, first);
	return n;
}
