/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Where the kernel's image is in memory and how /proc/kcore shows it. No I/O but of what is given. */
#include "common/page.h"
#include "proto/limits.h"
#include <stddef.h>
#include <stdio.h>

#define PF_KERNEL_MAX_RANGES 4

/* What of the kernel does not change, ascending and disjoint. */
typedef struct PfKernelLayout {
	PfGuestRange ranges[PF_KERNEL_MAX_RANGES];
	size_t n;
} PfKernelLayout;

/* A stretch of physical memory in /proc/kcore, in bytes. */
typedef struct PfKcoreSegment {
	uint64_t physical, offset;
} PfKcoreSegment;

/* Code and read-only data out of the text of /proc/iomem. 0; -EPERM when it hides its addresses; -ENOENT. */
int pf_kernel_layout_parse(PfKernelLayout *layout, FILE *iomem);

/* The segment of /proc/kcore that holds a range. 0; -ENOENT; -EINVAL when it is no such file; -errno of reading. */
int pf_kcore_find(int kcore, const PfGuestRange *range, PfKcoreSegment *segment);

/* The GNU build-id among the notes: its size, 0 for none. */
size_t pf_kernel_notes_build_id(
	const uint8_t *notes, size_t size, uint8_t id[PF_SESSION_MAX_BUILD_ID]);
