/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A few messages are read in a turn, then others have theirs. What it takes of this thread's time to deal with them is
 * charged to the VM's quota; when that says so nothing is read for a while, and what QEMU goes on to send waits in the
 * socket, and QEMU with it. That delays this VM's own losses and answers, and nobody else's. The same happens while too
 * many of the descriptors that it has sent cannot be closed.
 *
 * A store is memory. Of what was sent as one, anything else is closed here, where it is known whose it was.
 */
#include "host-service/service/shim_link.h"
#include "common/page.h"
#include "host-service/service/cpu_time.h"
#include "host-service/wire/packet.h"
#include "host-service/wire/received_fds.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <gio/gio.h>
#include <glib-unix.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Linux 6.5; the headers of Debian 12 are older. */
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define MESSAGES_A_TURN  16 /* then others have their turn */
#define CLOSING_PAUSE_US 100000

struct PfShimLink {
	int fd; /* nonblocking */
	struct ucred peer;
	int process;      /* a pidfd of the peer's */
	PfQuota *quota;   /* NULL: none */
	PfCloser *closer; /* of what was received */
	guint source;     /* 0 also in a pause, and while it is held */
	guint pause_source;
	bool held;
	guint close_source; /* set once the connection has failed */
	bool only_frozen;
	const char *reason; /* a literal */
	const PfShimLinkEvents *events;
	void *userdata;
};

PfShimLink *pf_shim_link_new(int fd, GError **error)
{
	g_autofree PfShimLink *link = g_new0(PfShimLink, 1);
	socklen_t size = sizeof link->peer;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &link->peer, &size) < 0) {
		g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
			"a shim's process is unknown: %s", g_strerror(errno));
		pf_received_fds_close_later(fd);
		return NULL;
	}
	size = sizeof link->process;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &link->process, &size) < 0) {
		/* EINVAL, ESRCH: it has ended already. */
		g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
			"a shim's process cannot be watched: %s", g_strerror(errno));
		pf_received_fds_close_later(fd);
		return NULL;
	}
	g_unix_set_fd_nonblocking(fd, TRUE, NULL);
	link->fd = fd;
	return g_steal_pointer(&link);
}

void pf_shim_link_free(PfShimLink *link)
{
	if (!link)
		return;
	g_clear_handle_id(&link->source, g_source_remove);
	g_clear_handle_id(&link->pause_source, g_source_remove);
	g_clear_handle_id(&link->close_source, g_source_remove);
	close(link->process);
	/* The peer need not wait until it is closed, and what nobody has read with it. */
	shutdown(link->fd, SHUT_RDWR);
	pf_received_fds_close_later(link->fd);
	g_free(link);
}

bool pf_shim_link_is_alive(const PfShimLink *link)
{
	struct pollfd process = {.fd = link->process, .events = POLLIN};

	return poll(&process, 1, 0) == 0;
}

pid_t pf_shim_link_pid(const PfShimLink *link)
{
	return link->peer.pid;
}

uid_t pf_shim_link_uid(const PfShimLink *link)
{
	return link->peer.uid;
}

static gboolean report_closed(gpointer userdata)
{
	PfShimLink *link = userdata;

	link->close_source = 0;
	link->events->closed(link->userdata, link->reason);
	return G_SOURCE_REMOVE;
}

void pf_shim_link_close(PfShimLink *link, const char *reason)
{
	if (link->close_source)
		return;
	g_clear_handle_id(&link->source, g_source_remove);
	g_clear_handle_id(&link->pause_source, g_source_remove);
	link->reason = reason;
	/* Not an idle source's priority: whoever keeps the loop busy must not keep descriptors open with it. */
	link->close_source = g_timeout_add(0, report_closed, link);
}

static bool results_are_valid(const uint8_t *results, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (results[i] >= PF_SHIM_N_RESULTS)
			return false;
	return true;
}

static bool lost_is_valid(const PfShimLost *lost, size_t n)
{
	if (n == 0)
		return false;
	for (size_t i = 0; i < n; i++)
		if (lost[i].hva % PF_PAGE_SIZE || lost[i].n_pages == 0 ||
			lost[i].loss >= PF_SHIM_N_LOSSES ||
			lost[i].hva > UINT64_MAX - (uint64_t)lost[i].n_pages * PF_PAGE_SIZE ||
			lost[i].frame > UINT64_MAX - lost[i].n_pages)
			return false;
	return true;
}

static bool runs_are_valid(const PfShimRun *runs, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (runs[i].hva % PF_PAGE_SIZE || runs[i].n_pages == 0 ||
			runs[i].hva > UINT64_MAX - (uint64_t)runs[i].n_pages * PF_PAGE_SIZE ||
			runs[i].frame > UINT64_MAX - runs[i].n_pages)
			return false;
	return true;
}

static bool dispatch_listed(PfShimLink *link, uint64_t id, const PfShimListed *listed, size_t size)
{
	const PfShimRun *runs = (const PfShimRun *)(listed + 1);

	if (size < sizeof *listed || size != sizeof *listed + listed->n_runs * sizeof *runs ||
		(listed->n_runs == 0 && listed->more) || !runs_are_valid(runs, listed->n_runs))
		return false;
	link->events->listed(link->userdata, id, runs, listed->n_runs);
	return true;
}

/* The messages that every version has. *fd is taken, and set to -1, by what wants it. */
static bool dispatch_frozen(
	PfShimLink *link, const PfShimHeader *header, const void *data, size_t size, int *fd)
{
	const PfShimLinkEvents *events = link->events;

	switch (header->type) {
	case PF_SHIM_HELLO:
		return size == sizeof(PfShimHello) && (events->hello(link->userdata, data), true);
	case PF_SHIM_RELEASED:
		return size == 0 && (events->released(link->userdata, header->id), true);
	case PF_SHIM_LISTED:
		return dispatch_listed(link, header->id, data, size);
	case PF_SHIM_STORE_RETURN:
		if (size != sizeof(PfShimStore))
			return false;
		events->store_returned(link->userdata, data, *fd);
		*fd = -1;
		return true;
	default:
		return link->only_frozen;
	}
}

/* false: not a message of the protocol. */
static bool dispatch(
	PfShimLink *link, const PfShimHeader *header, const void *data, size_t size, int *fd)
{
	const PfShimLinkEvents *events = link->events;

	if (link->only_frozen)
		return dispatch_frozen(link, header, data, size, fd);
	switch (header->type) {
	case PF_SHIM_READY:
		return size == sizeof(PfShimReady) && (events->ready(link->userdata, data), true);
	case PF_SHIM_CAPTURED:
		return results_are_valid(data, size) &&
		       (events->captured(link->userdata, header->id, data, (uint32_t)size), true);
	case PF_SHIM_FUSED:
		return results_are_valid(data, size) &&
		       (events->fused(link->userdata, header->id, data, (uint32_t)size), true);
	case PF_SHIM_LOST:
		return size % sizeof(PfShimLost) == 0 &&
		       lost_is_valid(data, size / sizeof(PfShimLost)) &&
		       (events->lost(link->userdata, data, size / sizeof(PfShimLost)), true);
	case PF_SHIM_STATE:
		return size == sizeof(PfShimState) && (events->state(link->userdata, data), true);
	default:
		return dispatch_frozen(link, header, data, size, fd);
	}
}

/* What a foreign version sends beside the frozen messages is not known here. */
static bool fds_are_valid(const PfShimLink *link, const PfShimHeader *header)
{
	if (header->type == PF_SHIM_STORE_RETURN)
		return header->n_fds == 1;
	return header->n_fds == 0 || link->only_frozen;
}

static bool take_packet(PfShimLink *link, uint8_t *packet, size_t size, size_t n_fds, int *fd)
{
	PfShimHeader header;

	if (size < sizeof header || size > PF_SHIM_MAX_MESSAGE)
		return false;
	memcpy(&header, packet, sizeof header);
	if (header.magic != PF_SHIM_MAGIC || header.length != size || header.n_fds != n_fds ||
		!fds_are_valid(link, &header))
		return false;
	return dispatch(link, &header, packet + sizeof header, size - sizeof header, fd);
}

/* One packet, and the first descriptor that came with it, if it is memory; else -1. All others are closed. */
static ssize_t receive_packet(PfShimLink *link, void *packet, size_t size, int *fd, size_t *n_fds)
{
	ssize_t n = pf_packet_receive_closing(link->fd, packet, size, link->closer, fd, n_fds);

	if (*fd < 0 || fcntl(*fd, F_GET_SEALS) >= 0)
		return n;
	pf_closer_close(link->closer, *fd);
	*fd = -1;
	return n;
}

/* false: nothing more for now, or the connection has failed. */
static bool receive(PfShimLink *link)
{
	static union {
		PfShimHeader align;
		uint8_t bytes[PF_SHIM_MAX_MESSAGE];
	} packet;
	size_t n_fds;
	bool taken;
	int fd;
	ssize_t size = receive_packet(link, &packet, sizeof packet, &fd, &n_fds);

	if (size < 0) {
		if (size != -EAGAIN)
			pf_shim_link_close(link, "its socket failed");
		return false;
	}
	if (size == 0) {
		pf_shim_link_close(link, "it has closed the connection");
		return false;
	}
	taken = take_packet(link, packet.bytes, (size_t)size, n_fds, &fd);
	pf_received_fds_close_later(fd);
	if (!taken)
		pf_shim_link_close(link, "it sent what is no message of the protocol");
	return taken;
}

void pf_shim_link_only_frozen(PfShimLink *link)
{
	link->only_frozen = true;
}

static gboolean on_readable(gint fd, GIOCondition condition, gpointer userdata);

static void read_on(PfShimLink *link)
{
	if (!link->held && !link->source && !link->pause_source && !link->close_source)
		link->source = g_unix_fd_add(link->fd, G_IO_IN, on_readable, link);
}

static gboolean on_pause_over(gpointer userdata)
{
	PfShimLink *link = userdata;

	link->pause_source = 0;
	read_on(link);
	return G_SOURCE_REMOVE;
}

void pf_shim_link_hold(PfShimLink *link, bool hold)
{
	link->held = hold;
	if (hold)
		g_clear_handle_id(&link->source, g_source_remove);
	else
		read_on(link);
}

static void pause_reading(PfShimLink *link, gint64 us)
{
	g_clear_handle_id(&link->source, g_source_remove);
	link->pause_source = g_timeout_add((guint)(us / 1000 + 1), on_pause_over, link);
}

static void charge(PfShimLink *link, uint64_t cpu_us)
{
	gint64 wait;

	if (!link->quota)
		return;
	wait = pf_quota_spend(link->quota, 0, 0, cpu_us, g_get_monotonic_time());
	if (wait > 0 && link->source)
		pause_reading(link, wait);
}

static gboolean on_readable(gint fd, GIOCondition condition, gpointer userdata)
{
	PfShimLink *link = userdata;
	uint64_t before_us = pf_cpu_time_us(), turn_us = PF_QUOTA_TURN_US;
	bool more = true;

	if (pf_closer_n_pending(link->closer) > PF_RECEIVED_FDS_MAX_PENDING) {
		pause_reading(link, CLOSING_PAUSE_US);
		return G_SOURCE_CONTINUE;
	}
	/* Each message for itself: one may cost as much as all others. */
	for (int i = 0; i < MESSAGES_A_TURN && more && link->source; i++) {
		uint64_t now_us;

		more = receive(link);
		now_us = pf_cpu_time_us();
		charge(link, now_us - before_us + turn_us);
		before_us = now_us;
		turn_us = 0;
	}
	/* The source is removed already where the link was closed meanwhile, or has to wait. */
	return G_SOURCE_CONTINUE;
}

void pf_shim_link_start(PfShimLink *link, PfQuota *quota, PfCloser *closer,
	const PfShimLinkEvents *events, void *userdata)
{
	link->quota = quota;
	link->closer = closer;
	link->events = events;
	link->userdata = userdata;
	link->source = g_unix_fd_add(link->fd, G_IO_IN, on_readable, link);
	/* Another connection pays no debts. */
	charge(link, PF_QUOTA_TURN_US);
}

bool pf_shim_link_has_unread(const PfShimLink *link)
{
	struct pollfd socket = {.fd = link->fd, .events = POLLIN};

	return poll(&socket, 1, 0) > 0;
}

void pf_shim_link_send(
	PfShimLink *link, PfShimType type, uint64_t id, const void *data, size_t size, int fd)
{
	PfShimHeader header = {
		PF_SHIM_MAGIC, (uint16_t)type, fd >= 0, (uint32_t)(sizeof header + size), 0, id};
	struct iovec parts[] = {{&header, sizeof header}, {(void *)data, size}};

	if (pf_packet_send_parts(link->fd, parts, G_N_ELEMENTS(parts), fd) < 0)
		pf_shim_link_close(link, "it does not take orders");
}
