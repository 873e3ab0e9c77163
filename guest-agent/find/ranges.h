/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Sets of pages of a file, as ranges. */
#include <stddef.h>
#include <stdint.h>

typedef struct PfPageRange {
	uint64_t first;
	uint64_t n_pages;
} PfPageRange;

typedef struct PfPageRanges {
	PfPageRange *items; /* owned */
	size_t n, capacity;
} PfPageRanges;

void pf_page_ranges_deinit(PfPageRanges *ranges);
void pf_page_ranges_clear(PfPageRanges *ranges);

/* Adds pages; first + n_pages must not overflow. 0 or -ENOMEM. */
int pf_page_ranges_add(PfPageRanges *ranges, uint64_t first, uint64_t n_pages);

/* Makes the ranges ascending and disjoint, none empty, and none reaching beyond page end. */
void pf_page_ranges_normalise(PfPageRanges *ranges, uint64_t end);
