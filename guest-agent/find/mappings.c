// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The maps of each process are read and, for each file, it is added up which of its pages are
 * mapped read-only or executable by anyone. A file is opened when it is met first, through the
 * process's map_files: that is the mapped file itself, whatever mount namespace it lives in and
 * whether it still has a name. A tree, by what maps says (device, inode, path), makes that one open
 * a file and pass; device and inode alone would not do, since btrfs shows the same pair for files
 * of different subvolumes. Which file it is, fstat() says.
 *
 * Then each file that was met is visited and closed. Where there are more of them than may be open
 * at the same time, the rest is closed at once and opened again for the visit; a process that is
 * gone by then takes its files along, whose pages stay as they were known.
 *
 * A process that is gone, or goes meanwhile, simply has no more maps; and a line that is none, cut
 * or full of what is no text, is no mapping.
 */
#include "guest-agent/find/mappings.h"
#include "guest-agent/find/maps.h"
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#define LINES_A_STEP 4096 /* a process can have 100,000 mappings */

/* A file as maps names it. */
typedef struct MapsName {
	uint64_t inode, path_hash;
	uint32_t major, minor;
} MapsName;

_Static_assert(sizeof(MapsName) == 24, "names are compared as bytes");

typedef struct Met {
	MapsName name;
	PfPlace place;
	PfFile *file;  /* the state's; NULL when it is not one for us */
	char *shut_at; /* owned: where it can be opened again, or NULL */
} Met;

struct PfMappings {
	PfState *state; /* neither is owned */
	PfReach *reach;
	void *tree; /* tsearch tree of the same */
	Met **mets; /* owned, in the order in which they were met */
	size_t n, capacity;
	size_t n_open, max_open;
	size_t n_asked; /* how often somebody was asked who may have taken a while */
	bool refused;
};

PfMappings *pf_mappings_new(PfState *state, PfReach *reach, size_t max_open)
{
	PfMappings *mappings = calloc(1, sizeof(*mappings));

	if (!mappings)
		return NULL;
	mappings->state = state;
	mappings->reach = reach;
	mappings->max_open = max_open;
	return mappings;
}

static int compare_met(const void *a, const void *b)
{
	const Met *x = a, *y = b;

	return memcmp(&x->name, &y->name, sizeof(x->name));
}

/* A file that was not visited is open still. */
static void shut(PfMappings *mappings, const Met *met)
{
	PfFile *file = met->file;

	if (file->fd < 0)
		return;
	pf_reach_close(mappings->reach, &met->place, file->fd);
	file->fd = -1;
	mappings->n_open--;
}

void pf_mappings_free(PfMappings *mappings)
{
	if (!mappings)
		return;
	for (size_t i = 0; i < mappings->n; i++) {
		Met *met = mappings->mets[i];

		tdelete(met, &mappings->tree, compare_met);
		if (met->file)
			shut(mappings, met);
		free(met->shut_at);
		free(met);
	}
	free(mappings->mets);
	free(mappings);
}

bool pf_mappings_refused(const PfMappings *mappings)
{
	return mappings->refused;
}

/* FNV-1a, 64 bits (draft-eastlake-fnv). */
static uint64_t hash_path(const char *path)
{
	uint64_t hash = 0xcbf29ce484222325u;

	for (; *path; path++)
		hash = (hash ^ (uint8_t)*path) * 0x100000001b3u;
	return hash;
}

static int reserve(PfMappings *mappings)
{
	size_t capacity = mappings->capacity ? mappings->capacity * 2 : 256;
	Met **mets;

	if (mappings->n < mappings->capacity)
		return 0;
	mets = reallocarray(mappings->mets, capacity, sizeof(*mets));
	if (!mets)
		return -ENOMEM;
	mappings->mets = mets;
	mappings->capacity = capacity;
	return 0;
}

/* The analyzer does not know that the tree owns what is put into it, until pf_mappings_free(). */
#ifndef __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wanalyzer-malloc-leak"
#endif
/* Remembers what was met; its shut_at is consumed. */
static int remember(PfMappings *mappings, const Met *key)
{
	Met *met = malloc(sizeof(*met));

	if (met)
		*met = *key;
	if (!met || reserve(mappings) < 0 || !tsearch(met, &mappings->tree, compare_met)) {
		free(met);
		free(key->shut_at);
		return -ENOMEM;
	}
	mappings->mets[mappings->n++] = met;
	return 0;
}
#ifndef __clang__
#pragma GCC diagnostic pop
#endif

/* Keeps an opened file open for its visit, if there is room. */
static int keep(PfMappings *mappings, Met *met, int fd, const char *path)
{
	PfFile *file = met->file;

	if (file->fd < 0 && mappings->n_open < mappings->max_open) {
		file->fd = fd;
		mappings->n_open++;
		return 0;
	}
	pf_reach_close(mappings->reach, &met->place, fd);
	if (file->fd >= 0)
		return 0;
	met->shut_at = strdup(path);
	return met->shut_at ? 0 : -ENOMEM;
}

/* Brings an opened file, which is consumed, into the state. */
static int see_file(PfMappings *mappings, Met *met, const PfFound *found, const char *path)
{
	bool fresh;
	int r = pf_state_see(mappings->state, &found->key, &found->stamp, found->owner, found->name,
		&met->file, &fresh);

	if (r == PF_STATE_OK && fresh)
		r = pf_reach_identify(mappings->reach, &met->place, met->file, found->fd);
	if (r != 0) {
		pf_reach_close(mappings->reach, &met->place, found->fd);
		return r == PF_STATE_E_FULL ? 0 : r;
	}
	return keep(mappings, met, found->fd, path);
}

/*
 * Opens the mapped file. met->file stays NULL when it is not one for us; *again says that another
 * mapping of it may serve, as this one is gone.
 */
static int open_mapped(
	PfMappings *mappings, pid_t pid, const PfMapsEntry *entry, Met *met, bool *again)
{
	PfFound found;
	char path[96];
	int r;

	*again = true;
	if (!pf_reach_place(mappings->reach, pid, makedev(entry->major, entry->minor), entry->path,
		    &met->place))
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, (int)pid,
		entry->start, entry->end);
	r = pf_reach_open(mappings->reach, &met->place, path, entry->path, &found);
	mappings->n_asked += !met->place.local;
	if (r == PF_REACH_OK) {
		found.name = pf_maps_name(entry);
		*again = false;
		return see_file(mappings, met, &found, path);
	}
	mappings->refused |= r == -EPERM || r == -EACCES;
	*again = r != PF_REACH_E_UNWANTED && r != PF_REACH_E_SILENT;
	return r == -ENOMEM ? r : 0;
}

/* The file of an entry, opened when it is met first in this pass; NULL when it is not one for us. */
static int meet(PfMappings *mappings, pid_t pid, const PfMapsEntry *entry, PfFile **file)
{
	Met key = {.name = {entry->inode, hash_path(entry->path), entry->major, entry->minor}};
	Met *const *found = tfind(&key, &mappings->tree, compare_met);
	bool again = false;
	int r;

	if (found) {
		*file = (*found)->file;
		return 0;
	}
	r = open_mapped(mappings, pid, entry, &key, &again);
	*file = key.file;
	if (r < 0 || again)
		return r;
	return remember(mappings, &key);
}

static int add_line(PfMappings *mappings, pid_t pid, char *line)
{
	PfMapsEntry entry;
	PfFile *file = NULL;
	int r;

	if (pf_maps_parse(line, &entry) != PF_MAPS_OK || !pf_maps_wanted(&entry))
		return 0;
	r = meet(mappings, pid, &entry, &file);
	if (r < 0 || !file)
		return r;
	return pf_page_ranges_add(&file->mapped, entry.offset / PF_PAGE_SIZE,
		(entry.end - entry.start) / PF_PAGE_SIZE);
}

int pf_mappings_add(PfMappings *mappings, pid_t pid, PfStep step, void *userdata)
{
	char path[32], *line = NULL;
	size_t capacity = 0, n = 0;
	FILE *maps;
	int r = 0;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	maps = fopen(path, "re");
	if (!maps)
		return errno == ENOMEM ? -ENOMEM : 0;
	while (r == 0 && getline(&line, &capacity, maps) > 0) {
		r = add_line(mappings, pid, line);
		if (r == 0 && step && (++n % LINES_A_STEP == 0 || mappings->n_asked > 0))
			r = step(userdata, 0);
		mappings->n_asked = 0;
	}
	free(line);
	fclose(maps);
	return r;
}

int pf_mappings_add_all(PfMappings *mappings, PfStep step, void *userdata)
{
	DIR *proc = opendir("/proc");
	struct dirent *item;
	int r = 0;

	if (!proc)
		return -errno;
	while (r == 0 && (item = readdir(proc))) {
		char *end;
		long pid = strtol(item->d_name, &end, 10);

		if (pid > 0 && pid <= INT32_MAX && *end == '\0')
			r = pf_mappings_add(mappings, (pid_t)pid, step, userdata);
	}
	closedir(proc);
	return r;
}

static bool same_file(const PfFile *file, const PfFound *found)
{
	return pf_file_key_compare(&found->key, &file->key) == 0 &&
	       pf_file_stamp_equal(&found->stamp, &file->stamp);
}

/* Opens what was closed for lack of room; what is gone by now, or is another, is left as it was. */
static int reopen(PfMappings *mappings, Met *met)
{
	PfFile *file = met->file;
	PfFound found;
	int r = pf_reach_open(mappings->reach, &met->place, met->shut_at, file->name, &found);

	if (r != PF_REACH_OK)
		return r == -ENOMEM ? r : 0;
	if (same_file(file, &found)) {
		file->fd = found.fd;
		mappings->n_open++;
	} else {
		pf_reach_close(mappings->reach, &met->place, found.fd);
	}
	return 0;
}

int pf_mappings_visit(PfMappings *mappings, PfVisitor *visitor, const PfRam *ram, PfStep step,
	void *userdata, uint64_t *n_files)
{
	int r = 0;

	for (size_t i = 0; i < mappings->n && r == 0; i++) {
		Met *met = mappings->mets[i];
		PfFile *file = met->file;

		if (file && file->fd < 0 && met->shut_at)
			r = reopen(mappings, met);
		if (r < 0 || !file || file->fd < 0)
			continue;
		r = pf_reach_visit(
			mappings->reach, &met->place, visitor, file, file->fd, ram, step, userdata);
		shut(mappings, met);
		++*n_files;
		if (r == PF_REACH_E_SILENT)
			r = 0;
		if (r == 0 && step)
			r = step(userdata, 0);
	}
	return r;
}
