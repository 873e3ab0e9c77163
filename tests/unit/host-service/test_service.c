/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The service and its VMs: the conversation with shims, and what becomes of it when something is missing. */
#include "service_rig.h"
#include <sys/mman.h>
#include <sys/resource.h>

static void test_conversation(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;
	int shim = converse(rig, ATTACHING, &device);

	wait_for_reason(rig, "the shim is getting ready");
	say_ready(shim, PF_SHIM_READY_NO_BLOCKS);
	wait_for_reason(rig, "no RAM of private anonymous memory");
	say_ready(shim, PF_SHIM_READY_OK);
	expect(shim, PF_SHIM_STORE);
	expect(shim, PF_SHIM_STAGING);
	wait_for_reason(rig, "no guest channel");
	close(shim);
}

static void test_out_of_turn(void **state)
{
	static const struct {
		Stage stage;
		PfShimType type;
	} wrong[] = {
		{CONNECTED, PF_SHIM_READY},
		{CONNECTED, PF_SHIM_RELEASED},
		{CONNECTED, PF_SHIM_LISTED},
		{RETURNING, PF_SHIM_HELLO},
		{RETURNING, PF_SHIM_READY},
		{RETURNING, PF_SHIM_RELEASED},
		{OPENING, PF_SHIM_HELLO},
		{OPENING, PF_SHIM_READY},
		{OPENING, PF_SHIM_RELEASED},
		{ATTACHING, PF_SHIM_HELLO},
		{ATTACHING, PF_SHIM_RELEASED},
		{READY, PF_SHIM_HELLO},
		{READY, PF_SHIM_READY},
		{READY, PF_SHIM_RELEASED},
		{READY, PF_SHIM_LISTED},
	};
	const PfShimListed listed = {0};

	for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
		PfBrokerRequest device;
		Rig *rig = *state;
		int shim = converse(rig, wrong[i].stage, &device);

		if (wrong[i].type == PF_SHIM_HELLO)
			say_hello(shim);
		else if (wrong[i].type == PF_SHIM_READY)
			say_ready(shim, PF_SHIM_READY_OK);
		else if (wrong[i].type == PF_SHIM_LISTED)
			say(shim, PF_SHIM_LISTED, 2, &listed, sizeof listed);
		else
			say(shim, PF_SHIM_RELEASED, 1, NULL, 0);
		wait_for_reason(rig, "out of turn");
		expect_closed(shim);
		/* Too late for that one: nobody gets it. */
		if (wrong[i].stage == OPENING)
			fake_broker_answer(rig->fd, &device, open("/dev/null", O_RDWR | O_CLOEXEC));
		/* One VM's shim would have to wait after so many. */
		tear_down(state);
		set_up(state);
	}
}

static void test_device_is_asked_for_again(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;
	LogCapture log = capture_log();
	int shim = converse(rig, OPENING, &device);

	fake_broker_fail(rig->fd, &device, G_IO_ERROR_PERMISSION_DENIED, "not allowed today");
	wait_for_reason(rig, "not allowed today");
	device = fake_broker_next(rig->fd, PF_BROKER_OPEN_USERFAULTFD);
	fake_broker_fail(rig->fd, &device, G_IO_ERROR_PERMISSION_DENIED, "not allowed today");
	device = fake_broker_next(rig->fd, PF_BROKER_OPEN_USERFAULTFD);
	assert_int_equal(count_logged(&log, "not allowed today"), 1);
	end_capture(&log);
	fake_broker_answer(rig->fd, &device, open("/dev/null", O_RDWR | O_CLOEXEC));
	expect(shim, PF_SHIM_ATTACH);
	wait_for_reason(rig, "the shim is getting ready");
	close(shim);
}

static void test_freed_while_answers_are_awaited(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;
	int shim;

	g_strlcpy(rig->domain.channel, "/nowhere", sizeof rig->domain.channel);
	fake_broker_domain(rig->fd, &rig->domain);
	fake_broker_next(rig->fd, PF_BROKER_OPEN_CHANNEL);
	shim = converse(rig, OPENING, &device);
	g_clear_pointer(&rig->service, pf_service_free);
	/* Only now do they hear of it. */
	while (g_main_context_iteration(NULL, FALSE))
		;
	expect_closed(shim);
}

static void test_refusals_are_logged(void **state)
{
	Rig *rig = *state;
	LogCapture log = capture_log();

	g_strlcpy(rig->domain.refusal, "huge pages", sizeof rig->domain.refusal);
	fake_broker_domain(rig->fd, &rig->domain);
	wait_for_reason(rig, "huge pages");
	fake_broker_domain(rig->fd, &rig->domain);
	/* Shut off it is no news; started again it is. */
	rig->domain.active = FALSE;
	fake_broker_domain(rig->fd, &rig->domain);
	rig->domain.active = TRUE;
	fake_broker_domain(rig->fd, &rig->domain);
	g_strlcpy(rig->domain.refusal, "a device", sizeof rig->domain.refusal);
	fake_broker_domain(rig->fd, &rig->domain);
	wait_for_reason(rig, "a device");
	assert_int_equal(count_logged(&log, "not fused: huge pages"), 2);
	assert_int_equal(count_logged(&log, "not fused: a device"), 1);
	end_capture(&log);
}

/* The limit of descriptors under which n more can be opened; there may be gaps between those that
 * are open. */
static rlim_t limit_that_leaves(unsigned n)
{
	rlim_t limit = 0;

	while (fcntl((int)limit, F_GETFD) >= 0 || n-- > 0)
		limit++;
	return limit;
}

/* With so many descriptors left the VM cannot be made, and when there are more it can. */
static void expect_trouble(Rig *rig, unsigned n_left, const char *reason)
{
	struct rlimit old, low;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	low = old;
	low.rlim_cur = limit_that_leaves(n_left);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	fake_broker_domain(rig->fd, &rig->domain);
	wait_for_reason(rig, reason);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	fake_broker_domain(rig->fd, &rig->domain);
	wait_for_reason(rig, "QEMU has not connected");
	rig->domain.active = FALSE;
	fake_broker_domain(rig->fd, &rig->domain);
	while (g_main_context_iteration(NULL, FALSE))
		;
	rig->domain.active = TRUE;
}

static void test_no_descriptors(void **state)
{
	Rig *rig = *state;

	expect_trouble(rig, 0, "QEMU's process cannot be watched: Too many open files");
}

static void test_no_descriptor_for_captures(void **state)
{
	Rig *rig = *state;

	expect_trouble(rig, 1, "no memfd to receive pages in: Too many open files");
}

static void test_no_descriptor_for_the_store(void **state)
{
	Rig *rig = *state;
	struct rlimit old, low;
	PfBrokerRequest device;
	int shim = converse(rig, ATTACHING, &device);

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	low = old;
	low.rlim_cur = limit_that_leaves(0);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	say_ready(shim, PF_SHIM_READY_OK);
	wait_for_reason(rig, "there is no store for it");
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	expect_closed(shim);
	close(converse(rig, READY, &device));
}

/* What a shim can hold that is not the group's store: everything is released, and it gets the right one. */
static void test_foreign_store(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;
	int shim = converse(rig, RETURNING, &device);
	int store = memfd_create("pagefusion-default", MFD_ALLOW_SEALING | MFD_CLOEXEC);

	assert_true(store >= 0);
	return_store(shim, store);
	close(store);
	release(shim);
	attach(rig, shim);
	say_ready(shim, PF_SHIM_READY_OK);
	expect(shim, PF_SHIM_STORE);
	expect(shim, PF_SHIM_STAGING);
	close(shim);
}

static void test_store_comes_back(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;
	int shim = converse(rig, ATTACHING, &device);
	Heard store;

	say_ready(shim, PF_SHIM_READY_OK);
	store = hear(shim);
	assert_int_equal(store.type, PF_SHIM_STORE);
	assert_true(store.fd >= 0);
	expect(shim, PF_SHIM_STAGING);
	close(shim);
	wait_for_reason(rig, "it has closed the connection");
	shim = converse(rig, RETURNING, &device);
	return_store(shim, store.fd);
	attach(rig, shim);
	say_ready(shim, PF_SHIM_READY_OK);
	/* The list waits until the guest is known. */
	wait_for_reason(rig, "no guest channel");
	assert_false(is_readable(&shim));
	close(shim);
	close(store.fd);
}

static void test_shares_without_a_store(void **state)
{
	Rig *rig = *state;
	int shim = connect_announced(rig);

	say_hello_with(shim, PF_SHIM_VERSION, PF_SHIM_HAS_USERFAULTFD, 5);
	wait_for_reason(rig, "it shares pages and has no store");
	expect_closed(shim);
}

/* It is told to release everything, in words that every version has, and keeps its VM running. */
static void test_foreign_version(void **state)
{
	Rig *rig = *state;
	PfShimState unknown = {0};
	int shim = connect_announced(rig);
	int store = memfd_create("what it had", MFD_CLOEXEC);

	say_hello_with(shim, PF_SHIM_VERSION + 6, PF_SHIM_HAS_STORE, 3);
	return_store(shim, store);
	close(store);
	say(shim, 200, 0, &unknown, sizeof unknown);
	release(shim);
	wait_for_reason(rig, "the VM's shim speaks protocol 7 to 7 and this service 1: restart");
	/* Nothing else is asked of it, and nothing that it says ends the connection. */
	say(shim, PF_SHIM_LOST, 0, &unknown, 5);
	say(shim, 201, 0, NULL, 0);
	while (g_main_context_iteration(NULL, FALSE))
		;
	assert_false(is_readable(&shim));
	wait_for_reason(rig, "speaks protocol 7 to 7");
	close(shim);
}

static void test_refused_while_it_runs(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;
	int shim = converse(rig, READY, &device);

	g_strlcpy(rig->domain.refusal, "a device was plugged in", sizeof rig->domain.refusal);
	fake_broker_domain(rig->fd, &rig->domain);
	expect_closed(shim);
	shim = connect_shim(rig, NOBODY);
	say_hello(shim);
	release(shim);
	wait_for_reason(rig, "a device was plugged in");
	rig->domain.refusal[0] = 0;
	fake_broker_domain(rig->fd, &rig->domain);
	expect_closed(shim);
	shim = converse(rig, READY, &device);
	/* The same when its flag is taken away. */
	rig->domain.enabled = FALSE;
	fake_broker_domain(rig->fd, &rig->domain);
	expect_closed(shim);
	wait_for_reason(rig, "turned off for it while it runs");
}

/* A VM that nobody wants fused may have been before: its shim is heard. */
static void test_shim_of_a_refused_vm(void **state)
{
	Rig *rig = *state;
	int shim;

	rig->domain.enabled = FALSE;
	shim = connect_announced(rig);
	say_hello_with(shim, PF_SHIM_VERSION, PF_SHIM_HAS_STORE, 77);
	release(shim);
	wait_for_reason(rig, "turned off for it while it runs");
	close(shim);
}

static void test_no_process_id(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;

	rig->domain.pid = 0;
	fake_broker_domain(rig->fd, &rig->domain);
	wait_for_reason(rig, "does not say yet which process");
	rig->domain.pid = getpid();
	close(converse(rig, READY, &device));
}

static void test_reasons_are_logged_once(void **state)
{
	Rig *rig = *state;
	LogCapture log = capture_log();
	PfBrokerRequest device;
	int shim;

	for (int i = 0; i < 3; i++) {
		close(converse(rig, READY, &device));
		wait_for_reason(rig, "it has closed the connection");
	}
	assert_int_equal(count_logged(&log, "gone: it has closed the connection"), 1);
	for (int i = 0; i < 3 && getuid() == 0; i++) {
		shim = connect_shim(rig, 0);
		expect_closed(shim);
	}
	assert_int_equal(count_logged(&log, "QEMU runs as root"), getuid() == 0 ? 1 : 0);
	end_capture(&log);
}

/* A QEMU of the service's own user could open the store as the service does. */
static void test_qemu_of_our_own_user(void **state)
{
	Rig *rig = *state;
	int shim;

	if (getuid() != 0)
		skip();
	shim = connect_announced(rig);
	assert_int_equal(seteuid(NOBODY), 0);
	wait_for_reason(rig, "QEMU runs as the user that pagefusiond's service runs as");
	assert_int_equal(seteuid(0), 0);
	expect_closed(shim);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_conversation),
		TEST(test_out_of_turn),
		TEST(test_device_is_asked_for_again),
		TEST(test_freed_while_answers_are_awaited),
		TEST(test_refusals_are_logged),
		TEST(test_no_descriptors),
		TEST(test_no_descriptor_for_captures),
		TEST(test_no_descriptor_for_the_store),
		TEST(test_foreign_store),
		TEST(test_store_comes_back),
		TEST(test_shares_without_a_store),
		TEST(test_foreign_version),
		TEST(test_refused_while_it_runs),
		TEST(test_shim_of_a_refused_vm),
		TEST(test_no_process_id),
		TEST(test_reasons_are_logged_once),
		TEST(test_qemu_of_our_own_user),
	};
#undef TEST

	return cmocka_run_group_tests(tests, NULL, NULL);
}
