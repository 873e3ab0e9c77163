// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A look goes from window to window of a file. Only what is resident is touched, by one load that puts it into our
 * page table (window.c says how nobody notices). /proc/self/pagemap then has the frame numbers, read once a window.
 * Pages whose digest is not known are copied and hashed, and the frame numbers of the window are read again: a page
 * that is not where it was when its bytes were read is dropped, and found again by the next pass.
 *
 * A look never touches the state: it can be left behind by its visitor, with the file's server gone, and come back
 * when the state is another one. So it is told which digests are known, and not what they are.
 *
 * Nothing here waits for a server while it holds the lock of the address space if that can be helped, because
 * every other thread would wait for that lock: mmap() of some network file systems asks the server whether the
 * file has changed when the last answer is a few seconds old, so fstat() asks it before.
 */
#include "guest-agent/find/look.h"
#include "common/digest.h"
#include "guest-agent/find/guard.h"
#include "guest-agent/find/residency.h"
#include "guest-agent/find/window.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_PFN     ((1ull << 55) - 1)

struct PfLooker {
	PfHasher *hasher;
	int pagemap; /* /proc/self/pagemap */
	uint8_t page[PF_PAGE_SIZE];
	uint8_t resident[PF_LOOK_PAGES];
	uint64_t entries[PF_LOOK_PAGES];
};

static int read_pagemap(PfLooker *looker, const uint8_t *bytes, size_t n_pages)
{
	size_t size = n_pages * sizeof(uint64_t);
	off_t offset = (off_t)((uintptr_t)bytes / PF_PAGE_SIZE * sizeof(uint64_t));
	ssize_t n = pread(looker->pagemap, looker->entries, size, offset);

	if (n < 0)
		return -errno;
	return (size_t)n == size ? 0 : -EIO;
}

static PfGfn entry_gfn(uint64_t entry)
{
	return (PfGfn){entry & PAGEMAP_PRESENT ? entry & PAGEMAP_PFN : 0};
}

/* Whether frame numbers can be read at all: without CAP_SYS_ADMIN they are all 0. */
static int probe_pagemap(PfLooker *looker)
{
	uint8_t *page = mmap(
		NULL, PF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int r;

	if (page == MAP_FAILED)
		return -errno;
	*(volatile uint8_t *)page = 1;
	r = read_pagemap(looker, page, 1);
	munmap(page, PF_PAGE_SIZE);
	if (r < 0)
		return r;
	return entry_gfn(looker->entries[0]).v ? 0 : -EPERM;
}

static int looker_init(PfLooker *looker)
{
	looker->hasher = pf_hasher_new();
	looker->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (looker->pagemap < 0)
		return errno == EACCES ? -EPERM : -errno;
	return looker->hasher ? probe_pagemap(looker) : -EIO;
}

static void looker_free(PfLooker *looker)
{
	if (!looker)
		return;
	pf_hasher_free(looker->hasher);
	if (looker->pagemap >= 0)
		close(looker->pagemap);
	free(looker);
}

static void discard(PfJob *job)
{
	pf_look_free((PfLook *)job);
}

int pf_look_new(PfLook **look)
{
	PfLook *l = calloc(1, sizeof(*l));
	int r = -ENOMEM;

	if (!l)
		return -ENOMEM;
	l->job.discard = discard;
	l->fd = -1;
	l->looker = calloc(1, sizeof(*l->looker));
	if (l->looker)
		r = looker_init(l->looker);
	if (r < 0) {
		pf_look_free(l);
		return r;
	}
	*look = l;
	return 0;
}

void pf_look_free(PfLook *look)
{
	if (!look)
		return;
	if (look->owns_fd)
		close(look->fd);
	looker_free(look->looker);
	free(look);
}

void pf_look_seek(PfJob *job)
{
	PfLook *look = (PfLook *)job;
	struct stat st;
	uint64_t rest;

	look->result = fstat(look->fd, &st) < 0 ? PF_LOOK_E_FILE : PF_LOOK_OK;
	if (look->result == PF_LOOK_OK)
		look->first = pf_residency_next(look->fd, look->first, look->end);
	rest = look->end - look->first;
	look->n_pages = rest < PF_LOOK_PAGES ? (size_t)rest : PF_LOOK_PAGES;
}

/* A page that the file still has: then its medium failed, or the memory that it is in. */
static bool is_within(int fd, uint64_t file_page)
{
	struct stat st;

	return fstat(fd, &st) == 0 &&
	       (S_ISBLK(st.st_mode) || (uint64_t)st.st_size > file_page * PF_PAGE_SIZE);
}

/* What cannot be read does not get into the page table, and so has no frame number. */
static void touch(PfLook *look, const PfWindow *window)
{
	PfLooker *looker = look->looker;

	for (size_t i = 0; i < window->n_pages; i++) {
		const uint8_t *bytes = window->bytes + i * PF_PAGE_SIZE;

		if (looker->resident[i] & 1 && pf_guard_copy(looker->page, bytes, 1) < 0)
			look->n_unreadable += is_within(look->fd, look->first + i);
	}
}

/* 0, 1 when the page could not be read, or a fatal -errno. */
static int hash(PfLook *look, uint64_t file_page, const uint8_t *bytes, PfDigest *digest)
{
	if (pf_guard_copy(look->looker->page, bytes, PF_PAGE_SIZE) < 0) {
		look->n_unreadable += is_within(look->fd, file_page);
		return 1;
	}
	look->n_hashed++;
	return pf_hasher_page(look->looker->hasher, look->looker->page, digest);
}

static int observe(PfLook *look, const PfWindow *window)
{
	int r = 0;

	for (size_t i = 0; i < look->n_pages && r >= 0; i++) {
		PfObserved *page = &look->observed[look->n];

		page->file_page = (uint32_t)(look->first + i);
		page->gfn = entry_gfn(look->looker->entries[i]);
		if (!page->gfn.v || !pf_ram_contains(&look->ram, page->gfn))
			continue;
		r = look->known[i] ? 0
				   : hash(look, page->file_page, window->bytes + i * PF_PAGE_SIZE,
					     &page->digest);
		if (r == 0)
			look->n++;
	}
	return r < 0 ? r : 0;
}

/* Drops the pages that are not where they were before they were hashed. */
static int check_again(PfLook *look, const PfWindow *window)
{
	size_t kept = 0;
	int r;

	if (look->n_hashed == 0)
		return 0;
	r = read_pagemap(look->looker, window->bytes, look->n_pages);
	if (r < 0)
		return r;
	for (size_t i = 0; i < look->n; i++) {
		const PfObserved *page = &look->observed[i];

		if (entry_gfn(look->looker->entries[page->file_page - look->first]).v ==
			page->gfn.v)
			look->observed[kept++] = *page;
	}
	look->n = kept;
	return 0;
}

static int look_at(PfLook *look, const PfWindow *window)
{
	int r;

	touch(look, window);
	r = read_pagemap(look->looker, window->bytes, window->n_pages);
	if (r == 0)
		r = observe(look, window);
	return r == 0 ? check_again(look, window) : r;
}

void pf_look_at_window(PfJob *job)
{
	PfLook *look = (PfLook *)job;
	PfWindow window;
	int r;

	look->n = 0;
	look->n_hashed = 0;
	look->n_unreadable = 0;
	r = pf_window_open(&window, look->fd, look->first, look->n_pages, look->looker->resident);
	if (r < 0) {
		look->result = PF_LOOK_E_FILE;
		return;
	}
	look->result = look_at(look, &window);
	pf_window_close(&window);
}
