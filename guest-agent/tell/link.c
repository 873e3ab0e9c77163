// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A knock is sent when the port is opened. If no hello comes the host may be waiting for the rest of
 * a frame that a predecessor (an agent that was killed, or the guest before a reset) did not
 * finish: so later knocks flush, less and less often. A host that comes back speaks by itself.
 *
 * Where a port is waited for, one that is missing or goes away is said once and looked for every
 * few seconds: udev would start the agent when it appears, but not every guest has udev.
 */
#include "guest-agent/tell/link.h"
#include "common/log.h"
#include "guest-agent/tell/port.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_KNOCK_MS 2000
#define NEXT_KNOCK_MS  30000
#define LAST_KNOCK_MS  300000 /* they get rarer up to that */
#define LOOK_MS        5000
#define SILENCE_MS     30000 /* a host that takes nothing for so long does not hear us */

int pf_link_init(PfLink *link, const char *wanted, bool wait, PfConversation *conversation)
{
	*link = (PfLink){.wait = wait,
		.conversation = conversation,
		.channel.fd = -1,
		.found = PF_PORT_NAME};
	return pf_link_want(link, wanted);
}

void pf_link_deinit(PfLink *link)
{
	pf_channel_deinit(&link->channel);
	free(link->wanted);
	link->wanted = NULL;
}

static void close_port(PfLink *link)
{
	if (link->channel.fd < 0)
		return;
	pf_conversation_lost(link->conversation);
	pf_channel_deinit(&link->channel);
}

static bool same_port(const char *a, const char *b)
{
	return a == b || (a && b && strcmp(a, b) == 0);
}

int pf_link_want(PfLink *link, const char *wanted)
{
	char *copy = NULL;

	if (same_port(link->wanted, wanted))
		return 0;
	if (wanted && !(copy = strdup(wanted)))
		return -ENOMEM;
	close_port(link);
	free(link->wanted);
	link->wanted = copy;
	link->missed = false;
	link->next_look_ms = 0;
	return 0;
}

const char *pf_link_path(const PfLink *link)
{
	return link->wanted ? link->wanted : link->found;
}

void pf_link_expect_hello(PfLink *link, int64_t now_ms)
{
	link->next_knock_ms = now_ms + FIRST_KNOCK_MS;
	link->knock_ms = NEXT_KNOCK_MS;
}

static int open_port(PfLink *link)
{
	if (!link->wanted && pf_port_find(link->found, sizeof(link->found)) < 0) {
		strcpy(link->found, PF_PORT_NAME);
		return -ENOENT;
	}
	return pf_channel_open(pf_link_path(link));
}

static void miss_port(PfLink *link, int error, int64_t now_ms)
{
	link->next_look_ms = now_ms + LOOK_MS;
	if (link->missed)
		return;
	link->missed = true;
	if (error == -EBUSY)
		pf_warning("virtio-serial port %s is in use: waiting for the other "
			   "pagefusion-agent to end",
			pf_link_path(link));
	else
		pf_info("waiting for virtio-serial port %s, which is there when page fusion is "
			"turned on for this VM on the host (pagefusionctl modifyvm VM "
			"--pagefusion on)",
			pf_link_path(link));
}

static int look_for_port(PfLink *link, int64_t now_ms)
{
	int fd = open_port(link);

	if (fd < 0 && !link->wait)
		return fd;
	if (fd < 0) {
		miss_port(link, fd, now_ms);
		return 0;
	}
	if (link->missed)
		pf_info("virtio-serial port %s is there", pf_link_path(link));
	link->missed = false;
	pf_channel_init(&link->channel, fd, link->conversation);
	pf_conversation_knock(link->conversation, false);
	pf_link_expect_hello(link, now_ms);
	return 0;
}

static bool waits_for_hello(const PfLink *link)
{
	return pf_link_connected(link) && !pf_conversation_active(link->conversation);
}

int pf_link_tend(PfLink *link, int64_t now_ms)
{
	if (now_ms < pf_link_due_ms(link))
		return 0;
	if (link->channel.fd < 0)
		return look_for_port(link, now_ms);
	pf_conversation_knock(link->conversation, true);
	link->next_knock_ms = now_ms + link->knock_ms;
	link->knock_ms = link->knock_ms * 2 < LAST_KNOCK_MS ? link->knock_ms * 2 : LAST_KNOCK_MS;
	return 0;
}

int64_t pf_link_due_ms(const PfLink *link)
{
	if (link->channel.fd < 0)
		return link->next_look_ms;
	return waits_for_hello(link) ? link->next_knock_ms : INT64_MAX;
}

int pf_link_prepare(PfLink *link, struct pollfd *poll, int *timeout_ms, int64_t now_ms)
{
	*poll = (struct pollfd){.fd = -1};
	if (link->channel.fd < 0)
		return 0;
	return pf_channel_prepare(&link->channel, poll, timeout_ms, now_ms);
}

int pf_link_dispatch(PfLink *link, const struct pollfd *poll, int64_t now_ms)
{
	bool connected = link->channel.connected;
	int r;

	if (link->channel.fd < 0)
		return 0;
	r = pf_channel_dispatch(&link->channel, poll, now_ms);
	if (r == -ENODEV && link->wait) {
		close_port(link);
		miss_port(link, r, now_ms);
		return 0;
	}
	if (!connected && link->channel.connected)
		pf_link_expect_hello(link, now_ms);
	return r;
}

bool pf_link_connected(const PfLink *link)
{
	return link->channel.fd >= 0 && link->channel.connected;
}

bool pf_link_heard(PfLink *link, int64_t now_ms)
{
	PfConversationCount count;

	if (!pf_conversation_active(link->conversation))
		return false;
	pf_conversation_count(link->conversation, &count);
	/* Silence begins with what waits, not with the last question. */
	if (!count.waiting || !link->waited || count.frames_acknowledged != link->acknowledged ||
		count.bytes_sent != link->bytes_sent)
		link->heard_ms = now_ms;
	link->waited = count.waiting;
	link->acknowledged = count.frames_acknowledged;
	link->bytes_sent = count.bytes_sent;
	return now_ms - link->heard_ms < SILENCE_MS;
}
