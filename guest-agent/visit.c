// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The file is mapped read-only and shared, a window at a time, so that what is mapped are the pages
 * of the page cache themselves: neither a process's private copies nor, the file being opened anew,
 * anything of its address space.
 *
 * Nothing shall be read from a disk and nothing shall look used because it was looked at: mincore()
 * names the pages that are resident, only these are touched (one load, which puts them into our
 * page table), and MADV_RANDOM keeps the kernel from reading ahead should one have been evicted
 * meanwhile. /proc/self/pagemap then has their frame numbers, read once a window. A page without a
 * known digest is copied and hashed, and the frame numbers of the window are read again: a page
 * that is not where it was when its bytes were read is dropped, and found again by the next scan.
 */
#include "guest-agent/visit.h"
#include "common/digest.h"
#include "guest-agent/guard.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define WINDOW_PAGES    2048u /* 8 MiB */
#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_PFN     ((1ull << 55) - 1)

struct PfVisitor {
	PfHasher *hasher;
	int pagemap; /* /proc/self/pagemap */
	uint64_t n_hashed;
	PfObserved *observed; /* owned; of the file that is being visited */
	size_t n, capacity;
	size_t window_start; /* first of observed that belongs to the window */
	bool window_hashed;
	uint8_t page[PF_PAGE_SIZE];
	uint8_t resident[WINDOW_PAGES];
	uint64_t entries[WINDOW_PAGES];
};

static int read_pagemap(PfVisitor *visitor, const uint8_t *map, size_t n_pages)
{
	size_t size = n_pages * sizeof(uint64_t);
	off_t offset = (off_t)((uintptr_t)map / PF_PAGE_SIZE * sizeof(uint64_t));
	ssize_t n = pread(visitor->pagemap, visitor->entries, size, offset);

	if (n < 0)
		return -errno;
	return (size_t)n == size ? 0 : -EIO;
}

static PfGfn entry_gfn(uint64_t entry)
{
	return (PfGfn){entry & PAGEMAP_PRESENT ? entry & PAGEMAP_PFN : 0};
}

/* Whether frame numbers can be read at all: without CAP_SYS_ADMIN they are all 0. */
static int probe_pagemap(PfVisitor *visitor)
{
	uint8_t *page = mmap(
		NULL, PF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int r;

	if (page == MAP_FAILED)
		return -errno;
	*(volatile uint8_t *)page = 1;
	r = read_pagemap(visitor, page, 1);
	munmap(page, PF_PAGE_SIZE);
	if (r < 0)
		return r;
	return entry_gfn(visitor->entries[0]).v ? 0 : -EPERM;
}

int pf_visitor_new(PfVisitor **visitor)
{
	PfVisitor *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return -ENOMEM;
	v->hasher = pf_hasher_new();
	v->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (v->pagemap < 0)
		r = errno == EACCES ? -EPERM : -errno;
	else
		r = v->hasher ? probe_pagemap(v) : -EIO;
	if (r < 0) {
		pf_visitor_free(v);
		return r;
	}
	*visitor = v;
	return 0;
}

void pf_visitor_free(PfVisitor *visitor)
{
	if (!visitor)
		return;
	pf_hasher_free(visitor->hasher);
	if (visitor->pagemap >= 0)
		close(visitor->pagemap);
	free(visitor->observed);
	free(visitor);
}

uint64_t pf_visitor_hashed(const PfVisitor *visitor)
{
	return visitor->n_hashed;
}

/* What cannot be read does not get into the page table, and so has no frame number. */
static void touch(PfVisitor *visitor, const uint8_t *map, size_t n_pages)
{
	for (size_t i = 0; i < n_pages; i++) {
		if (visitor->resident[i] & 1)
			(void)pf_guard_copy(visitor->page, map + i * PF_PAGE_SIZE, 1);
	}
}

static int reserve(PfVisitor *visitor, size_t n)
{
	size_t capacity = visitor->capacity ? visitor->capacity : WINDOW_PAGES;
	PfObserved *observed;

	while (capacity < visitor->n + n)
		capacity *= 2;
	if (capacity == visitor->capacity)
		return 0;
	observed = reallocarray(visitor->observed, capacity, sizeof(*observed));
	if (!observed)
		return -ENOMEM;
	visitor->observed = observed;
	visitor->capacity = capacity;
	return 0;
}

/* 0 with the digest, 1 when the page could not be read, or a fatal -errno. */
static int find_digest(PfVisitor *visitor, const PfFile *file, uint64_t file_page,
	const uint8_t *bytes, PfDigest *digest)
{
	const PfFilePage *known = pf_file_find(file, file_page);

	if (known) {
		*digest = known->digest;
		return 0;
	}
	if (pf_guard_copy(visitor->page, bytes, PF_PAGE_SIZE) < 0)
		return 1;
	visitor->n_hashed++;
	visitor->window_hashed = true;
	return pf_hasher_page(visitor->hasher, visitor->page, digest);
}

static int observe(PfVisitor *visitor, const PfFile *file, const uint8_t *map, uint64_t first,
	size_t n_pages, const PfRam *ram)
{
	int r = reserve(visitor, n_pages);

	visitor->window_start = visitor->n;
	visitor->window_hashed = false;
	for (size_t i = 0; i < n_pages && r >= 0; i++) {
		PfObserved *page = &visitor->observed[visitor->n];

		page->file_page = (uint32_t)(first + i);
		page->gfn = entry_gfn(visitor->entries[i]);
		if (!page->gfn.v || !pf_ram_contains(ram, page->gfn))
			continue;
		r = find_digest(visitor, file, first + i, map + i * PF_PAGE_SIZE, &page->digest);
		if (r == 0)
			visitor->n++;
	}
	return r < 0 ? r : 0;
}

/* Drops the pages of the window that are not where they were before they were hashed. */
static int check_again(PfVisitor *visitor, const uint8_t *map, uint64_t first, size_t n_pages)
{
	size_t kept = visitor->window_start;
	int r;

	if (!visitor->window_hashed)
		return 0;
	r = read_pagemap(visitor, map, n_pages);
	if (r < 0)
		return r;
	for (size_t i = visitor->window_start; i < visitor->n; i++) {
		const PfObserved *page = &visitor->observed[i];

		if (entry_gfn(visitor->entries[page->file_page - first]).v == page->gfn.v)
			visitor->observed[kept++] = *page;
	}
	visitor->n = kept;
	return 0;
}

static int look(PfVisitor *visitor, const PfFile *file, const uint8_t *map, uint64_t first,
	size_t n_pages, const PfRam *ram)
{
	int r;

	if (mincore((void *)map, n_pages * PF_PAGE_SIZE, visitor->resident) < 0)
		return -errno;
	touch(visitor, map, n_pages);
	r = read_pagemap(visitor, map, n_pages);
	if (r == 0)
		r = observe(visitor, file, map, first, n_pages, ram);
	return r == 0 ? check_again(visitor, map, first, n_pages) : r;
}

/* 1: the file cannot be mapped. */
static int visit_window(
	PfVisitor *visitor, const PfFile *file, uint64_t first, size_t n_pages, const PfRam *ram)
{
	size_t size = n_pages * PF_PAGE_SIZE;
	uint8_t *map =
		mmap(NULL, size, PROT_READ, MAP_SHARED, file->fd, (off_t)(first * PF_PAGE_SIZE));
	int r;

	if (map == MAP_FAILED)
		return errno == ENOMEM ? -ENOMEM : 1;
	r = madvise(map, size, MADV_RANDOM) == 0 ? look(visitor, file, map, first, n_pages, ram)
						 : -errno;
	munmap(map, size);
	return r;
}

int pf_visitor_visit(PfVisitor *visitor, PfFile *file, const PfRam *ram)
{
	visitor->n = 0;
	pf_page_ranges_normalise(&file->mapped, file->n_pages);
	for (size_t i = 0; i < file->mapped.n; i++) {
		const PfPageRange *range = &file->mapped.items[i];

		for (uint64_t done = 0; done < range->n_pages; done += WINDOW_PAGES) {
			uint64_t rest = range->n_pages - done;
			int r = visit_window(visitor, file, range->first + done,
				rest < WINDOW_PAGES ? (size_t)rest : WINDOW_PAGES, ram);

			if (r != 0)
				return r < 0 ? r : 0;
		}
	}
	return pf_file_commit(file, visitor->observed, visitor->n);
}
