// SPDX-License-Identifier: LGPL-2.1-or-later
#include "loop_disk.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/loop.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static int complain(const char *what)
{
	fprintf(stderr, "%s: %s; this test must run as root\n", what, strerror(errno));
	return -1;
}

static int enter_namespace(void)
{
	if (unshare(CLONE_NEWNS) < 0)
		return complain("unshare");
	return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ? complain("mount") : 0;
}

static int make_file_system(const PfLoopDisk *disk)
{
	const char *arguments[] = {"mkfs.ext4", "-q", "-F", "-b", "4096", "-E",
		"lazy_itable_init=0", disk->image, NULL};
	int status;
	pid_t pid;

	setenv("PATH", "/usr/sbin:/sbin:/usr/bin:/bin", 1);
	if (posix_spawnp(&pid, arguments[0], NULL, NULL, (char **)arguments, environ) != 0 ||
		waitpid(pid, &status, 0) != pid || status != 0)
		return complain("mkfs.ext4");
	return 0;
}

static int make_image(PfLoopDisk *disk, uint64_t size)
{
	int fd;

	strcpy(disk->directory, "/var/tmp/pagefusion-test-XXXXXX");
	if (!mkdtemp(disk->directory))
		return complain("mkdtemp");
	snprintf(disk->image, sizeof(disk->image), "%s/image", disk->directory);
	snprintf(disk->point, sizeof(disk->point), "%s/point", disk->directory);
	fd = open(disk->image, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)size) < 0 || mkdir(disk->point, 0755) < 0)
		return complain("cannot make an image");
	close(fd);
	disk->size = size;
	return make_file_system(disk);
}

/* Somebody else may take the device that is free in the meantime. */
static int attach(PfLoopDisk *disk)
{
	struct loop_config config = {.fd = (uint32_t)open(disk->image, O_RDWR | O_CLOEXEC),
		.block_size = 4096,
		.info = {.lo_flags = LO_FLAGS_AUTOCLEAR}};
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), r = -1;
	char path[40];

	for (int tries = 0; tries < 20 && r < 0 && control >= 0; tries++) {
		snprintf(disk->name, sizeof(disk->name), "loop%d",
			ioctl(control, LOOP_CTL_GET_FREE));
		snprintf(path, sizeof(path), "/dev/%s", disk->name);
		disk->device_fd = open(path, O_RDWR | O_CLOEXEC);
		r = disk->device_fd < 0 ? -1 : ioctl(disk->device_fd, LOOP_CONFIGURE, &config);
		if (r < 0 && disk->device_fd >= 0) {
			close(disk->device_fd);
			disk->device_fd = -1;
		}
	}
	close((int)config.fd);
	if (control >= 0)
		close(control);
	return r;
}

static int mount_disk(PfLoopDisk *disk)
{
	char path[40];

	snprintf(path, sizeof(path), "/dev/%s", disk->name);
	return mount(path, disk->point, "ext4", MS_RELATIME, NULL) < 0 ? complain("mount") : 0;
}

static int make_disk(PfLoopDisk *disk, uint64_t size)
{
	struct stat st;

	if (enter_namespace() < 0 || make_image(disk, size) < 0)
		return -1;
	if (attach(disk) < 0)
		return complain("cannot set up a loop device");
	if (fstat(disk->device_fd, &st) < 0)
		return complain("fstat");
	disk->device = st.st_rdev;
	return mount_disk(disk);
}

int pf_loop_disk_init(PfLoopDisk *disk, uint64_t size)
{
	int r;

	*disk = (PfLoopDisk){.device_fd = -1};
	r = make_disk(disk, size);
	if (r < 0)
		pf_loop_disk_deinit(disk);
	return r;
}

void pf_loop_disk_deinit(PfLoopDisk *disk)
{
	(void)umount2(disk->point, MNT_DETACH);
	if (disk->device_fd >= 0)
		close(disk->device_fd);
	(void)unlink(disk->image);
	(void)rmdir(disk->point);
	(void)rmdir(disk->directory);
	*disk = (PfLoopDisk){.device_fd = -1};
}

int pf_loop_disk_cool(PfLoopDisk *disk)
{
	if (umount(disk->point) < 0)
		return complain("umount");
	return ioctl(disk->device_fd, BLKFLSBUF) < 0 ? complain("BLKFLSBUF") : mount_disk(disk);
}

uint64_t pf_loop_disk_sectors_read(const PfLoopDisk *disk)
{
	char path[64];
	uint64_t sectors = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/stat", major(disk->device),
		minor(disk->device));
	file = fopen(path, "re");
	if (!file || fscanf(file, "%*u %*u %" SCNu64, &sectors) != 1)
		sectors = UINT64_MAX;
	if (file)
		fclose(file);
	return sectors;
}
