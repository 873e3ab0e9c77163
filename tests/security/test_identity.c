/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who speaks for a VM. The service goes by the process that the kernel names as the peer of a connection, held so that a
 * number that is used again means nothing, and by the user that it runs as; never by what is said. Whoever has a VM's
 * connection speaks for that VM, also if the VM has handed it on: that is what the VM gave away. The tests here do that.
 */
#include "tests/security/honest.h"
#include "tests/security/hostile.h"
#include "common/page.h"
#include <errno.h>
#include <grp.h>
#include <linux/sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define CROWD 400
/* Descriptors of shims that nobody knows, and of some that come and go. */
#define CROWD_ROOM (2 * (128 + 64))

static int set_up(void **state)
{
	*state = lab_new(false);
	return 0;
}

static int set_up_process(void **state)
{
	*state = lab_new(true);
	return 0;
}

static int tear_down(void **state)
{
	lab_free(*state);
	return 0;
}

static void expect_attach(LabVm *vm, int fd)
{
	static HostileMessage message;

	hostile_expect(vm->lab, fd, PF_SHIM_ATTACH, &message);
	assert_true(message.fd >= 0);
	close(message.fd);
}

/* Impersonation */

static void test_no_vm(void **state)
{
	Lab *lab = *state;
	/* Of the same user as VMs are, and it looks like one. */
	LabVm *stranger = lab_start_bare_vm(lab, "stranger", "default");
	int fd = hostile_connect(stranger);

	hostile_hello(fd, 0, 0);
	honest_expect_two_share(lab);
	hostile_expect_silence(fd);
	close(fd);
}

/* A child of QEMU's is not QEMU, and does not keep QEMU from speaking. */
static void test_child_of_a_vm(void **state)
{
	Lab *lab = *state;
	LabVm *vm = hostile_start(lab, "parent", "default");
	int number = atoi(lab_command(vm, "connect child")), fd, own;

	assert_true(number >= 0);
	fd = hostile_take_fd(vm->pid, number);
	hostile_hello(fd, 0, 0);
	honest_expect_two_share(lab);
	hostile_expect_silence(fd);
	own = hostile_connect(vm);
	hostile_hello(own, 0, 0);
	expect_attach(vm, own);
	hostile_expect_silence(fd);
	close(own);
	close(fd);
}

/* It was handed over, and the VM has ended. */
static void test_connection_outlives_its_vm(void **state)
{
	LabVm *vm = hostile_start(*state, "short", "default");
	HostileShim shim;

	hostile_get_ready(vm, -1, &shim);
	lab_end_vm(vm, true);
	hostile_expect_end(*state, shim.fd, "the connection of a VM that has ended");
	hostile_close(&shim);
}

static pid_t make_process(pid_t pid)
{
	struct clone_args args = {
		.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&pid, .set_tid_size = 1};
	long made = syscall(SYS_clone3, &args, sizeof(args));

	if (made != 0)
		return (pid_t)made;
	syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
	syscall(SYS_close_range, 3u, ~0u, 0u);
	for (;;)
		syscall(SYS_pause);
}

static void copy_view(const PfVmView *view, void *userdata)
{
	*(PfVmView *)userdata = *view;
}

/* Its process number is a VM's by now. */
static void test_number_used_again(void **state)
{
	Lab *lab = *state;
	LabVm *dead = lab_start_bare_vm(lab, "dead", "default"), *next;
	int fd = hostile_connect(dead);
	pid_t pid = dead->pid;
	PfVmView view = {0};

	hostile_hello(fd, 0, 0);
	lab_turn(lab, 50); /* the service has taken the connection, and waits for libvirt's word */
	hostile_expect_silence(fd);
	lab_end_vm(dead, true);
	if (make_process(pid) != pid)
		fail_msg("the number %d cannot be had again: %s", pid, strerror(errno));
	next = lab_adopt_vm(lab, "next", "default", pid, 0x10000000);
	lab_announce(next);
	hostile_expect_end(lab, fd, "a connection of a process that had this number before");
	assert_true(pf_service_visit_vm(lab_service(lab), "next", copy_view, &view));
	assert_false(view.figures.shim_connected);
	close(fd);
}

static void test_two_connections(void **state)
{
	LabVm *vm = hostile_start(*state, "twice", "default");
	HostileShim shim;
	int second;

	hostile_get_ready(vm, -1, &shim);
	second = hostile_connect(vm);
	hostile_expect_end(*state, shim.fd, "the first of two connections");
	hostile_hello(second, 0, 0);
	expect_attach(vm, second);
	close(second);
	hostile_close(&shim);
}

/* The user */

static void keep_reason(const PfVmView *view, void *userdata)
{
	g_strlcpy(userdata, view->reason, 256);
}

static void expect_refused(LabVm *vm)
{
	const PfShimHello hello = {PF_SHIM_VERSION, PF_SHIM_VERSION, 0, PF_PAGE_SIZE, 0, {0}};
	int fd = hostile_connect(vm);

	/* It may be too late to say anything. */
	hostile_say(fd, PF_SHIM_HELLO, 0, &hello, sizeof(hello), -1, 0);
	hostile_expect_end(vm->lab, fd, "a QEMU of a user that could write to the store");
	close(fd);
}

static void test_root(void **state)
{
	Lab *lab = *state;
	LabVm *vm = lab_start_bare_vm_as(lab, "root", "default", 0);
	char reason[256];

	lab_announce(vm);
	expect_refused(vm);
	assert_true(pf_service_visit_vm(lab_service(lab), "root", keep_reason, reason));
	assert_non_null(strstr(reason, "QEMU runs as root"));
}

static void test_the_services_user(void **state)
{
	Lab *lab = *state;
	LabVm *vm = lab_start_bare_vm_as(lab, "twin", "default", LAB_SERVICE_UID), *other;
	int fd;

	lab_announce(vm);
	lab_wait_for_session(vm);
	expect_refused(vm);
	/* And it is for the user only. */
	other = hostile_start(lab, "other", "default");
	fd = hostile_connect(other);
	hostile_hello(fd, 0, 0);
	expect_attach(other, fd);
	close(fd);
}

/* What it claims */

typedef struct Claim {
	const char *what;
	PfShimHello hello;
	uint64_t times; /* that it is said */
} Claim;

static void test_claims(void **state)
{
	static const Claim claims[] = {
		{"another page size", {1, 1, 0, 16384, 0, {0}}, 1},
		{"no page size", {1, 1, 0, 0, 0, {0}}, 1},
		{"pages without a store", {1, 1, 0, PF_PAGE_SIZE, 1, {0}}, 1},
		{"more than there can be", {1, 1, 0, PF_PAGE_SIZE, UINT64_MAX, {0}}, 1},
		{"itself twice", {1, 1, PF_SHIM_HAS_STORE, PF_PAGE_SIZE, 0, {0}}, 2},
	};
	LabVm *vm = hostile_start(*state, "liar", "default");

	for (size_t i = 0; i < G_N_ELEMENTS(claims); i++) {
		gint64 begin = g_get_monotonic_time();
		int fd = hostile_connect(vm);

		for (uint64_t n = 0; n < claims[i].times; n++)
			assert_true(hostile_say(fd, PF_SHIM_HELLO, 0, &claims[i].hello,
				sizeof(claims[i].hello), -1, 0));
		hostile_expect_end(*state, fd, claims[i].what);
		/* At once, and not when its time to say something better is over. */
		assert_in_range(g_get_monotonic_time() - begin, 0, 5 * G_USEC_PER_SEC);
		close(fd);
	}
}

/* No version in common: it is told to release everything, and gets no descriptor for whatever it says. */
static void test_foreign_version(void **state)
{
	const PfShimHello hello = {9, 8, 0, PF_PAGE_SIZE, 0, {0}};
	const PfShimReady ready = {.code = PF_SHIM_READY_OK};
	LabVm *vm = hostile_start(*state, "foreign", "default");
	static HostileMessage message;
	int fd = hostile_connect(vm);

	assert_true(hostile_say(fd, PF_SHIM_HELLO, 0, &hello, sizeof(hello), -1, 0));
	hostile_expect(*state, fd, PF_SHIM_RELEASE, &message);
	assert_true(hostile_say(fd, PF_SHIM_RELEASED, message.header.id, NULL, 0, -1, 0));
	hostile_say(fd, PF_SHIM_READY, 0, &ready, sizeof(ready), -1, 0);
	honest_expect_two_share(*state);
	hostile_expect_silence(fd);
	close(fd);
}

/* A crowd */

/* Comes and never stops; no more at a time than it may have open. */
__attribute__((noreturn)) static void crowd(const struct sockaddr_un *address)
{
	static int fds[CROWD];

	syscall(SYS_close_range, 3u, ~0u, 0u);
	if (setgroups(0, NULL) < 0 || setresgid(LAB_VM_UID, LAB_VM_UID, LAB_VM_UID) < 0 ||
		setresuid(LAB_VM_UID, LAB_VM_UID, LAB_VM_UID) < 0)
		_exit(1);
	/* The user's change has taken it back, so not before. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	memset(fds, -1, sizeof(fds));
	for (unsigned i = 0;; i = (i + 1) % CROWD) {
		close(fds[i]);
		fds[i] = socket(AF_UNIX, SOCK_SEQPACKET, 0);
		if (connect(fds[i], (const struct sockaddr *)address, sizeof(*address)) == 0)
			(void)!write(fds[i], "let me in", 9);
	}
}

typedef struct Watch {
	Lab *lab;
	unsigned max_fds;
} Watch;

static bool shares_in_the_crowd(void *userdata)
{
	Watch *watch = userdata;
	unsigned n = hostile_count_fds();

	watch->max_fds = MAX(n, watch->max_fds);
	return honest_stats(watch->lab).shared == HONEST_PAGES;
}

/* VMs are let in among strangers of the same user, and the service's descriptors have a bound. */
static void test_crowd(void **state)
{
	Lab *lab = *state;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	unsigned n_fds = hostile_count_fds();
	Watch watch = {lab, 0};
	pid_t strangers;
	LabVm *a, *b;

	strcpy(address.sun_path, lab_shim_socket(lab));
	strangers = fork();
	assert_true(strangers >= 0);
	if (strangers == 0)
		crowd(&address);
	lab_turn(lab, 1000);
	a = honest_start(lab, "a", "default");
	b = honest_start(lab, "b", "default");
	honest_report(a);
	honest_report(b);
	lab_wait(lab, shares_in_the_crowd, &watch);
	kill(strangers, SIGKILL);
	waitpid(strangers, NULL, 0);
	assert_int_equal(honest_stats(lab).shared, HONEST_PAGES);
	/* They were there. */
	assert_in_range(watch.max_fds, n_fds + 100, n_fds + CROWD_ROOM);
	honest_check(a);
	honest_check(b);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_no_vm),
		TEST(test_child_of_a_vm),
		TEST(test_connection_outlives_its_vm),
		TEST(test_number_used_again),
		TEST(test_two_connections),
		TEST(test_root),
		cmocka_unit_test_setup_teardown(test_the_services_user, set_up_process, tear_down),
		TEST(test_claims),
		TEST(test_foreign_version),
		TEST(test_crowd),
	};
#undef TEST

	if (access("/dev/userfaultfd", F_OK) < 0) {
		fprintf(stderr, "skipped: this kernel has no /dev/userfaultfd\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
