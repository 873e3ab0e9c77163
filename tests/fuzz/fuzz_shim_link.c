/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a hostile QEMU sends to the service: each record of the input is a packet; its operation is
 * its type. */
#include "common/page.h"
#include "host-service/service/shim_link.h"
#include "tests/fuzz/records.h"
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <fcntl.h>
#include <unistd.h>

#define REQUIRE(what)                                                                              \
	do {                                                                                       \
		if (!(what))                                                                       \
			abort();                                                                   \
	} while (0)

#define MANY_FDS 256

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool closed;

static void on_hello(void *userdata, const PfShimHello *hello)
{
}

static void on_ready(void *userdata, const PfShimReady *ready)
{
}

static void on_results(void *userdata, uint64_t id, const uint8_t *results, uint32_t n_pages)
{
	REQUIRE(n_pages <= PF_SHIM_MAX_MESSAGE);
	for (uint32_t i = 0; i < n_pages; i++)
		REQUIRE(results[i] < PF_SHIM_N_RESULTS);
}

static void on_released(void *userdata, uint64_t id)
{
}

static void on_lost(void *userdata, const PfShimLost *lost, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		REQUIRE(lost[i].hva % PF_PAGE_SIZE == 0 && lost[i].n_pages > 0);
		REQUIRE(lost[i].hva + lost[i].n_pages * PF_PAGE_SIZE >= lost[i].hva);
		REQUIRE(lost[i].loss < PF_SHIM_N_LOSSES);
	}
}

static void on_state(void *userdata, const PfShimState *state)
{
}

static void on_store_returned(void *userdata, const PfShimStore *store, int fd)
{
	REQUIRE(fd < 0 || fcntl(fd, F_GET_SEALS) >= 0);
	if (fd >= 0)
		close(fd);
}

static void on_listed(void *userdata, uint64_t id, const PfShimRun *runs, uint32_t n_runs)
{
	for (uint32_t i = 0; i < n_runs; i++) {
		REQUIRE(runs[i].hva % PF_PAGE_SIZE == 0 && runs[i].n_pages > 0);
		REQUIRE(runs[i].hva + runs[i].n_pages * PF_PAGE_SIZE >= runs[i].hva);
		REQUIRE(runs[i].frame + runs[i].n_pages >= runs[i].frame);
	}
}

static void on_closed(void *userdata, const char *reason)
{
	REQUIRE(!closed && reason[0]);
	closed = true;
}

static const PfShimLinkEvents events = {
	.hello = on_hello,
	.ready = on_ready,
	.captured = on_results,
	.fused = on_results,
	.released = on_released,
	.lost = on_lost,
	.state = on_state,
	.store_returned = on_store_returned,
	.listed = on_listed,
	.closed = on_closed,
};

/* An even operation is a packet as it stands; an odd one gets a right header, with the operation as
 * its type. */
static void say(int peer, const Record *record, unsigned n_fds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(2 * sizeof(int))];
	} control;
	PfShimHeader header = {PF_SHIM_MAGIC, record->operation >> 1, (uint16_t)n_fds,
		(uint32_t)(sizeof header + record->size), 0, record->operation};
	struct iovec parts[] = {{&header, sizeof header}, {(void *)record->bytes, record->size}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	const int fds[] = {peer, peer};

	if (record->operation % 2 == 0) {
		message.msg_iov = &parts[1];
		message.msg_iovlen = 1;
	}
	if (n_fds > 0) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		*CMSG_FIRSTHDR(&message) =
			(struct cmsghdr){.cmsg_len = CMSG_LEN(n_fds * sizeof(int)),
				.cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), fds, n_fds * sizeof(int));
	}
	/* It fails once the other end has closed. */
	(void)sendmsg(peer, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Two at a time, so that one may have to wait for its turn. */
static void turn(PfShimLink *link, int peer)
{
	bool unread = pf_shim_link_has_unread(link);
	uint8_t packet[64];

	while (g_main_context_iteration(NULL, FALSE))
		;
	REQUIRE(unread || !pf_shim_link_has_unread(link));
	if (!closed)
		pf_shim_link_send(link, PF_SHIM_LIST, 1, "x", 1, peer);
	while (recv(peer, packet, sizeof packet, MSG_DONTWAIT) > 0)
		;
}

/* The first byte: see the bits. */
enum {
	ONLY_FROZEN = 1,
	WITH_FD = 2,
	WITH_TWO = 4, /* descriptors, if with any */
	SLOWED = 8,   /* by its quota, after the first messages */
	CLOSES = 16,  /* its end, when all was said */
	CLOSED = 32,  /* by the service, before the first */
	HELD = 64,    /* for a turn, now and then */
};

static void converse(PfShimLink *link, int peer, unsigned how, const uint8_t *data, size_t size)
{
	unsigned n_fds = how & WITH_FD ? 1 + !!(how & WITH_TWO) : 0, n = 0;
	Record record;

	if (how & ONLY_FROZEN)
		pf_shim_link_only_frozen(link);
	if (how & CLOSED) {
		pf_shim_link_close(link, "of no use");
		pf_shim_link_close(link, "of no use at all");
	}
	while (next_record(&data, &size, &record)) {
		say(peer, &record, n_fds);
		if (how & HELD && !closed) {
			pf_shim_link_hold(link, true);
			turn(link, peer);
		}
		if (how & HELD && !closed)
			pf_shim_link_hold(link, false);
		if (n++ % 2)
			turn(link, peer);
	}
	turn(link, peer);
	if (how & CLOSES) {
		shutdown(peer, SHUT_RDWR);
		turn(link, peer);
		REQUIRE(closed || how & SLOWED);
	}
}

/* What was sent is closed by other threads. They get time when they are behind, and as long as it takes: a leak hangs. */
static void wait_for_descriptors(void)
{
	int lowest;

	while ((lowest = dup(STDERR_FILENO)) >= MANY_FDS || lowest < 0) {
		close(lowest);
		g_usleep(1000);
	}
	close(lowest);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	PfPolicy policy = PF_POLICY_DEFAULTS;
	PfShimLink *link;
	PfQuota quota;
	int fds[2];

	if (size == 0)
		return 0;
	closed = false;
	wait_for_descriptors();
	REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0);
	link = pf_shim_link_new(fds[0], NULL);
	REQUIRE(link && pf_shim_link_is_alive(link));
	REQUIRE(pf_shim_link_pid(link) == getpid() && pf_shim_link_uid(link) == geteuid());
	pf_quota_init(&quota, &policy, g_get_monotonic_time());
	if (data[0] & SLOWED)
		pf_quota_spend(&quota, 0, 0, 10000000, g_get_monotonic_time());
	pf_shim_link_start(link, &quota, NULL, &events, NULL);
	converse(link, fds[1], data[0], data + 1, size - 1);
	pf_shim_link_free(link);
	close(fds[1]);
	return 0;
}
