/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/received_fds.h"
#include <glib.h>
#include <string.h>
#include <unistd.h>

/* So many senders can hold up one closing each before others have to wait for theirs. */
#define MAX_THREADS 8

static void close_one(gpointer data, gpointer unused)
{
	close(GPOINTER_TO_INT(data) - 1);
}

void pf_received_fds_close_later(int fd)
{
	static GThreadPool *pool;

	if (!pool)
		pool = g_thread_pool_new(close_one, NULL, MAX_THREADS, FALSE, NULL);
	/* One more, because a pool takes no NULL. Where no thread can be had, it waits for one that is there. */
	g_thread_pool_push(pool, GINT_TO_POINTER(fd + 1), NULL);
}

unsigned pf_received_fds_take_first(struct msghdr *message, int *first)
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
				pf_received_fds_close_later(fd);
		}
	}
	return n;
}

unsigned pf_received_fds_drop(struct msghdr *message)
{
	int first;
	unsigned n = pf_received_fds_take_first(message, &first);

	if (first >= 0)
		pf_received_fds_close_later(first);
	return n;
}
