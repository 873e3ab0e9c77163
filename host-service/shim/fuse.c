/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fusing a run: freeze, compare, map, look again.
 *
 * The pages are moved out to the scratch area by UFFDIO_MOVE. The kernel takes them away atomically
 * and refuses what is pinned (a DMA may be in flight) or shared with another process; whoever
 * touches them now waits. What equals its frame is replaced by a private map of the frame,
 * write-protected; what does not is moved back.
 *
 * Between mmap() and the protection nobody is held: a writer, or a pin for DMA, gets a private copy
 * of the frame in those microseconds. Bytes cannot tell (the DMA may land later), the page table
 * can: populated for reading, the page is still the frame's (pagemap bit 61) or it is somebody's
 * own, and then it stays his for ever. Only what passed this second comparison counts as fused; a
 * later revoke may put the frame's bytes there again without losing a write.
 */
#include "host-service/shim/core_internal.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define NO_RESULT_YET 0xff

typedef struct Freeze {
	PfRamBlock *block;
	size_t page;           /* first, in block */
	PfFrame frame;         /* of the first */
	const uint8_t *frames; /* bytes of the frames, n pages */
	bool may_break_huge;
	uint8_t *results;
} Freeze;

PF_NEEDS_LOCK static char *address(const Freeze *f, size_t i)
{
	return pf_ram_address(f->block, f->page + i);
}

PF_NEEDS_LOCK static char *scratch(size_t i)
{
	return pf_core.scratch + i * PF_PAGE_SIZE;
}

static void set_results(Freeze *f, size_t from, size_t n, PfShimResult result)
{
	memset(f->results + from, result, n);
}

static PfShimResult result_of(int error)
{
	switch (error) {
	case -EBUSY:
		return PF_SHIM_BUSY;
	case -ENOENT:
		return PF_SHIM_NOT_PRESENT;
	case -ENOMEM:
		return PF_SHIM_NO_MAPS;
	default:
		return PF_SHIM_FAILED;
	}
}

PF_NEEDS_LOCK static void end_freeze(const Freeze *f, size_t from, size_t n)
{
	if (n == 0)
		return;
	/* If it cannot be unregistered (a split, and no map left) faults there are answered with
	 * zeros or a wake. */
	pf_uffd_unregister(pf_core.uffd, address(f, from), n * PF_PAGE_SIZE);
	pf_uffd_wake(pf_core.uffd, address(f, from), n * PF_PAGE_SIZE);
}

static void widen_window_for_tests(void)
{
#ifdef PF_TEST_WINDOW_US
	struct timespec t;
	uint64_t until = 0, now;

	do {
		clock_gettime(CLOCK_MONOTONIC, &t);
		now = (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
		until = until ? until : now + PF_TEST_WINDOW_US;
	} while (now < until);
#endif
}

/* A page that was mapped and is not surely the frame's: whoever wrote there keeps what he has. */
PF_NEEDS_LOCK static void leave_to_writer(Freeze *f, size_t i)
{
	size_t page = f->page + i;

	if (pf_core_copy_in_place(address(f, i))) {
		pf_ram_set(f->block, page, PF_PAGE_PRIVATE_IN_FILE, (PfFrame){0});
		pf_core.written++;
		f->results[i] = PF_SHIM_WRITTEN;
	} else {
		/* The frame cannot be read or written through, so nobody has written: what was frozen comes back. */
		pf_core_replace_pages(f->block, address(f, i), scratch(i), 1);
		f->results[i] = PF_SHIM_FAILED;
	}
}

/* The second comparison: which of the pages that were just mapped and protected are still the
 * frame's. */
PF_NEEDS_LOCK static void look_again(Freeze *f, size_t from, size_t n)
{
	uint64_t entries[PF_SHIM_RUN_PAGES];
	bool known = pf_sys_madvise(address(f, from), n * PF_PAGE_SIZE, MADV_POPULATE_READ) == 0 &&
		     pf_core_pagemap(address(f, from), n, entries) == 0;

	for (size_t i = 0; i < n; i++) {
		bool still = known && (entries[i] & PF_PAGEMAP_PRESENT) &&
			     (entries[i] & PF_PAGEMAP_FILE);

#ifdef PF_TEST_NO_SECOND_COMPARISON
		still = true;
#endif
		if (still) {
			pf_ram_set(f->block, f->page + from + i, PF_PAGE_FUSED,
				(PfFrame){f->frame.v + from + i});
			f->results[from + i] = PF_SHIM_DONE;
		} else {
			leave_to_writer(f, from + i);
		}
	}
}

/* Maps the frames over pages that are frozen and equal to them. */
PF_NEEDS_LOCK static void map_frames(Freeze *f, size_t from, size_t n)
{
	size_t length = n * PF_PAGE_SIZE;
	char *start = address(f, from);
	int flags = MAP_PRIVATE | MAP_FIXED | (f->block->flags.no_reserve ? MAP_NORESERVE : 0),
	    error;

	if (!pf_sys_mmap(start, length, PROT_READ | PROT_WRITE, flags, pf_core.store,
		    (int64_t)((f->frame.v + from) * PF_PAGE_SIZE), &error)) {
		/*
		 * Kernels before 6.12 may have unmapped what was there by then: the pages come back in one piece.
		 */
		if (pf_sys_is_mapped(start, length))
			pf_core_put_pages(start, scratch(from), n);
		else
			pf_core_replace_pages(f->block, start, scratch(from), n);
		end_freeze(f, from, n);
		set_results(f, from, n, result_of(error));
		return;
	}
	pf_core_added_maps(2);
	pf_core_advise_frames(f->block, start, length);
	widen_window_for_tests();
	error = pf_uffd_register(pf_core.uffd, start, length, UFFDIO_REGISTER_MODE_WP);
	if (error == 0)
		error = pf_uffd_protect(pf_core.uffd, start, length, UFFDIO_WRITEPROTECT_MODE_WP);
	if (error == 0)
		look_again(f, from, n);
	/* Mapped, right, and not protected: everybody may write, so nothing here is ours any more. */
	for (size_t i = 0; error != 0 && i < n; i++)
		leave_to_writer(f, from + i);
	pf_uffd_wake(pf_core.uffd, start, length);
}

/* Whether the page is fused, and with the frame that is due there: i counts from the first of f. */
PF_NEEDS_LOCK static bool is_continued(const Freeze *f, ssize_t i)
{
	size_t page = f->page + (size_t)i;

	/* Before the block's first page the number has wrapped around. */
	return page < f->block->n_pages && pf_ram_state(f->block, page) == PF_PAGE_FUSED &&
	       pf_ram_frame(f->block, page).v == f->frame.v + (uint64_t)i;
}

/* Whether n pages from there on may be fused, as a piece with what is fused beside them already. */
PF_NEEDS_LOCK static bool is_within_budget(const Freeze *f, size_t from, size_t n, bool frozen)
{
	ssize_t left = (ssize_t)from, right = (ssize_t)(from + n);

	while (right - left < PF_SHIM_RUN_PAGES && is_continued(f, left - 1))
		left--;
	while (right - left < PF_SHIM_RUN_PAGES && is_continued(f, right))
		right++;
	return pf_core_may_fuse((size_t)(right - left), frozen);
}

/* The first comparison, of n frozen pages; equal ones are mapped in pieces, the others go back. */
PF_NEEDS_LOCK static void compare_and_map(Freeze *f, size_t n)
{
	bool equal[PF_SHIM_RUN_PAGES];

	for (size_t i = 0; i < n; i++)
		equal[i] = memcmp(scratch(i), f->frames + i * PF_PAGE_SIZE, PF_PAGE_SIZE) == 0;
	for (size_t i = 0, end; i < n; i = end) {
		for (end = i + 1; end < n && equal[end] == equal[i]; end++)
			;
		if (equal[i] && is_within_budget(f, i, end - i, true)) {
			map_frames(f, i, end - i);
		} else {
			pf_core_put_pages(address(f, i), scratch(i), end - i);
			end_freeze(f, i, end - i);
			set_results(f, i, end - i, equal[i] ? PF_SHIM_NO_MAPS : PF_SHIM_DIFFERENT);
		}
	}
	if (n > 0)
		pf_sys_madvise(pf_core.scratch, n * PF_PAGE_SIZE, MADV_DONTNEED);
}

/*
 * One transaction on n pages that are private and present. Returns for how many of them results are
 * set, at least 1: what follows a page that cannot be moved is for another transaction.
 */
PF_NEEDS_LOCK static size_t fuse_stretch(Freeze *f, size_t n)
{
	size_t moved, n_moved;
	int error;

	if (!is_within_budget(f, 0, n, false)) {
		set_results(f, 0, n, PF_SHIM_NO_MAPS);
		return n;
	}
	error = pf_uffd_register(
		pf_core.uffd, address(f, 0), n * PF_PAGE_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	if (error) {
		/* It may have registered a part. */
		end_freeze(f, 0, n);
		set_results(f, 0, n, result_of(error));
		return n;
	}
	error = pf_uffd_move(pf_core.uffd, scratch(0), address(f, 0), n * PF_PAGE_SIZE, &moved);
	n_moved = moved / PF_PAGE_SIZE;
	end_freeze(f, n_moved, n - n_moved);
	compare_and_map(f, n_moved);
	if (error == 0)
		return n;
	if (error == -EINVAL && n > 1 && n_moved == 0)
		/* The run spans VMAs: page by page. (Or they are locked memory: then each page FAILED.) */
		return fuse_stretch(f, 1);
	f->results[n_moved] = (uint8_t)result_of(error);
	return n_moved + 1;
}

static PfShimResult fitness(PfPageState state, uint64_t entry, bool huge)
{
	if (state == PF_PAGE_GONE)
		return PF_SHIM_NOT_RAM;
	if (state != PF_PAGE_PRIVATE)
		return PF_SHIM_NOT_PRIVATE;
	/* Swapped or migrating pages are not present either. */
	if (!(entry & PF_PAGEMAP_PRESENT) || (entry & PF_PAGEMAP_FILE))
		return PF_SHIM_NOT_PRESENT;
	return huge ? PF_SHIM_HUGE : PF_SHIM_DONE;
}

/*
 * How many pages from f on are worth a freeze; where that is none, the first one's result is set. 0
 * or more, or -errno. What is there and cannot be moved all the same the kernel refuses, and the page keeps its bytes:
 * pinned, or merged by KSM (BUSY), locked in memory (FAILED).
 */
PF_NEEDS_LOCK static ssize_t worth_a_freeze(const Freeze *f, size_t n)
{
	uint64_t entries[PF_SHIM_RUN_PAGES], huge = 0;
	int error = pf_core_pagemap(address(f, 0), n, entries);
	size_t i;

	if (error)
		return error;
	if (!f->may_break_huge)
		huge = pf_sys_huge_pages(pf_core.pagemap, address(f, 0), n);
	for (i = 0; i < n; i++) {
		PfShimResult result =
			fitness(pf_ram_state(f->block, f->page + i), entries[i], huge >> i & 1);

		if (result == PF_SHIM_DONE)
			continue;
		if (i == 0)
			f->results[0] = (uint8_t)result;
		break;
	}
	return (ssize_t)i;
}

/* A block has one memory policy, or none of its pages can be made as they were: then it is left
 * alone. */
PF_NEEDS_LOCK static int note_policy(PfRamBlock *block, char *page)
{
	PfPolicy policy = {0};
	int error = pf_sys_get_policy(page, &policy);

	if (error == -ENOSYS)
		return 0;
	if (error)
		return error;
	if (block->has_policy &&
		(policy.mode != block->policy.mode ||
			memcmp(policy.nodes, block->policy.nodes, sizeof policy.nodes) != 0))
		return -EINVAL;
	block->policy = policy;
	block->has_policy = true;
	return 0;
}

PF_NEEDS_LOCK static size_t pages_in_block(const Freeze *f, size_t n)
{
	return n < f->block->n_pages - f->page ? n : f->block->n_pages - f->page;
}

PF_NEEDS_LOCK static PfShimResult fuse_locked(const PfShimRun *run, uint8_t *results)
{
	for (size_t done = 0; done < run->n_pages;) {
		char *start = (char *)(run->hva + done * PF_PAGE_SIZE);
		/* Blocks may change while the lock is given up, and QEMU may want us aside. */
		PfRamBlock *block = pf_ram_find(start, PF_PAGE_SIZE);
		ssize_t n;
		Freeze f;

		if (pf_core.aside > 0)
			return PF_SHIM_ASIDE;
		if (!block) {
			results[done++] = PF_SHIM_NOT_RAM;
			continue;
		}
		f = (Freeze){block, pf_ram_page(block, start), {run->frame + done},
			pf_core.frames + done * PF_PAGE_SIZE,
			run->flags & PF_SHIM_RUN_MAY_BREAK_HUGE, results + done};
		n = worth_a_freeze(&f, pages_in_block(&f, run->n_pages - done));
		if (n < 0)
			return PF_SHIM_FAILED;
		if (n == 0) {
			done++;
		} else if (note_policy(block, address(&f, 0)) != 0) {
			f.results[0] = PF_SHIM_FAILED;
			done++;
		} else {
			done += fuse_stretch(&f, (size_t)n);
			pf_core_yield();
		}
	}
	return PF_SHIM_DONE;
}

/* Whether the order makes sense, and the store it is for. */
static PfShimResult check_order(const PfShimRun *run, int *store)
{
	PfShimResult result = PF_SHIM_DONE;

	if (run->hva % PF_PAGE_SIZE || run->hva > UINT64_MAX - run->n_pages * PF_PAGE_SIZE)
		return PF_SHIM_NOT_RAM;
	if (!pf_core_started())
		return PF_SHIM_STOPPED;
	pf_core_lock();
	*store = pf_core.store;
	if (pf_core.stopped_error)
		result = PF_SHIM_STOPPED;
	else if (*store < 0 || run->frame >= pf_core.store_pages ||
		 run->n_pages > pf_core.store_pages - run->frame)
		result = PF_SHIM_NO_FRAME;
	pf_core_unlock();
	return result;
}

/*
 * The order's frames. Read before the freeze and without the lock, so that this lengthens neither. The store stays open:
 * only the link's thread, which this is, puts another one in its place.
 */
static PfShimResult read_frames(const PfShimRun *run, int store)
{
	size_t size = run->n_pages * PF_PAGE_SIZE;

	for (size_t done = 0; done < size;) {
		ssize_t n = pread(store, pf_core.frames + done, size - done,
			(off_t)(run->frame * PF_PAGE_SIZE + done));

		if (n <= 0 && errno != EINTR)
			return PF_SHIM_NO_FRAME;
		done += n > 0 ? (size_t)n : 0;
	}
	return PF_SHIM_DONE;
}

void pf_core_fuse(const PfShimRun *run, uint8_t *results)
{
	PfShimResult result;
	int store;

	if (run->n_pages > PF_SHIM_RUN_PAGES) {
		memset(results, PF_SHIM_FAILED, run->n_pages);
		return;
	}
	memset(results, NO_RESULT_YET, run->n_pages);
	result = check_order(run, &store);
	if (result == PF_SHIM_DONE)
		result = read_frames(run, store);
	if (result == PF_SHIM_DONE) {
		pf_core_lock();
		pf_core_yield();
		result = fuse_locked(run, results);
		for (size_t i = 0; i < run->n_pages; i++)
			pf_core.busy += results[i] == PF_SHIM_BUSY;
		pf_core_unlock();
	}
	for (size_t i = 0; i < run->n_pages; i++)
		if (results[i] == NO_RESULT_YET)
			results[i] = (uint8_t)result;
}
