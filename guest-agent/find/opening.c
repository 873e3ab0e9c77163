// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Opening a device can have effects, so a file is opened with O_PATH first and for reading only when it is a regular
 * one. Files of the kernel's own file systems are left alone: reading a PCI resource in sysfs through a mapping
 * would talk to a device. So are those of FUSE.
 *
 * Opening with O_PATH finds what a path of the kernel's leads to and asks nobody but, on some network file systems,
 * whether it is still valid; all that comes after it asks whoever serves the file. So in between the caller can check,
 * by the mount alone, whether it is to be asked: what is mapped may be another file than when maps was read.
 *
 * File systems of a network may be silent, and closing may ask them too. So each of these steps is a job for the worker,
 * which has its own copy of all that it needs, and of the descriptor too: one that the caller closes and opens
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
#include <sys/vfs.h>
#include <unistd.h>

typedef struct Opening {
	PfJob job;
	int result;
	int path_fd, fd; /* owned, or -1 */
	struct stat st;
	char path[];
} Opening;

typedef struct Reading {
	PfJob job;
	int fd; /* owned, or -1 */
	size_t size;
	const char *broken;
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
		TRACEFS_MAGIC, SECURITYFS_MAGIC, SELINUX_MAGIC, HUGETLBFS_MAGIC, SECRETMEM_MAGIC,
		FUSE_SUPER_MAGIC};
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return false;
	for (size_t i = 0; i < sizeof(unwanted) / sizeof(unwanted[0]); i++) {
		if ((uint32_t)fs.f_type == unwanted[i])
			return false;
	}
	return true;
}

bool pf_opening_is_wanted(const struct stat *st)
{
	return S_ISREG(st->st_mode) && st->st_size > 0 &&
	       (uint64_t)st->st_size <= PF_SESSION_MAX_MODULE_PAGES * PF_PAGE_SIZE;
}

static bool wanted(int fd, const struct stat *st)
{
	return pf_opening_is_wanted(st) && wanted_file_system(fd);
}

int pf_opening_reopen(int path_fd, int flags)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", path_fd);
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags);
	return fd < 0 ? -errno : fd;
}

/* O_NOATIME: a scan is no access. */
static int reopen(Opening *opening, int path_fd)
{
	int fd = pf_opening_reopen(path_fd, O_NOATIME);

	if (fd == -EPERM)
		fd = pf_opening_reopen(path_fd, 0);
	if (fd < 0)
		return fd == -EPERM || fd == -EACCES ? PF_OPENING_E_UNWANTED : PF_OPENING_E_FAILED;
	opening->fd = fd;
	/* Again: the size may have changed, and only now network file systems are sure of it. */
	if (fstat(opening->fd, &opening->st) < 0)
		return PF_OPENING_E_FAILED;
	return wanted(opening->fd, &opening->st) ? PF_OPENING_OK : PF_OPENING_E_UNWANTED;
}

/* Job: finds the file, and asks nobody what it is. */
static void find_run(PfJob *job)
{
	Opening *opening = (Opening *)job;

	opening->path_fd = open(opening->path, O_PATH | O_CLOEXEC);
	opening->result = opening->path_fd < 0 ? -errno : PF_OPENING_OK;
	/* What means something else to our callers. */
	if (opening->result == -ENOMEM || opening->result == -ETIMEDOUT ||
		opening->result == -EBUSY)
		opening->result = PF_OPENING_E_FAILED;
}

/* Job: opens what was found. */
static void opening_run(PfJob *job)
{
	Opening *opening = (Opening *)job;

	if (fstat(opening->path_fd, &opening->st) < 0)
		opening->result = PF_OPENING_E_FAILED;
	else if (!wanted(opening->path_fd, &opening->st))
		opening->result = PF_OPENING_E_UNWANTED;
	else
		opening->result = reopen(opening, opening->path_fd);
	close(opening->path_fd);
	opening->path_fd = -1;
	if (opening->result != PF_OPENING_OK && opening->fd >= 0) {
		close(opening->fd);
		opening->fd = -1;
	}
}

static void opening_discard(PfJob *job)
{
	Opening *opening = (Opening *)job;

	if (opening->path_fd >= 0)
		close(opening->path_fd);
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
	opening->job = (PfJob){find_run, opening_discard};
	opening->path_fd = opening->fd = -1;
	memcpy(opening->path, path, size);
	return opening;
}

/* Both jobs, with the check between them; after -ETIMEDOUT the opening is the worker's. */
static int find_and_open(PfWorker *worker, Opening *opening, PfOpeningCheck check, void *userdata)
{
	int r = run(worker, &opening->job);

	if (r != 0)
		return r;
	if (opening->result != PF_OPENING_OK)
		return opening->result;
	if (check && !check(userdata, opening->path_fd))
		return PF_OPENING_E_REFUSED;
	opening->job.run = opening_run;
	r = run(worker, &opening->job);
	return r == 0 ? opening->result : r;
}

int pf_opening_open_checked(
	PfWorker *worker, const char *path, PfOpeningCheck check, void *userdata, PfFound *found)
{
	Opening *opening = opening_new(path);
	int r;

	if (!opening)
		return -ENOMEM;
	r = find_and_open(worker, opening, check, userdata);
	if (r == -ETIMEDOUT)
		return r;
	if (r == PF_OPENING_OK) {
		const struct stat *st = &opening->st;

		*found = (PfFound){
			.key = {PF_SOURCE_FILE, st->st_dev, st->st_ino},
			.stamp = {st->st_size, st->st_mtim, st->st_ctim},
			.owner = st->st_uid,
			.fd = opening->fd,
		};
		opening->fd = -1;
	}
	opening_discard(&opening->job);
	return r;
}

int pf_opening_open(PfWorker *worker, const char *path, PfFound *found)
{
	return pf_opening_open_checked(worker, path, NULL, NULL, found);
}

static void reading_run(PfJob *job)
{
	Reading *reading = (Reading *)job;

	reading->size = pf_elf_id_read(reading->fd, reading->id, &reading->broken);
	close(reading->fd);
}

static void reading_discard(PfJob *job)
{
	free(job);
}

int pf_opening_build_id(
	PfWorker *worker, int fd, uint8_t id[PF_SESSION_MAX_BUILD_ID], const char **broken)
{
	Reading *reading;
	int r;

	*broken = NULL;
	if (!worker)
		return (int)pf_elf_id_read(fd, id, broken);
	if (pf_worker_left(worker) >= PF_WORKER_MAX_LEFT)
		return -EBUSY;
	reading = calloc(1, sizeof(*reading));
	if (!reading)
		return -ENOMEM;
	reading->job = (PfJob){reading_run, reading_discard};
	reading->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (reading->fd < 0) {
		r = -errno;
		free(reading);
		return r;
	}
	r = pf_worker_run(worker, &reading->job);
	if (r == -ETIMEDOUT)
		return r;
	if (r == 0) {
		memcpy(id, reading->id, reading->size);
		*broken = reading->broken;
		r = (int)reading->size;
	} else {
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
