/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a shim may say, and what ends its connection. */
#include "host-service/service/shim_link.h"
#include "common/page.h"
#include "host-service/wire/packet.h"
#include "host-service/wire/received_fds.h"
#include "slow_file.h"
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct Heard {
	unsigned hello, ready, captured, fused, released, lost, state, returned, memory, listed,
		closed;
	uint64_t id;
	size_t n; /* results, or losses */
	uint8_t last_result;
	PfShimLost first_lost;
	PfShimRun last_run;
	PfShimLink *link;
	bool close_in_event;
} Heard;

static void on_hello(void *userdata, const PfShimHello *hello)
{
	Heard *heard = userdata;

	heard->hello++;
	assert_int_equal(hello->page_size, PF_PAGE_SIZE);
	if (heard->close_in_event)
		pf_shim_link_close(heard->link, "the test wants it");
}

static void on_ready(void *userdata, const PfShimReady *ready)
{
	((Heard *)userdata)->ready++;
}

static void on_results(Heard *heard, uint64_t id, const uint8_t *results, uint32_t n)
{
	heard->id = id;
	heard->n = n;
	heard->last_result = results[n - 1];
}

static void on_captured(void *userdata, uint64_t id, const uint8_t *results, uint32_t n)
{
	((Heard *)userdata)->captured++;
	on_results(userdata, id, results, n);
}

static void on_fused(void *userdata, uint64_t id, const uint8_t *results, uint32_t n)
{
	((Heard *)userdata)->fused++;
	on_results(userdata, id, results, n);
}

static void on_released(void *userdata, uint64_t id)
{
	((Heard *)userdata)->released++;
	((Heard *)userdata)->id = id;
}

static void on_lost(void *userdata, const PfShimLost *lost, size_t n)
{
	Heard *heard = userdata;

	heard->lost++;
	heard->n = n;
	heard->first_lost = lost[0];
}

static void on_state(void *userdata, const PfShimState *state)
{
	((Heard *)userdata)->state++;
}

static void on_store_returned(void *userdata, const PfShimStore *store, int fd)
{
	Heard *heard = userdata;

	heard->returned++;
	if (fd < 0)
		return;
	heard->memory++;
	assert_true(fcntl(fd, F_GET_SEALS) >= 0);
	close(fd);
}

static void on_listed(void *userdata, uint64_t id, const PfShimRun *runs, uint32_t n_runs)
{
	Heard *heard = userdata;

	heard->listed++;
	heard->id = id;
	heard->n = n_runs;
	if (n_runs > 0)
		heard->last_run = runs[n_runs - 1];
}

static void on_closed(void *userdata, const char *reason)
{
	((Heard *)userdata)->closed++;
	assert_true(strlen(reason) > 0);
}

static const PfShimLinkEvents events = {
	.hello = on_hello,
	.ready = on_ready,
	.captured = on_captured,
	.fused = on_fused,
	.released = on_released,
	.lost = on_lost,
	.state = on_state,
	.store_returned = on_store_returned,
	.listed = on_listed,
	.closed = on_closed,
};

typedef struct Pair {
	int peer;
	PfShimLink *link;
	Heard heard;
} Pair;

static Pair *new_pair_with(PfQuota *quota, PfCloser *closer)
{
	Pair *pair = g_new0(Pair, 1);
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	pair->peer = fds[1];
	pair->link = pf_shim_link_new(fds[0], NULL);
	assert_non_null(pair->link);
	pair->heard.link = pair->link;
	pf_shim_link_start(pair->link, quota, closer, &events, &pair->heard);
	return pair;
}

static Pair *new_pair(void)
{
	return new_pair_with(NULL, NULL);
}

static void free_pair(Pair *pair)
{
	pf_shim_link_free(pair->link);
	close(pair->peer);
	g_free(pair);
}

static void settle(void)
{
	while (g_main_context_iteration(NULL, FALSE))
		;
}

/* header.length and n_fds are filled in unless they are set. */
static void say_raw(int peer, PfShimHeader header, const void *data, size_t size, int fd)
{
	struct iovec parts[] = {{&header, sizeof header}, {(void *)data, size}};

	if (header.length == 0)
		header.length = (uint32_t)(sizeof header + size);
	assert_int_equal(pf_packet_send_parts(peer, parts, 2, fd), 0);
}

static void say(Pair *pair, uint16_t type, uint64_t id, const void *data, size_t size)
{
	PfShimHeader header = {.magic = PF_SHIM_MAGIC, .type = type, .id = id};

	say_raw(pair->peer, header, data, size, -1);
	settle();
}

static void test_valid(void **unused)
{
	Pair *pair = new_pair();
	PfShimHello hello = {.version = 1, .version_oldest = 1, .page_size = PF_PAGE_SIZE};
	PfShimReady ready = {0};
	PfShimState state = {0};
	PfShimLost lost[] = {
		{.hva = 0x1000, .frame = 7, .n_pages = 2, .loss = PF_SHIM_LOST_DISCARDED},
		{.hva = 0x9000, .frame = 1, .n_pages = 1}};
	uint8_t results[] = {PF_SHIM_DONE, PF_SHIM_BUSY, PF_SHIM_FAILED};

	say(pair, PF_SHIM_HELLO, 0, &hello, sizeof hello);
	say(pair, PF_SHIM_READY, 0, &ready, sizeof ready);
	say(pair, PF_SHIM_STATE, 0, &state, sizeof state);
	assert_int_equal(pair->heard.hello + pair->heard.ready + pair->heard.state, 3);
	say(pair, PF_SHIM_CAPTURED, 5, results, 2);
	assert_int_equal(pair->heard.captured, 1);
	assert_int_equal(pair->heard.n, 2);
	assert_int_equal(pair->heard.last_result, PF_SHIM_BUSY);
	say(pair, PF_SHIM_FUSED, 6, results, 3);
	assert_int_equal(pair->heard.fused, 1);
	assert_int_equal(pair->heard.id, 6);
	assert_int_equal(pair->heard.last_result, PF_SHIM_FAILED);
	say(pair, PF_SHIM_RELEASED, 8, NULL, 0);
	assert_int_equal(pair->heard.id, 8);
	say(pair, PF_SHIM_LOST, 0, lost, sizeof lost);
	assert_int_equal(pair->heard.n, 2);
	assert_int_equal(pair->heard.first_lost.frame, 7);
	assert_int_equal(pair->heard.closed, 0);
	free_pair(pair);
}

typedef struct List {
	PfShimListed listed;
	PfShimRun runs[2];
} List;

static void test_listed(void **unused)
{
	Pair *pair = new_pair();
	List list = {{.n_runs = 2}, {{0x1000, 5, 3, 0}, {0x7000, 9, 70000, 0}}};

	say(pair, PF_SHIM_LISTED, 4, &list, sizeof list);
	assert_int_equal(pair->heard.listed, 1);
	assert_int_equal(pair->heard.id, 4);
	assert_int_equal(pair->heard.n, 2);
	assert_int_equal(pair->heard.last_run.n_pages, 70000);
	list.listed.n_runs = 0;
	say(pair, PF_SHIM_LISTED, 5, &list, sizeof list.listed);
	assert_int_equal(pair->heard.n, 0);
	assert_int_equal(pair->heard.closed, 0);
	free_pair(pair);
}

/* Of a foreign version: what is frozen is heard, the rest is passed over. */
static void test_only_frozen(void **unused)
{
	Pair *pair = new_pair();
	uint8_t bytes[40] = {0};

	pf_shim_link_only_frozen(pair->link);
	say(pair, 200, 0, bytes, sizeof bytes);
	say(pair, PF_SHIM_STATE, 0, bytes, sizeof bytes);
	say(pair, PF_SHIM_LOST, 0, bytes, sizeof bytes);
	say(pair, PF_SHIM_RELEASED, 8, NULL, 0);
	assert_int_equal(pair->heard.released, 1);
	assert_int_equal(pair->heard.state + pair->heard.lost + pair->heard.closed, 0);
	/* What is frozen must be as it ever was. */
	say(pair, PF_SHIM_RELEASED, 8, bytes, 1);
	assert_int_equal(pair->heard.closed, 1);
	free_pair(pair);
}

/* Each ends the connection, once, and no event is heard. */
static void refused(uint16_t type, const void *data, size_t size)
{
	Pair *pair = new_pair();

	say(pair, type, 1, data, size);
	assert_int_equal(pair->heard.closed, 1);
	assert_int_equal(pair->heard.captured + pair->heard.fused + pair->heard.lost +
				 pair->heard.hello + pair->heard.ready + pair->heard.state +
				 pair->heard.released + pair->heard.returned + pair->heard.listed,
		0);
	free_pair(pair);
}

static void test_refused_payloads(void **unused)
{
	uint8_t bytes[PF_SHIM_MAX_MESSAGE] = {0}, bad_result[] = {PF_SHIM_DONE, PF_SHIM_N_RESULTS};
	PfShimLost lost = {.hva = 0x1000, .n_pages = 1};
	List list = {{.n_runs = 2}, {{0x1000, 5, 3, 0}, {0x7000, 9, 1, 0}}};

	refused(PF_SHIM_LISTED, &list, 4);
	refused(PF_SHIM_LISTED, &list, sizeof list - 1);
	refused(PF_SHIM_LISTED, &list, sizeof list - sizeof list.runs[0]);
	list.listed.n_runs = UINT32_MAX;
	refused(PF_SHIM_LISTED, &list, sizeof list);
	list = (List){{.n_runs = 2}, {{0x1000, 5, 3, 0}, {0x7001, 9, 1, 0}}};
	refused(PF_SHIM_LISTED, &list, sizeof list);
	list = (List){{.n_runs = 2}, {{0x1000, 5, 3, 0}, {0x7000, 9, 0, 0}}};
	refused(PF_SHIM_LISTED, &list, sizeof list);
	list = (List){{.n_runs = 2}, {{UINT64_MAX & ~0xfffull, 5, 2, 0}, {0x7000, 9, 1, 0}}};
	refused(PF_SHIM_LISTED, &list, sizeof list);
	list = (List){{.n_runs = 2}, {{0x1000, UINT64_MAX, 2, 0}, {0x7000, 9, 1, 0}}};
	refused(PF_SHIM_LISTED, &list, sizeof list);
	/* What says nothing comes no nearer to an end. */
	list = (List){{.more = 1, .n_runs = 0}, {{0}}};
	refused(PF_SHIM_LISTED, &list, sizeof list.listed);
	refused(PF_SHIM_LOST, NULL, 0);
	/* Without a descriptor it returns nothing. */
	refused(PF_SHIM_STORE_RETURN, bytes, sizeof(PfShimStore));
	refused(0, NULL, 0);
	refused(PF_SHIM_FUSE, bytes, sizeof(PfShimRun)); /* an order, not an answer */
	refused(PF_SHIM_HELLO, bytes, sizeof(PfShimHello) - 1);
	refused(PF_SHIM_READY, bytes, sizeof(PfShimReady) + 1);
	refused(PF_SHIM_STATE, bytes, 0);
	refused(PF_SHIM_RELEASED, bytes, 1);
	refused(PF_SHIM_STORE_RETURN, bytes, 3);
	refused(PF_SHIM_CAPTURED, bad_result, sizeof bad_result);
	refused(PF_SHIM_FUSED, bad_result, sizeof bad_result);
	refused(PF_SHIM_LOST, bytes, sizeof lost - 1);
	refused(PF_SHIM_LOST, &(PfShimLost){.hva = 0x1000}, sizeof lost);
	refused(PF_SHIM_LOST, &(PfShimLost){.hva = 0x1001, .n_pages = 1}, sizeof lost);
	refused(PF_SHIM_LOST, &(PfShimLost){.hva = 0x1000, .n_pages = 1, .loss = PF_SHIM_N_LOSSES},
		sizeof lost);
	refused(PF_SHIM_LOST, &(PfShimLost){.hva = UINT64_MAX & ~0xfffull, .n_pages = 2},
		sizeof lost);
	refused(PF_SHIM_LOST, &(PfShimLost){.hva = 0x1000, .n_pages = 2, .frame = UINT64_MAX},
		sizeof lost);
}

static void refused_header(PfShimHeader header, size_t size)
{
	Pair *pair = new_pair();
	uint8_t bytes[64] = {0};

	say_raw(pair->peer, header, bytes, size, -1);
	settle();
	assert_int_equal(pair->heard.closed, 1);
	assert_int_equal(pair->heard.released, 0);
	free_pair(pair);
}

static void test_refused_headers(void **unused)
{
	const PfShimHeader good = {.magic = PF_SHIM_MAGIC, .type = PF_SHIM_RELEASED};
	PfShimHeader bad = good;
	Pair *pair = new_pair();

	bad.magic++;
	refused_header(bad, 0);
	bad = good;
	bad.length = sizeof good + 1;
	refused_header(bad, 0);
	bad = good;
	bad.n_fds = 1;
	refused_header(bad, 0);
	/* Less than a header. */
	assert_int_equal(send(pair->peer, &good, 5, MSG_NOSIGNAL), 5);
	settle();
	assert_int_equal(pair->heard.closed, 1);
	free_pair(pair);
}

/* The pipe ends once every descriptor of its other end is closed, which another thread does. */
static void expect_closed(int reader)
{
	struct pollfd p = {.fd = reader, .events = POLLIN};

	assert_int_equal(poll(&p, 1, 30000), 1);
	assert_true(p.revents & POLLHUP);
	close(reader);
}

static void test_store_is_memory(void **unused)
{
	Pair *pair = new_pair();
	PfShimHeader header = {.magic = PF_SHIM_MAGIC, .type = PF_SHIM_STORE_RETURN, .n_fds = 1};
	PfShimStore store = {0};
	int memory = memfd_create("store", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	say_raw(pair->peer, header, &store, sizeof store, memory);
	close(memory);
	settle();
	assert_int_equal(pair->heard.closed, 0);
	assert_int_equal(pair->heard.memory, 1);
	free_pair(pair);
}

static void test_descriptors_are_closed(void **unused)
{
	Pair *pair = new_pair();
	PfShimHeader header = {.magic = PF_SHIM_MAGIC, .type = PF_SHIM_STORE_RETURN, .n_fds = 1};
	PfShimStore store = {0};
	int announced[2], unannounced[2];

	assert_int_equal(pipe2(announced, O_CLOEXEC), 0);
	assert_int_equal(pipe2(unannounced, O_CLOEXEC), 0);
	for (int i = 0; i < 10; i++)
		say_raw(pair->peer, header, &store, sizeof store, announced[1]);
	settle();
	assert_int_equal(pair->heard.closed, 0);
	assert_int_equal(pair->heard.returned, 10);
	assert_int_equal(pair->heard.memory, 0);
	close(announced[1]);
	expect_closed(announced[0]);
	/* One that was not announced ends the connection, and is closed too. */
	header.n_fds = 0;
	say_raw(pair->peer, header, &store, sizeof store, unannounced[1]);
	settle();
	assert_int_equal(pair->heard.closed, 1);
	close(unannounced[1]);
	expect_closed(unannounced[0]);
	free_pair(pair);
}

/* Nothing is read of a peer as long as too many descriptors that it has sent are not closed. */
static void test_descriptors_that_stay_open(void **unused)
{
	PfCloser *closer = pf_closer_new();
	PfShimState state = {0};
	SlowFile file;
	Pair *pair;

	if (!slow_file_open(&file))
		skip();
	pair = new_pair_with(NULL, closer);
	pf_closer_close(closer, file.fd);
	for (unsigned i = 0; i < PF_RECEIVED_FDS_MAX_PENDING; i++)
		pf_closer_close(closer, dup(STDERR_FILENO));
	say(pair, PF_SHIM_STATE, 0, &state, sizeof state);
	assert_int_equal(pair->heard.state, 0);
	slow_file_let(&file);
	while (pair->heard.state == 0)
		g_main_context_iteration(NULL, TRUE);
	assert_int_equal(pair->heard.closed, 0);
	free_pair(pair);
	pf_closer_free(closer);
	slow_file_end(&file);
}

/* Only a store comes with a message; what a foreign version sends beside the frozen ones is passed over. */
static void test_descriptor_too_many(void **unused)
{
	Pair *pair = new_pair(), *foreign = new_pair();
	PfShimHeader header = {.magic = PF_SHIM_MAGIC, .type = PF_SHIM_RELEASED, .n_fds = 1};
	int ends[2];

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	pf_shim_link_only_frozen(foreign->link);
	say_raw(foreign->peer, header, NULL, 0, ends[1]);
	say_raw(pair->peer, header, NULL, 0, ends[1]);
	settle();
	assert_int_equal(pair->heard.closed, 1);
	assert_int_equal(pair->heard.released, 0);
	assert_int_equal(foreign->heard.closed, 0);
	close(ends[1]);
	expect_closed(ends[0]);
	free_pair(pair);
	free_pair(foreign);
}

static void test_end_of_connection(void **unused)
{
	Pair *pair = new_pair();

	shutdown(pair->peer, SHUT_RDWR);
	settle();
	assert_int_equal(pair->heard.closed, 1);
	settle();
	assert_int_equal(pair->heard.closed, 1);
	free_pair(pair);
}

/* It has ended with an order unread: what it has said before is heard. */
static void test_last_words(void **unused)
{
	Pair *pair = new_pair();
	PfShimHeader header = {.magic = PF_SHIM_MAGIC, .type = PF_SHIM_RELEASED};

	pf_shim_link_send(pair->link, PF_SHIM_LIST, 1, NULL, 0, -1);
	say_raw(pair->peer, header, NULL, 0, -1);
	close(pair->peer);
	pair->peer = -1;
	settle();
	assert_int_equal(pair->heard.released, 1);
	assert_int_equal(pair->heard.closed, 1);
	free_pair(pair);
}

static void test_closing_in_an_event(void **unused)
{
	Pair *pair = new_pair();
	PfShimHello hello = {.page_size = PF_PAGE_SIZE};
	PfShimHeader header = {.magic = PF_SHIM_MAGIC, .type = PF_SHIM_HELLO};

	pair->heard.close_in_event = true;
	say_raw(pair->peer, header, &hello, sizeof hello, -1);
	say_raw(pair->peer, header, &hello, sizeof hello, -1);
	settle();
	assert_int_equal(pair->heard.hello, 1);
	assert_int_equal(pair->heard.closed, 1);
	free_pair(pair);
}

static void test_send(void **unused)
{
	Pair *pair = new_pair();
	PfShimRun run = {.hva = 0x5000, .frame = 3, .n_pages = 4}, heard;
	PfShimHeader header;
	struct iovec parts[] = {{&header, sizeof header}, {&heard, sizeof heard}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

	pf_shim_link_send(pair->link, PF_SHIM_FUSE, 77, &run, sizeof run, -1);
	assert_int_equal(recvmsg(pair->peer, &message, 0), sizeof header + sizeof run);
	assert_int_equal(header.magic, PF_SHIM_MAGIC);
	assert_int_equal(header.type, PF_SHIM_FUSE);
	assert_int_equal(header.length, sizeof header + sizeof run);
	assert_int_equal(header.id, 77);
	assert_memory_equal(&heard, &run, sizeof run);
	free_pair(pair);
}

/* A shim that does not read is dropped: the service never waits for it. */
static void test_send_to_one_that_does_not_read(void **unused)
{
	static uint8_t bytes[PF_SHIM_MAX_MESSAGE - sizeof(PfShimHeader)];
	Pair *pair = new_pair();

	for (int i = 0; i < 1000; i++)
		pf_shim_link_send(pair->link, PF_SHIM_FUSE, 1, bytes, sizeof bytes, -1);
	settle();
	assert_int_equal(pair->heard.closed, 1);
	free_pair(pair);
}

static const PfPolicy policy = {.bytes_per_s = 1, .hints_per_s = 1, .cpu_percent = 1};

static void use_up(PfQuota *quota)
{
	pf_quota_spend(quota, 0, 0, 85000, g_get_monotonic_time());
}

/* A link whose VM has used up its time, and more: the next message is its last for half a second. */
static Pair *new_paced_pair(PfQuota *quota)
{
	Pair *pair;

	pf_quota_init(quota, &policy, g_get_monotonic_time());
	pair = new_pair_with(quota, NULL);
	use_up(quota);
	say(pair, PF_SHIM_RELEASED, 1, NULL, 0);
	assert_int_equal(pair->heard.released, 1);
	return pair;
}

static void test_pause(void **unused)
{
	gint64 begin = g_get_monotonic_time();
	PfQuota quota;
	Pair *pair = new_paced_pair(&quota);

	assert_false(pf_shim_link_has_unread(pair->link));
	for (uint64_t id = 2; id < 10; id++)
		say(pair, PF_SHIM_RELEASED, id, NULL, 0);
	assert_int_equal(pair->heard.released, 1);
	assert_true(pf_shim_link_has_unread(pair->link));
	/* Nothing is lost by it. */
	while (pair->heard.released < 9 && g_get_monotonic_time() - begin < 20 * G_USEC_PER_SEC)
		g_main_context_iteration(NULL, TRUE);
	assert_int_equal(pair->heard.id, 9);
	assert_in_range(g_get_monotonic_time() - begin, G_USEC_PER_SEC / 3, 20 * G_USEC_PER_SEC);
	free_pair(pair);
}

/* It is looked at after each message, not after a turn of them. */
static void test_pause_in_a_turn(void **unused)
{
	const PfShimHeader header = {.magic = PF_SHIM_MAGIC, .type = PF_SHIM_RELEASED};
	PfQuota quota;
	Pair *pair;

	pf_quota_init(&quota, &policy, g_get_monotonic_time());
	pair = new_pair_with(&quota, NULL);
	use_up(&quota);
	for (unsigned i = 0; i < 8; i++)
		say_raw(pair->peer, header, NULL, 0, -1);
	settle();
	assert_int_equal(pair->heard.released, 1);
	free_pair(pair);
}

/* Another connection does not begin anew. */
static void test_debt_of_an_earlier_connection(void **unused)
{
	PfQuota quota;
	Pair *pair;

	pf_quota_init(&quota, &policy, g_get_monotonic_time());
	use_up(&quota);
	pair = new_pair_with(&quota, NULL);
	say(pair, PF_SHIM_RELEASED, 1, NULL, 0);
	assert_int_equal(pair->heard.released, 0);
	assert_true(pf_shim_link_has_unread(pair->link));
	while (pair->heard.released == 0)
		g_main_context_iteration(NULL, TRUE);
	free_pair(pair);
}

static void test_end_in_a_pause(void **unused)
{
	PfQuota quota;
	Pair *pair = new_paced_pair(&quota);

	pf_shim_link_close(pair->link, "the test wants it");
	settle();
	assert_int_equal(pair->heard.closed, 1);
	assert_null(g_main_context_find_source_by_user_data(NULL, pair->link));
	free_pair(pair);
	pair = new_paced_pair(&quota);
	pf_shim_link_free(pair->link);
	assert_null(g_main_context_find_source_by_user_data(NULL, pair->link));
	close(pair->peer);
	g_free(pair);
}

static void test_peer(void **unused)
{
	Pair *pair = new_pair();

	assert_int_equal(pf_shim_link_pid(pair->link), getpid());
	assert_int_equal(pf_shim_link_uid(pair->link), geteuid());
	free_pair(pair);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_valid),
		cmocka_unit_test(test_listed),
		cmocka_unit_test(test_only_frozen),
		cmocka_unit_test(test_refused_payloads),
		cmocka_unit_test(test_refused_headers),
		cmocka_unit_test(test_store_is_memory),
		cmocka_unit_test(test_descriptors_are_closed),
		cmocka_unit_test(test_descriptors_that_stay_open),
		cmocka_unit_test(test_descriptor_too_many),
		cmocka_unit_test(test_end_of_connection),
		cmocka_unit_test(test_last_words),
		cmocka_unit_test(test_closing_in_an_event),
		cmocka_unit_test(test_send),
		cmocka_unit_test(test_send_to_one_that_does_not_read),
		cmocka_unit_test(test_pause),
		cmocka_unit_test(test_pause_in_a_turn),
		cmocka_unit_test(test_debt_of_an_earlier_connection),
		cmocka_unit_test(test_end_in_a_pause),
		cmocka_unit_test(test_peer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
