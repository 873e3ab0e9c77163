/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The RAM blocks of this process and the state of each of their pages. Bookkeeping only: nothing
 * here touches guest memory or its mappings. The caller holds the core's lock, except where it says
 * otherwise; a test with one thread needs none.
 */
#include "common/page.h"
#include "host-service/shim/kernel.h"
#include "host-service/shim/lock.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PF_RAM_MAX_BLOCKS 256

typedef enum PfPageState {
	PF_PAGE_PRIVATE = 0, /* ordinary anonymous memory: may be fused */
	PF_PAGE_FUSED = 1,   /* maps a frame, write-protected: a write is a fault that revokes it */
	PF_PAGE_PRIVATE_IN_FILE =
		2, /* has bytes of its own inside a file VMA; never fused, never overwritten */
	PF_PAGE_GONE = 3,   /* no RAM any more: something else is mapped there, or nothing */
	PF_PAGE_BROKEN = 4, /* maps its frame still, whose bytes cannot be copied; never fused */
} PfPageState;

/* The flags of a block's VMAs that a new mapping inside it takes over. */
typedef struct PfVmFlags {
	bool dont_fork, dont_dump, no_reserve, mergeable, huge, no_huge;
} PfVmFlags;

typedef struct PfRamBlock {
	char *start PF_GUARDED;
	size_t n_pages PF_GUARDED;
	/* State in the low three bits, frame above them; zero pages cost no memory. */
	uint64_t *pages PF_GUARDED;
	struct PfPageArray *array PF_GUARDED; /* that pages is part of */
	PfVmFlags flags PF_GUARDED;
	PfPolicy policy PF_GUARDED; /* memory policy of the pages fused so far */
	bool has_policy PF_GUARDED;
} PfRamBlock;

/*
 * Adds private anonymous memory as a block. 0, -EINVAL (it is something else, or no one VMA covers
 * it), -EEXIST, -ENOSPC (too many blocks), or -ENOMEM.
 */
int pf_ram_add(void *start, size_t length) PF_NEEDS_LOCK;

/*
 * Forgets a range: a block that lies in it is removed, of others the pages become PF_PAGE_GONE. No page of it may map a
 * frame any more.
 */
void pf_ram_remove(void *start, size_t length) PF_NEEDS_LOCK;

/* The block that holds all of the range, or NULL. */
PfRamBlock *pf_ram_find(const void *start, size_t length) PF_NEEDS_LOCK;

/* The first block that ends behind address, or NULL: with this a range is walked. */
PfRamBlock *pf_ram_next(const void *address) PF_NEEDS_LOCK;

unsigned pf_ram_n_blocks(void) PF_NEEDS_LOCK;

/* Whether there ever was a block. Takes no lock and needs none. */
bool pf_ram_was_used(void);

/* Whether any byte of the range may belong to a block. Takes no lock and needs none: false is
 * exact. */
bool pf_ram_touches(const void *start, size_t length);

/*
 * An madvise() that changes a VMA's flags was carried out. Blocks are split so that each has one set of flags; where
 * there is no room for another block the flags stay as they were, and new mappings there merge less well.
 */
void pf_ram_advised(void *start, size_t length, int advice) PF_NEEDS_LOCK;

PF_NEEDS_LOCK static inline PfPageState pf_ram_state(const PfRamBlock *block, size_t page)
{
	return (PfPageState)(block->pages[page] & 7);
}

/* Whether the page maps a frame: only these two have one. */
PF_NEEDS_LOCK static inline bool pf_ram_maps_frame(const PfRamBlock *block, size_t page)
{
	PfPageState state = pf_ram_state(block, page);

	return state == PF_PAGE_FUSED || state == PF_PAGE_BROKEN;
}

PF_NEEDS_LOCK static inline PfFrame pf_ram_frame(const PfRamBlock *block, size_t page)
{
	return (PfFrame){block->pages[page] >> 3};
}

PF_NEEDS_LOCK static inline char *pf_ram_address(const PfRamBlock *block, size_t page)
{
	return block->start + page * PF_PAGE_SIZE;
}

PF_NEEDS_LOCK static inline size_t pf_ram_page(const PfRamBlock *block, const void *address)
{
	return (size_t)((const char *)address - block->start) / PF_PAGE_SIZE;
}

/* Sets a page's state; frame counts for PF_PAGE_FUSED and PF_PAGE_BROKEN. Keeps the two numbers below right. */
void pf_ram_set(PfRamBlock *block, size_t page, PfPageState state, PfFrame frame) PF_NEEDS_LOCK;

/* Pages that map a frame in all blocks, and pieces of consecutive fused pages with consecutive frames. */
uint64_t pf_ram_n_fused(void) PF_NEEDS_LOCK;
uint64_t pf_ram_n_runs(void) PF_NEEDS_LOCK;
uint64_t pf_ram_n_broken(void) PF_NEEDS_LOCK;
