/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For how long the service waits for a shim, and which of them have to wait for it. */
#include "service_rig.h"
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define STRANGER 65432
#define CROWD    260u /* twice as many as may wait */

/* In each state in which the shim has to speak. */
static void test_silence(void **state)
{
	static const Stage stages[] = {CONNECTED, RETURNING, ATTACHING};
	Rig *rig = *state;
	PfBrokerRequest device;
	int shim;

	for (size_t i = 0; i < G_N_ELEMENTS(stages); i++) {
		gint64 begin = g_get_monotonic_time();
		guint ms = stages[i] == ATTACHING ? ANSWER_MS : ANSWER_MS / 3;

		shim = converse(rig, stages[i], &device);
		expect_closed(shim);
		assert_in_range(g_get_monotonic_time() - begin, ms * 1000, FAKE_WAIT_US);
		wait_for_reason(rig, "it does not answer");
	}
	strcpy(rig->domain.refusal, "a device was plugged in");
	shim = connect_announced(rig);
	say_hello(shim);
	expect(shim, PF_SHIM_RELEASE);
	expect_closed(shim);
}

static gboolean has_passed(void *userdata)
{
	return g_get_monotonic_time() > *(const gint64 *)userdata;
}

static void let_pass(guint ms)
{
	gint64 end = g_get_monotonic_time() + ms * 1000;

	turn_until(has_passed, &end);
}

/* Where it need not speak it may be silent for ever. */
static void test_patience(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;
	int shim = converse(rig, OPENING, &device);

	let_pass(2 * ANSWER_MS);
	fake_broker_answer(rig->fd, &device, open("/dev/null", O_RDWR | O_CLOEXEC));
	expect(shim, PF_SHIM_ATTACH);
	say_ready(shim, PF_SHIM_READY_NO_BLOCKS);
	let_pass(2 * ANSWER_MS);
	say_ready(shim, PF_SHIM_READY_OK);
	expect(shim, PF_SHIM_STORE);
	expect(shim, PF_SHIM_STAGING);
	let_pass(2 * ANSWER_MS);
	wait_for_reason(rig, "no guest channel");
	close(shim);
}

static void test_connecting_again_and_again(void **state)
{
	Rig *rig = *state;
	LogCapture log = capture_log();
	PfBrokerRequest device;
	gint64 begin = g_get_monotonic_time();
	int shim;

	/* As many as that cost it nothing. */
	for (unsigned i = 0; i < 8; i++) {
		close(converse(rig, OPENING, &device));
		wait_for_reason(rig, "it has closed the connection");
	}
	assert_int_equal(count_logged(&log, "has to wait"), 0);
	shim = connect_announced(rig);
	wait_for_reason(rig, "connects again and again, and has to wait");
	/* The newest is the one that is let in, a second later; GLib puts timers of whole seconds together, a quarter of one
	 * early at most. */
	close(shim);
	shim = connect_shim(rig, NOBODY);
	say_hello(shim);
	attach(rig, shim);
	assert_in_range(g_get_monotonic_time() - begin, G_USEC_PER_SEC * 3 / 4, FAKE_WAIT_US);
	assert_int_equal(count_logged(&log, "has to wait"), 1);
	end_capture(&log);
	close(shim);
}

__attribute__((noreturn)) static void crowd_in(const Rig *rig, int done)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fds[CROWD];
	char byte;

	g_strlcpy(address.sun_path, rig->socket, sizeof address.sun_path);
	if (setresuid(STRANGER, STRANGER, STRANGER) < 0 || prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
		_exit(1);
	for (unsigned i = 0; i < CROWD; i++) {
		fds[i] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
		if (connect(fds[i], (struct sockaddr *)&address, sizeof address) < 0)
			_exit(1);
	}
	/* As many as are too many have been turned away. */
	for (unsigned i = 0; i < CROWD / 2; i++)
		if (recv(fds[i], &byte, 1, 0) > 0)
			_exit(1);
	_exit(write(done, "", 1) == 1 ? pause() : 1);
}

/* A process of another user that has connected often, and holds on to it. Its pid. */
static pid_t start_crowd(const Rig *rig, int *done)
{
	int ends[2];
	pid_t pid;

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		crowd_in(rig, ends[1]);
	close(ends[1]);
	*done = ends[0];
	return pid;
}

/* Any user may connect. A shim that waits for libvirt's word about its VM is not turned away for their sake. */
static void test_crowd(void **state)
{
	Rig *rig = *state;
	int shim, done;
	pid_t crowd;

	if (getuid() != 0)
		skip();
	shim = connect_shim(rig, NOBODY);
	crowd = start_crowd(rig, &done);
	turn_until(is_readable, &done);
	fake_broker_domain(rig->fd, &rig->domain);
	say_hello(shim);
	attach(rig, shim);
	kill(crowd, SIGKILL);
	waitpid(crowd, NULL, 0);
	close(done);
	close(shim);
}

int main(void)
{
#define TEST(test, set_up) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_silence, set_up_impatient),
		TEST(test_patience, set_up_impatient),
		TEST(test_connecting_again_and_again, set_up),
		TEST(test_crowd, set_up),
	};
#undef TEST

	return cmocka_run_group_tests(tests, NULL, NULL);
}
