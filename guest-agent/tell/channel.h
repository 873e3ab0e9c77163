/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The port: moves bytes between a descriptor and the conversation. */
#include "guest-agent/tell/conversation.h"
#include <poll.h>

typedef struct PfChannel {
	int fd;                       /* nonblocking, owned */
	bool connected;               /* somebody has the host's end open, as far as we know */
	int64_t lost_ms;              /* when it was not any more; of the caller's clock */
	PfConversation *conversation; /* not owned */
} PfChannel;

/* Times are milliseconds of any clock, the same in all calls. */

/* Opens a port. A descriptor or -errno. */
int pf_channel_open(const char *path);

/* fd must be nonblocking and is consumed. conversation must live as long as the channel. */
void pf_channel_init(PfChannel *channel, int fd, PfConversation *conversation);
void pf_channel_deinit(PfChannel *channel);

/*
 * Fills in what to poll for, and lowers *timeout_ms (-1: none) where the channel wants to be asked
 * again earlier. 0 or -ENOMEM.
 */
int pf_channel_prepare(PfChannel *channel, struct pollfd *poll, int *timeout_ms, int64_t now_ms);

/* Reads and writes what can be read and written. 0; -ENODEV when the port is gone for good; another
 * fatal -errno. */
int pf_channel_dispatch(PfChannel *channel, const struct pollfd *poll, int64_t now_ms);
