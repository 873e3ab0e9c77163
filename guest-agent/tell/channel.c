// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A virtio-serial port has no connection of its own: when nobody has the host's end open, poll()
 * says POLLHUP at once, read() gives 0 bytes and write() EAGAIN. Nothing can be waited for then, so
 * the port is looked at once a second, as the service of a host that restarts is back soon; after a
 * minute less often. When the host is back it says hello, which opens a new session; nothing of the
 * old one is left.
 *
 * A port that was unplugged looks just like that to poll(); read() and write() say ENODEV.
 */
#include "guest-agent/tell/channel.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define RETRY_MS      1000
#define LATER_MS      5000 /* from a minute on */
#define MINUTE_MS     60000
#define READ_SIZE     4096
#define MAX_TRANSFERS 32 /* reads or writes in a row before others have a turn */

int pf_channel_open(const char *path)
{
	int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);

	return fd < 0 ? -errno : fd;
}

void pf_channel_init(PfChannel *channel, int fd, PfConversation *conversation)
{
	*channel = (PfChannel){.fd = fd, .connected = true, .conversation = conversation};
}

void pf_channel_deinit(PfChannel *channel)
{
	if (channel->fd >= 0)
		close(channel->fd);
	channel->fd = -1;
}

int pf_channel_prepare(PfChannel *channel, struct pollfd *poll, int *timeout_ms, int64_t now_ms)
{
	const uint8_t *data;
	size_t size;
	int r;

	*poll = (struct pollfd){.fd = -1};
	if (!channel->connected) {
		int retry_ms = now_ms - channel->lost_ms < MINUTE_MS ? RETRY_MS : LATER_MS;

		if (*timeout_ms < 0 || *timeout_ms > retry_ms)
			*timeout_ms = retry_ms;
		return 0;
	}
	r = pf_conversation_output(channel->conversation, &data, &size);
	if (r < 0)
		return r;
	poll->fd = channel->fd;
	poll->events = (short)(POLLIN | (size > 0 ? POLLOUT : 0));
	return 0;
}

static void lose(PfChannel *channel, int64_t now_ms)
{
	channel->connected = false;
	channel->lost_ms = now_ms;
	pf_conversation_lost(channel->conversation);
}

/* Whether a call that failed may be tried again later; a closed end is a state and no error. */
static bool harmless(PfChannel *channel, int error, int64_t now_ms)
{
	if (error == EPIPE || error == ECONNRESET)
		lose(channel, now_ms);
	return error == EAGAIN || error == EINTR || error == EPIPE || error == ECONNRESET;
}

static int receive(PfChannel *channel, int64_t now_ms)
{
	uint8_t buffer[READ_SIZE];

	for (int i = 0; i < MAX_TRANSFERS; i++) {
		ssize_t n = read(channel->fd, buffer, sizeof(buffer));
		int r;

		if (n < 0)
			return harmless(channel, errno, now_ms) ? 0 : -errno;
		if (n == 0) {
			lose(channel, now_ms);
			return 0;
		}
		r = pf_conversation_feed(channel->conversation, buffer, (size_t)n, now_ms);
		if (r < 0)
			return r;
	}
	return 0;
}

static int transmit(PfChannel *channel, int64_t now_ms)
{
	for (int i = 0; i < MAX_TRANSFERS; i++) {
		const uint8_t *data;
		size_t size;
		ssize_t n;
		int r = pf_conversation_output(channel->conversation, &data, &size);

		if (r < 0 || size == 0)
			return r;
		n = write(channel->fd, data, size);
		if (n < 0)
			return harmless(channel, errno, now_ms) ? 0 : -errno;
		pf_conversation_sent(channel->conversation, (size_t)n);
	}
	return 0;
}

static int look_for_host(PfChannel *channel)
{
	struct pollfd look = {.fd = channel->fd, .events = POLLIN};
	uint8_t nothing;

	if (poll(&look, 1, 0) >= 0 && !(look.revents & POLLHUP))
		channel->connected = true;
	else if (read(channel->fd, &nothing, 0) < 0 && errno == ENODEV)
		return -ENODEV;
	return 0;
}

int pf_channel_dispatch(PfChannel *channel, const struct pollfd *poll, int64_t now_ms)
{
	int r = 0;

	if (!channel->connected)
		return look_for_host(channel);
	if (poll->revents & POLLNVAL)
		return -EBADF;
	if (poll->revents & POLLIN)
		r = receive(channel, now_ms);
	if (r == 0 && channel->connected && (poll->revents & (POLLHUP | POLLERR)))
		lose(channel, now_ms);
	if (r == 0 && channel->connected && (poll->revents & POLLOUT))
		r = transmit(channel, now_ms);
	return r;
}
