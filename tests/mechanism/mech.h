/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What the mechanism tests share: guest RAM made as QEMU makes it, a store, and what the kernel
 * says of a page. Functions without a result end the program with a message when the kernel
 * refuses: the machine is not fit.
 */
#include "host-service/shim/core.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MECH_SKIP 77 /* what CTest takes as "skipped" */

/* Starts the core and gives it a store; ends the program with MECH_SKIP where there is no
 * /dev/userfaultfd. */
void mech_start(void);

/* A RAM block, aligned to 2 MiB, advised as QEMU does and added to the core. Freed with
 * mech_block_free(). */
uint8_t *mech_block(size_t n_pages);
void mech_block_free(uint8_t *block, size_t n_pages);

/*
 * Private memory at an address where a moment ago something else was unmapped; waits while the kernel has given the
 * hole to somebody else, as a core at work may be. false: errno says why.
 */
bool mech_map_into_hole(uint8_t *start, size_t length);

/* Page contents that tell one seed from another in every word. */
void mech_fill(void *page, uint64_t seed);
bool mech_holds(const void *page, uint64_t seed);
bool mech_is_zero(const void *page);

/* Writes a page into the store at a frame that was never used, after the last one that was. */
PfFrame mech_publish(const void *page);
PfFrame mech_publish_seed(uint64_t seed);
/* Leaves n frames out, so that the next one does not follow the last. */
void mech_skip_frames(uint64_t n);
/* Gives a frame's memory back, as the service does when nobody maps it. */
void mech_punch(PfFrame frame);
/* The number of frames that the store has room for. */
uint64_t mech_store_frames(void);
/* A new descriptor of the same store, as a service hands it out. */
int mech_store_fd(void);

/* Fuses one run, huge pages or not; results as pf_core_fuse() gives them. */
void mech_fuse(const void *page, PfFrame frame, uint32_t n_pages, uint8_t *results);
/* Fuses one page. */
PfShimResult mech_fuse_page(const void *page, PfFrame frame);

/* What /proc/self/pagemap says. */
bool mech_is_present(const void *page);
bool mech_is_file_page(
	const void *page); /* present, and the frame's own page rather than a private copy */
uint64_t mech_pfn(const void *page); /* 0: not present */

/* Lines of /proc/self/maps. */
size_t mech_n_maps(void);
/* The VmFlags line of the VMA that the address is in, from /proc/self/smaps. */
void mech_vm_flags(const void *page, char flags[256]);
/* Whether the VMA that the address is in maps a file. */
bool mech_in_file_vma(const void *page);

/* KiB of transparent huge pages in the VMA that the address is in. */
size_t mech_huge_kib(const void *page);

/* vm.max_map_count. */
size_t mech_max_maps(void);

/*
 * Uses up the process's maps until no more than `left` are left, or, when it is 0, until the kernel refuses. Nobody
 * must need memory from mmap() before they are given back.
 */
void mech_fill_maps(size_t left);
void mech_free_maps(void);

/* Waits until the core has reported the page at hva lost (at most 10 s); false: it never did. */
bool mech_wait_lost(const void *page, PfShimLost *lost);
/* Takes and drops what was reported so far. */
void mech_drop_lost(void);

double mech_now(void);
