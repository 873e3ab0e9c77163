// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A mapped file may be truncated, or its medium may fail, between mincore() and the load: the load
 * then raises SIGBUS, in the thread that made it. The bytes must be those of the page-cache page, so
 * the load has to go through the mapping. Letting the kernel do it (process_vm_readv, /proc/self/mem,
 * MADV_POPULATE_READ) would give an error instead of a signal, but all of these mark the page as
 * accessed, and an agent that does so every minute keeps alive what the guest would rather drop. A
 * plain load through a mapping of window.c does not. So it is a plain copy, left by siglongjmp(). The
 * copied bytes are hashed outside, so that no foreign code is ever left in the middle.
 */
#include "guest-agent/find/guard.h"
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>

static _Thread_local sigjmp_buf way_out;
static _Thread_local volatile sig_atomic_t armed;

static void on_sigbus(int signal)
{
	if (armed)
		siglongjmp(way_out, 1);
	/* Not ours: the instruction runs again and ends the process as it would have. */
	(void)sigaction(signal, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
}

int pf_guard_init(void)
{
	/* SA_NODEFER: siglongjmp() does not have to restore a mask. */
	struct sigaction action = {.sa_handler = on_sigbus, .sa_flags = SA_NODEFER};

	return sigaction(SIGBUS, &action, NULL) == 0 ? 0 : -errno;
}

int pf_guard_copy(void *to, const void *from, size_t size)
{
	if (sigsetjmp(way_out, 0) != 0) {
		armed = 0;
		return -EFAULT;
	}
	armed = 1;
	/* The compiler must neither move the copy out of the armed stretch nor leave it out. */
	__asm__ volatile("" ::: "memory");
	memcpy(to, from, size);
	__asm__ volatile("" : : "r"(to) : "memory");
	armed = 0;
	return 0;
}
