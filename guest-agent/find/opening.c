// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Opening a device can have effects, so a file is opened with O_PATH first and for reading only when it is a regular
 * one. Files of the kernel's own file systems are left alone: reading a PCI resource in sysfs through a mapping
 * would talk to a device. So are FUSE files, behind which a process of the guest could make us wait for ever.
 *
 * Other file systems can be as silent as that: those of a network, and overlays, whose layers may be anything. There
 * even the first look asks the server, and so may closing. So each of these steps is a job for the worker, which
 * has its own copy of all that it needs, and of the descriptor too: one that the caller closes and opens
 * again would be another file under a job that was left behind.
 */
#include "guest-agent/find/opening.h"
#include "common/page.h"
#include "guest-agent/find/elf_id.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Newer than the headers that this is built with may be. */
#define FUSE_MAGIC       0x65735546u
#define SECRET_MEM_MAGIC 0x5345434du

typedef struct Opening {
	PfJob job;
	int result;
	int fd; /* owned, or -1 */
	struct stat st;
	char path[];
} Opening;

typedef struct Reading {
	PfJob job;
	int fd; /* owned, or -1 */
	size_t size;
	uint8_t id[PF_SESSION_MAX_BUILD_ID];
} Reading;

typedef struct Closing {
	PfJob job;
	int fd;
} Closing;

static int run(PfWorker *worker, PfJob *job)
{
	if (worker)
		return pf_worker_run(worker, job);
	job->run(job);
	return 0;
}

static bool wanted_file_system(int fd)
{
	static const uint32_t unwanted[] = {PROC_SUPER_MAGIC, SYSFS_MAGIC, DEBUGFS_MAGIC,
		TRACEFS_MAGIC, SECURITYFS_MAGIC, SELINUX_MAGIC, HUGETLBFS_MAGIC, SECRET_MEM_MAGIC,
		FUSE_MAGIC};
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return false;
	for (size_t i = 0; i < sizeof(unwanted) / sizeof(unwanted[0]); i++) {
		if ((uint32_t)fs.f_type == unwanted[i])
			return false;
	}
	return true;
}

static bool wanted(int fd, const struct stat *st)
{
	return S_ISREG(st->st_mode) && st->st_size > 0 &&
	       (uint64_t)st->st_size <= PF_SESSION_MAX_MODULE_PAGES * PF_PAGE_SIZE &&
	       wanted_file_system(fd);
}

/* Opens for reading what path_fd stands for. O_NOATIME: a scan is no access. */
static int reopen(Opening *opening, int path_fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", path_fd);
	opening->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOATIME);
	if (opening->fd < 0 && errno == EPERM)
		opening->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (opening->fd < 0)
		return errno == EPERM || errno == EACCES ? PF_OPENING_E_UNWANTED : -errno;
	/* Again: the size may have changed, and only now network file systems are sure of it. */
	if (fstat(opening->fd, &opening->st) < 0)
		return -errno;
	return wanted(opening->fd, &opening->st) ? PF_OPENING_OK : PF_OPENING_E_UNWANTED;
}

static void opening_run(PfJob *job)
{
	Opening *opening = (Opening *)job;
	int path_fd = open(opening->path, O_PATH | O_CLOEXEC);

	if (path_fd < 0) {
		opening->result = -errno;
		return;
	}
	if (fstat(path_fd, &opening->st) < 0)
		opening->result = -errno;
	else if (!wanted(path_fd, &opening->st))
		opening->result = PF_OPENING_E_UNWANTED;
	else
		opening->result = reopen(opening, path_fd);
	close(path_fd);
	if (opening->result != PF_OPENING_OK && opening->fd >= 0) {
		close(opening->fd);
		opening->fd = -1;
	}
}

static void opening_discard(PfJob *job)
{
	Opening *opening = (Opening *)job;

	if (opening->fd >= 0)
		close(opening->fd);
	free(opening);
}

static Opening *opening_new(const char *path)
{
	size_t size = strlen(path) + 1;
	Opening *opening = calloc(1, sizeof(*opening) + size);

	if (!opening)
		return NULL;
	opening->job = (PfJob){opening_run, opening_discard};
	opening->fd = -1;
	memcpy(opening->path, path, size);
	return opening;
}

int pf_opening_open(PfWorker *worker, const char *path, PfFound *found)
{
	Opening *opening = opening_new(path);
	int r;

	if (!opening)
		return -ENOMEM;
	r = run(worker, &opening->job);
	if (r == -ETIMEDOUT)
		return r;
	if (r == 0)
		r = opening->result;
	if (r == PF_OPENING_OK) {
		const struct stat *st = &opening->st;

		*found = (PfFound){
			.key = {PF_SOURCE_FILE, st->st_dev, st->st_ino},
			.stamp = {st->st_size, st->st_mtim, st->st_ctim},
			.fd = opening->fd,
		};
	}
	free(opening);
	return r;
}

static void reading_run(PfJob *job)
{
	Reading *reading = (Reading *)job;

	reading->size = pf_elf_id_read(reading->fd, reading->id);
	close(reading->fd);
}

static void reading_discard(PfJob *job)
{
	free(job);
}

int pf_opening_build_id(PfWorker *worker, int fd, uint8_t id[PF_SESSION_MAX_BUILD_ID])
{
	Reading *reading;
	int r;

	if (!worker)
		return (int)pf_elf_id_read(fd, id);
	if (pf_worker_left(worker) >= PF_WORKER_MAX_LEFT)
		return -EBUSY;
	reading = calloc(1, sizeof(*reading));
	if (!reading)
		return -ENOMEM;
	reading->job = (PfJob){reading_run, reading_discard};
	reading->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	r = reading->fd < 0 ? -errno : pf_worker_run(worker, &reading->job);
	if (r == -ETIMEDOUT)
		return r;
	if (r == 0) {
		memcpy(id, reading->id, reading->size);
		r = (int)reading->size;
	} else if (reading->fd >= 0) {
		close(reading->fd);
	}
	free(reading);
	return r;
}

static void closing_run(PfJob *job)
{
	close(((Closing *)job)->fd);
}

static void closing_discard(PfJob *job)
{
	free(job);
}

int pf_opening_close(PfWorker *worker, int fd)
{
	Closing *closing = malloc(sizeof(*closing));
	int r;

	if (!closing)
		return -ENOMEM;
	*closing = (Closing){.job = {closing_run, closing_discard}, .fd = fd};
	r = run(worker, &closing->job);
	if (r != -ETIMEDOUT)
		free(closing);
	return r;
}
