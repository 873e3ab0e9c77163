// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The union of a file's mapped ranges over all processes. Ranges are collected as they come. What many processes map
 * alike, and the parts of a file that the loader maps one behind the other, are caught at once, among the first few
 * ranges. The rest is sorted and merged when the walk is over, or earlier when the memory is full: it grows only as
 * far as different ranges need it.
 */
#include "guest-agent/find/ranges.h"
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#define LOOK_FIRST 8 /* ranges of a file that are compared at once */

void pf_page_ranges_deinit(PfPageRanges *ranges)
{
	free(ranges->items);
	*ranges = (PfPageRanges){0};
}

void pf_page_ranges_clear(PfPageRanges *ranges)
{
	ranges->n = 0;
}

static int compare_first(const void *a, const void *b)
{
	const PfPageRange *x = a, *y = b;

	return (x->first > y->first) - (x->first < y->first);
}

void pf_page_ranges_normalise(PfPageRanges *ranges, uint64_t end)
{
	size_t kept = 0;

	if (ranges->n > 0)
		qsort(ranges->items, ranges->n, sizeof(*ranges->items), compare_first);
	for (size_t i = 0; i < ranges->n; i++) {
		uint64_t first = ranges->items[i].first, stop = first + ranges->items[i].n_pages;
		PfPageRange *last = kept > 0 ? &ranges->items[kept - 1] : NULL;

		if (stop > end)
			stop = end;
		if (first >= stop)
			continue;
		if (!last || first > last->first + last->n_pages)
			ranges->items[kept++] = (PfPageRange){first, stop - first};
		else if (stop > last->first + last->n_pages)
			last->n_pages = stop - last->first;
	}
	ranges->n = kept;
}

/* Whether a range could be made longer so that it holds the pages. */
static bool extend(PfPageRange *range, uint64_t first, uint64_t n_pages)
{
	if (first < range->first || first > range->first + range->n_pages)
		return false;
	if (first + n_pages > range->first + range->n_pages)
		range->n_pages = first + n_pages - range->first;
	return true;
}

static int make_room(PfPageRanges *ranges)
{
	size_t capacity = ranges->capacity ? ranges->capacity * 2 : 1;
	PfPageRange *items;

	pf_page_ranges_normalise(ranges, UINT64_MAX);
	if (ranges->n <= ranges->capacity / 2 && ranges->capacity > 0)
		return 0;
	items = reallocarray(ranges->items, capacity, sizeof(*items));
	if (!items)
		return ranges->n < ranges->capacity ? 0 : -ENOMEM;
	ranges->items = items;
	ranges->capacity = capacity;
	return 0;
}

int pf_page_ranges_add(PfPageRanges *ranges, uint64_t first, uint64_t n_pages)
{
	for (size_t i = 0; i < ranges->n && i < LOOK_FIRST; i++) {
		if (extend(&ranges->items[i], first, n_pages))
			return 0;
	}
	if (ranges->n == ranges->capacity) {
		int r = make_room(ranges);

		if (r < 0)
			return r;
	}
	ranges->items[ranges->n++] = (PfPageRange){first, n_pages};
	return 0;
}
