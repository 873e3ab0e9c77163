/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/shim/core_internal.h"
#include <unistd.h>

/*
 * Only what is present is read: a page that is missing might lie in a registration that a failed
 * step left behind, and the fault would wait for the lock we hold. The kernel reads (pwrite), so a
 * poisoned page is an error, not a signal.
 */
int pf_core_capture(PfHva hva, int fd, uint64_t offset_bytes)
{
	const char *page = (const char *)hva.v;
	PfShimResult result = PF_SHIM_DONE;
	PfRamBlock *block;
	uint64_t entry;

	if (hva.v % PF_PAGE_SIZE)
		return PF_SHIM_NOT_RAM;
	if (!pf_core_started())
		return PF_SHIM_STOPPED;
	pf_core_lock();
	block = pf_ram_find(page, PF_PAGE_SIZE);
	if (!block || pf_ram_state(block, pf_ram_page(block, page)) == PF_PAGE_GONE)
		result = PF_SHIM_NOT_RAM;
	else if (pf_core_pagemap(page, 1, &entry) != 0)
		result = PF_SHIM_FAILED;
	else if (!(entry & PF_PAGEMAP_PRESENT))
		result = PF_SHIM_NOT_PRESENT;
	else if (pwrite(fd, page, PF_PAGE_SIZE, (off_t)offset_bytes) != (ssize_t)PF_PAGE_SIZE)
		result = PF_SHIM_FAILED;
	pf_core_unlock();
	return result;
}
