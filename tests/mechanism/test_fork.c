/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A QEMU with -daemonize forks before it has a RAM block, and its child is the VM; later children are not. QEMU also
 * has children in the middle of everything (a script for a network interface, a helper for a bridge): a fork while pages
 * are frozen, or are about to be private again, must share none of them, or the kernel could not move them back.
 */
#include "tests/mechanism/mech.h"
#include <setjmp.h>
#include <stdarg.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define N          16u
#define N_FORKS    120u
#define FIRST_SEED 0x5eed000u

/* In the child of a VM: a munmap() or madvise() of its own must not touch the parent's bookkeeping. */
static int later_child(uint8_t *block)
{
	if (pf_core_touches(block, PF_PAGE_SIZE))
		return 10;
	return pf_core_add_block(block, PF_PAGE_SIZE) == -ECHILD ? 0 : 11;
}

static int wait_for(pid_t child)
{
	int status;

	if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

/* What the daemonized QEMU does. The exit status says what went wrong. */
static int be_the_vm(void)
{
	uint8_t *block;
	pid_t child;

	mech_start();
	block = mech_block(N);
	mech_fill(block, 1);
	if (mech_fuse_page(block, mech_publish_seed(1)) != PF_SHIM_DONE)
		return 1;
	if (pf_core_madvise(block, PF_PAGE_SIZE, MADV_DONTNEED) != 0)
		return 2;
	/* The frame's bytes here would be another VM's memory where QEMU wants zeros. */
	if (!mech_is_zero(block))
		return 3;
	child = fork();
	if (child == 0)
		_exit(later_child(block));
	return wait_for(child);
}

static void test_daemonized(void **unused)
{
	pid_t child = fork();
	int status;

	if (child == 0)
		_exit(be_the_vm());
	status = wait_for(child);
	if (status == MECH_SKIP)
		exit(MECH_SKIP);
	assert_int_equal(status, 0);
}

/* Forks while pages are on their way */

static uint8_t *ram;
static PfFrame ram_frame;
static atomic_bool enough;
static atomic_uint n_fused;

static uint8_t *page_of(size_t i)
{
	return ram + i * PF_PAGE_SIZE;
}

/* Fuses all there is, half of which differs from its frame and comes back from the freeze, and releases it. */
static void *fuse_and_release(void *unused)
{
	PfShimLost lost[N];
	uint8_t results[N];
	bool overflow;

	while (!atomic_load(&enough)) {
		mech_fuse(ram, ram_frame, N, results);
		for (size_t i = 0; i < N; i++)
			n_fused += results[i] == PF_SHIM_DONE;
		pf_core_release((PfHva){(uintptr_t)ram}, N / 2);
		pf_core_take_lost(lost, N, &overflow);
	}
	return NULL;
}

/* Whether a page with the bytes of a page of RAM lies there. */
static bool has_ram_bytes(const uint8_t *start, const uint8_t *end)
{
#ifdef __SANITIZE_ADDRESS__
	/* Its own memory cannot be read. */
	return false;
#endif
	for (; start < end; start += PF_PAGE_SIZE)
		for (size_t i = 0; i < N; i++)
			if (mech_holds(start, FIRST_SEED + i))
				return true;
	return false;
}

/*
 * Nowhere in memory of its own a page of RAM, and no frame. 0, or what is wrong.
 */
static int look_around(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned long start, end, inode;
	char line[512], perms[5];

	if (!maps)
		return 20;
	while (fgets(line, sizeof(line), maps)) {
		if (strstr(line, "/memfd:pagefusion"))
			return 21;
		if (sscanf(line, "%lx-%lx %4s %*x %*s %lu", &start, &end, perms, &inode) != 4 ||
			inode != 0 || perms[0] != 'r' || perms[1] != 'w')
			continue;
		if ((uintptr_t)ram < end && (uintptr_t)ram + N * PF_PAGE_SIZE > start)
			return 22;
		if (!strstr(line, "[stack]") &&
			has_ram_bytes((const uint8_t *)start, (const uint8_t *)end))
			return 23;
	}
	fclose(maps);
	return 0;
}

/* It runs on: it has memory of its own where RAM was, and what it does with that is its own matter. */
static int run_on(void)
{
	size_t size = N * PF_PAGE_SIZE;
	int status = look_around();
	uint8_t *own;

	if (status)
		return status;
	own = pf_core_mmap(
		ram, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (own != ram)
		return 24;
	for (size_t i = 0; i < N; i++) {
		if (!mech_is_zero(page_of(i)))
			return 25;
		mech_fill(page_of(i), i);
	}
	if (pf_core_madvise(ram, size, MADV_DONTFORK) != 0 ||
		pf_core_madvise(ram, size / 2, MADV_DONTNEED) != 0)
		return 26;
	for (size_t i = 0; i < N; i++)
		if (i < N / 2 ? !mech_is_zero(page_of(i)) : !mech_holds(page_of(i), i))
			return 27;
	return pf_core_munmap(ram, size) == 0 ? 0 : 28;
}

/* Children come and go, several at once, while the parent fuses. 0, or what went wrong. */
static int fork_in_the_middle(void)
{
	pid_t children[4] = {0};
	int status = 0;

	for (unsigned i = 0; i < N_FORKS + 4; i++) {
		pid_t *child = &children[i % 4];

		if (*child > 0 && (status = wait_for(*child)) != 0)
			return status;
		*child = i < N_FORKS ? fork() : 0;
		if (*child == 0 && i < N_FORKS)
			_exit(run_on());
		/* A write of the guest's: what is private again is written to, too. */
		mech_fill(page_of(i % (N / 2)), FIRST_SEED + i % (N / 2));
	}
	return 0;
}

static int fork_while_fusing(void)
{
	pthread_t thread;
	PfShimState snapshot;
	int status;

	mech_start();
	ram = mech_block(N);
	ram_frame = mech_publish_seed(FIRST_SEED);
	for (size_t i = 0; i < N; i++) {
		mech_fill(page_of(i), FIRST_SEED + i);
		if (i > 0)
			mech_publish_seed(i % 2 ? FIRST_SEED + i : i);
	}
	if (pthread_create(&thread, NULL, fuse_and_release, NULL) != 0)
		return 30;
	status = fork_in_the_middle();
	atomic_store(&enough, true);
	pthread_join(thread, NULL);
	for (size_t i = 0; i < N && status == 0; i++)
		if (!mech_holds(page_of(i), FIRST_SEED + i))
			status = 31;
	pf_core_state(&snapshot, false);
	if (status == 0 && snapshot.stopped)
		status = 32;
	return status == 0 && n_fused < 10 * N ? 33 : status;
}

static void test_fork_while_pages_are_frozen(void **unused)
{
	pid_t child = fork();

	if (child == 0)
		_exit(fork_while_fusing());
	assert_int_equal(wait_for(child), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_daemonized),
		cmocka_unit_test(test_fork_while_pages_are_frozen),
	};

	/* As the library does it. */
	pthread_atfork(pf_core_before_fork, pf_core_after_fork, pf_core_forked);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
