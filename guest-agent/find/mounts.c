// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The kernel's table of this process's mounts, kept until poll() on it says that it has changed. A line is
 *
 *     36 35 254:1 /part /mnt/point rw,noatime shared:1 - ext4 /dev/vda1 rw
 *
 * with a number of optional fields before the hyphen. Blanks, tabs, newlines and backslashes in names are written as
 * three octal digits behind a backslash. Names and the source of a mount may be chosen by users of the guest (FUSE), so
 * nothing is concluded from a source: a file system that lies on one block device has the device's own number, and
 * where that has the major number 0 the kernel made the number up.
 *
 * Local is what is on the list of file systems that keep their files on a disk or in memory of this guest: they answer.
 * Remote are those of a network or of the host, which only root mounts. An overlay is as its layers are, which its
 * options name and the table places: by the longest mount point that a layer's path begins with, as text, because to
 * look at a path would be to ask whoever serves it. All others are never asked anything: FUSE, behind which any user
 * may be, whatever a user namespace has made beside local ones, and the kernel's own, such as proc, that hold no files
 * which anybody could share.
 */
#include "guest-agent/find/mounts.h"
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#define MAX_DEPTH 3 /* of overlays on overlays; each layer of each is looked up */

struct PfMounts {
	FILE *file;     /* /proc/self/mountinfo */
	bool stale;     /* it has changed and could not be read */
	PfMount *items; /* owned */
	size_t n, capacity, max;
};

static bool is_one_of(const char *type, const char *const *types)
{
	while (*types && strcmp(type, *types) != 0)
		types++;
	return *types != NULL;
}

static PfFsKind kind_of(const char *type)
{
	static const char *const local[] = {"bcachefs", "btrfs", "cramfs", "erofs", "exfat", "ext2",
		"ext3", "ext4", "f2fs", "hfs", "hfsplus", "iso9660", "jfs", "minix", "msdos",
		"nilfs2", "ntfs", "ntfs3", "ramfs", "reiserfs", "rootfs", "romfs", "squashfs",
		"tmpfs", "ubifs", "udf", "ufs", "vfat", "xfs", "zfs", NULL};
	static const char *const remote[] = {"9p", "afs", "ceph", "cifs", "coda", "gfs2", "gpfs",
		"lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs", "vboxsf",
		"virtiofs", NULL};

	if (is_one_of(type, local))
		return PF_FS_LOCAL;
	if (is_one_of(type, remote))
		return PF_FS_REMOTE;
	if (strcmp(type, "overlay") == 0)
		return PF_FS_OVERLAY;
	return strncmp(type, "fuse", 4) == 0 ? PF_FS_ANYBODYS : PF_FS_OTHER;
}

static void mount_deinit(PfMount *mount)
{
	free(mount->root);
	free(mount->point);
	free(mount->options);
}

static void clear(PfMounts *mounts)
{
	for (size_t i = 0; i < mounts->n; i++)
		mount_deinit(&mounts->items[i]);
	free(mounts->items);
}

static bool is_octal(char c)
{
	return c >= '0' && c <= '7';
}

/* In place. */
static void unescape(char *text)
{
	char *out = text;

	while (*text) {
		if (text[0] == '\\' && text[1] >= '0' && text[1] <= '3' && is_octal(text[2]) &&
			is_octal(text[3])) {
			*out++ = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 |
					(text[3] - '0'));
			text += 4;
		} else {
			*out++ = *text++;
		}
	}
	*out = '\0';
}

/* The next field, ended with a 0; NULL when there is none. */
static char *next_field(char **rest)
{
	char *field = strsep(rest, " \n");

	return field && *field ? field : NULL;
}

static bool read_number(
	const char *text, char end, unsigned max, unsigned *number, const char **rest)
{
	char *stop;
	unsigned long value;

	if (!text || *text < '0' || *text > '9')
		return false;
	errno = 0;
	value = strtoul(text, &stop, 10);
	if (errno != 0 || value > max || *stop != end)
		return false;
	*number = (unsigned)value;
	if (rest)
		*rest = stop + 1;
	return true;
}

/* A line in pieces, inside the line. */
typedef struct Line {
	unsigned id, major, minor;
	char *root, *point, *type, *options;
} Line;

static bool split(char *text, Line *line)
{
	const char *minor = NULL;
	char *field;

	if (!read_number(next_field(&text), '\0', INT32_MAX, &line->id, NULL) ||
		!next_field(&text) ||
		!read_number(next_field(&text), ':', 0xfff, &line->major, &minor) ||
		!read_number(minor, '\0', 0xfffff, &line->minor, NULL))
		return false;
	line->root = next_field(&text);
	line->point = next_field(&text);
	if (!line->root || !line->point || line->point[0] != '/')
		return false;
	do {
		field = next_field(&text);
	} while (field && strcmp(field, "-") != 0);
	line->type = field ? next_field(&text) : NULL;
	/* The source may be empty. */
	line->options = line->type && strsep(&text, " \n") ? next_field(&text) : NULL;
	return line->type != NULL;
}

/* The analyzer does not know that the table owns what is put into it, until clear(). */
#ifndef __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wanalyzer-malloc-leak"
#endif
static int add(PfMounts *mounts, const Line *line)
{
	PfFsKind kind = kind_of(line->type);
	const char *options = kind == PF_FS_OVERLAY && line->options ? line->options : "";
	PfMount *mount;

	if (mounts->max && mounts->n == mounts->max)
		return -E2BIG;
	if (mounts->n == mounts->capacity) {
		size_t capacity = mounts->capacity ? mounts->capacity * 2 : 32;
		PfMount *items = reallocarray(mounts->items, capacity, sizeof(*items));

		if (!items)
			return -ENOMEM;
		mounts->items = items;
		mounts->capacity = capacity;
	}
	mount = &mounts->items[mounts->n];
	*mount = (PfMount){.id = (int)line->id,
		.device = makedev(line->major, line->minor),
		.root = strdup(line->root),
		.point = strdup(line->point),
		.options = strdup(options),
		.kind = kind};
	mounts->n++;
	if (!mount->root || !mount->point || !mount->options)
		return -ENOMEM;
	unescape(mount->root);
	unescape(mount->point);
	mount->block = line->major ? mount->device : 0;
	mount->line = (unsigned)mounts->n;
	return 0;
}
#ifndef __clang__
#pragma GCC diagnostic pop
#endif

static int compare_device(const void *a, const void *b)
{
	const PfMount *x = a, *y = b;

	return (x->device > y->device) - (x->device < y->device);
}

static int compare_mount(const void *a, const void *b)
{
	const PfMount *x = a, *y = b;
	int r = compare_device(x, y);

	if (r == 0)
		r = strcmp(x->root, y->root);
	return r ? r : (x->line > y->line) - (x->line < y->line);
}

static void sort(PfMounts *mounts)
{
	if (mounts->n == 0)
		return;
	qsort(mounts->items, mounts->n, sizeof(*mounts->items), compare_mount);
	for (size_t i = 1; i < mounts->n; i++) {
		PfMount *mount = &mounts->items[i];

		mount->again = mount->device == mount[-1].device &&
			       strcmp(mount->root, mount[-1].root) == 0;
	}
}

static void replace(PfMounts *mounts, PfMounts *table)
{
	clear(mounts);
	mounts->items = table->items;
	mounts->n = table->n;
	mounts->capacity = table->capacity;
}

int pf_mounts_parse(PfMounts *mounts, FILE *mountinfo)
{
	PfMounts table = {.max = mounts->max};
	char *text = NULL;
	size_t size = 0;
	int r = 0;

	errno = 0;
	while (r == 0 && getline(&text, &size, mountinfo) > 0) {
		Line line;

		if (split(text, &line))
			r = add(&table, &line);
		errno = 0;
	}
	if (r == 0 && (ferror(mountinfo) || errno == ENOMEM))
		r = errno ? -errno : -EIO;
	free(text);
	if (r < 0) {
		clear(&table);
		return r;
	}
	sort(&table);
	replace(mounts, &table);
	return 0;
}

static int read_table(PfMounts *mounts)
{
	int r;

	rewind(mounts->file);
	r = pf_mounts_parse(mounts, mounts->file);
	mounts->stale = r < 0;
	return r;
}

int pf_mounts_new(PfMounts **mounts)
{
	return pf_mounts_new_of(mounts, "/proc/self/mountinfo", 0);
}

int pf_mounts_new_of(PfMounts **mounts, const char *mountinfo, size_t max)
{
	PfMounts *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return -ENOMEM;
	m->max = max;
	m->file = fopen(mountinfo, "re");
	r = m->file ? read_table(m) : -errno;
	if (r < 0) {
		pf_mounts_free(m);
		return r;
	}
	*mounts = m;
	return 0;
}

void pf_mounts_free(PfMounts *mounts)
{
	if (!mounts)
		return;
	clear(mounts);
	if (mounts->file)
		fclose(mounts->file);
	free(mounts);
}

/* A change while the table is read is one that the next poll tells. */
int pf_mounts_refresh(PfMounts *mounts)
{
	struct pollfd changed = {.fd = fileno(mounts->file), .events = POLLPRI};

	if (poll(&changed, 1, 0) < 0)
		return -errno;
	mounts->stale |= (changed.revents & (POLLPRI | POLLERR)) != 0;
	return mounts->stale ? read_table(mounts) : 0;
}

const PfMount *pf_mounts_all(const PfMounts *mounts, size_t *n)
{
	*n = mounts->n;
	return mounts->items;
}

const PfMount *pf_mounts_find(const PfMounts *mounts, int id)
{
	for (size_t i = 0; i < mounts->n; i++) {
		if (mounts->items[i].id == id)
			return &mounts->items[i];
	}
	return NULL;
}

int pf_mounts_id(int fd)
{
	char path[64], line[64];
	FILE *info;
	int id = -1;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = fopen(path, "re");
	if (!info)
		return -1;
	while (id < 0 && fgets(line, sizeof(line), info)) {
		if (sscanf(line, "mnt_id: %d", &id) != 1)
			id = -1;
	}
	fclose(info);
	return id;
}

const PfMount *pf_mounts_find_device(const PfMounts *mounts, dev_t device)
{
	const PfMount key = {.device = device};

	if (mounts->n == 0)
		return NULL;
	return bsearch(&key, mounts->items, mounts->n, sizeof(key), compare_device);
}

/* --- overlays --- */

bool pf_mounts_is_within(const char *path, const char *directory)
{
	size_t length = strlen(directory);

	if (strcmp(directory, "/") == 0)
		return path[0] == '/';
	return strncmp(path, directory, length) == 0 &&
	       (path[length] == '/' || path[length] == '\0');
}

/* The mount that a path leads to as far as its text says, or NULL. */
static const PfMount *mount_of_path(const PfMounts *mounts, const char *path)
{
	const PfMount *best = NULL;
	size_t best_length = 0;

	for (size_t i = 0; i < mounts->n; i++) {
		const PfMount *mount = &mounts->items[i];
		size_t length = strlen(mount->point);

		if (!pf_mounts_is_within(path, mount->point) || length < best_length)
			continue;
		/* What was mounted last at the same place hides the others. */
		if (best && length == best_length && mount->line < best->line)
			continue;
		best = mount;
		best_length = length;
	}
	return best;
}

static PfFsKind worse(PfFsKind a, PfFsKind b)
{
	return a > b ? a : b;
}

static PfFsKind judge(const PfMounts *mounts, const PfMount *mount, unsigned depth);

static PfFsKind judge_path(const PfMounts *mounts, const char *path, unsigned depth)
{
	const PfMount *mount = NULL;

	if (path[0] == '/' && !strstr(path, "/.."))
		mount = mount_of_path(mounts, path);
	return mount ? judge(mounts, mount, depth + 1) : PF_FS_ANYBODYS;
}

/* The next of several paths with colons between them, ended with a 0 and without its backslashes. */
static char *next_path(char **rest)
{
	char *path = *rest, *in = path, *out = path;

	while (*in && *in != ':') {
		if (in[0] == '\\' && in[1])
			in++;
		*out++ = *in++;
	}
	*rest = *in ? in + 1 : NULL;
	*out = '\0';
	return path;
}

/* Empty ones are the second colon before layers of data. */
static PfFsKind judge_paths(const PfMounts *mounts, char *paths, unsigned depth)
{
	PfFsKind kind = PF_FS_LOCAL;

	while (paths) {
		const char *path = next_path(&paths);

		if (*path)
			kind = worse(kind, judge_path(mounts, path, depth));
	}
	return kind;
}

/* An option of an overlay; *n counts the layers. */
static PfFsKind judge_option(const PfMounts *mounts, char *option, unsigned depth, size_t *n)
{
	char *value = strchr(option, '=');

	if (!value)
		return PF_FS_LOCAL;
	*value++ = '\0';
	unescape(value);
	if (strcmp(option, "lowerdir") == 0) {
		++*n;
		return judge_paths(mounts, value, depth);
	}
	if (strcmp(option, "lowerdir+") == 0 || strcmp(option, "datadir+") == 0 ||
		strcmp(option, "upperdir") == 0) {
		++*n;
		return judge_path(mounts, value, depth);
	}
	return PF_FS_LOCAL;
}

static PfFsKind judge_overlay(const PfMounts *mounts, const PfMount *overlay, unsigned depth)
{
	char *options = strdup(overlay->options), *rest = options, *option;
	PfFsKind kind = PF_FS_LOCAL;
	size_t n = 0;

	if (!options)
		return PF_FS_ANYBODYS;
	while ((option = strsep(&rest, ",")))
		kind = worse(kind, judge_option(mounts, option, depth, &n));
	free(options);
	return n > 0 && kind <= PF_FS_REMOTE ? kind : PF_FS_ANYBODYS;
}

static PfFsKind judge(const PfMounts *mounts, const PfMount *mount, unsigned depth)
{
	if (mount->kind != PF_FS_OVERLAY)
		return mount->kind;
	return depth < MAX_DEPTH ? judge_overlay(mounts, mount, depth) : PF_FS_ANYBODYS;
}

PfFsKind pf_mounts_judge(const PfMounts *mounts, const PfMount *mount, bool by_root)
{
	if (!by_root && (mount->kind == PF_FS_REMOTE || mount->kind == PF_FS_OVERLAY))
		return PF_FS_ANYBODYS;
	return judge(mounts, mount, 0);
}
