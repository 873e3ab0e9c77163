/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The real service and the real shim, with VMs that are toys: what is shared, what is not, and by
 * whom. */
#include "proto/shim_protocol.h"
#include "tests/vmm/lab.h"
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#define N     64u  /* pages of the module that all VMs hold */
#define FIRST 100u /* their gfn */
#define SEED  5000u
#define LIE   0x11e50000u /* seed of what toy_vmm's "lie" claims for file page 0 */

typedef struct Wanted {
	Lab *lab;
	LabVm *a, *b;
	uint64_t shared;
} Wanted;

static PfFusionStats host_stats(Lab *lab)
{
	PfHostView view;

	pf_service_host_view(lab_service(lab), &view);
	return view.stats;
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

static bool shares(void *userdata)
{
	Wanted *wanted = userdata;

	return host_stats(wanted->lab).shared == wanted->shared;
}

static void wait_for_shared(Lab *lab, uint64_t shared)
{
	Wanted wanted = {.lab = lab, .shared = shared};

	if (!lab_wait(lab, shares, &wanted))
		fail_msg("%" G_GUINT64_FORMAT " pages are shared and not %" G_GUINT64_FORMAT,
			(guint64)host_stats(lab).shared, (guint64)shared);
}

static LabVm *start(Lab *lab, const char *name, const char *group)
{
	LabVm *vm = lab_start_vm(lab, name, group);

	lab_ok(vm, "fill %u %u %u", FIRST, N, SEED);
	lab_announce(vm);
	lab_wait_for_session(vm);
	return vm;
}

static void report(LabVm *vm)
{
	lab_ok(vm, "module 1 libtoy.so %u", N);
	lab_ok(vm, "hint 1 0 %u %u", FIRST, N);
}

static void expect_same_frames(LabVm *a, LabVm *b, bool same)
{
	for (unsigned i = 0; i < N; i++) {
		uint64_t pfn = lab_file_pfn(a, FIRST + i);

		assert_true(pfn != 0);
		if (same)
			assert_true(pfn == lab_file_pfn(b, FIRST + i));
		else
			assert_true(pfn != lab_file_pfn(b, FIRST + i));
	}
}

static int set_up(void **state)
{
	*state = lab_new(false);
	return 0;
}

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

static int tear_down(void **state)
{
	lab_free(*state);
	return 0;
}

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

/* A connection to the shims' socket that says what a shim says. */
static int connect_as_shim(Lab *lab, const void *data, size_t size)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	strcpy(address.sun_path, lab_shim_socket(lab));
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(send(fd, data, size, MSG_NOSIGNAL), size);
	return fd;
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

/* Frames by the kernel's count, without the store's label and the one page of members. */
static uint64_t frames_in_memory(Lab *lab)
{
	PfHostView view;

	pf_service_host_view(lab_service(lab), &view);
	return view.store_allocated_kib / (PF_PAGE_SIZE / 1024) - 2;
}

static bool has_frames(void *userdata)
{
	Wanted *wanted = userdata;

	return frames_in_memory(wanted->lab) == wanted->shared &&
	       host_stats(wanted->lab).frames == wanted->shared;
}

static void wait_for_frames(Lab *lab, uint64_t n)
{
	Wanted wanted = {.lab = lab, .shared = n};

	if (!lab_wait(lab, has_frames, &wanted))
		fail_msg("%" G_GUINT64_FORMAT " frames, %" G_GUINT64_FORMAT
			 " in memory, and not %" G_GUINT64_FORMAT,
			(guint64)host_stats(lab).frames, (guint64)frames_in_memory(lab),
			(guint64)n);
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

static bool shares_nothing(void *userdata)
{
	Wanted *wanted = userdata;

	return lab_count_file_pages(wanted->a) == 0;
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
