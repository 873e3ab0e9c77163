/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The real service and the real shim, with VMs that are toys: what is shared, what is not, and by
 * whom. */
#include "tests/vmm/sharing.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>
#include <cmocka.h>

#define LIE 0x11e50000u /* seed of what toy_vmm's "lie" claims for file page 0 */

static void test_two_share(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default");
	PfFusionStats stats;

	report(a);
	report(b);
	wait_for_shared(lab, N);
	expect_same_frames(a, b, true);
	assert_int_equal(lab_count_file_pages(a), N);
	assert_int_equal(lab_count_file_pages(b), N);
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
	lab_ok(b, "check %u %u %u", FIRST, N, SEED);
	stats = host_stats(lab);
	assert_int_equal(stats.frames, N);
	assert_int_equal(stats.revoked, 0);
	assert_int_equal(stats.candidates, 0);
	assert_true(stats.hint_to_fused_us_p90 >= 0);
	assert_int_equal(vm_view(a).figures.stats.hinted, N);
	assert_int_equal(vm_view(a).figures.stats.fused, N);
	assert_int_equal(vm_view(a).figures.stats.shared, N);
	assert_true(vm_view(b).figures.shim_connected);

	/* A write in one: the other one keeps its bytes, and the numbers fall. */
	lab_ok(a, "write %u 123 77", FIRST + 5);
	assert_string_equal(lab_command(a, "read %u 123", FIRST + 5), "77");
	lab_ok(b, "check %u %u %u", FIRST, N, SEED);
	wait_for_shared(lab, N - 1);
	assert_int_equal(lab_count_file_pages(a), N - 1);
	assert_int_equal(lab_count_file_pages(b), N);
	assert_int_equal(host_stats(lab).revoked, 1);
	assert_int_equal(vm_view(a).figures.stats.revoked, 1);
	assert_int_equal(vm_view(b).figures.stats.shared, N - 1);
}

static void test_both_blocks_and_places(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default");

	/* The same module lies somewhere else in the other guest, in another order. */
	lab_ok(b, "fill %llu %u %u", LAB_HIGH + 8, N / 2, SEED + N / 2);
	lab_ok(b, "fill %u %u %u", 700, N / 2, SEED);
	report(a);
	lab_ok(b, "module 9 libtoy.so %u", N);
	lab_ok(b, "hint 9 %u %llu %u", N / 2, LAB_HIGH + 8, N / 2);
	lab_ok(b, "hint 9 0 700 %u", N / 2);
	wait_for_shared(lab, N);
	for (unsigned i = 0; i < N / 2; i++) {
		assert_true(lab_file_pfn(a, FIRST + i) == lab_file_pfn(b, 700 + i));
		assert_true(
			lab_file_pfn(a, FIRST + N / 2 + i) == lab_file_pfn(b, LAB_HIGH + 8 + i));
	}
	lab_ok(b, "check %llu %u %u", LAB_HIGH + 8, N / 2, SEED + N / 2);
	lab_ok(b, "check 700 %u %u", N / 2, SEED);
	lab_ok(b, "check %u %u %u", FIRST, N, SEED);
}

static void test_discard(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default");

	report(a);
	report(b);
	wait_for_shared(lab, N);
	lab_ok(a, "discard %u 4", FIRST + 10);
	lab_ok(a, "zero %u 4", FIRST + 10);
	lab_ok(a, "check %u 10 %u", FIRST, SEED);
	lab_ok(b, "check %u %u %u", FIRST, N, SEED);
	wait_for_shared(lab, N - 4);
	lab_ok(a, "fill %u 4 1", FIRST + 10);
	lab_ok(a, "check %u 4 1", FIRST + 10);
	assert_int_equal(host_stats(lab).revoked, 0);
}

static void test_children(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default");

	assert_string_equal(lab_command(a, "preload"), "[]");
	report(a);
	report(b);
	wait_for_shared(lab, N);
	assert_string_equal(lab_command(a, "fork"), "0");
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
	lab_ok(a, "fill %u %u 1", FIRST, N);
	lab_ok(a, "check %u %u 1", FIRST, N);
	lab_ok(b, "check %u %u %u", FIRST, N, SEED);
	wait_for_shared(lab, 0);
}

static void test_lies(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default");

	/* Both claim to hold what neither has. */
	lab_ok(a, "module 2 lies %u", N);
	lab_ok(b, "module 2 lies %u", N);
	lab_ok(a, "lie 2 0 %u 32", FIRST);
	lab_ok(b, "lie 2 0 %u 32", FIRST);
	/* Outside RAM, outside the module, of no module, a module of absurd size. */
	lab_ok(a, "lie 2 0 99999999 4");
	lab_ok(a, "lie 2 0 %u 64", LAB_LOW_PAGES - 32);
	lab_ok(a, "lie 2 18446744073709551600 100 64");
	lab_ok(a, "lie 2 0 18446744073709551600 64");
	lab_ok(a, "lie 77 0 100 4");
	lab_ok(a, "module 3 huge 18446744073709551615");
	lab_ok(a, "lie 3 0 100 4");
	lab_ok(a, "module 4294967295 far 10");
	lab_ok(a, "lie 4294967295 0 100 4");
	lab_ok(a, "rubbish");
	/* The truth of another module, after all that: nothing was broken. */
	lab_ok(a, "fill 600 16 42");
	lab_ok(b, "fill 600 16 42");
	lab_ok(a, "module 5 truth 16");
	lab_ok(b, "module 5 truth 16");
	lab_ok(a, "hint 5 0 600 16");
	lab_ok(b, "hint 5 0 600 16");
	wait_for_shared(lab, 16);
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
	lab_ok(b, "check %u %u %u", FIRST, N, SEED);
	lab_ok(a, "check 600 16 42");
	assert_int_equal(lab_count_file_pages(a), 16);
	assert_int_equal(lab_count_file_pages(b), 16);
	assert_true(vm_view(a).figures.stats.capture_mismatches +
			    vm_view(b).figures.stats.capture_mismatches >
		    0);
}

static bool was_found_out(void *userdata)
{
	Wanted *wanted = userdata;
	PfFusionVmStats stats = vm_view(wanted->a).figures.stats;

	return wanted->shared == 0 ? stats.refused[PF_SHIM_DIFFERENT] + stats.capture_mismatches > 0
				   : stats.refused[PF_SHIM_DIFFERENT] >= wanted->shared;
}

/* b and c hold 16 pages at gfn that the liar claims to hold too: from file_page on of module id. */
static void honest_hints(LabVm *b, LabVm *c, unsigned id, unsigned file_page, unsigned gfn)
{
	LabVm *both[] = {b, c};

	for (int i = 0; i < 2; i++) {
		lab_ok(both[i], "fill %u 16 %u", gfn, LIE + file_page);
		lab_ok(both[i], "module %u m%u 200", id, id);
		lab_ok(both[i], "hint %u %u %u 16", id, file_page, gfn);
	}
}

static void test_liar_beside_the_honest(void **state)
{
	Lab *lab = *state;
	LabVm *liar = start(lab, "liar", "default"), *b = start(lab, "b", "default"),
	      *c = start(lab, "c", "default");
	Wanted wanted = {.lab = lab, .a = liar};

	/* The liar comes first: the frames must not be made of its pages. */
	lab_ok(liar, "fill 300 200 9999");
	lab_ok(liar, "module 6 m6 200");
	lab_ok(liar, "lie 6 0 300 16");
	honest_hints(b, c, 6, 0, 300);
	wait_for_shared(lab, 16);
	assert_true(lab_wait(lab, was_found_out, &wanted));
	/* It comes last: the frames are there, and its pages must not become them. */
	honest_hints(b, c, 7, 100, 400);
	wait_for_shared(lab, 32);
	wanted.shared = 16 + vm_view(liar).figures.stats.refused[PF_SHIM_DIFFERENT];
	lab_ok(liar, "module 7 m7 200");
	lab_ok(liar, "lie 7 100 400 16");
	assert_true(lab_wait(lab, was_found_out, &wanted));
	lab_ok(liar, "check 300 200 9999");
	assert_int_equal(lab_count_file_pages(liar), 0);
	lab_ok(b, "check 300 16 %u", LIE);
	lab_ok(c, "check 400 16 %u", LIE + 100);
	assert_true(lab_file_pfn(b, 300) == lab_file_pfn(c, 300));
}

static void test_vm_goes(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default"),
	      *c = start(lab, "c", "default");

	report(a);
	report(b);
	report(c);
	wait_for_shared(lab, 2 * N);
	lab_end_vm(a, false);
	wait_for_shared(lab, N);
	lab_ok(b, "check %u %u %u", FIRST, N, SEED);
	lab_end_vm(c, true);
	wait_for_shared(lab, 0);
	lab_ok(b, "check %u %u %u", FIRST, N, SEED);
	lab_ok(b, "write %u 0 1", FIRST);
	lab_ok(b, "check %u %u %u", FIRST + 1, N - 1, SEED + 1);
	assert_int_equal(lab_count_file_pages(b), N - 1);
}

static void test_trust_groups(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "one"), *b = start(lab, "b", "one");
	LabVm *c = start(lab, "c", "two"), *d = start(lab, "d", "two");

	report(a);
	report(c);
	/* One of each group: nobody to share with. */
	lab_turn(lab, 300);
	assert_int_equal(host_stats(lab).shared, 0);
	assert_int_equal(lab_count_file_pages(a), 0);
	report(b);
	report(d);
	wait_for_shared(lab, 2 * N);
	expect_same_frames(a, b, true);
	expect_same_frames(c, d, true);
	expect_same_frames(a, c, false);
	assert_int_equal(host_stats(lab).frames, 2 * N);
}

static void test_strangers(void **state)
{
	Lab *lab = *state;
	struct {
		PfShimHeader header;
		PfShimHello hello;
	} hello = {{PF_SHIM_MAGIC, PF_SHIM_HELLO, 0, sizeof(hello), 0, 0},
		{PF_SHIM_VERSION, PF_SHIM_VERSION, 0, PF_PAGE_SIZE, 0, {0}}};
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default");
	/* A process with the shim that is no VM of libvirt's. */
	LabVm *stranger = lab_start_vm(lab, "stranger", "default");
	int fake = connect_as_shim(lab, &hello, sizeof(hello));
	int rubbish = connect_as_shim(lab, "not a message of the protocol", 29);
	char byte;

	lab_ok(stranger, "fill %u %u %u", FIRST, N, SEED);
	report(a);
	report(b);
	wait_for_shared(lab, N);
	assert_int_equal(lab_count_file_pages(stranger), 0);
	/* Nobody spoke to it, let alone sent it a descriptor. */
	assert_true(recv(fake, &byte, 1, MSG_DONTWAIT) <= 0);
	assert_true(recv(rubbish, &byte, 1, MSG_DONTWAIT) <= 0);
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
	lab_ok(stranger, "check %u %u %u", FIRST, N, SEED);
	close(fake);
	close(rubbish);
}

static void test_changed_after_the_hint(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default");

	report(a);
	report(b);
	/* Before it is fused, meanwhile or after: its own bytes stay. */
	lab_ok(b, "fill %u 1 31337", FIRST + 3);
	wait_for_shared(lab, N - 1);
	lab_ok(b, "check %u 1 31337", FIRST + 3);
	lab_ok(b, "check %u 3 %u", FIRST, SEED);
	lab_ok(b, "check %u %u %u", FIRST + 4, N - 4, SEED + 4);
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
	assert_true(lab_file_pfn(b, FIRST + 3) == 0);
}

static void test_frames_are_freed(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default");

	report(a);
	report(b);
	wait_for_shared(lab, N);
	wait_for_frames(lab, N);
	lab_ok(a, "fill %u %u 1", FIRST, N / 2);
	wait_for_shared(lab, N / 2);
	wait_for_frames(lab, N);
	lab_ok(b, "discard %u %u", FIRST, N);
	wait_for_frames(lab, N / 2);
	assert_int_equal(host_stats(lab).freed, N / 2);
	lab_ok(a, "check %u %u %u", FIRST + N / 2, N / 2, SEED + N / 2);
	/* What comes anew is fused anew. */
	lab_ok(a, "fill %u %u %u", FIRST, N, SEED);
	lab_ok(b, "fill %u %u %u", FIRST, N, SEED);
	lab_ok(a, "module 2 again %u", N);
	lab_ok(b, "module 2 again %u", N);
	lab_ok(a, "hint 2 0 %u %u", FIRST, N);
	lab_ok(b, "hint 2 0 %u %u", FIRST, N);
	wait_for_shared(lab, N);
	expect_same_frames(a, b, true);
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
	lab_ok(b, "check %u %u %u", FIRST, N, SEED);
}

static void refuse(PfDomain *domain)
{
	strcpy(domain->refusal, "a device was plugged in");
}

static void test_refused_while_it_runs(void **state)
{
	Lab *lab = *state;
	LabVm *a = start(lab, "a", "default"), *b = start(lab, "b", "default");
	Wanted wanted = {.lab = lab, .a = a};

	report(a);
	report(b);
	wait_for_shared(lab, N);
	lab_announce_changed(a, refuse);
	assert_true(lab_wait(lab, shares_nothing, &wanted));
	wait_for_shared(lab, 0);
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
	assert_int_equal(lab_count_file_pages(b), N);
	/* Its channel was closed meanwhile: its agent has to say everything anew. */
	lab_announce(a);
	lab_wait_for_session(a);
	report(a);
	wait_for_shared(lab, N);
	expect_same_frames(a, b, true);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_two_share),
		TEST(test_both_blocks_and_places),
		TEST(test_discard),
		TEST(test_children),
		TEST(test_lies),
		TEST(test_liar_beside_the_honest),
		TEST(test_vm_goes),
		TEST(test_trust_groups),
		TEST(test_strangers),
		TEST(test_changed_after_the_hint),
		TEST(test_frames_are_freed),
		TEST(test_refused_while_it_runs),
	};
#undef TEST

	if (access("/dev/userfaultfd", F_OK) < 0) {
		fprintf(stderr, "skipped: this kernel has no /dev/userfaultfd\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
