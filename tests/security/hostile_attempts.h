/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Every way to write to a frame that somebody has thought of. */
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define HOSTILE_FIRST_FRAME 512

typedef struct HostileTarget {
	int store, device;        /* as the service has sent them */
	off_t frame;              /* bytes: where the first frame lies */
	const char *service_path; /* /proc/PID/fd/N of the service's */
	size_t page_size;
} HostileTarget;

typedef struct HostileAttempt {
	const char *name;
	int (*run)(const HostileTarget *target); /* errno, or 0 */
} HostileAttempt;

extern const HostileAttempt hostile_attempts[];
extern const size_t hostile_n_attempts;

/* Those through maps, in a file of their own, with the marks of the one table. */
#define HOSTILE_MAP_ATTEMPTS(X)                                                                    \
	X(map_shared)                                                                              \
	X(mprotect_shared)                                                                         \
	X(mremap_and_mprotect)                                                                     \
	X(madvise_remove_shared)                                                                   \
	X(madvise_remove_private)                                                                  \
	X(madvise_hwpoison)                                                                        \
	X(madvise_soft_offline)                                                                    \
	X(madvise_free)                                                                            \
	X(madvise_populate_write)                                                                  \
	X(madvise_pageout)                                                                         \
	X(madvise_collapse)                                                                        \
	X(mbind_and_move)                                                                          \
	X(private_write)                                                                           \
	X(private_write_and_dontneed)                                                              \
	X(private_mergeable)                                                                       \
	X(mem_file_shared)                                                                         \
	X(mem_file_private)                                                                        \
	X(process_vm_writev)                                                                       \
	X(vmsplice_gift)                                                                           \
	X(read_into_shared)                                                                        \
	X(remap_file_pages)                                                                        \
	X(userfault_shared)                                                                        \
	X(userfault_shared_minor)                                                                  \
	X(userfault_copy)                                                                          \
	X(userfault_zeropage)                                                                      \
	X(userfault_continue)                                                                      \
	X(userfault_move)                                                                          \
	X(userfault_writeprotect)

#define HOSTILE_DECLARE(name) int hostile_##name(const HostileTarget *target);
HOSTILE_MAP_ATTEMPTS(HOSTILE_DECLARE)
