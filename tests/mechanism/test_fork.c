/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A QEMU with -daemonize forks before it has a RAM block, and its child is the VM; later children are not. */
#include "tests/mechanism/mech.h"
#include <setjmp.h>
#include <stdarg.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define N 16u

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

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_daemonized)};

	/* As the library does it. */
	pthread_atfork(NULL, NULL, pf_core_forked);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
