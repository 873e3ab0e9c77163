/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The file systems of the guest: which are local, and on which block devices they lie. */
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/types.h>

typedef struct PfMount {
	int id;        /* as mnt_id in /proc/PID/fdinfo */
	unsigned line; /* of the table: the order in which they were mounted */
	dev_t device;
	char *type;  /* such as ext4; owned */
	char *root;  /* what of the file system is mounted; unescaped, owned */
	char *point; /* unescaped; owned */
	dev_t block; /* the device's own number when it can be a block device, or 0 */
	bool local;  /* as pf_mounts_is_local() */
	bool again;  /* the same part of the same file system was mounted before it */
} PfMount;

typedef struct PfMounts PfMounts;

/* 0 or -errno. */
int pf_mounts_new(PfMounts **mounts);
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

/* Whether files with that st_dev lie on a disk or in memory of this guest: such file systems answer. False where it
 * is not known (overlays, whose layers may be anything; other mount namespaces; btrfs, which gives the files of a
 * subvolume another number than /proc/PID/maps does, which has the mount's). */
bool pf_mounts_is_local(const PfMounts *mounts, dev_t device);
