/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/service/process_id.h"
#include <errno.h>
#include <sys/stat.h>
#include <sys/vfs.h>

/* linux/magic.h from 6.9 on */
#ifndef PID_FS_MAGIC
#define PID_FS_MAGIC 0x50494446
#endif

int pf_process_id(int pidfd, uint64_t *id)
{
	struct stat status;
	struct statfs fs;

	/* Before there was pidfs, all pidfds had one inode. */
	if (fstatfs(pidfd, &fs) < 0 || fstat(pidfd, &status) < 0)
		return -errno;
	*id = fs.f_type == PID_FS_MAGIC ? status.st_ino : 0;
	return 0;
}
