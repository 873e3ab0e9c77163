// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * What is mapped shared and read-only are the pages of the page cache themselves: neither a process's private
 * copies nor, the file being opened anew, anything of its address space. Nothing shall be read from a disk and
 * nothing shall look used because it was looked at.
 *
 * Not read: mincore() names the pages that are resident and only these are touched. (It tells the truth to
 * owners of the file, to those who may write to it and to CAP_FOWNER; to others it says that everything is
 * resident.) MADV_RANDOM keeps a touch from reading ahead, be it that a page was evicted meanwhile or that it
 * carries the mark at which the kernel goes on reading ahead.
 *
 * Not used: a load makes the page's entry in our page table young, and the kernel also maps neighbours that
 * happen to be resident, young as well. When a mapping goes, young entries count as accesses of their pages:
 * the first makes a page referenced, the second active. A mapping that is known to be read in order
 * (MADV_SEQUENTIAL) is exempt from that in all kernels, one that is read at random only since Linux 6.3
 * (vma_has_recency()); both are exempt from the walks of MGLRU. So it is MADV_RANDOM while pages are touched and
 * MADV_SEQUENTIAL just before they are unmapped. What is left before Linux 6.3 is that reclaim counts a
 * page as referenced when it comes by in the few milliseconds between. read() in all its forms, process_vm_readv() and
 * MADV_POPULATE_READ would mark each page as accessed.
 */
#include "guest-agent/find/window.h"
#include "common/page.h"
#include <errno.h>
#include <sys/mman.h>

int pf_window_open(PfWindow *window, int fd, uint64_t first, size_t n_pages, uint8_t *resident)
{
	size_t size = n_pages * PF_PAGE_SIZE;
	void *map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, (off_t)(first * PF_PAGE_SIZE));

	if (map == MAP_FAILED)
		return -errno;
	if (madvise(map, size, MADV_RANDOM) < 0 || mincore(map, size, resident) < 0) {
		int r = -errno;

		munmap(map, size);
		return r;
	}
	*window = (PfWindow){map, n_pages};
	return 0;
}

void pf_window_close(PfWindow *window)
{
	size_t size = window->n_pages * PF_PAGE_SIZE;

	(void)madvise((void *)window->bytes, size, MADV_SEQUENTIAL);
	munmap((void *)window->bytes, size);
	*window = (PfWindow){NULL, 0};
}
