// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A file is known by its key and is the same as long as its stamp is. It belongs to each class whose last complete
 * pass saw it, or that a later pass added it to. What is reported of it are the resident pages of what these classes
 * cover (pf_file_cover()). When a complete pass ends, files that it did not see leave the class, and pages that are
 * covered no longer are evicted from what is known; the host hears of it with the next report.
 *
 * Digests outlive that, so that what comes back is not hashed again. So that this cannot grow without limit, they are
 * forgotten when there are too many: first those of files that are of no class, then all. A file costs memory too,
 * about as much as eight pages, and that counts. Digests of volatile files are good for nothing once the page is gone.
 *
 * A pass that was given up may have collected half of what is mapped of a file. Until the next one has collected it
 * anew, nothing of such a file is withdrawn for lack of a mapping.
 *
 * A file that changes again and again would be hashed again and again, so it has to rest for a while (file.c) before
 * anything of it is looked at. It stays in its classes meanwhile, without pages.
 *
 * Everybody's files are known, and not more of one owner than are good for the others (owners.c). A file counts for
 * the owner that it had when it was new or changed last; one that changes hands is not put out for that.
 *
 * A file that changed loses its digests and is declared again under its id, which withdraws its hints on the host; its
 * pages are then hinted again even where their bytes are the same, because the host drops pages that were written.
 */
#include "guest-agent/state.h"
#include <assert.h>
#include <errno.h>
#include <search.h>
#include <stdlib.h>
#include <unistd.h>

#define FILE_COST_PAGES 8

static int compare_file(const void *a, const void *b)
{
	return pf_file_key_compare(&((const PfFile *)a)->key, &((const PfFile *)b)->key);
}

void pf_state_init(PfState *state)
{
	*state = (PfState){0};
}

static void file_free(PfState *state, PfFile *file)
{
	tdelete(file, &state->by_key, compare_file);
	pf_owners_remove(&state->owners, file->owner);
	pf_file_free(file);
}

void pf_state_deinit(PfState *state)
{
	for (size_t i = 0; i < state->n; i++)
		file_free(state, state->files[i]);
	free(state->files);
	pf_owners_deinit(&state->owners);
	*state = (PfState){0};
}

void pf_state_begin(PfState *state, PfPageClass class, bool complete)
{
	state->pass++;
	state->pass_class = class;
	state->pass_complete = complete;
	state->pass_left_out = 0;
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
	if (!tsearch(file, &state->by_key, compare_file))
		return -ENOMEM;
	if (pf_owners_add(&state->owners, file->owner) < 0) {
		tdelete(file, &state->by_key, compare_file);
		return -ENOMEM;
	}
	state->files[state->n++] = file;
	return 0;
}

static int file_new(PfState *state, const PfFileKey *key, const PfFileStamp *stamp, uid_t owner,
	const char *name, PfFile **file)
{
	PfFile *new;
	int r;

	if (!pf_owners_have_room(&state->owners, owner)) {
		state->pass_left_out++;
		return PF_STATE_E_FULL;
	}
	new = pf_file_new(key);
	r = new ? pf_file_renew(new, stamp, name) : -ENOMEM;
	if (r == 0) {
		new->owner = owner;
		r = append_file(state, new);
	}
	if (r < 0)
		pf_file_free(new);
	else
		*file = new;
	return r;
}

static PfFile *find_file(const PfState *state, const PfFileKey *key)
{
	PfFile wanted = {.key = *key};
	PfFile *const *found = tfind(&wanted, &state->by_key, compare_file);

	return found ? *found : NULL;
}

static int file_changed(
	PfState *state, PfFile *file, const PfFileStamp *stamp, uid_t owner, const char *name)
{
	int r = pf_owners_add(&state->owners, owner);

	if (r < 0)
		return r;
	r = pf_file_renew(file, stamp, name);
	if (r < 0) {
		pf_owners_remove(&state->owners, owner);
		return r;
	}
	pf_owners_remove(&state->owners, file->owner);
	file->owner = owner;
	pf_file_stir(file);
	return 0;
}

/* What it was mapped as before is void when a complete pass sees it first. */
static void see(PfState *state, PfFile *file)
{
	if (state->pass_class == PF_CLASS_MAPPED && state->pass_complete &&
		file->seen[PF_CLASS_MAPPED] != state->pass) {
		pf_page_ranges_clear(&file->mapped);
		file->mapped_cut = false;
	}
	pf_file_join(file, state->pass_class, state->pass);
}

int pf_state_see(PfState *state, const PfFileKey *key, const PfFileStamp *stamp, uid_t owner,
	const char *name, PfFile **file, bool *fresh)
{
	PfFile *found = find_file(state, key);
	bool rested = false;
	int r = PF_STATE_OK;

	*fresh = !found || !pf_file_stamp_equal(&found->stamp, stamp);
	if (!found)
		r = file_new(state, key, stamp, owner, name, &found);
	else if (*fresh)
		r = file_changed(state, found, stamp, owner, name);
	else if (found->seen[state->pass_class] != state->pass)
		rested = pf_file_rest(found);
	if (r != PF_STATE_OK)
		return r;
	*fresh = (*fresh || rested) && !pf_file_is_restless(found);
	see(state, found);
	*file = found;
	return PF_STATE_OK;
}

/* Digests that are kept for later, in pages. */
static size_t idle_cost(const PfState *state)
{
	size_t cost = 0;

	for (size_t i = 0; i < state->n; i++) {
		cost += state->files[i]->n_idle;
		if (pf_file_class(state->files[i]) == PF_N_CLASSES)
			cost += FILE_COST_PAGES;
	}
	return cost;
}

static void limit_idle_pages(PfState *state)
{
	for (int all = 0; all < 2 && idle_cost(state) > PF_STATE_MAX_IDLE_PAGES; all++) {
		for (size_t i = 0; i < state->n; i++) {
			if (all || pf_file_class(state->files[i]) == PF_N_CLASSES)
				pf_file_forget_idle(state->files[i]);
		}
	}
}

static bool is_empty(const PfFile *file)
{
	return pf_file_class(file) == PF_N_CLASSES && file->n == 0 && !file->declared;
}

/* Makes room: what is left of files and pages is worth its memory. */
static void tidy(PfState *state)
{
	size_t kept = 0;

	for (size_t i = 0; i < state->n; i++) {
		if (pf_file_is_volatile(state->files[i]))
			pf_file_forget_idle(state->files[i]);
	}
	limit_idle_pages(state);
	for (size_t i = 0; i < state->n; i++) {
		if (is_empty(state->files[i])) {
			file_free(state, state->files[i]);
			continue;
		}
		pf_file_shrink(state->files[i]);
		state->files[kept++] = state->files[i];
	}
	state->n = kept;
}

static void close_file(PfFile *file)
{
	if (file->fd >= 0)
		close(file->fd);
	file->fd = -1;
}

/* Whether there is something to tell. */
static bool is_dirty(const PfState *state)
{
	for (size_t i = 0; i < state->n; i++) {
		if (state->files[i]->dirty)
			return true;
	}
	return false;
}

void pf_state_end(PfState *state)
{
	PfPageClass class = state->pass_class;

	for (size_t i = 0; i < state->n; i++) {
		PfFile *file = state->files[i];

		close_file(file);
		if (!state->pass_complete || !file->classes[class])
			continue;
		if (file->seen[class] != state->pass)
			pf_file_leave(file, class);
		pf_file_trim(file);
	}
	if (state->pass_complete)
		state->n_left_out[class] = state->pass_left_out;
	tidy(state);
	state->scanned = state->scanned || state->pass_complete || is_dirty(state);
	state->complete = true;
}

void pf_state_cancel(PfState *state)
{
	bool cut = state->pass_class == PF_CLASS_MAPPED && state->pass_complete;

	for (size_t i = 0; i < state->n; i++) {
		close_file(state->files[i]);
		if (cut && state->files[i]->seen[PF_CLASS_MAPPED] == state->pass)
			state->files[i]->mapped_cut = true;
	}
}

void pf_state_drop_class(PfState *state, PfPageClass class)
{
	for (size_t i = 0; i < state->n; i++) {
		if (!state->files[i]->classes[class])
			continue;
		pf_file_leave(state->files[i], class);
		pf_file_trim(state->files[i]);
	}
	state->n_left_out[class] = 0;
	tidy(state);
	state->scanned = state->complete;
}

void pf_state_forget_told(PfState *state)
{
	for (size_t i = 0; i < state->n; i++)
		pf_file_forget_told(state->files[i]);
	memset(state->ids, 0, sizeof(state->ids));
	state->next_id = 0;
	state->scanned = state->complete;
}

void pf_state_count(const PfState *state, PfStateCount *count)
{
	*count = (PfStateCount){0};
	for (size_t c = 0; c < PF_N_CLASSES; c++)
		count->n_left_out += state->n_left_out[c];
	for (size_t i = 0; i < state->n; i++) {
		const PfFile *file = state->files[i];

		count->n_unsteady_pages += file->n - file->n_idle - file->n_reportable;
		if (file->n_reportable == 0)
			continue;
		count->classes[pf_file_class(file)].n_files++;
		count->classes[pf_file_class(file)].n_pages += file->n_reportable;
	}
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
