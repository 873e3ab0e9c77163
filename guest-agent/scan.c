// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A scan first collects and then visits. It reads the maps of each process and adds up, for each
 * file, which of its pages are mapped read-only or executable by anyone. A file is opened when it
 * is met first, through the process's map_files: that is the mapped file itself, whatever mount
 * namespace it lives in and whether it still has a name. A second tree, by what maps says (device,
 * inode, path), makes that one open a file and scan; device and inode alone would not do, since
 * btrfs shows the same pair for files of different subvolumes. Which file it is, fstat() says.
 *
 * Opening a device can have effects, so the file is opened with O_PATH first and for reading only
 * when it is a regular one. Files of the kernel's own file systems are left alone: reading a PCI
 * resource in sysfs through a mapping would talk to a device. So are FUSE files, behind which a
 * process of the guest could make us wait for ever.
 *
 * Then each file that was met is visited and closed. Nothing of this process is mapped while maps
 * are read.
 */
#include "guest-agent/scan.h"
#include "common/log.h"
#include "guest-agent/guard.h"
#include "guest-agent/maps.h"
#include "guest-agent/visit.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#ifndef FUSE_SUPER_MAGIC
#define FUSE_SUPER_MAGIC 0x65735546
#endif

/* A file as maps names it. */
typedef struct Met {
	uint32_t major, minor;
	uint64_t inode, path_hash;
	PfFile *file; /* the state's; NULL when it is not one for us */
} Met;

struct PfScanner {
	PfState *state; /* not owned */
	PfVisitor *visitor;
	void *met;    /* tsearch tree of Met, during a scan */
	bool refused; /* map_files could not be opened for lack of privilege */
};

/* Files stay open from the walk to their visit, so the usual limit of 1024 can be too low. */
static void raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
		pf_debug("cannot raise the limit of open files: %s", strerror(errno));
}

int pf_scanner_new(PfScanner **scanner, PfState *state)
{
	PfScanner *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->state = state;
	r = pf_guard_init();
	if (r == 0)
		r = pf_visitor_new(&s->visitor);
	if (r < 0) {
		pf_scanner_free(s);
		return r;
	}
	raise_file_limit();
	*scanner = s;
	return 0;
}

static void forget_met(PfScanner *scanner)
{
	tdestroy(scanner->met, free);
	scanner->met = NULL;
}

void pf_scanner_free(PfScanner *scanner)
{
	if (!scanner)
		return;
	forget_met(scanner);
	pf_visitor_free(scanner->visitor);
	free(scanner);
}

static int compare_u64(uint64_t a, uint64_t b)
{
	return (a > b) - (a < b);
}

static int compare_met(const void *a, const void *b)
{
	const Met *x = a, *y = b;
	int r = compare_u64(x->inode, y->inode);

	if (r == 0)
		r = compare_u64(x->path_hash, y->path_hash);
	if (r == 0)
		r = compare_u64(
			(uint64_t)x->major << 32 | x->minor, (uint64_t)y->major << 32 | y->minor);
	return r;
}

/* FNV-1a, 64 bits (draft-eastlake-fnv). */
static uint64_t hash_path(const char *path)
{
	uint64_t hash = 0xcbf29ce484222325u;

	for (; *path; path++)
		hash = (hash ^ (uint8_t)*path) * 0x100000001b3u;
	return hash;
}

static bool wanted_file_system(int fd)
{
	static const uint32_t unwanted[] = {PROC_SUPER_MAGIC, SYSFS_MAGIC, DEBUGFS_MAGIC,
		TRACEFS_MAGIC, HUGETLBFS_MAGIC, FUSE_SUPER_MAGIC};
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return false;
	for (size_t i = 0; i < sizeof(unwanted) / sizeof(unwanted[0]); i++) {
		if ((uint32_t)fs.f_type == unwanted[i])
			return false;
	}
	return true;
}

/* Opens for reading what path_fd stands for. O_NOATIME: a scan is no access. -errno on failure. */
static int reopen(int path_fd)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", path_fd);
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOATIME);
	if (fd < 0 && errno == EPERM)
		fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

/* Brings an opened file into the state, which owns fd from here on. */
static int see_file(PfScanner *scanner, int fd, const PfMapsEntry *entry, PfFile **file)
{
	struct stat st;
	bool fresh;
	int r;

	if (fstat(fd, &st) < 0 || st.st_size <= 0 ||
		(uint64_t)st.st_size > PF_SESSION_MAX_MODULE_PAGES * PF_PAGE_SIZE) {
		close(fd);
		return 0;
	}
	r = pf_state_see(scanner->state, &st, pf_maps_name(entry), file, &fresh);
	if (r < 0 || (*file)->fd >= 0) {
		close(fd);
		return r;
	}
	(*file)->fd = fd;
	if (fresh)
		(*file)->build_id_size = pf_elf_id_read(fd, (*file)->build_id);
	return 0;
}

static int open_regular(int path_fd)
{
	struct stat st;

	if (fstat(path_fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || !wanted_file_system(path_fd))
		return -EINVAL;
	return reopen(path_fd);
}

/*
 * Opens the mapped file. *file stays NULL when it is not one for us; *again says that another
 * mapping of it may serve, as this one is gone.
 */
static int open_mapped(
	PfScanner *scanner, pid_t pid, const PfMapsEntry *entry, PfFile **file, bool *again)
{
	char path[96];
	int path_fd, fd;

	snprintf(path, sizeof(path), "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, (int)pid,
		entry->start, entry->end);
	path_fd = open(path, O_PATH | O_CLOEXEC);
	if (path_fd < 0) {
		scanner->refused |= errno == EPERM || errno == EACCES;
		*again = true;
		return 0;
	}
	fd = open_regular(path_fd);
	close(path_fd);
	if (fd < 0) {
		*again = fd == -EMFILE || fd == -ENFILE;
		return 0;
	}
	return see_file(scanner, fd, entry, file);
}

/* The analyzer does not know that the tree owns what is put into it, until forget_met(). */
#ifndef __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wanalyzer-malloc-leak"
#endif
static int remember(PfScanner *scanner, const Met *key)
{
	Met *met = malloc(sizeof(*met));

	if (!met)
		return -ENOMEM;
	*met = *key;
	if (!tsearch(met, &scanner->met, compare_met)) {
		free(met);
		return -ENOMEM;
	}
	return 0;
}
#ifndef __clang__
#pragma GCC diagnostic pop
#endif

/* The file of an entry, opened when it is met first in this scan; NULL when it is not one for
 * us. */
static int meet(PfScanner *scanner, pid_t pid, const PfMapsEntry *entry, PfFile **file)
{
	Met key = {entry->major, entry->minor, entry->inode, hash_path(entry->path), NULL};
	Met *const *found = tfind(&key, &scanner->met, compare_met);
	bool again = false;
	int r;

	if (found) {
		*file = (*found)->file;
		return 0;
	}
	r = open_mapped(scanner, pid, entry, &key.file, &again);
	*file = key.file;
	if (r < 0 || again)
		return r;
	return remember(scanner, &key);
}

static int collect_line(PfScanner *scanner, pid_t pid, char *line)
{
	PfMapsEntry entry;
	PfFile *file = NULL;
	int r;

	if (pf_maps_parse(line, &entry) != PF_MAPS_OK || !pf_maps_wanted(&entry))
		return 0;
	r = meet(scanner, pid, &entry, &file);
	if (r < 0 || !file)
		return r;
	return pf_page_ranges_add(&file->mapped, entry.offset / PF_PAGE_SIZE,
		(entry.end - entry.start) / PF_PAGE_SIZE);
}

/* A process that is gone, or goes meanwhile, simply has no more maps. */
static int collect_process(PfScanner *scanner, pid_t pid)
{
	char path[32], *line = NULL;
	size_t capacity = 0;
	FILE *maps;
	int r = 0;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	maps = fopen(path, "re");
	if (!maps)
		return errno == ENOMEM ? -ENOMEM : 0;
	while (r == 0 && getline(&line, &capacity, maps) > 0)
		r = collect_line(scanner, pid, line);
	free(line);
	fclose(maps);
	return r;
}

static int collect_all(PfScanner *scanner)
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
			r = collect_process(scanner, (pid_t)pid);
	}
	closedir(proc);
	return r;
}

static int visit_all(
	PfScanner *scanner, const PfRam *ram, PfScanPause pause, void *userdata, PfScanStats *stats)
{
	PfState *state = scanner->state;

	for (size_t i = 0; i < state->n; i++) {
		PfFile *file = state->files[i];
		int r;

		if (file->fd < 0)
			continue;
		r = pf_visitor_visit(scanner->visitor, file, ram);
		if (r < 0)
			return r;
		close(file->fd);
		file->fd = -1;
		stats->n_files++;
		if (pause && pause(userdata) != 0)
			return -ECANCELED;
	}
	return stats->n_files == 0 && scanner->refused ? -EPERM : 0;
}

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* pid 0: all processes. */
static int run(PfScanner *scanner, pid_t pid, const PfRam *ram, PfScanPause pause, void *userdata,
	PfScanStats *stats)
{
	uint64_t start = now_ms(), hashed = pf_visitor_hashed(scanner->visitor);
	int r;

	*stats = (PfScanStats){0};
	scanner->refused = false;
	pf_state_begin(scanner->state);
	r = pid ? collect_process(scanner, pid) : collect_all(scanner);
	forget_met(scanner);
	if (r == 0)
		r = visit_all(scanner, ram, pause, userdata, stats);
	if (r == 0)
		pf_state_end(scanner->state);
	else
		pf_state_cancel(scanner->state);
	stats->n_hashed = pf_visitor_hashed(scanner->visitor) - hashed;
	stats->duration_ms = now_ms() - start;
	return r;
}

int pf_scanner_run(
	PfScanner *scanner, const PfRam *ram, PfScanPause pause, void *userdata, PfScanStats *stats)
{
	return run(scanner, 0, ram, pause, userdata, stats);
}

int pf_scanner_run_one(PfScanner *scanner, pid_t pid, const PfRam *ram, PfScanStats *stats)
{
	return run(scanner, pid, ram, NULL, NULL, stats);
}
