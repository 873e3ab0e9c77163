// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The union of a file's mapped ranges over all processes. Ranges are collected as they come, with
 * what many processes map alike caught at once, and sorted and merged when the walk is over.
 */
#include "guest-agent/ranges.h"
#include <errno.h>
#include <stdlib.h>

void pf_page_ranges_deinit(PfPageRanges *ranges)
{
	free(ranges->items);
	*ranges = (PfPageRanges){0};
}

void pf_page_ranges_clear(PfPageRanges *ranges)
{
	ranges->n = 0;
}

int pf_page_ranges_add(PfPageRanges *ranges, uint64_t first, uint64_t n_pages)
{
	for (size_t i = 0; i < ranges->n && i < 8; i++) {
		if (ranges->items[i].first == first && ranges->items[i].n_pages == n_pages)
			return 0;
	}
	if (ranges->n == ranges->capacity) {
		size_t capacity = ranges->capacity ? ranges->capacity * 2 : 4;
		PfPageRange *items = reallocarray(ranges->items, capacity, sizeof(*items));

		if (!items)
			return -ENOMEM;
		ranges->items = items;
		ranges->capacity = capacity;
	}
	ranges->items[ranges->n++] = (PfPageRange){first, n_pages};
	return 0;
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
