/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What QEMU calls and we must know of: madvise, munmap, mmap and mremap. QEMU reaches all of them
 * through the PLT. A RAM block is what gets MADV_DONTFORK; that call is also where our thread
 * starts, and not the constructor, because a QEMU with -daemonize forks in between.
 */
/* With 64 it would rename mmap to mmap64, and we define both. */
#undef _FILE_OFFSET_BITS
#include "host-service/shim/core.h"
#include "host-service/shim/link.h"
#include "proto/shim_protocol.h"
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))

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

__attribute__((constructor)) static void start(void)
{
	const char *path = getenv(PF_SHIM_SOCKET_VARIABLE);

	if (path && strlen(path) < sizeof socket_path)
		strcpy(socket_path, path);
	unsetenv(PF_SHIM_SOCKET_VARIABLE);
	leave_preload();
	pthread_atfork(NULL, NULL, pf_core_forked);
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
