/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The file systems of the guest: which are local, and on which block devices they lie. */
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/types.h>

/* Whether what lies on a file system can be looked at, best first. */
typedef enum PfFsKind {
	PF_FS_LOCAL,    /* on a disk or in memory of this guest: it answers */
	PF_FS_REMOTE,   /* served from outside: it may not answer */
	PF_FS_OVERLAY,  /* of a mount: as its layers are */
	PF_FS_ANYBODYS, /* perhaps served by a user of this guest: to be left alone */
	PF_FS_OTHER,    /* the kernel's own, or unknown: to be left alone */
} PfFsKind;

typedef struct PfMount {
	int id;        /* as mnt_id in /proc/PID/fdinfo */
	unsigned line; /* of the table: the order in which they were mounted */
	dev_t device;
	char *root;  /* what of the file system is mounted; unescaped, owned */
	char *point; /* unescaped; owned */
	dev_t block; /* the device's own number when it can be a block device, or 0 */
	PfFsKind kind;
	char *options; /* of an overlay, as in the table; owned */
	bool again;    /* the same part of the same file system was mounted before it */
} PfMount;

typedef struct PfMounts PfMounts;

/* 0 or -errno. */
int pf_mounts_new(PfMounts **mounts);

/* The table of another process, by the path of its mountinfo; -E2BIG when it has more than max mounts, 0 for any. */
int pf_mounts_new_of(PfMounts **mounts, const char *mountinfo, size_t max);
void pf_mounts_free(PfMounts *mounts);

/* Reads the table again when the kernel says that it has changed. 0, or -errno: then the old one stands. */
int pf_mounts_refresh(PfMounts *mounts);

/* Takes a table out of the text of /proc/PID/mountinfo; what is malformed is skipped. 0, or -errno: then the old one
 * stands. */
int pf_mounts_parse(PfMounts *mounts, FILE *mountinfo);

/* Ascending by device and root. Valid until the next refresh. */
const PfMount *pf_mounts_all(const PfMounts *mounts, size_t *n);

/* The mount with that id, or NULL. Valid until the next refresh. */
const PfMount *pf_mounts_find(const PfMounts *mounts, int id);

/* The id of the mount on which fd is, or -1. Asks the kernel only, no file system. */
int pf_mounts_id(int fd);

/* A mount of the file system that /proc/PID/maps shows with that device, or NULL. (The st_dev of btrfs, and of some
 * overlays, is another.) Valid until the next refresh. */
const PfMount *pf_mounts_find_device(const PfMounts *mounts, dev_t device);

/* What a mount of the table is, never PF_FS_OVERLAY. by_root: the table is of a mount namespace in which only root of
 * this guest can mount what is not local. */
PfFsKind pf_mounts_judge(const PfMounts *mounts, const PfMount *mount, bool by_root);

/* Whether a path is that directory or something in it, as text. */
bool pf_mounts_is_within(const char *path, const char *directory);
