/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What QEMU calls and we must know of: madvise, munmap, mmap and mremap, and what makes a userfaultfd. QEMU reaches all
 * of them through the PLT. A RAM block is what gets MADV_DONTFORK; that call is also where our thread
 * starts, and not the constructor, because a QEMU with -daemonize forks in between.
 *
 * A userfaultfd is made by syscall(SYS_userfaultfd), and in newer QEMUs by ioctl(USERFAULTFD_IOC_NEW). Of these two
 * functions every other call goes straight on to the next library's, found once; ioctl() is where a vCPU enters KVM.
 * Our own calls come through here too, but for a userfaultfd we use syscall(SYS_ioctl) (kernel.c).
 */
/* With 64 it would rename mmap to mmap64, and we define both. */
#undef _FILE_OFFSET_BITS
#include "host-service/shim/aside.h"
#include "host-service/shim/core.h"
#include "host-service/shim/link.h"
#include "proto/shim_protocol.h"
#include <dlfcn.h>
#include <errno.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

typedef int (*IoctlFunction)(int, unsigned long, ...);
typedef long (*SyscallFunction)(long, ...);
static _Atomic(IoctlFunction) next_ioctl;
static _Atomic(SyscallFunction) next_syscall;

static char socket_path[108] = PF_SHIM_DEFAULT_SOCKET;

/* Takes this library out of LD_PRELOAD, so that QEMU's children do not load it; others stay. */
static void leave_preload(void)
{
	char *list = getenv("LD_PRELOAD"), *to = list, *end;

	if (!list)
		return;
	for (char *from = list; *from; from = end) {
		size_t n = strcspn(from, ": ");
		const char *name = memrchr(from, '/', n);

		end = from + n + (from[n] != 0);
		name = name ? name + 1 : from;
		if (strncmp(name, PF_SHIM_LIBRARY, (size_t)(from + n - name)) == 0 &&
			(size_t)(from + n - name) == strlen(PF_SHIM_LIBRARY))
			continue;
		memmove(to, from, (size_t)(end - from));
		to += end - from;
	}
	*to = 0;
	if (to > list && (to[-1] == ':' || to[-1] == ' '))
		to[-1] = 0;
	if (*list == 0)
		unsetenv("LD_PRELOAD");
}

/* Also before our constructor: other libraries' may call these. */
static IoctlFunction find_ioctl(void)
{
	IoctlFunction found;

	*(void **)&found = dlsym(RTLD_NEXT, "ioctl");
	atomic_store(&next_ioctl, found);
	return found;
}

static SyscallFunction find_syscall(void)
{
	SyscallFunction found;

	*(void **)&found = dlsym(RTLD_NEXT, "syscall");
	atomic_store(&next_syscall, found);
	return found;
}

__attribute__((constructor)) static void start(void)
{
	const char *path = getenv(PF_SHIM_SOCKET_VARIABLE);

	if (path && strlen(path) < sizeof socket_path)
		strcpy(socket_path, path);
	find_ioctl();
	find_syscall();
	unsetenv(PF_SHIM_SOCKET_VARIABLE);
	leave_preload();
	pthread_atfork(pf_core_before_fork, pf_core_after_fork, pf_core_forked);
}

EXPORT int madvise(void *start, size_t length, int advice)
{
	int result = pf_core_madvise(start, length, advice), saved = errno;

	if (result == 0 && advice == MADV_DONTFORK) {
		/* What is not private anonymous memory is left alone; the service hears of a VM
		 * without RAM blocks. */
		pf_core_add_block(start, length);
		pf_link_start(socket_path);
	}
	errno = saved;
	return result;
}

EXPORT int munmap(void *start, size_t length)
{
	return pf_core_munmap(start, length);
}

EXPORT void *mmap(void *start, size_t length, int prot, int flags, int fd, off_t offset)
{
	return pf_core_mmap(start, length, prot, flags, fd, offset);
}

/* The same function where off_t has 64 bits. */
EXPORT void *mmap64(void *start, size_t length, int prot, int flags, int fd, off64_t offset)
{
	return pf_core_mmap(start, length, prot, flags, fd, offset);
}

EXPORT void *mremap(void *old, size_t old_length, size_t new_length, int flags, ...)
{
	void *new_start = NULL;
	va_list more;

	if (flags & MREMAP_FIXED) {
		va_start(more, flags);
		new_start = va_arg(more, void *);
		va_end(more);
	}
	return pf_core_mremap(old, old_length, new_length, flags, new_start);
}

/* Out of the way before QEMU gets its userfaultfd; errno is as the caller left it. */
static void before_userfaultfd(void)
{
	int saved = errno;

	pf_core_step_aside();
	errno = saved;
}

static void after_userfaultfd(long fd)
{
	int saved = errno;

	if (fd < 0)
		pf_core_come_back();
	else
		pf_aside_remember((int)fd);
	errno = saved;
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	IoctlFunction next = atomic_load_explicit(&next_ioctl, memory_order_relaxed);
	void *argument;
	va_list more;
	int result;

	va_start(more, request);
	argument = va_arg(more, void *);
	va_end(more);
	if (!next)
		next = find_ioctl();
	if (request != USERFAULTFD_IOC_NEW)
		return next(fd, request, argument);
	before_userfaultfd();
	result = next(fd, request, argument);
	after_userfaultfd(result);
	return result;
}

EXPORT long syscall(long number, ...)
{
	SyscallFunction next = atomic_load_explicit(&next_syscall, memory_order_relaxed);
	long a[6], result;
	va_list more;

	va_start(more, number);
	for (size_t i = 0; i < sizeof a / sizeof a[0]; i++)
		a[i] = va_arg(more, long);
	va_end(more);
	if (!next)
		next = find_syscall();
	if (number != SYS_userfaultfd)
		return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	before_userfaultfd();
	result = next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	after_userfaultfd(result);
	return result;
}
