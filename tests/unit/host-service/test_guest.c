/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One guest's channel, session and RAM, with a toy agent and a broker that this file plays. */
#include "host-service/service/guest.h"
#include "common/frame.h"
#include "fake_broker.h"
#include "proto/agent.pb-c.h"
#include "tests/vmm/toy_guest.h"
#include <glib/gstdio.h>
#include <linux/sockios.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/un.h>

static const ToyGuestRange ram[] = {{{0}, 512}, {{0x1000}, 512}};

typedef struct Rig {
	char dir[32];
	char *path;
	int fd; /* the broker's */
	PfBroker *broker;
	PfFusion *fusion;
	PfFusionVm *vm;
	PfGuest *guest;
	PfQuota quota;
	PfLogLimit log;
	ToyGuest *agent;
	PfDomain domain;
	unsigned n_moved;
	const char *reason; /* that a test waits for, a part of it */
} Rig;

static void ignore_domain(void *userdata, const PfDomain *domain)
{
}

static void ignore_gone(void *userdata, const char *uuid)
{
}

static void ignore_libvirt(void *userdata, gboolean connected, const char *reason)
{
}

static void ignore_closed(void *userdata)
{
}

static const PfBrokerEvents broker_events = {
	ignore_domain, ignore_gone, ignore_libvirt, ignore_closed};

static void on_changed(void *userdata)
{
}

static void on_moved(void *userdata)
{
	((Rig *)userdata)->n_moved++;
}

static const PfGuestEvents guest_events = {on_changed, on_moved};

static PfGuest *new_guest(Rig *rig)
{
	return pf_guest_new(
		rig->broker, rig->vm, &rig->domain, &rig->quota, &rig->log, &guest_events, rig);
}

static int set_up(void **state)
{
	Rig *rig = g_new0(Rig, 1);
	int fd;

	signal(SIGPIPE, SIG_IGN);
	strcpy(rig->dir, "/tmp/pf-guest-XXXXXX");
	assert_non_null(g_mkdtemp(rig->dir));
	rig->path = g_build_filename(rig->dir, "channel", NULL);
	rig->agent = toy_guest_new(rig->path, ram, G_N_ELEMENTS(ram));
	assert_non_null(rig->agent);
	rig->fd = fake_broker_start(&fd);
	rig->broker = pf_broker_new(fd, &broker_events, rig);
	rig->fusion = pf_fusion_new(&PF_FUSION_DEFAULTS);
	rig->vm = pf_fusion_add_vm(rig->fusion, "default", NULL);
	rig->domain = fake_domain();
	g_strlcpy(rig->domain.channel, rig->path, sizeof rig->domain.channel);
	pf_quota_init(&rig->quota, &PF_POLICY_DEFAULTS, g_get_monotonic_time());
	pf_log_limit_init(&rig->log, rig->domain.name, g_get_monotonic_time());
	rig->guest = new_guest(rig);
	*state = rig;
	return 0;
}

static int tear_down(void **state)
{
	Rig *rig = *state;

	pf_guest_free(rig->guest);
	pf_fusion_remove_vm(rig->vm);
	pf_fusion_free(rig->fusion);
	pf_broker_free(rig->broker);
	while (g_main_context_iteration(NULL, FALSE))
		;
	close(rig->fd);
	toy_guest_free(rig->agent);
	g_unlink(rig->path);
	g_rmdir(rig->dir);
	g_free(rig->path);
	g_free(rig);
	return 0;
}

static int connect_channel(const Rig *rig)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	g_strlcpy(address.sun_path, rig->path, sizeof address.sun_path);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
	return fd;
}

static gboolean agent_is_heard(void *userdata)
{
	Rig *rig = userdata;

	toy_guest_handle(rig->agent);
	return pf_guest_agent_version(rig->guest)[0] != 0;
}

static gboolean ram_is_asked_for(void *userdata)
{
	Rig *rig = userdata;

	toy_guest_handle(rig->agent);
	return is_readable(&rig->fd);
}

/* The channel opens and the agent says hello. */
static void open_session(Rig *rig)
{
	PfBrokerRequest request;

	pf_guest_update(rig->guest, &rig->domain);
	request = fake_broker_next(rig->fd, PF_BROKER_OPEN_CHANNEL);
	fake_broker_answer(rig->fd, &request, connect_channel(rig));
	turn_until(agent_is_heard, rig);
}

static void answer_hvas(Rig *rig, uint64_t low, uint64_t high)
{
	PfBrokerRequest request = fake_broker_next(rig->fd, PF_BROKER_TRANSLATE);
	PfBrokerMessage answer = {.type = PF_BROKER_ANSWER, .id = request.id, .error = -1};

	assert_int_equal(request.n_ranges, 2);
	answer.n_hvas = 2;
	answer.body.hvas[0].v = low;
	answer.body.hvas[1].v = high;
	fake_broker_send(rig->fd, &answer, -1);
}

static void fail_hvas(Rig *rig)
{
	PfBrokerRequest request = fake_broker_next(rig->fd, PF_BROKER_TRANSLATE);

	fake_broker_fail(rig->fd, &request, G_IO_ERROR_FAILED, "the monitor is busy");
}

static gboolean is_located(void *userdata)
{
	return pf_guest_located(((Rig *)userdata)->guest);
}

static gboolean has_reason(void *userdata)
{
	Rig *rig = userdata;
	const char *reason = pf_guest_reason(rig->guest);

	toy_guest_handle(rig->agent);
	return reason && strstr(reason, rig->reason);
}

static void wait_for_reason(Rig *rig, const char *reason)
{
	rig->reason = reason;
	turn_until(has_reason, rig);
}

static void test_locating_is_tried_again(void **state)
{
	Rig *rig = *state;
	LogCapture log = capture_log();

	open_session(rig);
	fail_hvas(rig);
	wait_for_reason(rig, "cannot be found in QEMU: the monitor is busy");
	fail_hvas(rig);
	/* No range is known: as good as no answer. */
	answer_hvas(rig, 0, 0);
	wait_for_reason(rig, "none of it lies there in one piece");
	assert_false(pf_guest_located(rig->guest));
	assert_int_equal(count_logged(&log, "the monitor is busy"), 1);
	assert_int_equal(count_logged(&log, "in one piece"), 1);
	end_capture(&log);
}

static gboolean asks(void *userdata)
{
	Rig *rig = userdata;

	toy_guest_handle(rig->agent);
	return is_readable(&rig->fd);
}

static void expect_question_after(Rig *rig, gint64 begin, gint64 seconds)
{
	turn_until(asks, rig);
	assert_in_range(
		g_get_monotonic_time() - begin, seconds * G_USEC_PER_SEC * 9 / 10, FAKE_WAIT_US);
}

/* The clock by which states have begun; 0: the real one. */
static gint64 now_us;

gint64 g_get_real_time(void)
{
	struct timespec now;

	if (now_us)
		return now_us;
	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec * G_USEC_PER_SEC + now.tv_nsec / 1000;
}

static void assert_additions(Rig *rig, PfAdditionsState state, guint64 since)
{
	guint64 shown_since;

	assert_int_equal(pf_guest_additions(rig->guest, &shown_since), state);
	assert_int_equal(shown_since, since);
}

static void move_port(Rig *rig, gboolean is_open)
{
	rig->domain.port_open = is_open;
	pf_guest_update(rig->guest, &rig->domain);
}

#define T INT64_C(1800000000)

static void pass_time(gint64 seconds)
{
	now_us += seconds * G_USEC_PER_SEC;
}

/* The agent begins anew; all that is caused by that has happened. */
static void begin_anew(Rig *rig)
{
	uint64_t session = toy_guest_session(rig->agent);

	assert_true(toy_guest_knock(rig->agent));
	while (toy_guest_session(rig->agent) == session) {
		g_main_context_iteration(NULL, FALSE);
		toy_guest_handle(rig->agent);
	}
	while (g_main_context_iteration(NULL, FALSE))
		toy_guest_handle(rig->agent);
}

/* The pause passes, and nothing else is asked meanwhile. */
static void answer_hvas_late(Rig *rig, gint64 when)
{
	PfBrokerRequest request = fake_broker_next(rig->fd, PF_BROKER_TRANSLATE);
	PfBrokerMessage answer = {
		.type = PF_BROKER_ANSWER, .id = request.id, .error = -1, .n_hvas = 2};

	while (g_get_monotonic_time() < when) {
		g_main_context_iteration(NULL, FALSE);
		g_usleep(1000);
		assert_false(is_readable(&rig->fd));
	}
	fake_broker_send(rig->fd, &answer, -1);
}

/* Whatever the agent does: QEMU's monitor is asked one question at a time, and not without pauses. */
static void test_questions_are_few(void **state)
{
	Rig *rig = *state;
	gint64 begin = g_get_monotonic_time();

	open_session(rig);
	turn_until(asks, rig);
	for (int i = 0; i < 3; i++)
		begin_anew(rig);
	answer_hvas_late(rig, begin + 5 * G_USEC_PER_SEC / 2);
	/* Void: it was about an earlier session. */
	begin = g_get_monotonic_time();
	expect_question_after(rig, begin, 2);
	assert_false(pf_guest_located(rig->guest));
	begin = g_get_monotonic_time();
	fail_hvas(rig);
	wait_for_reason(rig, "the monitor is busy");
	for (int i = 0; i < 3; i++)
		begin_anew(rig);
	expect_question_after(rig, begin, 4);
	answer_hvas(rig, 0x4000000, 0x7000000);
	turn_until(is_located, rig);
}

static void test_a_part_is_located(void **state)
{
	Rig *rig = *state;

	open_session(rig);
	answer_hvas(rig, 0, 0x7000000);
	turn_until(is_located, rig);
	assert_null(pf_guest_reason(rig->guest));
	assert_true(pf_guest_hva(rig->guest, (PfGfn){3}, 1).v == 0);
	assert_true(pf_guest_hva(rig->guest, (PfGfn){0x1003}, 1).v == 0x7003000);
}

static void test_no_timer_outlives_it(void **state)
{
	Rig *rig = *state;

	open_session(rig);
	fail_hvas(rig);
	wait_for_reason(rig, "the monitor is busy");
	assert_non_null(g_main_context_find_source_by_user_data(NULL, rig->guest));
	pf_guest_free(rig->guest);
	assert_null(g_main_context_find_source_by_user_data(NULL, rig->guest));
	rig->guest = new_guest(rig);
}

static void test_memory_that_grows(void **state)
{
	Rig *rig = *state;

	rig->domain.memory_pages = 1000;
	open_session(rig);
	assert_non_null(strstr(pf_guest_reason(rig->guest), "more RAM than the VM can have"));
	rig->domain.memory_pages = 1024;
	pf_guest_update(rig->guest, &rig->domain);
	/* It is asked anew, and now believed. */
	wait_for_reason(rig, "was not found in QEMU yet");
	turn_until(ram_is_asked_for, rig);
	answer_hvas(rig, 0x4000000, 0x7000000);
	turn_until(is_located, rig);
	assert_null(pf_guest_reason(rig->guest));
}

static void test_channel_that_does_not_open(void **state)
{
	Rig *rig = *state;
	LogCapture log = capture_log();
	PfBrokerRequest request;

	pf_guest_update(rig->guest, &rig->domain);
	for (int i = 0; i < 2; i++) {
		request = fake_broker_next(rig->fd, PF_BROKER_OPEN_CHANNEL);
		fake_broker_fail(
			rig->fd, &request, G_IO_ERROR_PERMISSION_DENIED, "the door is locked");
		wait_for_reason(rig, "the door is locked");
	}
	/* Another event of the domain changes nothing about the pause. */
	pf_guest_update(rig->guest, &rig->domain);
	request = fake_broker_next(rig->fd, PF_BROKER_OPEN_CHANNEL);
	assert_int_equal(count_logged(&log, "the door is locked"), 1);
	end_capture(&log);
	fake_broker_answer(rig->fd, &request, connect_channel(rig));
	turn_until(agent_is_heard, rig);
	wait_for_reason(rig, "was not found in QEMU yet");
}

typedef struct Knocker {
	Rig *rig;
	LogCapture log;
	unsigned n_sessions; /* that were begun when it knocked last */
} Knocker;

static unsigned count_sessions(const Knocker *knocker)
{
	return count_logged(&knocker->log, "agent toy on Linux");
}

static void knock(const Rig *rig)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Knock body = PAGEFUSION__KNOCK__INIT;
	uint8_t frame[64], *payload = frame + PF_FRAME_HEADER_SIZE;
	size_t size;

	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_KNOCK;
	message.knock = &body;
	size = pagefusion__agent_message__pack(&message, payload);
	assert_int_equal(pf_frame_write_header(frame, payload, size), PF_FRAME_OK);
	toy_guest_send_raw(rig->agent, frame, PF_FRAME_HEADER_SIZE + size);
}

/* Knocks whenever a session has begun, and so asks for the next one. */
static gboolean is_held_back(void *userdata)
{
	Knocker *knocker = userdata;

	if (count_sessions(knocker) > knocker->n_sessions) {
		knocker->n_sessions++;
		knock(knocker->rig);
	}
	toy_guest_handle(knocker->rig->agent);
	return knocker->rig->quota.paused_us > 0;
}

static gboolean has_begun_one_more(void *userdata)
{
	const Knocker *knocker = userdata;

	toy_guest_handle(knocker->rig->agent);
	return count_sessions(knocker) > knocker->n_sessions;
}

/* Each session costs the broker and the shim something, which other VMs wait for. */
static void test_too_many_sessions(void **state)
{
	Rig *rig = *state;
	Knocker knocker = {.rig = rig, .log = capture_log()};
	gint64 begin = g_get_monotonic_time();

	open_session(rig);
	turn_until(is_held_back, &knocker);
	assert_in_range(count_sessions(&knocker), PF_POLICY_BURST_S,
		PF_POLICY_BURST_S + 2 +
			(unsigned)((g_get_monotonic_time() - begin) / G_USEC_PER_SEC));
	assert_string_equal(
		pf_quota_exceeded(&rig->quota, g_get_monotonic_time()), "hints a second");
	/* What it said while nobody read is heard in the end. */
	knocker.n_sessions = count_sessions(&knocker);
	knock(rig);
	turn_until(has_begun_one_more, &knocker);
	end_capture(&knocker.log);
}

static gboolean all_is_read(void *userdata)
{
	Rig *rig = userdata;
	int unread = -1;

	return ioctl(toy_guest_connection(rig->agent), SIOCOUTQ, &unread) == 0 && unread == 0;
}

static void send_zeros(Rig *rig, unsigned n)
{
	static const uint8_t zeros[PF_PAGE_SIZE];

	for (unsigned i = 0; i < n; i++)
		assert_true(toy_guest_send_raw(rig->agent, zeros, sizeof zeros));
}

static void set_bytes_per_s(Rig *rig, guint64 bytes_per_s)
{
	PfPolicy policy = PF_POLICY_DEFAULTS;

	policy.bytes_per_s = bytes_per_s;
	pf_quota_init(&rig->quota, &policy, g_get_monotonic_time());
}

/* Its channel is read at the rate that its group allows, and nothing is lost. */
static void test_too_many_bytes(void **state)
{
	Rig *rig = *state;
	gint64 begin;

	open_session(rig);
	set_bytes_per_s(rig, 8 * PF_PAGE_SIZE);
	begin = g_get_monotonic_time();
	for (unsigned i = 0; i < 10; i++) {
		send_zeros(rig, 8);
		turn_until(all_is_read, rig);
	}
	/* Eight times that much are there at once; the ninth is an overdraft, which the tenth waits for. */
	assert_in_range(g_get_monotonic_time() - begin, G_USEC_PER_SEC * 9 / 10, FAKE_WAIT_US);
	assert_in_range(rig->quota.paused_us, G_USEC_PER_SEC * 9 / 10, FAKE_WAIT_US);
	/* The agent is heard as before. */
	toy_guest_module(rig->agent, 1, "a", 10);
	turn_until(all_is_read, rig);
	assert_true(toy_guest_has_session(rig->agent));
}

/* The next byte would be read in a minute. */
static void begin_long_pause(Rig *rig)
{
	open_session(rig);
	set_bytes_per_s(rig, 1);
	send_zeros(rig, 1);
	turn_until(all_is_read, rig);
	assert_in_range(rig->quota.paused_us, 59 * G_USEC_PER_SEC, 61 * G_USEC_PER_SEC);
}

static void test_channel_ends_in_a_pause(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest request;

	begin_long_pause(rig);
	send_zeros(rig, 1);
	shutdown(toy_guest_connection(rig->agent), SHUT_RDWR);
	do {
		request = fake_broker_next_any(rig->fd);
	} while (request.type != PF_BROKER_OPEN_CHANNEL);
	fake_broker_answer(rig->fd, &request, connect_channel(rig));
}

static void test_closed_in_a_pause(void **state)
{
	Rig *rig = *state;

	begin_long_pause(rig);
	pf_guest_free(rig->guest);
	assert_null(g_main_context_find_source_by_user_data(NULL, rig->guest));
	rig->guest = new_guest(rig);
}

/* From the VM's start: its agent comes, ends, comes again, and hangs when the session begins anew. */
static void test_additions(void **state)
{
	Rig *rig = *state;

	now_us = T * G_USEC_PER_SEC;
	toy_guest_set_agent(rig->agent, "0.1.0", 1);
	assert_additions(rig, PF_ADDITIONS_NEVER_SEEN, 0);
	move_port(rig, FALSE);
	pass_time(500);
	assert_additions(rig, PF_ADDITIONS_NEVER_SEEN, 0);
	rig->domain.port_open = TRUE;
	open_session(rig);
	assert_additions(rig, PF_ADDITIONS_CONNECTED, T + 500);
	pass_time(500);
	move_port(rig, FALSE);
	assert_additions(rig, PF_ADDITIONS_SILENT, T + 1000);
	pass_time(500);
	move_port(rig, TRUE);
	begin_anew(rig);
	assert_additions(rig, PF_ADDITIONS_CONNECTED, T + 1500);
	pass_time(500);
	pf_guest_begin_session(rig->guest);
	pass_time(PF_ADDITIONS_WAIT_S - 1);
	assert_additions(rig, PF_ADDITIONS_CONNECTED, T + 1500);
	pass_time(1);
	assert_additions(rig, PF_ADDITIONS_SILENT, T + 2000);
	now_us = 0;
}

/* By its version it is heard all the same, by its protocol it cannot be. */
static void test_old_additions(void **state)
{
	Rig *rig = *state;

	now_us = T * G_USEC_PER_SEC;
	rig->domain.port_open = TRUE;
	toy_guest_set_agent(rig->agent, "0.1.0", 0);
	open_session(rig);
	assert_additions(rig, PF_ADDITIONS_TOO_OLD, T);
	/* There is no use in knowing where its RAM is. */
	while (g_main_context_iteration(NULL, FALSE))
		;
	assert_false(is_readable(&rig->fd));
	toy_guest_set_agent(rig->agent, "0.0.9", 1);
	begin_anew(rig);
	assert_additions(rig, PF_ADDITIONS_TOO_OLD, T);
	answer_hvas(rig, 1 << 20, 2 << 20);
	turn_until(is_located, rig);
	assert_null(pf_guest_reason(rig->guest));
	toy_guest_set_agent(rig->agent, "0.1.0", 0);
	begin_anew(rig);
	assert_additions(rig, PF_ADDITIONS_TOO_OLD, T);
	assert_non_null(strstr(pf_guest_reason(rig->guest), "too old to be understood"));
	assert_string_equal(pf_guest_agent_version(rig->guest), "0.1.0");
	toy_guest_set_agent(rig->agent, "0.1.0", 1);
	pass_time(10);
	begin_anew(rig);
	assert_additions(rig, PF_ADDITIONS_CONNECTED, T + 10);
	assert_null(pf_guest_reason(rig->guest));
	now_us = 0;
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_locating_is_tried_again),
		TEST(test_additions),
		TEST(test_old_additions),
		TEST(test_questions_are_few),
		TEST(test_a_part_is_located),
		TEST(test_no_timer_outlives_it),
		TEST(test_memory_that_grows),
		TEST(test_channel_that_does_not_open),
		TEST(test_too_many_sessions),
		TEST(test_too_many_bytes),
		TEST(test_channel_ends_in_a_pause),
		TEST(test_closed_in_a_pause),
	};
#undef TEST

	return cmocka_run_group_tests(tests, NULL, NULL);
}
