/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* An ext4 file system on a loop device, mounted in a mount namespace of this process's own. Needs root. */
#include <stdint.h>
#include <sys/types.h>

typedef struct PfLoopDisk {
	char directory[64]; /* holds the image and the mount point */
	char image[80], point[80];
	int device_fd; /* of the loop device; keeps it while nothing is mounted */
	dev_t device;
	char name[32]; /* such as loop0 */
	uint64_t size; /* bytes */
} PfLoopDisk;

/* 0, or -1 after a message. Enters the mount namespace, makes and mounts the disk. */
int pf_loop_disk_init(PfLoopDisk *disk, uint64_t size);
void pf_loop_disk_deinit(PfLoopDisk *disk); /* also of one that is {.device_fd = -1} */

/* Mounts it anew: nothing of it is in any cache then but what mounting brings in. 0 or -1. */
int pf_loop_disk_cool(PfLoopDisk *disk);

/* How much was read from it since it was made, in sectors of 512 bytes. */
uint64_t pf_loop_disk_sectors_read(const PfLoopDisk *disk);
