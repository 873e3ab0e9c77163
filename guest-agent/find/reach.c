// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * What users of the guest can put before the agent is never waited for, nor anything asked of it: behind FUSE, and
 * behind an overlay that was made in a user namespace, may be a server that never answers, and then not even a thread
 * helps (worker.c). So whose a file is is found out from tables of mounts, which are the kernel's text: by the device
 * that /proc/PID/maps shows, before the file is opened, and again by its mount when it was found and nobody was asked,
 * because the process may have put another file in its place, and because kernels before 6.8 show the layer's device
 * for a file of an overlay. What is in our own table root has mounted. In the table of the process's mount namespace
 * root has mounted what is not local if that namespace belongs to our user namespace; otherwise only what is local
 * counts, as users cannot mount disks. The tables are asked whether they have changed each time: a device number or an
 * id that was given back can be another's in the next moment. A file that is found holds its mount.
 *
 * Of what root has mounted a server can be gone, which can make open() and each look at a file wait for ever, so such
 * work is the worker's, which leaves it behind after a while. A server that is gone is gone for all files of its
 * device: the first one that had to be left behind is named in the log, the others are not even tried. When nothing is
 * left behind any more the servers are back. One that never comes back is tried again after a long time, as
 * another path to it may have been mounted. One that is slow is out for the rest of the pass when it has been waited
 * for as long, all in all, as one that is silent.
 *
 * Even close() may ask the server. What is open on a device that does not answer stays open until
 * nothing is left behind any more.
 */
#include "guest-agent/find/reach.h"
#include "common/log.h"
#include "common/text.h"
#include "guest-agent/find/namespaces.h"
#include "guest-agent/find/trouble.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MAX_SERVERS     64
#define TRY_AGAIN_MS    (3600 * 1000)
#define MAX_LOGGED_NAME 256

/* One that had to be waited for. */
typedef struct Server {
	dev_t device;
	int64_t until_ms;  /* not to be tried until then; 0: it may be */
	int64_t waited_us; /* in this pass */
	bool said;         /* that it does not answer */
} Server;

struct PfReach {
	PfWorker *worker;
	PfMounts *mounts; /* not owned, may be NULL */
	PfNamespaces *namespaces;
	int timeout_ms;
	int64_t now_ms;
	Server servers[MAX_SERVERS];
	size_t n_servers, next;
	PfTrouble trouble;
	uint64_t n_left_behind, n_left_alone;
	int *orphans; /* owned: descriptors that could not be closed */
	size_t n_orphans, capacity;
};

int pf_reach_new(PfReach **reach, PfMounts *mounts, int timeout_ms)
{
	PfReach *new = calloc(1, sizeof(*new));
	int r;

	if (!new)
		return -ENOMEM;
	new->mounts = mounts;
	new->timeout_ms = timeout_ms;
	r = pf_worker_new(&new->worker, timeout_ms);
	if (r < 0) {
		free(new);
		return r;
	}
	new->namespaces = pf_namespaces_new();
	if (!new->namespaces) {
		pf_reach_free(new);
		return -ENOMEM;
	}
	*reach = new;
	return 0;
}

void pf_reach_free(PfReach *reach)
{
	if (!reach)
		return;
	pf_worker_free(reach->worker);
	pf_namespaces_free(reach->namespaces);
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
	for (size_t i = 0; i < reach->n_servers; i++) {
		Server *server = &reach->servers[i];

		server->waited_us = 0;
		if (all_back || now_ms >= server->until_ms)
			server->until_ms = 0;
	}
	if (all_back)
		close_orphans(reach);
}

void pf_reach_end(PfReach *reach)
{
	pf_namespaces_forget(reach->namespaces);
}

/* --- whose a file is --- */

/* A mount by its id, or, where that is below 0, by its device. */
typedef struct Wanted {
	int id;
	dev_t device;
} Wanted;

static const PfMount *find_mount(const PfMounts *mounts, const Wanted *wanted)
{
	return wanted->id < 0 ? pf_mounts_find_device(mounts, wanted->device)
			      : pf_mounts_find(mounts, wanted->id);
}

/* In our own table, as it is now, or NULL. */
static const PfMount *find_own(const PfReach *reach, const Wanted *wanted)
{
	if (!reach->mounts || pf_mounts_refresh(reach->mounts) < 0)
		return NULL;
	return find_mount(reach->mounts, wanted);
}

static PfFsKind judge_foreign(PfReach *reach, pid_t pid, const Wanted *wanted)
{
	bool by_root;
	const PfMounts *mounts = pf_namespaces_table(reach->namespaces, pid, &by_root);
	const PfMount *mount = mounts ? find_mount(mounts, wanted) : NULL;
	PfFsKind kind;

	if (!mount)
		return PF_FS_OTHER;
	kind = pf_mounts_judge(mounts, mount, by_root);
	/* Who made it may have named its layers as they are seen from here. */
	if (kind == PF_FS_ANYBODYS && by_root && reach->mounts)
		kind = pf_mounts_judge(reach->mounts, mount, true);
	return kind;
}

static PfFsKind judge(PfReach *reach, pid_t pid, const Wanted *wanted)
{
	const PfMount *own = find_own(reach, wanted);

	return own ? pf_mounts_judge(reach->mounts, own, true) : judge_foreign(reach, pid, wanted);
}

/* Whether a file of that kind is looked at. */
static bool is_for_us(PfReach *reach, PfFsKind kind, const char *path)
{
	char clean[MAX_LOGGED_NAME];

	if (kind == PF_FS_LOCAL || kind == PF_FS_REMOTE)
		return true;
	if (kind == PF_FS_OTHER)
		return false;
	pf_text_clean(clean, sizeof(clean), path);
	if (reach->n_left_alone++ == 0)
		pf_info("%s and all else that a user of this system may be serving is left alone",
			clean);
	else
		pf_debug("%s is left alone: a user may be serving it", clean);
	return false;
}

bool pf_reach_place(PfReach *reach, pid_t pid, dev_t device, const char *path, PfPlace *place)
{
	PfFsKind kind = judge(reach, pid, &(Wanted){-1, device});

	*place = (PfPlace){pid, device, kind == PF_FS_LOCAL};
	return is_for_us(reach, kind, path);
}

typedef struct Check {
	PfReach *reach;
	PfPlace *place;
	const char *path;
	bool again; /* by the worker */
} Check;

static bool check_mount(void *userdata, int path_fd)
{
	Check *check = userdata;
	int id = pf_mounts_id(path_fd);
	PfFsKind kind = PF_FS_OTHER;

	if (id >= 0)
		kind = judge(check->reach, check->place->pid, &(Wanted){.id = id});
	if (!is_for_us(check->reach, kind, check->path))
		return false;
	check->again = check->place->local && kind != PF_FS_LOCAL;
	return !check->again;
}

/* --- those that do not answer --- */

static Server *find_server(PfReach *reach, dev_t device)
{
	for (size_t i = 0; i < reach->n_servers; i++) {
		if (reach->servers[i].device == device)
			return &reach->servers[i];
	}
	return NULL;
}

/* With more of them than there is room for, the oldest is forgotten. */
static Server *get_server(PfReach *reach, dev_t device)
{
	Server *server = find_server(reach, device);

	if (server)
		return server;
	server = &reach->servers[reach->next];
	reach->next = (reach->next + 1) % MAX_SERVERS;
	if (reach->n_servers < MAX_SERVERS)
		reach->n_servers++;
	*server = (Server){.device = device};
	return server;
}

static bool is_silent(PfReach *reach, const PfPlace *place)
{
	const Server *server = place->local ? NULL : find_server(reach, place->device);

	return server &&
	       (server->until_ms != 0 || server->waited_us >= (int64_t)reach->timeout_ms * 1000);
}

/* A person knows a file system by where it is mounted. */
static void say(PfReach *reach, Server *server, const char *path)
{
	const PfMount *mount = find_own(reach, &(Wanted){-1, server->device});
	char clean[MAX_LOGGED_NAME];

	if (server->said)
		return;
	server->said = true;
	pf_text_clean(clean, sizeof(clean), mount ? mount->point : path);
	pf_warning("%s does not answer, or is too slow: files of its file system (device %u:%u) "
		   "are left out until it does",
		clean, major(server->device), minor(server->device));
}

static PfWorker *worker_for(const PfReach *reach, const PfPlace *place)
{
	return place->local ? NULL : reach->worker;
}

/* What became of an attempt, which began when the worker had been waited for as long as that. */
static int settle(PfReach *reach, const PfPlace *place, const char *path, int64_t began_us, int r)
{
	Server *server;

	if (place->local)
		return r;
	server = get_server(reach, place->device);
	server->waited_us += pf_worker_waited_us(reach->worker) - began_us;
	if (r == -ETIMEDOUT) {
		reach->n_left_behind++;
		server->until_ms = reach->now_ms + TRY_AGAIN_MS;
	}
	if (is_silent(reach, place))
		say(reach, server, path);
	return r == -ETIMEDOUT || r == -EBUSY ? PF_REACH_E_SILENT : r;
}

/* --- work --- */

static int open_once(PfReach *reach, const char *map, Check *check, PfFound *found)
{
	const PfPlace *place = check->place;
	int64_t began_us = pf_worker_waited_us(reach->worker);
	int r;

	if (is_silent(reach, place))
		return PF_REACH_E_SILENT;
	r = pf_opening_open_checked(worker_for(reach, place), map, check_mount, check, found);
	return settle(reach, place, check->path, began_us, r);
}

int pf_reach_open(PfReach *reach, PfPlace *place, const char *map, const char *path, PfFound *found)
{
	Check check = {reach, place, path, false};
	int r = open_once(reach, map, &check, found);

	if (r == PF_OPENING_E_REFUSED && check.again) {
		place->local = false;
		r = open_once(reach, map, &check, found);
	}
	return r;
}

int pf_reach_identify(PfReach *reach, const PfPlace *place, PfFile *file, int fd)
{
	uint8_t id[PF_SESSION_MAX_BUILD_ID];
	int64_t began_us = pf_worker_waited_us(reach->worker);
	const char *broken;
	int size;

	if (is_silent(reach, place))
		return 0;
	size = pf_opening_build_id(worker_for(reach, place), fd, id, &broken);
	if (settle(reach, place, file->name, began_us, size) != size || size < 0)
		return 0;
	if (broken)
		pf_trouble_broken_elf(&reach->trouble, file->name, broken);
	return pf_file_set_build_id(file, id, (size_t)size);
}

/* A visit, in the midst of which its server may turn out to be too slow. */
typedef struct Visit {
	PfReach *reach;
	const PfPlace *place;
	int64_t began_us;
	PfStep step;
	void *userdata;
} Visit;

static int visit_step(void *userdata, uint64_t n_hashed)
{
	Visit *visit = userdata;
	int r = visit->step ? visit->step(visit->userdata, n_hashed) : 0;

	if (r == 0 && pf_worker_waited_us(visit->reach->worker) - visit->began_us >=
			      (int64_t)visit->reach->timeout_ms * 1000)
		r = -EBUSY;
	return r;
}

int pf_reach_visit(PfReach *reach, const PfPlace *place, PfVisitor *visitor, PfFile *file, int fd,
	const PfRam *ram, PfStep step, void *userdata)
{
	int64_t began_us = pf_worker_waited_us(reach->worker);
	Visit visit = {reach, place, began_us, step, userdata};
	int r;

	if (place->local)
		return pf_visitor_visit(visitor, NULL, file, fd, ram, step, userdata);
	if (is_silent(reach, place))
		return PF_REACH_E_SILENT;
	r = pf_visitor_visit(visitor, reach->worker, file, fd, ram, visit_step, &visit);
	return settle(reach, place, file->name, began_us, r);
}

void pf_reach_close(PfReach *reach, const PfPlace *place, int fd)
{
	int64_t began_us = pf_worker_waited_us(reach->worker);
	int r = -EBUSY;

	if (place->local) {
		close(fd);
		return;
	}
	if (!is_silent(reach, place)) {
		r = pf_opening_close(reach->worker, fd);
		(void)settle(reach, place, "a file", began_us, r);
	}
	/* After -ETIMEDOUT it is the worker's. */
	if (r < 0 && r != -ETIMEDOUT)
		adopt(reach, fd);
}

uint64_t pf_reach_left_behind(const PfReach *reach)
{
	return reach->n_left_behind;
}

uint64_t pf_reach_left_alone(const PfReach *reach)
{
	return reach->n_left_alone;
}
