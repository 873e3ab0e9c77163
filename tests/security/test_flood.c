/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A guest or a QEMU that floods the service slows itself alone. Two well-behaved VMs are fused again and again, with and
 * without a third one that floods. Compared are the median times of a round; and, because a machine has other things to
 * do as well, how much of the service's thread the flood takes where nothing else happens. The service runs in this
 * process, so its thread is this one.
 *
 * Rounds with and without the flood alternate in blocks: the flooder is stopped and continued, so that nothing else of
 * the two differs. It has used up what it may take at once before the first.
 */
#include "host-service/service/cpu_time.h"
#include "tests/vmm/lab.h"
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define N           128u /* pages of a round */
#define FIRST       100u /* their gfn */
#define BLOCKS      4u
#define ROUNDS      15u /* of a block */
#define ROUND_MS    25u /* from one's begin to the next one's: VMs that keep their own quotas */
#define FLOOD_MS    1500u
#define MAX_SHARE   10 /* percent */
#define MAX_SLOWER  10 /* percent */
#define ATTEMPTS    3  /* of comparing times, on a machine that is not ours alone */
#define WAIT_US     (20 * G_USEC_PER_SEC)
#define MANY        1000000000u
#define FINAL_PAGES 16u

typedef struct Rig {
	Lab *lab;
	LabVm *a, *b, *flooder;
	uint64_t seed;
	uint64_t shared; /* that a round waits for */
} Rig;

static int set_up(void **state)
{
	Rig *rig = g_new0(Rig, 1);

	rig->lab = lab_new(false);
	*state = rig;
	return 0;
}

static int tear_down(void **state)
{
	Rig *rig = *state;

	lab_free(rig->lab);
	g_free(rig);
	return 0;
}

static gboolean wake(gpointer userdata)
{
	return G_SOURCE_CONTINUE;
}

/* Turns the main loop without using the processor for anything else; false: in 20 s the condition was not met. */
static bool turn_until(bool (*condition)(void *userdata), void *userdata, gint64 at_most_us)
{
	gint64 end = g_get_monotonic_time() + at_most_us;
	guint source = g_timeout_add(5, wake, NULL);
	bool met;

	while (!(met = condition(userdata)) && g_get_monotonic_time() < end)
		g_main_context_iteration(NULL, TRUE);
	g_source_remove(source);
	return met;
}

static bool never(void *unused)
{
	return false;
}

static bool shares(void *userdata)
{
	const Rig *rig = userdata;
	PfHostView view;

	pf_service_host_view(lab_service(rig->lab), &view);
	return view.stats.shared == rig->shared;
}

static void copy_view(const PfVmView *view, void *userdata)
{
	*(PfVmView *)userdata = *view;
}

/* The pointers in it must not be used. */
static PfVmView vm_view(LabVm *vm)
{
	PfVmView view = {0};

	assert_true(pf_service_visit_vm(lab_service(vm->lab), vm->name, copy_view, &view));
	return view;
}

static void prepare(LabVm *vm, uint64_t seed)
{
	lab_ok(vm, "discard %u %u", FIRST, N);
	lab_ok(vm, "fill %u %u %" PRIu64, FIRST, N, seed);
	lab_ok(vm, "module 1 libtoy.so %u", N);
}

/* New contents in both; microseconds from the moment when both have reported them until all are fused. */
static int64_t measure_round(Rig *rig)
{
	gint64 begin = g_get_monotonic_time(), reported;

	rig->seed += N;
	prepare(rig->a, rig->seed);
	prepare(rig->b, rig->seed);
	rig->shared = 0;
	assert_true(turn_until(shares, rig, WAIT_US));
	rig->shared = N;
	lab_ok(rig->a, "hint 1 0 %u %u", FIRST, N);
	reported = g_get_monotonic_time();
	lab_ok(rig->b, "hint 1 0 %u %u", FIRST, N);
	if (!turn_until(shares, rig, WAIT_US))
		fail_msg("two VMs are not fused while a third one floods");
	reported = g_get_monotonic_time() - reported;
	turn_until(never, NULL, begin + ROUND_MS * 1000 - g_get_monotonic_time());
	return reported;
}

static int by_time(const void *a, const void *b)
{
	int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;

	return (left > right) - (left < right);
}

static int64_t median(int64_t *times, size_t n)
{
	qsort(times, n, sizeof(*times), by_time);
	return times[n / 2];
}

static void stop_flood(const Rig *rig)
{
	assert_int_equal(kill(rig->flooder->pid, SIGSTOP), 0);
}

static void go_on_flooding(const Rig *rig)
{
	assert_int_equal(kill(rig->flooder->pid, SIGCONT), 0);
}

/* By how many percent a round takes longer with the flood. */
static int compare(Rig *rig, const char *kind)
{
	static int64_t quiet[BLOCKS * ROUNDS], flooded[BLOCKS * ROUNDS];
	int64_t without, with;

	for (unsigned i = 0; i < BLOCKS; i++) {
		stop_flood(rig);
		for (unsigned k = 0; k < ROUNDS; k++)
			quiet[i * ROUNDS + k] = measure_round(rig);
		go_on_flooding(rig);
		for (unsigned k = 0; k < ROUNDS; k++)
			flooded[i * ROUNDS + k] = measure_round(rig);
	}
	without = median(quiet, BLOCKS * ROUNDS);
	with = median(flooded, BLOCKS * ROUNDS);
	printf("%s: median of a round %" PRId64 " us without and %" PRId64 " us with the flood\n",
		kind, without, with);
	return (int)((with - without) * 100 / without);
}

/* Percent of the service's thread that the flood takes. */
static int share_of_flood(const char *kind)
{
	gint64 begin = g_get_monotonic_time();
	uint64_t used = pf_cpu_time_us();
	int share;

	turn_until(never, NULL, FLOOD_MS * 1000);
	share = (int)((int64_t)(pf_cpu_time_us() - used) * 100 / (g_get_monotonic_time() - begin));
	printf("%s: %d %% of the service's time\n", kind, share);
	return share;
}

static bool is_paused(void *userdata)
{
	return vm_view(((Rig *)userdata)->flooder).figures.paused_ms > 0;
}

static void match_reason(const PfVmView *view, void *userdata)
{
	*(bool *)userdata = strstr(view->reason, "more than its trust group allows") != NULL;
}

static bool is_said_to_be_slowed(const Rig *rig)
{
	bool said = false;

	assert_true(pf_service_visit_vm(
		lab_service(rig->lab), rig->flooder->name, match_reason, &said));
	return said;
}

static LabVm *start(Lab *lab, const char *name, const char *group)
{
	LabVm *vm = lab_start_vm(lab, name, group);

	lab_announce(vm);
	lab_wait_for_session(vm);
	return vm;
}

static void start_others(Rig *rig)
{
	rig->a = start(rig->lab, "a", "default");
	rig->b = start(rig->lab, "b", "default");
	measure_round(rig);
}

static void check_flood(Rig *rig, const char *kind)
{
	int share, slower = MAX_SLOWER;

	if (!turn_until(is_paused, rig, WAIT_US))
		fail_msg("%s: the flood is not held back", kind);
	share = share_of_flood(kind);
	for (unsigned i = 0; i < ATTEMPTS && slower >= MAX_SLOWER; i++)
		slower = compare(rig, kind);
	assert_in_range(share, 0, MAX_SHARE - 1);
	if (slower >= MAX_SLOWER)
		fail_msg("%s: a round takes %d %% longer", kind, slower);
	assert_true(is_said_to_be_slowed(rig));
	assert_int_equal(vm_view(rig->a).figures.paused_ms + vm_view(rig->b).figures.paused_ms, 0);
}

static void check_guest(Rig *rig, const char *kind, const char *group)
{
	start_others(rig);
	rig->flooder = start(rig->lab, "flooder", group);
	lab_ok(rig->flooder, "flood %s %u", kind, MANY);
	check_flood(rig, kind);
}

static void test_hints(void **state)
{
	check_guest(*state, "hints", "default");
}

static void test_hints_in_another_group(void **state)
{
	check_guest(*state, "hints", "other");
}

static void test_withdrawn(void **state)
{
	check_guest(*state, "withdrawn", "default");
}

static void test_sessions(void **state)
{
	check_guest(*state, "sessions", "default");
}

static void test_rubbish(void **state)
{
	check_guest(*state, "rubbish", "default");
}

static void test_qemu(void **state)
{
	Rig *rig = *state;

	start_others(rig);
	rig->flooder = lab_start_bare_vm(rig->lab, "flooder", "default");
	lab_ok(rig->flooder, "shim flood");
	lab_announce(rig->flooder);
	lab_wait_for_session(rig->flooder);
	check_flood(rig, "QEMU");
}

/* What was sent in a flood is taken in the end, late: a guest that comes to its senses is as good as any. */
static void test_nothing_is_lost(void **state)
{
	Rig *rig = *state;

	start_others(rig);
	rig->flooder = start(rig->lab, "flooder", "default");
	/* More than it may have at once; what follows waits unread, and then its word that it has come to its senses. */
	lab_ok(rig->flooder, "flood sessions %u", PF_POLICY_BURST_S + 2);
	lab_ok(rig->flooder, "flood hints 4");
	lab_ok(rig->flooder, "fill %u %u 7", FIRST, FINAL_PAGES);
	lab_ok(rig->flooder, "module 3 last %u", FINAL_PAGES);
	lab_ok(rig->flooder, "hint 3 0 %u %u", FIRST, FINAL_PAGES);
	assert_true(is_paused(rig));
	lab_ok(rig->a, "fill 900 %u 7", FINAL_PAGES);
	lab_ok(rig->a, "module 3 last %u", FINAL_PAGES);
	lab_ok(rig->a, "hint 3 0 900 %u", FINAL_PAGES);
	rig->shared = N + FINAL_PAGES;
	assert_true(turn_until(shares, rig, WAIT_US));
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_hints),
		TEST(test_hints_in_another_group),
		TEST(test_withdrawn),
		TEST(test_sessions),
		TEST(test_rubbish),
		TEST(test_qemu),
		TEST(test_nothing_is_lost),
	};
#undef TEST

	if (access("/dev/userfaultfd", F_OK) < 0) {
		fprintf(stderr, "skipped: this kernel has no /dev/userfaultfd\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
