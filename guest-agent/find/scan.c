// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A pass brings the state up to date for one class of pages. Of the mappings it collects first and
 * then visits, because many processes map the same file and only together say which of its pages
 * count (mappings.c); nothing of this process is mapped while maps are read. The other classes have
 * one source each, so every file is visited as it is found.
 *
 * A pass that is given up half-way leaves what it has found so far; nothing is taken for gone then.
 */
#include "guest-agent/find/scan.h"
#include "common/log.h"
#include "guest-agent/find/block_cache.h"
#include "guest-agent/find/cache_walk.h"
#include "guest-agent/find/guard.h"
#include "guest-agent/find/kernel_image.h"
#include "guest-agent/find/mappings.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define TIMEOUT_MS     3000 /* of a file that may never answer */
#define SPARE_FILES    64   /* open at the same time beside those of a pass */
#define MIN_OPEN_FILES 16
#define MAX_OPEN_FILES 1024 /* with the spare ones */

struct PfScanner {
	PfState *state; /* not owned */
	PfVisitor *visitor;
	PfMounts *mounts; /* NULL: the table cannot be read */
	PfReach *reach;
	PfKernelImage *kernel; /* NULL: not tried, or impossible */
	const char *impossible[PF_N_CLASSES];
	size_t max_open;

	/* Of the pass: */
	const PfRam *ram;
	PfStep step;
	void *userdata;
	int given_up; /* what step returned */
	PfScanStats *stats;
};

static uint64_t clock_us(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* Files stay open from the walk to their visit; what is open holds its file system. */
static size_t raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return MIN_OPEN_FILES;
	limit.rlim_cur = limit.rlim_max < MAX_OPEN_FILES ? limit.rlim_max : MAX_OPEN_FILES;
	if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
		pf_debug("cannot raise the limit of open files: %s", strerror(errno));
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur < SPARE_FILES + MIN_OPEN_FILES)
		return MIN_OPEN_FILES;
	return (size_t)limit.rlim_cur - SPARE_FILES;
}

static void read_mounts(PfScanner *scanner)
{
	int r = pf_mounts_new(&scanner->mounts);

	if (r == 0)
		return;
	scanner->mounts = NULL;
	scanner->impossible[PF_CLASS_CACHE] = "the table of mounts cannot be read";
	scanner->impossible[PF_CLASS_BUFFERS] = "the table of mounts cannot be read";
	pf_debug("/proc/self/mountinfo: %s", strerror(-r));
}

int pf_scanner_new(PfScanner **scanner, PfState *state)
{
	PfScanner *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->state = state;
	s->impossible[PF_CLASS_CACHE] = pf_cache_walk_impossible();
	read_mounts(s);
	r = pf_guard_init();
	if (r == 0)
		r = pf_visitor_new(&s->visitor);
	if (r == 0)
		r = pf_reach_new(&s->reach, s->mounts, TIMEOUT_MS);
	if (r < 0) {
		pf_scanner_free(s);
		return r;
	}
	s->max_open = raise_file_limit();
	*scanner = s;
	return 0;
}

void pf_scanner_free(PfScanner *scanner)
{
	if (!scanner)
		return;
	pf_kernel_image_free(scanner->kernel);
	pf_reach_free(scanner->reach);
	pf_visitor_free(scanner->visitor);
	pf_mounts_free(scanner->mounts);
	free(scanner);
}

const char *pf_scanner_impossible(PfScanner *scanner, PfPageClass class)
{
	return scanner->impossible[class];
}

uint64_t pf_scanner_left_behind(const PfScanner *scanner)
{
	return pf_reach_left_behind(scanner->reach);
}

uint64_t pf_scanner_left_alone(const PfScanner *scanner)
{
	return pf_reach_left_alone(scanner->reach);
}

/* The walks' and visits' step. Whatever ours returns gives the pass up, and is no error of theirs. */
static int forward_step(void *userdata, uint64_t n_hashed)
{
	PfScanner *scanner = userdata;

	scanner->stats->n_hashed += n_hashed;
	if (scanner->step && scanner->given_up == 0)
		scanner->given_up = scanner->step(scanner->userdata, n_hashed);
	return scanner->given_up != 0 ? -ECANCELED : 0;
}

static int visit_mappings(PfScanner *scanner, PfMappings *mappings)
{
	return pf_mappings_visit(mappings, scanner->visitor, scanner->ram, forward_step, scanner,
		&scanner->stats->n_files);
}

static int scan_mapped(PfScanner *scanner)
{
	PfMappings *mappings = pf_mappings_new(scanner->state, scanner->reach, scanner->max_open);
	int r;

	if (!mappings)
		return -ENOMEM;
	r = pf_mappings_add_all(mappings, forward_step, scanner);
	if (r == 0)
		r = visit_mappings(scanner, mappings);
	if (r == 0 && scanner->stats->n_files == 0 && pf_mappings_refused(mappings))
		r = -EPERM;
	pf_mappings_free(mappings);
	return r;
}

static int look_at(PfScanner *scanner, const pid_t *pids, size_t n)
{
	PfMappings *mappings = pf_mappings_new(scanner->state, scanner->reach, scanner->max_open);
	int r = 0;

	if (!mappings)
		return -ENOMEM;
	for (size_t i = 0; i < n && r == 0; i++)
		r = pf_mappings_add(mappings, pids[i], forward_step, scanner);
	if (r == 0)
		r = visit_mappings(scanner, mappings);
	pf_mappings_free(mappings);
	return r;
}

static int see(PfScanner *scanner, const PfFound *found, PfFile **file, bool *fresh)
{
	return pf_state_see(
		scanner->state, &found->key, &found->stamp, found->owner, found->name, file, fresh);
}

/* A file in the page cache, or a block device; a device has no build-id. */
static int visit_found(void *userdata, const PfFound *found)
{
	const PfPlace place = {.device = found->key.device, .local = true};
	PfScanner *scanner = userdata;
	PfFile *file;
	bool fresh;
	int r = see(scanner, found, &file, &fresh);

	if (r == PF_STATE_E_FULL) {
		close(found->fd);
		return 0;
	}
	if (r == PF_STATE_OK && fresh && found->key.source == PF_SOURCE_FILE)
		r = pf_reach_identify(scanner->reach, &place, file, found->fd);
	if (r == 0) {
		scanner->stats->n_files++;
		/* Both come from file systems of this guest, which answer. */
		r = pf_visitor_visit(scanner->visitor, NULL, file, found->fd, scanner->ram,
			forward_step, scanner);
	}
	close(found->fd);
	return r;
}

static int open_kernel(PfScanner *scanner)
{
	int r;

	if (scanner->kernel)
		return 0;
	scanner->impossible[PF_CLASS_KERNEL] = NULL;
	r = pf_kernel_image_new(&scanner->kernel, &scanner->impossible[PF_CLASS_KERNEL]);
	if (r == -ENOMEM)
		return r;
	return r < 0 ? -ENOTSUP : 0;
}

static int scan_kernel(PfScanner *scanner)
{
	uint8_t id[PF_SESSION_MAX_BUILD_ID];
	PfFound found;
	PfFile *file;
	bool fresh;
	int r;

	pf_kernel_image_describe(scanner->kernel, &found);
	r = see(scanner, &found, &file, &fresh);
	if (r == 0 && fresh)
		r = pf_file_set_build_id(file, id, pf_kernel_image_build_id(scanner->kernel, id));
	if (r < 0)
		return r;
	scanner->stats->n_files++;
	return pf_kernel_image_visit(scanner->kernel, file, scanner->ram, forward_step, scanner);
}

static int scan_class(PfScanner *scanner, PfPageClass class, const PfAgentConfig *config)
{
	switch (class) {
	case PF_CLASS_MAPPED:
		return scan_mapped(scanner);
	case PF_CLASS_CACHE:
		return pf_cache_walk(
			config->cache_paths, scanner->mounts, visit_found, forward_step, scanner);
	case PF_CLASS_BUFFERS:
		return pf_block_cache_walk(scanner->mounts, visit_found, scanner);
	case PF_CLASS_KERNEL:
		return scan_kernel(scanner);
	case PF_N_CLASSES:
		break;
	}
	return -EINVAL;
}

static void begin(PfScanner *scanner, PfPageClass class, bool complete, const PfRam *ram,
	PfStep step, void *userdata, PfScanStats *stats)
{
	int r = scanner->mounts ? pf_mounts_refresh(scanner->mounts) : 0;

	if (r < 0)
		pf_debug("/proc/self/mountinfo: %s", strerror(-r));
	*stats = (PfScanStats){.duration_ms = clock_us(CLOCK_MONOTONIC) / 1000,
		.cpu_us = clock_us(CLOCK_PROCESS_CPUTIME_ID)};
	scanner->ram = ram;
	scanner->step = step;
	scanner->userdata = userdata;
	scanner->given_up = 0;
	scanner->stats = stats;
	pf_reach_begin(scanner->reach, (int64_t)(clock_us(CLOCK_BOOTTIME) / 1000));
	pf_state_begin(scanner->state, class, complete);
}

static int end(PfScanner *scanner, int r)
{
	PfScanStats *stats = scanner->stats;

	pf_reach_end(scanner->reach);
	if (r == 0)
		pf_state_end(scanner->state);
	else
		pf_state_cancel(scanner->state);
	stats->duration_ms = clock_us(CLOCK_MONOTONIC) / 1000 - stats->duration_ms;
	stats->cpu_us = clock_us(CLOCK_PROCESS_CPUTIME_ID) - stats->cpu_us;
	return scanner->given_up != 0 ? scanner->given_up : r;
}

int pf_scanner_pass(PfScanner *scanner, PfPageClass class, const PfAgentConfig *config,
	const PfRam *ram, PfStep step, void *userdata, PfScanStats *stats)
{
	int r = class == PF_CLASS_KERNEL ? open_kernel(scanner) : 0;

	*stats = (PfScanStats){0};
	if (r == 0 && scanner->impossible[class])
		r = -ENOTSUP;
	if (r < 0)
		return r;
	begin(scanner, class, true, ram, step, userdata, stats);
	return end(scanner, scan_class(scanner, class, config));
}

int pf_scanner_look(PfScanner *scanner, const pid_t *pids, size_t n, const PfRam *ram, PfStep step,
	void *userdata, PfScanStats *stats)
{
	begin(scanner, PF_CLASS_MAPPED, false, ram, step, userdata, stats);
	return end(scanner, look_at(scanner, pids, n));
}
