/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is tried again after pauses that grow, by a clock that the test turns: hints that a quota has refused, and captures
 * of a shim that did not answer; and the reasons that quotas give. A test that waits for ever is ended by an alarm.
 */
#include "service_rig.h"
#include "host-service/service/vm.h"
#include "tests/fuzz/hostile_qemu.h"
#include "tests/fuzz/vm_clock.h"
#include "tests/vmm/toy_guest.h"
#include <signal.h>

#define STEP_S        10u
#define TEST_S        60
#define RAM_PAGES     512u /* in each of its two ranges */
#define CANDIDATES    768u /* that its quota allows */
#define TOO_MANY      800u
#define HIGH          0x1000u
#define ANSWER_S      (PF_VM_ANSWER_MS / 1000)
#define HOUR_S        3600u
#define LONGER_THAN_S (2 * HOUR_S)

static const ToyGuestRange ram[] = {{{0}, RAM_PAGES}, {{HIGH}, RAM_PAGES}};

typedef struct Timed {
	Rig *rig;
	ToyGuest *agent;
	char *channel;
	int shim;
	uint64_t session; /* the newest that was seen */
} Timed;

/* When the VM's captures were stopped, and went on. */
static int64_t stopped_us, resumed_us;

void __wrap_pf_fusion_set_capturing(PfFusionVm *vm, bool allowed);
void __real_pf_fusion_set_capturing(PfFusionVm *vm, bool allowed);

void __wrap_pf_fusion_set_capturing(PfFusionVm *vm, bool allowed)
{
	*(allowed ? &resumed_us : &stopped_us) = vm_clock_now_us();
	__real_pf_fusion_set_capturing(vm, allowed);
}

void broken_rule(const char *what, const char *file, int line)
{
	print_error("%s:%d: %s\n", file, line, what);
	abort();
}

static int set_up_timed(void **state, const char *config)
{
	Timed *timed = g_new0(Timed, 1);
	void *rig;

	signal(SIGPIPE, SIG_IGN);
	alarm(TEST_S);
	vm_clock_init(NOBODY);
	stopped_us = resumed_us = 0;
	set_up_configured(&rig, 0, config);
	timed->rig = rig;
	timed->channel = g_build_filename(timed->rig->dir, "channel", NULL);
	timed->agent = toy_guest_new(timed->channel, ram, G_N_ELEMENTS(ram));
	assert_non_null(timed->agent);
	timed->shim = -1;
	*state = timed;
	return 0;
}

static int set_up_default(void **state)
{
	return set_up_timed(state, "");
}

static int set_up_eager(void **state)
{
	return set_up_timed(state, "[defaults]\nadmission = any\n");
}

static int set_up_few_frames(void **state)
{
	return set_up_timed(state, "[defaults]\nadmission = any\nframes-percent = 1\n");
}

static int set_up_little_memory(void **state)
{
	return set_up_timed(state, "[defaults]\nindex-memory-percent = 1\n");
}

static int tear_down_timed(void **state)
{
	Timed *timed = *state;
	void *rig = timed->rig;

	g_unlink(timed->channel);
	tear_down(&rig);
	vm_clock_deinit();
	toy_guest_free(timed->agent);
	if (timed->shim >= 0)
		close(timed->shim);
	g_free(timed->channel);
	g_free(timed);
	alarm(0);
	return 0;
}

/* Everything that was sent is read. */
static void settle(const Timed *timed)
{
	do
		toy_guest_handle(timed->agent);
	while (g_main_context_iteration(NULL, FALSE));
}

static void pass(const Timed *timed, unsigned seconds)
{
	vm_clock_pass(seconds * G_USEC_PER_SEC);
	settle(timed);
}

static gboolean is_asked(void *userdata)
{
	const Timed *timed = userdata;

	toy_guest_handle(timed->agent);
	return is_readable(&timed->rig->fd);
}

static void open_channel(const Timed *timed)
{
	PfBrokerRequest request = fake_broker_next(timed->rig->fd, PF_BROKER_OPEN_CHANNEL);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	g_strlcpy(address.sun_path, timed->channel, sizeof address.sun_path);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
	fake_broker_answer(timed->rig->fd, &request, fd);
}

static void locate(Timed *timed)
{
	PfBrokerMessage answer = {.type = PF_BROKER_ANSWER, .error = -1, .n_hvas = 2};
	PfBrokerRequest request;

	turn_until(is_asked, timed);
	request = fake_broker_next(timed->rig->fd, PF_BROKER_TRANSLATE);
	answer.id = request.id;
	answer.body.hvas[0].v = 0x4000000;
	answer.body.hvas[1].v = 0x8000000;
	fake_broker_send(timed->rig->fd, &answer, -1);
	settle(timed);
}

/* The shim is ready, the guest has a session, and the service looks after it now and then. */
static void start(Timed *timed)
{
	PfBrokerMessage event = {.type = PF_BROKER_CONNECTED, .error = -1};
	PfBrokerRequest device;

	timed->shim = converse(timed->rig, READY, &device);
	fake_broker_send(timed->rig->fd, &event, -1);
	g_strlcpy(timed->rig->domain.channel, timed->channel, sizeof timed->rig->domain.channel);
	fake_broker_domain(timed->rig->fd, &timed->rig->domain);
	open_channel(timed);
	locate(timed);
	pass(timed, STEP_S);
	timed->session = toy_guest_session(timed->agent);
	assert_true(timed->session != 0);
}

static void hint(const Timed *timed, unsigned first, unsigned n)
{
	PfDigest digests[TOO_MANY] = {0};
	unsigned n_low = first < RAM_PAGES ? MIN(n, RAM_PAGES - first) : 0;
	ToyGuestRun runs[2] = {{first, {first}, digests, n_low},
		{first + n_low, {HIGH + first + n_low - RAM_PAGES}, digests + n_low, n - n_low}};

	for (unsigned i = 0; i < n; i++)
		memcpy(&digests[i], (unsigned[]){first + i}, sizeof first);
	if (n_low > 0)
		assert_true(toy_guest_hints(timed->agent, 1, &runs[0], 1));
	if (n > n_low)
		assert_true(toy_guest_hints(timed->agent, 1, &runs[1], 1));
	settle(timed);
}

static void begin_report(const Timed *timed, unsigned n)
{
	assert_true(toy_guest_module(timed->agent, 1, "libtoy.so", TOO_MANY));
	hint(timed, 0, n);
}

static void end_report(const Timed *timed)
{
	assert_true(toy_guest_end_report(timed->agent));
	settle(timed);
}

static void copy_over_quota(const PfVmView *view, void *userdata)
{
	*(uint64_t *)userdata = view->figures.stats.over_quota;
}

static uint64_t n_refused(const Timed *timed)
{
	uint64_t n = 0;

	assert_true(pf_service_visit_vm(timed->rig->service, "toy", copy_over_quota, &n));
	return n;
}

static void report_too_many(const Timed *timed)
{
	begin_report(timed, TOO_MANY);
	end_report(timed);
}

/* As many, of which none is refused. */
static void report_in_parts(const Timed *timed)
{
	uint64_t before = n_refused(timed);

	begin_report(timed, RAM_PAGES);
	assert_true(toy_guest_withdraw(timed->agent, 1, 0, RAM_PAGES));
	hint(timed, RAM_PAGES, TOO_MANY - RAM_PAGES);
	end_report(timed);
	assert_int_equal(n_refused(timed), before);
}

/* Seconds until a new session begins, at most so many and a step. */
static unsigned wait_for_session(Timed *timed, unsigned most)
{
	unsigned seconds = 0;

	do {
		pass(timed, STEP_S);
		seconds += STEP_S;
	} while (toy_guest_session(timed->agent) == timed->session && seconds <= most);
	timed->session = toy_guest_session(timed->agent);
	return seconds;
}

static void expect_no_session(Timed *timed, unsigned seconds)
{
	assert_true(wait_for_session(timed, seconds) > seconds);
}

/* Refused hints */

static void test_refused_hints_are_asked_for(void **state)
{
	Timed *timed = *state;

	start(timed);
	begin_report(timed, TOO_MANY);
	end_report(timed);
	assert_int_equal(n_refused(timed), TOO_MANY - CANDIDATES);
	wait_for_reason(timed->rig,
		"names more pages that are not shared than its trust group, "
		"default, allows: raise candidates-percent in pagefusiond.conf");
	assert_int_equal(wait_for_session(timed, HOUR_S), STEP_S);
	/* This time there is room for all. */
	begin_report(timed, CANDIDATES);
	end_report(timed);
	assert_int_equal(n_refused(timed), TOO_MANY - CANDIDATES);
	expect_no_session(timed, LONGER_THAN_S);
}

/* The times are the same whether something is refused or nothing: else they would tell what was fused. */
static void test_pauses_between_sessions(void **state)
{
	static const unsigned pauses[] = {60, 120, 240, 480, 960, 1920, HOUR_S, HOUR_S};
	Timed *timed = *state;

	start(timed);
	report_too_many(timed);
	assert_int_equal(wait_for_session(timed, HOUR_S), STEP_S);
	for (size_t i = 0; i < G_N_ELEMENTS(pauses); i++) {
		if (i % 2 == 0)
			report_too_many(timed);
		else
			report_in_parts(timed);
		assert_int_equal(wait_for_session(timed, LONGER_THAN_S), pauses[i]);
	}
	/* Less; so the next that is too many is asked for as at first. */
	begin_report(timed, CANDIDATES);
	end_report(timed);
	expect_no_session(timed, HOUR_S);
	hint(timed, CANDIDATES, 1);
	assert_int_equal(wait_for_session(timed, HOUR_S), STEP_S);
	report_too_many(timed);
	assert_int_equal(wait_for_session(timed, HOUR_S), 60);
}

/* The agent begins anew by itself. */
static void knock(Timed *timed)
{
	assert_true(toy_guest_knock(timed->agent));
	settle(timed);
	assert_true(toy_guest_session(timed->agent) != timed->session);
	timed->session = toy_guest_session(timed->agent);
}

static void test_nobody_is_interrupted(void **state)
{
	Timed *timed = *state;

	start(timed);
	begin_report(timed, 10);
	end_report(timed);
	knock(timed);
	begin_report(timed, TOO_MANY);
	expect_no_session(timed, LONGER_THAN_S);
	/* Each session counts for itself. */
	knock(timed);
	begin_report(timed, 10);
	end_report(timed);
	expect_no_session(timed, LONGER_THAN_S);
	hint(timed, 10, TOO_MANY - 10);
	assert_int_equal(wait_for_session(timed, HOUR_S), STEP_S);
}

/* The channel is closed in another thread. */
static gboolean is_closed(void *userdata)
{
	const Timed *timed = userdata;

	toy_guest_handle(timed->agent);
	return toy_guest_session(timed->agent) == 0;
}

/* Nobody listens to a VM that is not to be fused, so it is not troubled either. */
static void test_refused_vm(void **state)
{
	Timed *timed = *state;

	start(timed);
	report_too_many(timed);
	strcpy(timed->rig->domain.refusal, "a device was plugged in");
	fake_broker_domain(timed->rig->fd, &timed->rig->domain);
	turn_until(is_closed, timed);
	timed->session = 0;
	expect_no_session(timed, LONGER_THAN_S);
	assert_false(is_readable(&timed->rig->fd));
	timed->rig->domain.refusal[0] = 0;
	fake_broker_domain(timed->rig->fd, &timed->rig->domain);
	open_channel(timed);
	assert_int_equal(wait_for_session(timed, HOUR_S), STEP_S);
}

/* Captures */

static void expect_pause(unsigned seconds)
{
	assert_int_equal((resumed_us - stopped_us) / G_USEC_PER_SEC, seconds);
}

/* It has been asked for a capture, and does not answer. */
static void be_silent(Timed *timed)
{
	Heard end;
	int64_t begin = vm_clock_now_us();

	pass(timed, ANSWER_S);
	assert_true(stopped_us >= begin);
	end = hear(timed->shim);
	assert_int_equal(end.type, 0);
	close(timed->shim);
	timed->shim = -1;
}

/* Until it is counted on again. */
static void wait_for_captures(const Timed *timed)
{
	for (unsigned i = 0; resumed_us < stopped_us && i < LONGER_THAN_S / STEP_S; i++)
		pass(timed, STEP_S);
}

static void come_back(Timed *timed)
{
	PfBrokerRequest device;

	timed->shim = converse(timed->rig, READY, &device);
	settle(timed);
}

static void answer_capture(const Timed *timed)
{
	const uint8_t busy = PF_SHIM_BUSY;

	say(timed->shim, PF_SHIM_CAPTURED, expect(timed->shim, PF_SHIM_CAPTURE).id, &busy, 1);
	settle(timed);
}

static void test_pauses_between_captures(void **state)
{
	static const unsigned pauses[] = {60, 120, 240, 480, 960, 1920, HOUR_S, HOUR_S};
	Timed *timed = *state;

	start(timed);
	begin_report(timed, 1);
	for (size_t i = 0; i < G_N_ELEMENTS(pauses); i++) {
		expect(timed->shim, PF_SHIM_CAPTURE);
		be_silent(timed);
		wait_for_captures(timed);
		expect_pause(pauses[i]);
		come_back(timed);
	}
	/* One that it answers, and the next is as the first. */
	answer_capture(timed);
	pass(timed, STEP_S);
	expect(timed->shim, PF_SHIM_CAPTURE);
	be_silent(timed);
	/* In the pause it is asked because there is nobody else; that makes nothing good. */
	come_back(timed);
	assert_false(is_readable(&timed->shim));
	pass(timed, STEP_S);
	answer_capture(timed);
	close(timed->shim);
	wait_for_captures(timed);
	expect_pause(60);
	come_back(timed);
	expect(timed->shim, PF_SHIM_CAPTURE);
	be_silent(timed);
	wait_for_captures(timed);
	expect_pause(120);
}

/* Answered after so long, with nothing: for how long it is not asked then; 0: for no time. */
static void check_answer(Timed *timed, unsigned page, unsigned seconds, unsigned pause)
{
	const uint8_t different = PF_SHIM_DIFFERENT;
	Heard capture;

	hint(timed, page, 1);
	capture = expect(timed->shim, PF_SHIM_CAPTURE);
	stopped_us = resumed_us = 0;
	pass(timed, seconds);
	say(timed->shim, PF_SHIM_CAPTURED, capture.id, &different, 1);
	settle(timed);
	assert_int_equal(stopped_us > 0, pause > 0);
	if (pause == 0)
		return;
	for (unsigned i = 0; i < pause / STEP_S; i++)
		pass(timed, STEP_S);
	expect_pause(pause);
}

/* Late is nearly as bad as never. */
static void test_late_answers(void **state)
{
	Timed *timed = *state;

	start(timed);
	begin_report(timed, 0);
	check_answer(timed, 0, 0, 0);
	check_answer(timed, 1, 2, 60);
	check_answer(timed, 2, 11, 120);
	check_answer(timed, 3, 0, 0);
	check_answer(timed, 4, 2, 60);
}

/* Why */

static void expect_reason(const Timed *timed, const char *what, const char *keys)
{
	g_autofree char *reason = g_strdup_printf(
		"its guest %s than its trust group, default, allows: raise %s in pagefusiond.conf",
		what, keys);

	wait_for_reason(timed->rig, reason);
}

static void test_no_candidates_left(void **state)
{
	Timed *timed = *state;

	start(timed);
	begin_report(timed, CANDIDATES);
	expect_reason(timed, "names more pages that are not shared", "candidates-percent");
}

static void test_no_frames_left(void **state)
{
	Timed *timed = *state;

	start(timed);
	begin_report(timed, RAM_PAGES);
	expect(timed->shim, PF_SHIM_CAPTURE);
	expect_reason(timed, "could give more pages to share", "frames-percent");
}

static void test_no_memory_left(void **state)
{
	Timed *timed = *state;

	start(timed);
	begin_report(timed, RAM_PAGES);
	expect_reason(timed, "needs more of the service's memory",
		"index-memory-percent (or memory-limit, for all VMs together)");
}

int main(void)
{
#define TEST(test, set_up) cmocka_unit_test_setup_teardown(test, set_up, tear_down_timed)
	const struct CMUnitTest tests[] = {
		TEST(test_refused_hints_are_asked_for, set_up_default),
		TEST(test_pauses_between_sessions, set_up_default),
		TEST(test_nobody_is_interrupted, set_up_default),
		TEST(test_refused_vm, set_up_default),
		TEST(test_pauses_between_captures, set_up_eager),
		TEST(test_late_answers, set_up_eager),
		TEST(test_no_candidates_left, set_up_default),
		TEST(test_no_frames_left, set_up_few_frames),
		TEST(test_no_memory_left, set_up_little_memory),
	};
#undef TEST

	return cmocka_run_group_tests(tests, NULL, NULL);
}
