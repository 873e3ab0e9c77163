/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A mapping that comes into guest RAM takes all that its neighbours have: flags, accounting, and the memory policy that
 * libvirt had QEMU set with mbind(). Frames belong to all VMs and have no policy. Each check makes pages private in all
 * three ways: the guest writes, the service releases, QEMU discards.
 */
#include "tests/mechanism/mech.h"
#include <linux/mempolicy.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cmocka.h>

#define N      64u
#define N_RUN  4u /* pages of each of the three runs */
#define REVOKE 8u /* where they begin */
#define REL    24u
#define DIS    40u
#define CYCLES 3000u
#define SEED   100u

static const size_t runs[] = {REVOKE, REL, DIS};

static uint8_t *page_of(uint8_t *block, size_t i)
{
	return block + i * PF_PAGE_SIZE;
}

/* A block made with these flags of mmap() and this advice (0 ends it), as the test wants it and not as QEMU does. */
static uint8_t *make_block(int map_flags, const int *advice)
{
	/* A page before and behind it, so that it merges with nothing. */
	uint8_t *area = mmap(NULL, (N + 2) * PF_PAGE_SIZE, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
		*block;

	assert_true(area != MAP_FAILED);
	block = mmap(area + PF_PAGE_SIZE, N * PF_PAGE_SIZE, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | map_flags, -1, 0);
	assert_ptr_equal(block, area + PF_PAGE_SIZE);
	for (; *advice; advice++)
		assert_int_equal(madvise(block, N * PF_PAGE_SIZE, *advice), 0);
	assert_int_equal(pf_core_add_block(block, N * PF_PAGE_SIZE), 0);
	return block;
}

static void free_block(uint8_t *block)
{
	assert_int_equal(pf_core_munmap(block - PF_PAGE_SIZE, (N + 2) * PF_PAGE_SIZE), 0);
	mech_drop_lost();
}

static void fuse_runs(uint8_t *block)
{
	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(block, i), SEED + i);
	for (size_t r = 0; r < 3; r++) {
		PfFrame frame = mech_publish_seed(SEED + runs[r]);
		uint8_t results[N_RUN];

		for (size_t i = 1; i < N_RUN; i++)
			mech_publish_seed(SEED + runs[r] + i);
		mech_fuse(page_of(block, runs[r]), frame, N_RUN, results);
		for (size_t i = 0; i < N_RUN; i++)
			assert_int_equal(results[i], PF_SHIM_DONE);
		mech_skip_frames(1);
	}
}

static void make_private(uint8_t *block)
{
	PfShimLost lost;

	for (size_t i = 0; i < N_RUN; i++) {
		volatile uint8_t *byte = page_of(block, REVOKE + i);

		*byte ^= 1;
		*byte ^= 1;
		assert_true(mech_wait_lost(page_of(block, REVOKE + i), &lost));
		assert_int_equal(lost.loss, PF_SHIM_LOST_REVOKED);
	}
	pf_core_release((PfHva){(uintptr_t)page_of(block, REL)}, N_RUN);
	assert_int_equal(
		pf_core_madvise(page_of(block, DIS), N_RUN * PF_PAGE_SIZE, MADV_DONTNEED), 0);
	for (size_t i = 0; i < N; i++) {
		assert_false(mech_in_file_vma(page_of(block, i)));
		if (i >= DIS && i < DIS + N_RUN)
			assert_true(mech_is_zero(page_of(block, i)));
		else
			assert_true(mech_holds(page_of(block, i), SEED + i));
	}
}

static void check_flags(int map_flags, const int *advice, const char *wanted)
{
	uint8_t *block = make_block(map_flags, advice);
	char before[256], after[256];

	mech_fill(block, SEED);
	mech_vm_flags(block, before);
	print_message("%s", before);
	/* Or the test would not test it. */
	assert_non_null(strstr(before, wanted));
	fuse_runs(block);
	make_private(block);
	for (size_t i = 0; i < N; i++) {
		mech_vm_flags(page_of(block, i), after);
		assert_string_equal(after, before);
	}
	free_block(block);
}

static void test_flags(void **state)
{
	check_flags(0, (const int[]){0}, " ac");
	check_flags(MAP_NORESERVE, (const int[]){0}, " nr");
	check_flags(0, (const int[]){MADV_DONTFORK, 0}, " dc");
	check_flags(0, (const int[]){MADV_DONTDUMP, 0}, " dd");
	check_flags(0, (const int[]){MADV_HUGEPAGE, 0}, " hg");
	check_flags(0, (const int[]){MADV_NOHUGEPAGE, 0}, " nh");
	check_flags(MAP_NORESERVE, (const int[]){MADV_DONTDUMP, MADV_HUGEPAGE, MADV_DONTFORK, 0},
		" dc");
}

static void test_mergeable(void **state)
{
	if (access("/sys/kernel/mm/ksm/run", F_OK) < 0) {
		print_message("this kernel has no KSM\n");
		skip();
	}
	check_flags(0, (const int[]){MADV_MERGEABLE, 0}, " mg");
	check_flags(MAP_NORESERVE, (const int[]){MADV_MERGEABLE, MADV_DONTFORK, 0}, " mg");
}

/* QEMU advises a block after it is one: what counts is how it is when a page becomes private. */
static void test_advised_while_fused(void **state)
{
	uint8_t *block = make_block(MAP_NORESERVE, (const int[]){MADV_DONTFORK, 0});
	char before[256], after[256];

	fuse_runs(block);
	assert_int_equal(pf_core_madvise(block, N * PF_PAGE_SIZE, MADV_DONTDUMP), 0);
	assert_int_equal(pf_core_madvise(block, N * PF_PAGE_SIZE, MADV_NOHUGEPAGE), 0);
	mech_vm_flags(block, before);
	assert_non_null(strstr(before, " dd"));
	make_private(block);
	for (size_t i = 0; i < N; i++) {
		mech_vm_flags(page_of(block, i), after);
		assert_string_equal(after, before);
	}
	free_block(block);
}

/* Memory policy */

static void get_policy(const void *page, int *mode, unsigned long *nodes)
{
	unsigned long mask[16] = {0};

	assert_int_equal(syscall(SYS_get_mempolicy, mode, mask, 1024, page, MPOL_F_ADDR), 0);
	*nodes = mask[0];
}

/* The second word of the line of /proc/self/numa_maps for the VMA that begins there: its policy. */
static void numa_maps_policy(const void *start, char policy[64])
{
	FILE *maps = fopen("/proc/self/numa_maps", "re");
	unsigned long at;
	char line[4096];

	policy[0] = 0;
	assert_non_null(maps);
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx %63s", &at, policy) == 2 && at == (uintptr_t)start)
			break;
		else
			policy[0] = 0;
	fclose(maps);
}

static void expect_policy(const void *page, int mode, unsigned long nodes)
{
	unsigned long got_nodes;
	int got_mode;

	get_policy(page, &got_mode, &got_nodes);
	assert_int_equal(got_mode, mode);
	assert_int_equal(got_nodes, nodes);
}

/* text: what numa_maps calls it. */
static void check_policy(int mode, const char *text)
{
	uint8_t *block = make_block(MAP_NORESERVE, (const int[]){MADV_DONTFORK, 0});
	unsigned long node_0[16] = {1}, nodes;
	size_t maps = mech_n_maps();
	char policy[64];
	int got_mode;

	assert_int_equal(syscall(SYS_mbind, block, N * PF_PAGE_SIZE, mode, node_0, 1024, 0), 0);
	/* As the kernel keeps it: some modes come back in another form. */
	get_policy(block, &got_mode, &nodes);
	assert_int_equal(got_mode, mode);
	fuse_runs(block);
	for (size_t r = 0; r < 3; r++) {
		numa_maps_policy(page_of(block, runs[r]), policy);
		assert_string_equal(policy, "default");
		for (size_t i = 0; i < N_RUN; i++)
			expect_policy(page_of(block, runs[r] + i), MPOL_DEFAULT, 0);
	}
	make_private(block);
	for (size_t i = 0; i < N; i++)
		expect_policy(page_of(block, i), got_mode, nodes);
	numa_maps_policy(block, policy);
	assert_string_equal(policy, text);
	/* The same policy is what lets the VMAs become one again (the discarded pages may keep theirs). */
	assert_true(mech_n_maps() <= maps + 4);
	free_block(block);
}

static void test_memory_policy(void **state)
{
	unsigned long nodes[16] = {0};
	int mode;

	if (syscall(SYS_get_mempolicy, &mode, nodes, 1024, NULL, 0) < 0) {
		print_message("this kernel has no memory policies\n");
		skip();
	}
	check_policy(MPOL_BIND, "bind:0");
	check_policy(MPOL_PREFERRED, "prefer:0");
	check_policy(MPOL_INTERLEAVE, "interleave:0");
	check_policy(MPOL_BIND | MPOL_F_STATIC_NODES, "bind=static:0");
}

/* A part of the block has a policy of its own, which no page of it would keep: refused, and the rest is fused. */
static void test_policy_of_a_part(void **state)
{
	uint8_t *block = make_block(MAP_NORESERVE, (const int[]){MADV_DONTFORK, 0}), result;
	unsigned long node_0[16] = {1}, nodes[16] = {0};
	PfFrame frame;
	int mode;

	if (syscall(SYS_get_mempolicy, &mode, nodes, 1024, NULL, 0) < 0)
		skip();
	fuse_runs(block);
	assert_int_equal(syscall(SYS_mbind, page_of(block, 60), 2 * PF_PAGE_SIZE, MPOL_BIND, node_0,
				 1024, 0),
		0);
	frame = mech_publish_seed(SEED + 60);
	mech_fuse(page_of(block, 60), frame, 1, &result);
	assert_int_equal(result, PF_SHIM_FAILED);
	assert_true(mech_holds(page_of(block, 60), SEED + 60));
	expect_policy(page_of(block, 60), MPOL_BIND, 1);
	frame = mech_publish_seed(SEED + 62);
	assert_int_equal(mech_fuse_page(page_of(block, 62), frame), PF_SHIM_DONE);
	pf_core_release((PfHva){(uintptr_t)page_of(block, 62)}, 1);
	make_private(block);
	expect_policy(page_of(block, REVOKE), MPOL_DEFAULT, 0);
	free_block(block);
}

/* Accounting */

static uint64_t committed_kib(void)
{
	FILE *meminfo = fopen("/proc/meminfo", "re");
	uint64_t kib = 0;
	char line[128];

	assert_non_null(meminfo);
	while (fgets(line, sizeof(line), meminfo))
		if (sscanf(line, "Committed_AS: %lu", &kib) == 1)
			break;
	fclose(meminfo);
	return kib;
}

/* What this process has accounted: the size of all its VMAs that say so. */
static uint64_t accounted_kib(void)
{
	FILE *smaps = fopen("/proc/self/smaps", "re");
	uint64_t kib = 0, size = 0;
	char line[512];

	assert_non_null(smaps);
	while (fgets(line, sizeof(line), smaps)) {
		sscanf(line, "Size: %lu", &size);
		if (strncmp(line, "VmFlags:", 8) == 0 && strstr(line, " ac"))
			kib += size;
	}
	fclose(smaps);
	return kib;
}

static void cycle(uint8_t *block, PfFrame frame, unsigned n)
{
	uint8_t results[32];

	for (unsigned i = 0; i < n; i++) {
		mech_fuse(block, frame, 32, results);
		for (size_t k = 0; k < 32; k++)
			assert_int_equal(results[k], PF_SHIM_DONE);
		pf_core_release((PfHva){(uintptr_t)block}, 32);
		mech_drop_lost();
	}
}

static void check_accounting(int map_flags)
{
	uint8_t *block = make_block(map_flags, (const int[]){MADV_DONTFORK, 0}), results[32];
	const uint64_t leak_kib = CYCLES * 32 * PF_PAGE_SIZE / 1024;
	uint64_t before, after, own = accounted_kib();
	PfFrame frame = mech_publish_seed(SEED);
	int tries = 0;

	mech_fill(block, SEED);
	for (size_t i = 1; i < 32; i++) {
		mech_publish_seed(SEED + i);
		mech_fill(page_of(block, i), SEED + i);
	}
	mech_fuse(block, frame, 32, results);
	/* Whether a page may be written to later is as sure as before. */
	assert_int_equal(accounted_kib(), own);
	pf_core_release((PfHva){(uintptr_t)block}, 32);
	assert_int_equal(accounted_kib(), own);
	/* The kernel's sum is of all processes: a page lost in each cycle would be more than these change. */
	do {
		before = committed_kib();
		cycle(block, frame, CYCLES);
		after = committed_kib();
	} while (llabs((long long)(after - before)) > (long long)leak_kib / 2 && ++tries < 3);
	print_message("Committed_AS %lu kB, after %u cycles %lu kB\n", before, CYCLES, after);
	assert_true(tries < 3);
	assert_int_equal(accounted_kib(), own);
	free_block(block);
}

static void test_accounting(void **state)
{
	check_accounting(0);
	check_accounting(MAP_NORESERVE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_flags),
		cmocka_unit_test(test_mergeable),
		cmocka_unit_test(test_advised_while_fused),
		cmocka_unit_test(test_memory_policy),
		cmocka_unit_test(test_policy_of_a_part),
		cmocka_unit_test(test_accounting),
	};

	mech_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
