/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A QEMU that says enough to be never silent, and not what others wait for: answers out of order or late, a list without
 * end, one message again and again. Nobody else is held up by it for long.
 */
#include "tests/security/honest.h"
#include "tests/security/hostile.h"
#include "common/page.h"
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define ANSWER_MS 1500u
#define HOLD_MS   1200u
#define COPIES    14u /* of each honest page, in low RAM */
#define MORE      600u
#define N_MORE    16u
#define LIST_MS   (2 * ANSWER_MS)

static int set_up(void **state)
{
	*state = lab_new_impatient(ANSWER_MS);
	return 0;
}

static int tear_down(void **state)
{
	lab_free(*state);
	return 0;
}

static void answer_all(const HostileShim *shim, const HostileMessage *order, PfShimType type,
	uint32_t n_pages, PfShimResult result)
{
	uint8_t results[PF_SHIM_MAX_RUNS];

	assert_true(n_pages <= sizeof(results));
	memset(results, (int)result, n_pages);
	assert_true(hostile_say(shim->fd, type, order->header.id, results, n_pages, -1, 0));
}

static uint32_t fuse_pages(const HostileMessage *order)
{
	const PfShimRun *runs = (const PfShimRun *)order->data;
	uint32_t n = 0;

	for (size_t i = 0; i < order->size / sizeof(*runs); i++)
		n += runs[i].n_pages;
	return n;
}

/* It holds pages that only it can give, and others that it can map: it is asked for both. */
static void ask_for_both(Lab *lab, HostileShim *shim, HostileMessage *capture, HostileMessage *fuse)
{
	LabVm *helpless, *vm;

	honest_expect_two_share(lab);
	helpless = hostile_start(lab, "helpless", "default");
	vm = hostile_start(lab, "hostile", "default");
	hostile_get_ready(vm, -1, shim);
	for (unsigned i = 0; i < 2; i++) {
		LabVm *each = i == 0 ? helpless : vm;

		lab_ok(each, "fill %u %u 42", MORE, N_MORE);
		lab_ok(each, "module 2 libmore.so %u", N_MORE);
		lab_ok(each, "hint 2 0 %u %u", MORE, N_MORE);
	}
	hostile_expect(lab, shim->fd, PF_SHIM_CAPTURE, capture);
	lab_ok(vm, "fill %u %u %u", HONEST_FIRST, HONEST_PAGES, HONEST_SEED);
	honest_report(vm);
	hostile_expect(lab, shim->fd, PF_SHIM_FUSE, fuse);
}

static void test_answers_out_of_order(void **state)
{
	static HostileMessage capture, fuse;
	HostileShim shim;

	ask_for_both(*state, &shim, &capture, &fuse);
	answer_all(&shim, &fuse, PF_SHIM_FUSED, fuse_pages(&fuse), PF_SHIM_BUSY);
	hostile_expect_end(*state, shim.fd, "the second order is answered first");
	hostile_close(&shim);
}

static void test_answers_in_order(void **state)
{
	static HostileMessage capture, fuse;
	HostileShim shim;

	ask_for_both(*state, &shim, &capture, &fuse);
	answer_all(&shim, &capture, PF_SHIM_CAPTURED, N_MORE, PF_SHIM_DIFFERENT);
	answer_all(&shim, &fuse, PF_SHIM_FUSED, fuse_pages(&fuse), PF_SHIM_DIFFERENT);
	lab_turn(*state, ANSWER_MS / 2);
	hostile_expect_silence(shim.fd);
	hostile_close(&shim);
}

/* Answers late */

static void hint_copies(LabVm *vm)
{
	for (unsigned i = 0; i < COPIES; i++) {
		lab_ok(vm, "fill %u %u %u", i * HONEST_PAGES, HONEST_PAGES, HONEST_SEED);
		lab_ok(vm, "module %u lib%u.so %u", i + 1, i, HONEST_PAGES);
		lab_ok(vm, "hint %u 0 %u %u", i + 1, i * HONEST_PAGES, HONEST_PAGES);
	}
}

typedef struct Late {
	Lab *lab;
	HostileShim *shim;
	HostileMessage message;
	bool owes;
	gint64 due_us;
} Late;

/* One turn of a shim that answers each capture in the last moment, with nothing. */
static bool answer_late(void *userdata)
{
	Late *late = userdata;
	struct pollfd event = {late->shim->fd, POLLIN, 0};
	gint64 now_us = g_get_monotonic_time();

	if (!late->owes && poll(&event, 1, 0) > 0) {
		assert_true(hostile_hear(late->lab, late->shim->fd, &late->message));
		late->owes = late->message.header.type == PF_SHIM_CAPTURE;
		late->due_us = now_us + HOLD_MS * 1000;
	}
	if (late->owes && now_us >= late->due_us) {
		answer_all(late->shim, &late->message, PF_SHIM_CAPTURED,
			(uint32_t)(late->message.size / sizeof(PfShimCapture)), PF_SHIM_BUSY);
		late->owes = false;
	}
	return honest_stats(late->lab).shared >= HONEST_PAGES;
}

static bool is_asked(void *userdata)
{
	Late *late = userdata;

	answer_late(userdata);
	return late->owes;
}

static void test_answers_late(void **state)
{
	static Late late;
	Lab *lab = *state;
	LabVm *vm = hostile_start(lab, "hostile", "default"),
	      *helpless = hostile_start(lab, "helpless", "default"),
	      *a = honest_start(lab, "a", "default"), *b = honest_start(lab, "b", "default");
	HostileShim shim;

	late = (Late){.lab = lab, .shim = &shim};
	hostile_get_ready(vm, -1, &shim);
	hint_copies(vm);
	lab_ok(helpless, "fill %u %u %u", HONEST_FIRST, HONEST_PAGES, HONEST_SEED);
	honest_report(helpless);
	assert_true(lab_wait(lab, is_asked, &late));
	honest_report(a);
	honest_report(b);
	if (!lab_wait(lab, answer_late, &late))
		fail_msg("a shim that answers late holds up the others for ever");
	honest_check(a);
	honest_check(b);
	hostile_close(&shim);
}

/* Lists without end */

/* A connection of a VM that shares, up to LIST. */
static int begin_list(LabVm *vm, int store, HostileMessage *message)
{
	const PfShimStore returned = {0};
	const PfShimReady ready = {.code = PF_SHIM_READY_OK};
	int fd = hostile_connect(vm);

	hostile_hello(fd, PF_SHIM_HAS_STORE, 1);
	assert_true(
		hostile_say(fd, PF_SHIM_STORE_RETURN, 0, &returned, sizeof(returned), store, 1));
	hostile_expect(vm->lab, fd, PF_SHIM_ATTACH, message);
	close(message->fd);
	assert_true(
		hostile_say(fd, PF_SHIM_READY, message->header.id, &ready, sizeof(ready), -1, 0));
	return fd;
}

/* There will be no frame, as nobody needs them. */
static bool has_no_frames(void *userdata)
{
	return honest_stats(userdata).frames == 0;
}

static void forget_all(LabVm *vm)
{
	lab_ok(vm, "discard %u %u", HONEST_FIRST, HONEST_PAGES);
	lab_ok(vm, "module 1 libnew.so %u", HONEST_PAGES);
}

typedef struct Listing {
	int fd;
	uint64_t id;
	gint64 next_us;
} Listing;

/* One page now and then, and always another is to follow. */
static bool list_on(void *userdata)
{
	Listing *listing = userdata;
	struct {
		PfShimListed head;
		PfShimRun run;
	} listed = {{1, 1}, {PF_PAGE_SIZE, 1, 1, 0}};

	if (g_get_monotonic_time() < listing->next_us)
		return false;
	listing->next_us = g_get_monotonic_time() + ANSWER_MS * 1000 / 3;
	return !hostile_say(
		listing->fd, PF_SHIM_LISTED, listing->id, &listed, sizeof(listed), -1, 0);
}

static void test_list_without_end(void **state)
{
	static HostileMessage message;
	Lab *lab = *state;
	LabVm *vm = hostile_start(lab, "hostile", "default"), *a, *b;
	Listing listing = {0};
	HostileShim shim;

	a = honest_start(lab, "a", "default");
	b = honest_start(lab, "b", "default");
	honest_report(a);
	honest_report(b);
	honest_wait_for_shared(lab, HONEST_PAGES);
	hostile_get_ready(vm, -1, &shim);
	listing.fd = begin_list(vm, shim.store, &message);
	hostile_expect(lab, listing.fd, PF_SHIM_LIST, &message);
	listing.id = message.header.id;
	forget_all(a);
	forget_all(b);
	if (!lab_wait(lab, list_on, &listing))
		fail_msg("a list goes on for ever");
	if (!lab_wait(lab, has_no_frames, lab))
		fail_msg("frames that nobody needs are kept for a list");
	close(listing.fd);
	/* The next one has to wait. */
	listing.fd = begin_list(vm, shim.store, &message);
	lab_turn(lab, LIST_MS / 2);
	hostile_expect_silence(listing.fd);
	hostile_expect(lab, listing.fd, PF_SHIM_LIST, &message);
	close(listing.fd);
	hostile_close(&shim);
}

/* It maps nothing, and says so again and again. */
static void test_released_again(void **state)
{
	static HostileMessage message;
	const PfShimHello hello = {.version = PF_SHIM_VERSION + 1,
		.version_oldest = PF_SHIM_VERSION + 1,
		.page_size = PF_PAGE_SIZE};
	Lab *lab = *state;
	LabVm *vm = hostile_start(lab, "hostile", "default");
	int fd = hostile_connect(vm);

	assert_true(hostile_say(fd, PF_SHIM_HELLO, 0, &hello, sizeof(hello), -1, 0));
	hostile_expect(lab, fd, PF_SHIM_RELEASE, &message);
	assert_true(hostile_say(fd, PF_SHIM_RELEASED, message.header.id, NULL, 0, -1, 0));
	/* That was all that it had to say: it may be silent. */
	lab_turn(lab, 2 * ANSWER_MS);
	hostile_expect_silence(fd);
	assert_true(hostile_say(fd, PF_SHIM_RELEASED, message.header.id, NULL, 0, -1, 0));
	hostile_expect_end(lab, fd, "RELEASED, twice");
	close(fd);
}

/* A VM that is not to be fused counts for nobody */

static void refuse(PfDomain *domain)
{
	strcpy(domain->refusal, "a device was plugged in");
}

static bool has_no_candidates(void *userdata)
{
	return honest_stats(userdata).candidates == 0;
}

static bool has_candidates(void *userdata)
{
	return honest_stats(userdata).candidates == HONEST_PAGES;
}

static void test_refused_vm(void **state)
{
	Lab *lab = *state;
	LabVm *refused = honest_start(lab, "refused", "default"),
	      *a = honest_start(lab, "a", "default");

	honest_report(refused);
	assert_true(lab_wait(lab, has_candidates, lab));
	lab_announce_changed(refused, refuse);
	if (!lab_wait(lab, has_no_candidates, lab))
		fail_msg("what a VM has hinted stands though it is refused");
	honest_report(a);
	lab_turn(lab, ANSWER_MS);
	assert_int_equal(honest_stats(lab).frames, 0);
	/* Nobody listens to it. */
	assert_string_not_equal(lab_command(refused, "module 1 libtoy.so %u", HONEST_PAGES), "ok");
	lab_announce_changed(refused, NULL);
	lab_wait_for_session(refused);
	honest_report(refused);
	honest_wait_for_shared(lab, HONEST_PAGES);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_answers_out_of_order),
		TEST(test_answers_in_order),
		TEST(test_answers_late),
		TEST(test_list_without_end),
		TEST(test_released_again),
		TEST(test_refused_vm),
	};
#undef TEST

	if (access("/dev/userfaultfd", F_OK) < 0) {
		fprintf(stderr, "skipped: this kernel has no /dev/userfaultfd\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
