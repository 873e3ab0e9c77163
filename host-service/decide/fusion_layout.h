/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Which number the next frame of a store gets. */
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define PF_LAYOUT_FRAMES       (UINT64_C(1) << 32) /* numbers of a store: 16 TiB */
#define PF_LAYOUT_ALIGN        512u                /* frames: ranges start at 2 MiB */
#define PF_LAYOUT_CHUNK_FRAMES 4096u               /* a longer file has a range for each 16 MiB */

#define PF_LAYOUT_RANGE_BYTES 1800u /* of memory, for the longest range, at most */

#define PF_LAYOUT_BLOCKS (PF_LAYOUT_CHUNK_FRAMES / PF_LAYOUT_ALIGN) /* of the longest range */

/* A range is made for this owner (bytes > 0), or is its range no longer. */
typedef void (*PfLayoutCharge)(void *userdata, uint32_t owner, int64_t bytes);

typedef struct PfLayout {
	GHashTable *ranges; /* of (module, part of the file) -> range */
	GPtrArray *by_base; /* all ranges, ascending; owned */
	/* By length: ranges of no module, with places that were never used. */
	GPtrArray *idle[PF_LAYOUT_BLOCKS]; /* owned */
	uint64_t next;                     /* first number that belongs to no range */
	uint64_t limit;                    /* numbers from here on are never used */
	uint64_t spare_next, spare_end;    /* the range for what has no place of its own */
	PfLayoutCharge charge;
	void *userdata;
	uint64_t *bytes; /* counts the memory of all ranges */
	uint64_t own_bytes;
} PfLayout;

/* Where a page wants to be. */
typedef struct PfLayoutPlace {
	uint64_t module; /* identity: the same for all that should share a range */
	uint32_t module_pages;
	uint32_t file_page; /* below module_pages */
	uint32_t owner;     /* who pays for the range, if it is the first in it */
} PfLayoutPlace;

/*
 * The first number is first_frame or the next multiple of PF_LAYOUT_ALIGN. limit_frames: PF_LAYOUT_FRAMES at most.
 * charge is called from the functions that take, untake and free, but not for what is left in the end. bytes: where the
 * memory of all ranges is added while there are any, also of those that are nobody's.
 */
void pf_layout_init(PfLayout *layout, uint64_t first_frame, uint64_t limit_frames,
	PfLayoutCharge charge, void *userdata, uint64_t *bytes);
void pf_layout_deinit(PfLayout *layout);

/* Calls charge() for each range that an owner pays for, as if it were made now. */
void pf_layout_foreach_range(const PfLayout *layout, PfLayoutCharge charge, void *userdata);

/* Of all its ranges, counted anew. */
uint64_t pf_layout_bytes(const PfLayout *layout);

/* The frame's number; false: all numbers are used up. */
bool pf_layout_take(PfLayout *layout, const PfLayoutPlace *place, uint32_t *frame);

/* Takes back the number that the last pf_layout_take() gave. It was never published. */
void pf_layout_untake(PfLayout *layout, uint32_t frame);

/* The frame, whose number was given out and not taken back, is no more. Its number is not used again. */
void pf_layout_free(PfLayout *layout, uint32_t frame);
