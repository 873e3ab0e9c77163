// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A visit takes a file's pages by windows of at most 8 MiB. For each it finds the next stretch that may have
 * something resident, looks at it (look.c) and commits what was found, so that never more than a window's pages
 * are held twice. What was skipped is committed as well: nothing of it is resident any more. Between
 * windows others are served, and the pace is kept, by step().
 *
 * A file of which it is not known whether it answers is looked at by the worker, in steps that are each a job.
 * The look then has a descriptor of its own. One that has to be left behind takes all that it uses with it, and the
 * next visit begins with a new one.
 */
#include "guest-agent/find/visit.h"
#include "guest-agent/find/look.h"
#include "guest-agent/find/opening.h"
#include "guest-agent/find/trouble.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

struct PfVisitor {
	PfLook *look; /* owned; NULL after one was left behind */
	PfTrouble trouble;
};

int pf_visitor_new(PfVisitor **visitor)
{
	PfVisitor *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return -ENOMEM;
	r = pf_look_new(&v->look);
	if (r < 0) {
		free(v);
		return r;
	}
	*visitor = v;
	return 0;
}

void pf_visitor_free(PfVisitor *visitor)
{
	if (!visitor)
		return;
	pf_look_free(visitor->look);
	free(visitor);
}

static int run(PfVisitor *visitor, PfWorker *worker, void (*what)(PfJob *))
{
	PfLook *look = visitor->look;
	int r = 0;

	look->job.run = what;
	if (worker)
		r = pf_worker_run(worker, &look->job);
	else
		what(&look->job);
	if (r == -ETIMEDOUT)
		visitor->look = NULL;
	return r == 0 ? look->result : r;
}

/* Of a file whose bytes can change by themselves no digest counts as known. */
static void mark_known(PfLook *look, const PfFile *file)
{
	bool hash_all = pf_file_is_volatile(file);

	for (size_t i = 0; i < look->n_pages; i++)
		look->known[i] = !hash_all && pf_file_find(file, look->first + i) != NULL;
}

static void fill_in_known(PfLook *look, const PfFile *file)
{
	for (size_t i = 0; i < look->n; i++) {
		PfObserved *page = &look->observed[i];

		if (look->known[page->file_page - look->first])
			page->digest = pf_file_find(file, page->file_page)->digest;
	}
}

/* The next window of [*first, end), which ends where *first is afterwards. 0, PF_LOOK_E_FILE or -errno. */
static int visit_window(
	PfVisitor *visitor, PfWorker *worker, PfFile *file, uint64_t *first, uint64_t end)
{
	PfLook *look = visitor->look;
	uint64_t from = *first;
	int r;

	look->first = from;
	look->end = end;
	look->n = 0;
	look->n_hashed = 0;
	r = run(visitor, worker, pf_look_seek);
	if (r != 0)
		return r;
	if (look->n_pages > 0) {
		mark_known(look, file);
		r = run(visitor, worker, pf_look_at_window);
		if (r != 0)
			return r;
		if (look->n_unreadable > 0)
			pf_trouble_unreadable(&visitor->trouble, file->key.device, file->name);
		fill_in_known(look, file);
	}
	*first = look->first + look->n_pages;
	return pf_file_commit(file, from, *first - from, look->observed, look->n);
}

/* A descriptor that the worker uses must stay what it is when the caller closes its own. */
static int begin(PfVisitor *visitor, PfWorker *worker, int fd, const PfRam *ram)
{
	int r = 0;

	if (worker && pf_worker_left(worker) >= PF_WORKER_MAX_LEFT)
		return -EBUSY;
	if (!visitor->look)
		r = pf_look_new(&visitor->look);
	if (r < 0)
		return r == -ENOMEM ? r : PF_LOOK_E_FILE;
	if (worker)
		fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return PF_LOOK_E_FILE;
	visitor->look->fd = fd;
	visitor->look->owns_fd = worker != NULL;
	visitor->look->ram = *ram;
	return 0;
}

static int end(PfVisitor *visitor, PfWorker *worker)
{
	PfLook *look = visitor->look;
	int fd, r;

	if (!look)
		return 0;
	fd = look->fd;
	look->fd = -1;
	if (!look->owns_fd)
		return 0;
	look->owns_fd = false;
	r = pf_opening_close(worker, fd);
	if (r < 0 && r != -ETIMEDOUT)
		close(fd);
	return r;
}

static int visit_cover(
	PfVisitor *visitor, PfWorker *worker, PfFile *file, PfStep step, void *userdata)
{
	size_t n;
	const PfPageRange *ranges = pf_file_cover(file, &n);
	int r = 0;

	for (size_t i = 0; i < n && r == 0; i++) {
		uint64_t first = ranges[i].first, end = first + ranges[i].n_pages;

		while (first < end && r == 0) {
			r = visit_window(visitor, worker, file, &first, end);
			if (r == PF_LOOK_E_FILE)
				return 0;
			if (r == 0 && step)
				r = step(userdata, visitor->look->n_hashed);
		}
	}
	return r;
}

int pf_visitor_visit(PfVisitor *visitor, PfWorker *worker, PfFile *file, int fd, const PfRam *ram,
	PfStep step, void *userdata)
{
	int r = begin(visitor, worker, fd, ram), closed;

	if (r != 0)
		return r == PF_LOOK_E_FILE ? 0 : r;
	r = visit_cover(visitor, worker, file, step, userdata);
	closed = end(visitor, worker);
	return r != 0 ? r : closed;
}
