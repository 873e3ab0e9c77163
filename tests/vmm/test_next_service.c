/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The real service and the real shim, with VMs that are toys. Who holds a frame is asked of shims and of the kernel: it
 * stays while a service is killed and the next one begins, and whatever libvirt says meanwhile.
 */
#include "tests/vmm/sharing.h"
#include <setjmp.h>
#include <stdarg.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static int set_up_process(void **state)
{
#ifdef __SANITIZE_ADDRESS__
	/* It has no room in the process's sandbox. */
	*state = lab_new(false);
#else
	*state = lab_new(true);
#endif
	return 0;
}

static bool are_fused(void *userdata)
{
	Wanted *wanted = userdata;

	return lab_count_file_pages(wanted->a) == wanted->shared &&
	       lab_count_file_pages(wanted->b) == wanted->shared &&
	       lab_file_pfn(wanted->a, FIRST) == lab_file_pfn(wanted->b, FIRST);
}

static void keep_frames(LabVm *vm, uint64_t pfns[N])
{
	for (unsigned i = 0; i < N; i++)
		pfns[i] = lab_file_pfn(vm, FIRST + i);
}

static unsigned count_kept(LabVm *vm, const uint64_t pfns[N])
{
	unsigned n = 0;

	for (unsigned i = 0; i < N; i++)
		n += pfns[i] != 0 && lab_file_pfn(vm, FIRST + i) == pfns[i];
	return n;
}

static void test_service_is_killed(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default");
	Wanted wanted = {.lab = lab, .a = a, .b = b, .shared = N};
	uint64_t pfns[N];

	report(a);
	report(b);
	assert_true(lab_wait(lab, are_fused, &wanted));
	keep_frames(b, pfns);
	lab_kill_service(lab);
	/* They go on: bytes are right, and a write is a revoke as ever. */
	assert_int_equal(lab_count_file_pages(a), N);
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
	lab_ok(a, "write %u 50 9", FIRST + 7);
	lab_ok(a, "discard %u 1", FIRST + 8);
	lab_ok(a, "zero %u 1", FIRST + 8);
	assert_string_equal(lab_command(a, "read %u 50", FIRST + 7), "9");
	assert_int_equal(lab_count_file_pages(a), N - 2);
	lab_ok(b, "check %u %u %u", FIRST, N, SEED);
	assert_int_equal(lab_count_file_pages(b), N);

	/* The next one takes over what there is, and a page that comes back gets the frame that it had. */
	lab_restart_service(lab);
	lab_ok(a, "fill %u 2 %u", FIRST + 7, SEED + 7);
	lab_wait_for_session(a);
	lab_wait_for_session(b);
	report(a);
	report(b);
	assert_true(lab_wait(lab, are_fused, &wanted));
	expect_same_frames(a, b, true);
	assert_int_equal(count_kept(b, pfns), N);
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
	lab_ok(b, "check %u %u %u", FIRST, N, SEED);
}

/* Nobody says again what it holds: what is known then, the shims have said. */
static void test_next_service_knows_what_is_shared(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default"),
	      *c = start(lab, "c", "default");
	uint64_t pfns[N];

	report(a);
	report(b);
	report(c);
	wait_for_shared(lab, 2 * N);
	keep_frames(a, pfns);
	lab_kill_service(lab);
	lab_ok(a, "write %u 0 1", FIRST);
	lab_ok(b, "write %u 0 1", FIRST);
	lab_ok(c, "write %u 0 1", FIRST);
	lab_ok(c, "discard %u 10", FIRST + 10);
	lab_restart_service(lab);
	wait_for_shared(lab, 2 * (N - 1) - 10);
	assert_int_equal(count_kept(a, pfns), N - 1);
	assert_int_equal(vm_view(a).figures.stats.fused, N - 1);
	assert_int_equal(vm_view(a).figures.stats.hinted, 0);
	assert_int_equal(vm_view(c).figures.stats.fused, N - 11);
	/* The first frame is nobody's now, and its memory goes back to the host. */
	wait_for_frames(lab, N - 1);
	lab_ok(a, "write %u 0 1", FIRST + 1);
	wait_for_shared(lab, 2 * (N - 1) - 11);
	assert_int_equal(host_stats(lab).revoked, 1);
	lab_ok(a, "check %u %u %u", FIRST + 2, N - 2, SEED + 2);
	lab_ok(b, "check %u %u %u", FIRST + 1, N - 1, SEED + 1);
}

/* A VM that the first service did not know shares with those that it did. */
static void test_next_service_goes_on_with_the_store(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default"), *c;

	report(a);
	report(b);
	wait_for_shared(lab, N);
	lab_kill_service(lab);
	lab_restart_service(lab);
	wait_for_shared(lab, N);
	c = start(lab, "c", "default");
	report(c);
	wait_for_shared(lab, 2 * N);
	expect_same_frames(a, c, true);
	/* And new frames find their place in it. */
	lab_ok(a, "fill 600 16 42");
	lab_ok(c, "fill 600 16 42");
	lab_wait_for_session(a);
	lab_ok(a, "module 5 more 16");
	lab_ok(c, "module 5 more 16");
	lab_ok(a, "hint 5 0 600 16");
	lab_ok(c, "hint 5 0 600 16");
	wait_for_shared(lab, 2 * N + 16);
	wait_for_frames(lab, N + 16);
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
	lab_ok(a, "check 600 16 42");
	lab_ok(c, "check 600 16 42");
}

static bool has_one_revoked(void *userdata)
{
	return host_stats(((Wanted *)userdata)->lab).revoked == 1;
}

static bool has_one_freed(void *userdata)
{
	return host_stats(((Wanted *)userdata)->lab).freed == 1;
}

/* Of two VMs that share, b gives one page up. a has not been heard of: its page must not go. */
static void expect_kept(Lab *lab, LabVm *a, LabVm *b)
{
	Wanted wanted = {.lab = lab};

	lab_ok(b, "write %u 0 1", FIRST);
	assert_true(lab_wait(lab, has_one_revoked, &wanted));
	lab_turn(lab, 200);
	assert_int_equal(host_stats(lab).freed, 0);
	assert_int_equal(kill(a->pid, SIGCONT), 0);
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
}

/* What libvirt says of a VM while the next service starts, whose shim is slow. */
static void check_slow_shim(Lab *lab, void (*change)(PfDomain *domain))
{
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default");
	Wanted wanted = {.lab = lab};

	report(a);
	report(b);
	wait_for_shared(lab, N);
	assert_int_equal(kill(a->pid, SIGSTOP), 0);
	lab_kill_service(lab);
	a->change = change;
	lab_restart_service(lab);
	wait_for_frames(lab, N);
	expect_kept(lab, a, b);
	/* Its shim is back, and has released it all. */
	wanted.a = a;
	assert_true(lab_wait(lab, shares_nothing, &wanted));
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
	assert_true(lab_wait(lab, has_one_freed, &wanted));
	lab_ok(b, "check %u %u %u", FIRST + 1, N - 1, SEED + 1);
}

static void take_flag_away(PfDomain *domain)
{
	domain->enabled = FALSE;
}

static void change_group(PfDomain *domain)
{
	strcpy(domain->group, "other");
}

static void test_flag_was_taken_away(void **state)
{
	check_slow_shim(*state, take_flag_away);
}

static void test_group_was_changed(void **state)
{
	check_slow_shim(*state, change_group);
}

static void lose_pid(PfDomain *domain)
{
	domain->pid = 0;
}

static void shut_off(PfDomain *domain)
{
	domain->active = FALSE;
	domain->has_shim = FALSE;
	domain->pid = 0;
}

/* Libvirt has forgotten a running VM before the next service comes; it was given the store, and that counts. */
static void test_libvirt_has_forgotten(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default");
	Wanted wanted = {.lab = lab};

	report(a);
	report(b);
	wait_for_shared(lab, N);
	assert_int_equal(kill(a->pid, SIGSTOP), 0);
	lab_kill_service(lab);
	a->change = shut_off;
	lab_restart_service(lab);
	wait_for_frames(lab, N);
	expect_kept(lab, a, b);
	/* Its shim knocks, and is nobody's. */
	lab_turn(lab, 300);
	assert_int_equal(host_stats(lab).freed, 0);
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
	lab_end_vm(a, true);
	assert_true(lab_wait(lab, has_one_freed, &wanted));
	lab_ok(b, "check %u %u %u", FIRST + 1, N - 1, SEED + 1);
}

/* Whoever was never given the store holds none of its frames back: a stranger, or a silent shim of another group. */
static void test_who_was_not_given_the_store(void **state)
{
	static const PfShimHeader hello = {PF_SHIM_MAGIC, PF_SHIM_HELLO, 0, sizeof(hello), 0, 0};
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default");
	LabVm *silent = start(lab, "silent", "other");
	Wanted wanted = {.lab = lab};
	int fake;

	report(a);
	report(b);
	wait_for_shared(lab, N);
	assert_int_equal(kill(silent->pid, SIGSTOP), 0);
	lab_kill_service(lab);
	lab_restart_service(lab);
	/* With the shim, and no VM that libvirt knows: it connects again and again. */
	lab_start_vm(lab, "stranger", "default");
	fake = connect_as_shim(lab, &hello, sizeof(hello));
	wait_for_shared(lab, N);
	lab_ok(a, "write %u 0 1", FIRST);
	lab_ok(b, "write %u 0 1", FIRST);
	assert_true(lab_wait(lab, has_one_freed, &wanted));
	wait_for_frames(lab, N - 1);
	lab_ok(a, "check %u %u %u", FIRST + 1, N - 1, SEED + 1);
	close(fake);
	assert_int_equal(kill(silent->pid, SIGCONT), 0);
}

/* The process is there as long as the kernel says so, whatever libvirt thinks. */
static void test_libvirt_is_wrong(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default");
	Wanted wanted = {.lab = lab, .a = a};

	report(a);
	report(b);
	wait_for_shared(lab, N);
	lab_announce_changed(a, lose_pid);
	expect_kept(lab, a, b);
	wait_for_shared(lab, N - 1);
	lab_announce_changed(a, shut_off);
	assert_true(lab_wait(lab, shares_nothing, &wanted));
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
	lab_announce(a);
	lab_wait_for_session(a);
	report(a);
	wait_for_shared(lab, N - 1);
	lab_end_vm(a, true);
	wait_for_shared(lab, 0);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_libvirt_is_wrong),
		TEST(test_flag_was_taken_away),
		TEST(test_group_was_changed),
		TEST(test_libvirt_has_forgotten),
		TEST(test_who_was_not_given_the_store),
		TEST(test_next_service_knows_what_is_shared),
		TEST(test_next_service_goes_on_with_the_store),
		cmocka_unit_test_setup_teardown(test_service_is_killed, set_up_process, tear_down),
	};
#undef TEST

	if (access("/dev/userfaultfd", F_OK) < 0) {
		fprintf(stderr, "skipped: this kernel has no /dev/userfaultfd\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
