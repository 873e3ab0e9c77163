/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The kinds of page number, each a type of its own so that the compiler will not mix them, and the
 * digest of a page. Everything here counts in pages of 4 KiB; a guest with another page size is
 * refused.
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define PF_PAGE_SHIFT  12
#define PF_PAGE_SIZE   4096UL
#define PF_DIGEST_SIZE 32

/* Guest frame number: a guest-physical address in pages. */
typedef struct PfGfn {
	uint64_t v;
} PfGfn;

/* Consecutive pages of guest-physical memory. */
typedef struct PfGuestRange {
	PfGfn first;
	uint64_t n_pages;
} PfGuestRange;

/* Host virtual address in the VM's QEMU, in bytes, page aligned. */
typedef struct PfHva {
	uint64_t v;
} PfHva;

/* Frame number: the offset of a frame in its group's store, in pages. */
typedef struct PfFrame {
	uint64_t v;
} PfFrame;

/* Pages of a file, counted from its start. */
typedef struct PfFileRange {
	uint64_t first_page;
	uint64_t n_pages;
} PfFileRange;

/* SHA-256 of a page's 4096 bytes. */
typedef struct PfDigest {
	uint8_t bytes[PF_DIGEST_SIZE];
} PfDigest;

static inline bool pf_digest_equal(const PfDigest *a, const PfDigest *b)
{
	return memcmp(a->bytes, b->bytes, PF_DIGEST_SIZE) == 0;
}
