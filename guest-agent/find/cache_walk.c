// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A file whose pages are in the page cache has its inode in memory, and mostly its name in the cache of names as well.
 * openat2() with RESOLVE_CACHED opens by what that cache holds or fails with EAGAIN, so the walk meets what the guest
 * has used lately, and all the rest costs a failing system call: no directory, inode or name is brought in, nothing is
 * read for them. Only directories that are in the cache themselves are listed.
 *
 * Listing is where a disk may be read all the same: a directory's name may outlive its blocks. So a walk
 * that has read READ_LIMIT ends there: a guest that evicts its directories is short of memory, and what it has evicted
 * is to stay away. What the walk has not reached is then not in its class for that pass. (The kernel counts what a
 * thread reads; one that does not count sets no limit.)
 *
 * A file is opened with O_PATH first and for reading when it turned out to be a regular one: opening a device can have
 * effects, and what a directory says of its entries may be outdated when they are opened. O_NOATIME: a walk is no
 * access; where that is refused the file is left alone.
 *
 * The walk stays on a mount (RESOLVE_NO_XDEV), so nothing that may hang is asked for anything, not even for its
 * attributes. Mounts below are walked as paths of their own when the table calls them local, but only the first of the
 * same part of a file system: others are bind mounts, which may show the whole guest once more, or the directory they
 * lie in. Where a path leads is asked of the kernel (fdinfo has the mount's id, /proc/self/fd the path without
 * symbolic links), and what was walked already is not walked again: /lib is in /usr today.
 */
#include "guest-agent/find/cache_walk.h"
#include "guest-agent/find/opening.h"
#include "guest-agent/find/residency.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_DEPTH    64
#define STEP_ENTRIES 64
#define READ_LIMIT   (1024 * 1024) /* bytes */

/* openat2(2) is older than some C libraries that know it, RESOLVE_CACHED is younger (Linux 5.12). */
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#define NO_XDEV       0x01
#define NO_MAGICLINKS 0x02
#define NO_SYMLINKS   0x04
#define BENEATH       0x08
#define CACHED        0x20

/* Below a directory that is open, never by way of something else. */
#define BELOW (NO_XDEV | NO_SYMLINKS | BENEATH)

typedef struct OpenHow {
	uint64_t flags, mode, resolve;
} OpenHow;

/* As the kernel writes it. */
typedef struct Entry {
	uint64_t inode;
	int64_t offset;
	uint16_t size;
	uint8_t type;
	char name[];
} Entry;

/* A directory that is being listed. */
typedef struct Level {
	int fd;
	size_t at, end; /* in bytes */
	_Alignas(Entry) char bytes[4096];
} Level;

/* A place whose contents have been walked. */
typedef struct Root {
	int mount;
	char *path; /* without symbolic links; owned */
} Root;

typedef struct Walk {
	const PfMounts *mounts;
	PfFoundFile found;
	PfStep step;
	void *userdata;
	Root *roots; /* owned */
	size_t n_roots;
	Level *levels[MAX_DEPTH]; /* owned, from the root down */
	size_t depth;
	unsigned n_entries; /* since the last step */
	long n_blocks;      /* read from disks for listing, of 512 bytes */
} Walk;

static int open_cached(int dir, const char *name, int flags, uint64_t resolve)
{
	OpenHow how = {.flags = (uint64_t)(flags | O_CLOEXEC), .resolve = resolve | CACHED};

	return (int)syscall(SYS_openat2, dir, name, &how, sizeof(how));
}

/* EAGAIN also says that a mount or a name changed at that moment. A file then has to wait for the next walk; a
 * directory would take all that is below with it. */
static int open_directory(int dir, const char *name, int flags, uint64_t resolve)
{
	int fd = -1;

	for (int tries = 0; tries < 3 && fd < 0; tries++) {
		fd = open_cached(dir, name, flags | O_DIRECTORY, resolve);
		if (fd < 0 && errno != EAGAIN)
			break;
	}
	return fd;
}

const char *pf_cache_walk_impossible(void)
{
	int fd = open_cached(AT_FDCWD, "/", O_PATH | O_DIRECTORY, 0);

	if (fd >= 0) {
		close(fd);
		return NULL;
	}
	if (errno == EPERM)
		return "openat2() is forbidden to the agent";
	return errno == ENOSYS || errno == EINVAL || errno == E2BIG ? "needs Linux 5.12 or later"
								    : NULL;
}

/* Of this thread, in blocks of 512 bytes. */
static long blocks_read(void)
{
	struct rusage usage;

	return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_inblock : 0;
}

static int push(Walk *walk, int dir, const char *name)
{
	long before = blocks_read();
	Level *level;
	int fd;

	if (walk->depth == MAX_DEPTH)
		return 0;
	fd = open_directory(dir, name, O_RDONLY | O_NOFOLLOW | O_NOATIME | O_NONBLOCK, BELOW);
	walk->n_blocks += blocks_read() - before;
	if (fd < 0)
		return 0;
	level = malloc(sizeof(*level));
	if (!level) {
		close(fd);
		return -ENOMEM;
	}
	level->fd = fd;
	level->at = level->end = 0;
	walk->levels[walk->depth++] = level;
	return 0;
}

static void pop(Walk *walk)
{
	Level *level = walk->levels[--walk->depth];

	close(level->fd);
	free(level);
}

/* The next entry of the directory, NULL at its end or when it cannot be listed. */
static const Entry *next_entry(Walk *walk, Level *level)
{
	const Entry *entry;

	if (level->at == level->end) {
		long before = blocks_read();
		long n = syscall(SYS_getdents64, level->fd, level->bytes, sizeof(level->bytes));

		walk->n_blocks += blocks_read() - before;
		if (n <= 0)
			return NULL;
		level->at = 0;
		level->end = (size_t)n;
	}
	entry = (const Entry *)(level->bytes + level->at);
	level->at += entry->size;
	return entry;
}

static int open_wanted(int dir, const char *name, struct stat *st)
{
	int path_fd = open_cached(dir, name, O_PATH | O_NOFOLLOW, BELOW), fd = -1;

	if (path_fd < 0)
		return -1;
	if (fstat(path_fd, st) == 0 && pf_opening_is_wanted(st))
		fd = pf_opening_reopen(path_fd, O_NOATIME);
	close(path_fd);
	return fd;
}

static int look_at_file(Walk *walk, int dir, const char *name)
{
	struct stat st;
	PfFound found = {.name = name, .fd = open_wanted(dir, name, &st)};

	if (found.fd < 0)
		return 0;
	if (!pf_residency_possible(
		    found.fd, 0, ((uint64_t)st.st_size + PF_PAGE_SIZE - 1) / PF_PAGE_SIZE)) {
		close(found.fd);
		return 0;
	}
	found.key = (PfFileKey){PF_SOURCE_FILE, st.st_dev, st.st_ino};
	found.stamp = (PfFileStamp){st.st_size, st.st_mtim, st.st_ctim};
	found.owner = st.st_uid;
	return walk->found(walk->userdata, &found);
}

static bool is_dots(const char *name)
{
	return name[0] == '.' && (name[1] == '\0' || (name[1] == '.' && name[2] == '\0'));
}

static int look_at(Walk *walk, int dir, const Entry *entry)
{
	if (++walk->n_entries == STEP_ENTRIES) {
		int r = walk->step ? walk->step(walk->userdata, 0) : 0;

		walk->n_entries = 0;
		if (r != 0)
			return r;
	}
	if (entry->type == DT_REG)
		return look_at_file(walk, dir, entry->name);
	if (entry->type == DT_DIR && !is_dots(entry->name))
		return push(walk, dir, entry->name);
	if (entry->type == DT_UNKNOWN && !is_dots(entry->name)) {
		size_t depth = walk->depth;
		int r = push(walk, dir, entry->name);

		return r == 0 && walk->depth == depth ? look_at_file(walk, dir, entry->name) : r;
	}
	return 0;
}

/* Everything below a directory. */
static int walk_tree(Walk *walk, int dir)
{
	int r = push(walk, dir, ".");

	while (r == 0 && walk->depth > 0 && walk->n_blocks <= READ_LIMIT / 512) {
		Level *level = walk->levels[walk->depth - 1];
		const Entry *entry = next_entry(walk, level);

		if (entry)
			r = look_at(walk, level->fd, entry);
		else
			pop(walk);
	}
	while (walk->depth > 0)
		pop(walk);
	return r;
}

static bool is_walked(const Walk *walk, int mount, const char *path)
{
	for (size_t i = 0; i < walk->n_roots; i++) {
		if (walk->roots[i].mount == mount && pf_mounts_is_within(path, walk->roots[i].path))
			return true;
	}
	return false;
}

static int remember_root(Walk *walk, int mount, const char *path)
{
	Root *roots = reallocarray(walk->roots, walk->n_roots + 1, sizeof(*roots));

	if (!roots)
		return -ENOMEM;
	walk->roots = roots;
	roots[walk->n_roots] = (Root){mount, strdup(path)};
	if (!roots[walk->n_roots].path)
		return -ENOMEM;
	walk->n_roots++;
	return 0;
}

/* Where fd leads to, without symbolic links. */
static bool path_of(int fd, char path[PATH_MAX])
{
	char link[64];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, PATH_MAX - 1);
	if (n <= 0)
		return false;
	path[n] = '\0';
	return true;
}

/* The tree below fd, without what is mounted in it; path is where it leads to, or empty when that was walked before. */
static int walk_root(Walk *walk, int fd, char path[PATH_MAX])
{
	int id = pf_mounts_id(fd), r;
	const PfMount *mount = pf_mounts_find(walk->mounts, id);

	path[0] = '\0';
	if (!mount || mount->kind != PF_FS_LOCAL || !path_of(fd, path))
		return 0;
	if (is_walked(walk, id, path)) {
		path[0] = '\0';
		return 0;
	}
	r = remember_root(walk, id, path);
	return r == 0 ? walk_tree(walk, fd) : r;
}

/* Following a symbolic link is an access to it, and openat2() gives up with EAGAIN when it would have to write that
 * down. After readlink() it has not: mostly, access times are written at long intervals only. */
static void use_link(const Walk *walk, const char *name)
{
	int fd = open_cached(AT_FDCWD, name, O_PATH | O_NOFOLLOW, NO_MAGICLINKS);
	const PfMount *mount = fd < 0 ? NULL : pf_mounts_find(walk->mounts, pf_mounts_id(fd));
	char target[PATH_MAX];

	if (mount && mount->kind == PF_FS_LOCAL)
		(void)!readlinkat(fd, "", target, sizeof(target));
	if (fd >= 0)
		close(fd);
}

static int open_root(const Walk *walk, const char *name)
{
	int fd = open_directory(AT_FDCWD, name, O_PATH, NO_MAGICLINKS);

	if (fd < 0 && errno == EAGAIN) {
		use_link(walk, name);
		fd = open_directory(AT_FDCWD, name, O_PATH, NO_MAGICLINKS);
	}
	return fd;
}

static int walk_path(Walk *walk, const char *name, char path[PATH_MAX])
{
	int fd = open_root(walk, name), r;

	path[0] = '\0';
	if (fd < 0)
		return 0;
	r = walk_root(walk, fd, path);
	close(fd);
	return r;
}

static int walk_path_and_mounts(Walk *walk, const char *name)
{
	char top[PATH_MAX], path[PATH_MAX];
	int r = walk_path(walk, name, top);
	const PfMount *mounts;
	size_t n;

	mounts = pf_mounts_all(walk->mounts, &n);
	for (size_t i = 0; i < n && r == 0 && top[0]; i++) {
		if (mounts[i].kind == PF_FS_LOCAL && !mounts[i].again &&
			pf_mounts_is_within(mounts[i].point, top))
			r = walk_path(walk, mounts[i].point, path);
	}
	return r;
}

int pf_cache_walk(
	char *const *paths, const PfMounts *mounts, PfFoundFile found, PfStep step, void *userdata)
{
	Walk walk = {.mounts = mounts, .found = found, .step = step, .userdata = userdata};
	int r = 0;

	for (size_t i = 0; paths[i] && r == 0; i++)
		r = walk_path_and_mounts(&walk, paths[i]);
	for (size_t i = 0; i < walk.n_roots; i++)
		free(walk.roots[i].path);
	free(walk.roots);
	return r;
}
