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
 * Local is what is on the list of file systems that keep their files on a disk or in memory of this guest. Everything
 * else may be served by somebody who never answers: file systems of the network, those in user space, and overlays,
 * whose layers may be either. The kernel's own, such as proc, hold no files that anybody could share.
 */
#include "guest-agent/find/mounts.h"
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

struct PfMounts {
	FILE *file;     /* /proc/self/mountinfo */
	bool stale;     /* it has changed and could not be read */
	PfMount *items; /* owned */
	size_t n, capacity;
};

static bool is_local_type(const char *type)
{
	static const char *const types[] = {"bcachefs", "btrfs", "cramfs", "erofs", "exfat", "ext2",
		"ext3", "ext4", "f2fs", "hfs", "hfsplus", "iso9660", "jfs", "minix", "msdos",
		"nilfs2", "ntfs", "ntfs3", "ramfs", "reiserfs", "rootfs", "romfs", "squashfs",
		"tmpfs", "ubifs", "udf", "ufs", "vfat", "xfs", "zfs"};

	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		if (strcmp(type, types[i]) == 0)
			return true;
	}
	return false;
}

static void mount_deinit(PfMount *mount)
{
	free(mount->type);
	free(mount->root);
	free(mount->point);
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
	char *root, *point, *type;
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
	return line->type != NULL;
}

/* The analyzer does not know that the table owns what is put into it, until clear(). */
#ifndef __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wanalyzer-malloc-leak"
#endif
static int add(PfMounts *mounts, const Line *line)
{
	PfMount *mount;

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
		.type = strdup(line->type),
		.root = strdup(line->root),
		.point = strdup(line->point)};
	mounts->n++;
	if (!mount->type || !mount->root || !mount->point)
		return -ENOMEM;
	unescape(mount->type);
	unescape(mount->root);
	unescape(mount->point);
	mount->block = line->major ? mount->device : 0;
	mount->local = is_local_type(mount->type);
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
	PfMounts table = {0};
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
	PfMounts *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return -ENOMEM;
	m->file = fopen("/proc/self/mountinfo", "re");
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

bool pf_mounts_is_local(const PfMounts *mounts, dev_t device)
{
	const PfMount key = {.device = device}, *mount = NULL;

	if (mounts->n > 0)
		mount = bsearch(&key, mounts->items, mounts->n, sizeof(key), compare_device);
	return mount && mount->local;
}
