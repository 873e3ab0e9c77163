// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A file is known by device and inode, and is the same as long as its size, mtime and ctime are.
 * While it is, a page is hashed once: the digest stays when the page is evicted, and even when the
 * last mapping of the file goes. So that this cannot grow without limit, digests of pages that are
 * not resident are forgotten when there are too many: first those of files that nobody maps, then
 * all.
 *
 * Each page holds where it is (gfn) and where the host was told that it is (told). Their difference
 * is what is left to report, so a report needs no list of events: it can be interrupted by a scan,
 * overtaken by it, or begun anew for a new session by forgetting what was told. A file that may
 * have such a difference is dirty.
 *
 * A file that changed loses its digests and is declared again under its id, which withdraws its
 * hints on the host; its pages are then hinted again even where their bytes are the same, because
 * the host drops pages that were written.
 */
#include "guest-agent/state.h"
#include "common/text.h"
#include <assert.h>
#include <errno.h>
#include <search.h>
#include <stdlib.h>
#include <unistd.h>

static int compare_inode(const void *a, const void *b)
{
	const PfFile *x = a, *y = b;

	if (x->device != y->device)
		return x->device < y->device ? -1 : 1;
	return (x->inode > y->inode) - (x->inode < y->inode);
}

static void end_visit(PfFile *file)
{
	if (file->fd >= 0)
		close(file->fd);
	file->fd = -1;
	pf_page_ranges_clear(&file->mapped);
}

static void file_free(PfFile *file)
{
	end_visit(file);
	pf_page_ranges_deinit(&file->mapped);
	free(file->pages);
	free(file);
}

void pf_state_init(PfState *state)
{
	*state = (PfState){0};
}

void pf_state_deinit(PfState *state)
{
	for (size_t i = 0; i < state->n; i++) {
		tdelete(state->files[i], &state->by_inode, compare_inode);
		file_free(state->files[i]);
	}
	free(state->files);
	*state = (PfState){0};
}

void pf_state_begin(PfState *state)
{
	state->scan++;
}

static int append_file(PfState *state, PfFile *file)
{
	if (state->n == state->capacity) {
		size_t capacity = state->capacity ? state->capacity * 2 : 64;
		PfFile **files = reallocarray(state->files, capacity, sizeof(PfFile *));

		if (!files)
			return -ENOMEM;
		state->files = files;
		state->capacity = capacity;
	}
	if (!tsearch(file, &state->by_inode, compare_inode))
		return -ENOMEM;
	state->files[state->n++] = file;
	return 0;
}

static PfFile *file_new(PfState *state, dev_t device, ino_t inode)
{
	PfFile *file = calloc(1, sizeof(*file));

	if (!file)
		return NULL;
	file->device = device;
	file->inode = inode;
	file->fd = -1;
	if (append_file(state, file) < 0) {
		file_free(file);
		return NULL;
	}
	return file;
}

static PfFile *find_file(const PfState *state, dev_t device, ino_t inode)
{
	PfFile key = {.device = device, .inode = inode};
	PfFile *const *found = tfind(&key, &state->by_inode, compare_inode);

	return found ? *found : NULL;
}

static bool same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

static bool same_stamp(const PfFileStamp *a, const PfFileStamp *b)
{
	return a->size == b->size && same_time(a->mtime, b->mtime) && same_time(a->ctime, b->ctime);
}

/* The host forgets the hints with the new declaration, so nothing counts as told. */
static void file_renew(PfFile *file, const PfFileStamp *stamp)
{
	free(file->pages);
	file->pages = NULL;
	file->n = file->n_resident = 0;
	file->build_id_size = 0;
	file->stamp = *stamp;
	file->n_pages = ((uint64_t)stamp->size + PF_PAGE_SIZE - 1) / PF_PAGE_SIZE;
	file->outdated = file->declared;
	file->dirty = file->declared;
}

int pf_state_see(
	PfState *state, const struct stat *st, const char *name, PfFile **file, bool *fresh)
{
	PfFileStamp stamp = {.size = st->st_size, .mtime = st->st_mtim, .ctime = st->st_ctim};
	PfFile *found = find_file(state, st->st_dev, st->st_ino);

	*fresh = !found || !same_stamp(&found->stamp, &stamp);
	if (!found)
		found = file_new(state, st->st_dev, st->st_ino);
	if (!found)
		return -ENOMEM;
	if (*fresh) {
		file_renew(found, &stamp);
		pf_text_clean(found->name, sizeof(found->name), name);
	}
	found->scan = state->scan;
	*file = found;
	return 0;
}

static int compare_page(const void *key, const void *item)
{
	const uint64_t *number = key;
	const PfFilePage *page = item;

	return (*number > page->file_page) - (*number < page->file_page);
}

const PfFilePage *pf_file_find(const PfFile *file, uint64_t file_page)
{
	if (file->n == 0)
		return NULL;
	return bsearch(&file_page, file->pages, file->n, sizeof(*file->pages), compare_page);
}

static void update_dirty(PfFile *file)
{
	file->dirty = file->n_resident > 0 ? !file->declared || file->outdated : file->declared;
	for (size_t i = 0; i < file->n && !file->dirty; i++)
		file->dirty = file->pages[i].gfn.v != file->pages[i].told.v;
}

int pf_file_commit(PfFile *file, const PfObserved *observed, size_t n)
{
	/* One more, so that nothing to keep is not the same as no memory. */
	PfFilePage *pages = calloc(file->n + n + 1, sizeof(*pages));
	size_t old = 0, size = 0;

	if (!pages)
		return -ENOMEM;
	for (size_t i = 0; i < file->n; i++)
		file->pages[i].gfn = PF_NO_GFN;
	for (size_t i = 0; i < n; i++) {
		PfFilePage page = {.file_page = observed[i].file_page,
			.gfn = observed[i].gfn,
			.digest = observed[i].digest};

		while (old < file->n && file->pages[old].file_page < page.file_page)
			pages[size++] = file->pages[old++];
		if (old < file->n && file->pages[old].file_page == page.file_page)
			page.told = file->pages[old++].told;
		pages[size++] = page;
	}
	while (old < file->n)
		pages[size++] = file->pages[old++];
	free(file->pages);
	file->pages = pages;
	file->n = size;
	file->n_resident = n;
	update_dirty(file);
	return 0;
}

/* The host still has to hear of pages with told set, so they stay. */
static void forget_idle_pages(PfFile *file)
{
	size_t kept = 0;

	for (size_t i = 0; i < file->n; i++) {
		if (file->pages[i].gfn.v || file->pages[i].told.v)
			file->pages[kept++] = file->pages[i];
	}
	file->n = kept;
}

static size_t count_idle_pages(const PfState *state)
{
	size_t count = 0;

	for (size_t i = 0; i < state->n; i++)
		count += state->files[i]->n - state->files[i]->n_resident;
	return count;
}

static void limit_idle_pages(PfState *state)
{
	for (int seen_too = 0; seen_too < 2 && count_idle_pages(state) > PF_STATE_MAX_IDLE_PAGES;
		seen_too++) {
		for (size_t i = 0; i < state->n; i++) {
			if (seen_too || state->files[i]->scan != state->scan)
				forget_idle_pages(state->files[i]);
		}
	}
}

static void drop_empty_files(PfState *state)
{
	size_t kept = 0;

	for (size_t i = 0; i < state->n; i++) {
		PfFile *file = state->files[i];

		if (file->scan == state->scan || file->n > 0 || file->declared) {
			state->files[kept++] = file;
			continue;
		}
		tdelete(file, &state->by_inode, compare_inode);
		file_free(file);
	}
	state->n = kept;
}

static void vanish(PfFile *file)
{
	for (size_t i = 0; i < file->n; i++)
		file->pages[i].gfn = PF_NO_GFN;
	file->n_resident = 0;
	update_dirty(file);
}

void pf_state_end(PfState *state)
{
	for (size_t i = 0; i < state->n; i++) {
		end_visit(state->files[i]);
		if (state->files[i]->scan != state->scan)
			vanish(state->files[i]);
	}
	limit_idle_pages(state);
	drop_empty_files(state);
	state->scanned = true;
	state->complete = true;
}

void pf_state_cancel(PfState *state)
{
	for (size_t i = 0; i < state->n; i++)
		end_visit(state->files[i]);
}

void pf_state_forget_told(PfState *state)
{
	for (size_t i = 0; i < state->n; i++) {
		PfFile *file = state->files[i];

		for (size_t k = 0; k < file->n; k++)
			file->pages[k].told = PF_NO_GFN;
		file->declared = false;
		file->outdated = false;
		update_dirty(file);
	}
	memset(state->ids, 0, sizeof(state->ids));
	state->next_id = 0;
	state->scanned = state->complete;
}

bool pf_state_take_id(PfState *state, uint32_t *id)
{
	for (uint32_t tried = 0; tried < PF_SESSION_MAX_MODULES; tried++) {
		uint32_t candidate = state->next_id;

		state->next_id = (candidate + 1) % PF_SESSION_MAX_MODULES;
		if (!(state->ids[candidate / 8] & 1u << candidate % 8)) {
			state->ids[candidate / 8] |= (uint8_t)(1u << candidate % 8);
			*id = candidate;
			return true;
		}
	}
	return false;
}

void pf_state_release_id(PfState *state, uint32_t id)
{
	assert(id < PF_SESSION_MAX_MODULES);
	state->ids[id / 8] &= (uint8_t) ~(1u << id % 8);
}
