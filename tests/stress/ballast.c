/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Uses up the process's maps: an area whose pages alternate between two protections has a map a page. */
#include "tests/stress/vmm.h"
#include <errno.h>
#include <sys/mman.h>

#define AREA_PAGES (1u << 17) /* more than any limit that the driver sets */

static uint8_t *area;

static bool fill(void)
{
	area = mmap(NULL, AREA_PAGES * PF_PAGE_SIZE, PROT_NONE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	/* It has more maps already than the limit is now. */
	if (area == MAP_FAILED) {
		area = NULL;
		return errno == ENOMEM;
	}
	for (size_t i = 1; i + 1 < AREA_PAGES; i += 2)
		if (mprotect(area + i * PF_PAGE_SIZE, PF_PAGE_SIZE, PROT_READ) < 0)
			return errno == ENOMEM;
	return false;
}

bool ballast_fill(void)
{
	bool filled;

	me->disturbed++;
	filled = fill();
	me->disturbed--;
	return filled;
}

void ballast_drop(void)
{
	me->disturbed++;
	/* In one piece: what splits a map can itself be refused. */
	if (area)
		munmap(area, AREA_PAGES * PF_PAGE_SIZE);
	me->disturbed--;
}
