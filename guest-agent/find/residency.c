// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * cachestat() counts the pages of a range that are in the page cache; it costs as much as there are, and not as the
 * range is long. The next resident page is found by asking for one page, the two after it, the next four and so
 * on until something is there, then by halving that stretch: one call where pages are dense, some fifty where
 * three pages are all that a file of a terabyte has.
 *
 * An answer above zero is always true. Zero is not where a file system keeps the pages of its files in other
 * files: mappings of an overlay's files are mappings of the files below (and so may those of FUSE be), and
 * cachestat() counts on top. There, and before Linux 6.5, the kernel cannot say.
 */
#include "guest-agent/find/residency.h"
#include "common/page.h"
#include <errno.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Newer than the headers that this is built with may be. */
#define NR_CACHESTAT     451 /* on all architectures */
#define AUFS_MAGIC       0x61756673u
#define OVERLAY_FS_MAGIC 0x794c7630u

typedef struct Range {
	uint64_t offset, length; /* bytes */
} Range;

typedef struct Counts {
	uint64_t cached, dirty, writeback, evicted, recently_evicted; /* pages */
} Counts;

static atomic_bool unknown_call;

/* Whether the kernel counts no page of the range; no range is empty. */
static bool counts_none(int fd, uint64_t first, uint64_t n_pages)
{
	Range range = {first * PF_PAGE_SIZE, n_pages * PF_PAGE_SIZE};
	Counts counts = {0};

	if (atomic_load(&unknown_call))
		return false;
	if (syscall(NR_CACHESTAT, fd, &range, &counts, 0) < 0) {
		if (errno == ENOSYS)
			atomic_store(&unknown_call, true);
		return false;
	}
	return counts.cached == 0;
}

/* Whether the pages of the file's mappings are its own, so that none counted is none there. */
static bool keeps_own_pages(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return false;
	switch ((uint32_t)fs.f_type) {
	case OVERLAY_FS_MAGIC:
	case AUFS_MAGIC:
	case FUSE_SUPER_MAGIC:
		return false;
	default:
		return true;
	}
}

bool pf_residency_possible(int fd, uint64_t first, uint64_t n_pages)
{
	return n_pages > 0 && !(counts_none(fd, first, n_pages) && keeps_own_pages(fd));
}

/* The first page of a stretch that has some. */
static uint64_t halve(int fd, uint64_t first, uint64_t n_pages)
{
	while (n_pages > 1) {
		uint64_t half = n_pages / 2;

		if (counts_none(fd, first, half)) {
			first += half;
			n_pages -= half;
		} else {
			n_pages = half;
		}
	}
	return first;
}

uint64_t pf_residency_next(int fd, uint64_t first, uint64_t end)
{
	uint64_t n_pages = 1;

	if (first >= end)
		return end;
	if (!counts_none(fd, first, 1) || !keeps_own_pages(fd))
		return first;
	for (first++; first < end; first += n_pages) {
		n_pages = n_pages * 2 < end - first ? n_pages * 2 : end - first;
		if (!counts_none(fd, first, n_pages))
			return halve(fd, first, n_pages);
	}
	return end;
}
