/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a hostile QEMU sends to the service: each record of the input is a packet; its operation is
 * its type. */
#include "common/page.h"
#include "host-service/shim_link.h"
#include "tests/fuzz/records.h"
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define REQUIRE(what)                                                                              \
	do {                                                                                       \
		if (!(what))                                                                       \
			abort();                                                                   \
	} while (0)

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
	REQUIRE(fd >= 0);
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
static void say(int peer, const Record *record)
{
	PfShimHeader header = {PF_SHIM_MAGIC, record->operation >> 1, 0,
		(uint32_t)(sizeof header + record->size), 0, record->operation};
	struct iovec parts[] = {{&header, sizeof header}, {(void *)record->bytes, record->size}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

	if (record->operation % 2 == 0) {
		message.msg_iov = &parts[1];
		message.msg_iovlen = 1;
	}
	/* It fails once the other end has closed. */
	if (sendmsg(peer, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		return;
	while (g_main_context_iteration(NULL, FALSE))
		;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	Record record;
	PfShimLink *link;
	int fds[2];

	closed = false;
	REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0);
	link = pf_shim_link_new(fds[0], NULL);
	REQUIRE(link);
	pf_shim_link_start(link, &events, NULL);
	if (size > 0 && data[size - 1] % 8 == 0)
		pf_shim_link_only_frozen(link);
	while (next_record(&data, &size, &record))
		say(fds[1], &record);
	pf_shim_link_free(link);
	close(fds[1]);
	return 0;
}
