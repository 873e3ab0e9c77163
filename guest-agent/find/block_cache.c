// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * File systems such as ext4 keep their metadata (inode tables, bitmaps, directories) in the page cache of the block
 * device, so that is what is looked at through the device's node. Those that keep it elsewhere (xfs, btrfs) show few
 * pages there.
 *
 * Only devices are opened from which a file system is mounted, and for reading only: they are in use already, so
 * opening them once more has no effect. sysfs has the name of a device by its number; what really stands in /dev under
 * that name is looked at before it is opened for reading.
 *
 * Two guests name a device alike when it is the same part of a disk on the same kind of bus.
 */
#include "guest-agent/find/block_cache.h"
#include "common/log.h"
#include "guest-agent/find/opening.h"
#include "proto/limits.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MAX_SIZE (PF_SESSION_MAX_MODULE_PAGES * PF_PAGE_SIZE)

/* The name of a device's node in /dev, such as vda1 or mapper/root. */
static bool device_name(dev_t device, char *name, size_t size)
{
	char path[64], line[256];
	bool found = false;
	FILE *uevent;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/uevent", major(device), minor(device));
	uevent = fopen(path, "re");
	if (!uevent)
		return false;
	while (!found && fgets(line, sizeof(line), uevent)) {
		static const char key[] = "DEVNAME=";

		line[strcspn(line, "\n")] = '\0';
		found = strncmp(line, key, strlen(key)) == 0 && strlen(line) < size;
		if (found)
			strcpy(name, line + strlen(key));
	}
	fclose(uevent);
	return found;
}

/* -errno when it is not that device, or cannot be opened. */
static int open_device(const char *name, dev_t device)
{
	char path[300];
	struct stat st;
	int path_fd, fd = -ENODEV;

	snprintf(path, sizeof(path), "/dev/%s", name);
	path_fd = open(path, O_PATH | O_CLOEXEC | O_NOFOLLOW);
	if (path_fd < 0)
		return -errno;
	if (fstat(path_fd, &st) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == device)
		fd = pf_opening_reopen(path_fd, O_NOATIME);
	close(path_fd);
	return fd;
}

static int look_at(dev_t device, PfFoundFile found, void *userdata)
{
	static const char prefix[] = "block:";
	char name[256];
	size_t length = strlen(prefix);
	PfFound block = {.key = {PF_SOURCE_BLOCK_DEVICE, device, 0}, .name = name};
	uint64_t size;

	strcpy(name, prefix);
	if (!device_name(device, name + length, sizeof(name) - length))
		return 0;
	block.fd = open_device(name + length, device);
	if (block.fd < 0) {
		pf_debug("cannot open /dev/%s: %s", name + length, strerror(-block.fd));
		return 0;
	}
	if (ioctl(block.fd, BLKGETSIZE64, &size) < 0 || size == 0) {
		close(block.fd);
		return 0;
	}
	block.stamp.size = (int64_t)(size < MAX_SIZE ? size : MAX_SIZE);
	return found(userdata, &block);
}

int pf_block_cache_walk(const PfMounts *mounts, PfFoundFile found, void *userdata)
{
	size_t n;
	const PfMount *mount = pf_mounts_all(mounts, &n);
	dev_t before = 0;
	int r = 0;

	for (; n > 0 && r == 0; n--, mount++) {
		if (mount->block != 0 && mount->block != before)
			r = look_at(mount->block, found, userdata);
		before = mount->block;
	}
	return r;
}
