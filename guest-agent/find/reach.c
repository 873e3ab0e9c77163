// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A file whose server is gone can make open() and each look at it wait for ever, so such work is
 * the worker's, which leaves it behind after a while. A server that is gone is gone for all files
 * of its device: the first one that had to be left behind is named in the log, the others are not
 * even tried. When nothing is left behind any more the servers are back. One that never comes back
 * is tried again after a long time, as another path to it may have been mounted.
 *
 * Even close() may ask the server. What is open on a device that does not answer stays open until
 * nothing is left behind any more.
 */
#include "guest-agent/find/reach.h"
#include "common/log.h"
#include "common/text.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MAX_SILENT      16
#define TRY_AGAIN_MS    (3600 * 1000)
#define MAX_LOGGED_NAME 256

typedef struct Silent {
	dev_t device;
	int64_t until_ms; /* 0: it may be tried */
} Silent;

struct PfReach {
	PfWorker *worker;
	const PfMounts *mounts; /* not owned, may be NULL */
	int64_t now_ms;
	Silent silent[MAX_SILENT]; /* all that ever were, as each is said once */
	size_t n_silent, next;
	uint64_t n_left_behind;
	int *orphans; /* owned: descriptors that could not be closed */
	size_t n_orphans, capacity;
};

int pf_reach_new(PfReach **reach, const PfMounts *mounts, int timeout_ms)
{
	PfReach *new = calloc(1, sizeof(*new));
	int r;

	if (!new)
		return -ENOMEM;
	new->mounts = mounts;
	r = pf_worker_new(&new->worker, timeout_ms);
	if (r < 0) {
		free(new);
		return r;
	}
	*reach = new;
	return 0;
}

void pf_reach_free(PfReach *reach)
{
	if (!reach)
		return;
	pf_worker_free(reach->worker);
	free(reach->orphans);
	free(reach);
}

static void adopt(PfReach *reach, int fd)
{
	if (reach->n_orphans == reach->capacity) {
		size_t capacity = reach->capacity ? reach->capacity * 2 : 16;
		int *orphans = reallocarray(reach->orphans, capacity, sizeof(int));

		/* Without memory it stays open, and forgotten. */
		if (!orphans)
			return;
		reach->orphans = orphans;
		reach->capacity = capacity;
	}
	reach->orphans[reach->n_orphans++] = fd;
}

/* Until one of them does not answer, which those after it will not do either. */
static void close_orphans(PfReach *reach)
{
	while (reach->n_orphans > 0) {
		int r = pf_opening_close(reach->worker, reach->orphans[reach->n_orphans - 1]);

		if (r < 0 && r != -ETIMEDOUT)
			return;
		reach->n_orphans--;
		if (r < 0)
			return;
	}
}

void pf_reach_begin(PfReach *reach, int64_t now_ms)
{
	bool all_back = pf_worker_left(reach->worker) == 0;

	reach->now_ms = now_ms;
	for (size_t i = 0; i < reach->n_silent; i++) {
		if (all_back || now_ms >= reach->silent[i].until_ms)
			reach->silent[i].until_ms = 0;
	}
	if (all_back)
		close_orphans(reach);
}

static Silent *find_silent(PfReach *reach, dev_t device)
{
	for (size_t i = 0; i < reach->n_silent; i++) {
		if (reach->silent[i].device == device)
			return &reach->silent[i];
	}
	return NULL;
}

static bool left_alone(PfReach *reach, dev_t device)
{
	const Silent *silent = find_silent(reach, device);

	return silent && silent->until_ms != 0;
}

/* With more of them than there is room for, the oldest is forgotten. */
static Silent *add_silent(PfReach *reach, dev_t device)
{
	Silent *silent = &reach->silent[reach->next];

	reach->next = (reach->next + 1) % MAX_SILENT;
	if (reach->n_silent < MAX_SILENT)
		reach->n_silent++;
	silent->device = device;
	return silent;
}

static void leave_alone(PfReach *reach, dev_t device, const char *name)
{
	Silent *silent = find_silent(reach, device);
	char clean[MAX_LOGGED_NAME];

	reach->n_left_behind++;
	if (!silent) {
		pf_text_clean(clean, sizeof(clean), name);
		pf_warning("%s does not answer: files of its file system (device %u:%u) are left "
			   "out until it does",
			clean, major(device), minor(device));
		silent = add_silent(reach, device);
	}
	silent->until_ms = reach->now_ms + TRY_AGAIN_MS;
}

static PfWorker *worker_for(const PfReach *reach, dev_t device)
{
	bool local = reach->mounts && pf_mounts_is_local(reach->mounts, device);

	return local ? NULL : reach->worker;
}

/* What became of an attempt on that device. */
static int judge(PfReach *reach, dev_t device, const char *name, int r)
{
	if (r == -ETIMEDOUT)
		leave_alone(reach, device, name);
	return r == -ETIMEDOUT || r == -EBUSY ? PF_REACH_E_SILENT : r;
}

int pf_reach_open(PfReach *reach, dev_t device, const char *path, const char *name, PfFound *found)
{
	if (left_alone(reach, device))
		return PF_REACH_E_SILENT;
	return judge(reach, device, name, pf_opening_open(worker_for(reach, device), path, found));
}

int pf_reach_identify(PfReach *reach, PfFile *file, int fd)
{
	uint8_t id[PF_SESSION_MAX_BUILD_ID];
	dev_t device = file->key.device;
	int size;

	if (left_alone(reach, device))
		return 0;
	size = pf_opening_build_id(worker_for(reach, device), fd, id);
	if (size < 0) {
		(void)judge(reach, device, file->name, size);
		return 0;
	}
	return pf_file_set_build_id(file, id, (size_t)size);
}

int pf_reach_visit(PfReach *reach, PfVisitor *visitor, PfFile *file, int fd, const PfRam *ram,
	PfStep step, void *userdata)
{
	dev_t device = file->key.device;

	if (left_alone(reach, device))
		return PF_REACH_E_SILENT;
	return judge(reach, device, file->name,
		pf_visitor_visit(
			visitor, worker_for(reach, device), file, fd, ram, step, userdata));
}

void pf_reach_close(PfReach *reach, dev_t device, int fd)
{
	PfWorker *worker = worker_for(reach, device);
	int r;

	if (!worker) {
		close(fd);
		return;
	}
	r = left_alone(reach, device) ? -EBUSY : pf_opening_close(worker, fd);
	if (r == -ETIMEDOUT)
		leave_alone(reach, device, "a file");
	else if (r < 0)
		adopt(reach, fd);
}

uint64_t pf_reach_left_behind(const PfReach *reach)
{
	return reach->n_left_behind;
}
