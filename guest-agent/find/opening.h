/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Opens files of which nobody knows whether they answer. */
#include "guest-agent/find/worker.h"
#include "guest-agent/find/found.h"
#include "proto/limits.h"
#include <stdbool.h>
#include <sys/stat.h>

enum {
	PF_OPENING_OK = 0,
	PF_OPENING_E_FAILED,   /* it was found, and cannot be opened now */
	PF_OPENING_E_REFUSED,  /* the check did not want it */
	PF_OPENING_E_UNWANTED, /* no regular file, empty, too large, not for us to read, or of a
				  file system that is left alone */
};

/*
 * Opens a regular file for reading by a path such as those in map_files, without counting as an access.
 * worker is where it is done, or NULL: here, for file systems that are known to answer. PF_OPENING_OK: found->fd
 * is the caller's, found->name is not set. PF_OPENING_E_UNWANTED. -ETIMEDOUT, -EBUSY as in
 * pf_worker_run(); another -errno of open(): -EPERM and -EACCES are those of the path itself.
 */
int pf_opening_open(PfWorker *worker, const char *path, PfFound *found);

/* Whether a file may be asked anything, of which path_fd was opened with O_PATH. */
typedef bool (*PfOpeningCheck)(void *userdata, int path_fd);

/* The same with a check, which is called by the caller's thread; PF_OPENING_E_REFUSED. */
int pf_opening_open_checked(
	PfWorker *worker, const char *path, PfOpeningCheck check, void *userdata, PfFound *found);

/* Whether its pages can be reported: a regular file, not empty and not too large. */
bool pf_opening_is_wanted(const struct stat *st);

/* Opens for reading what path_fd, which was opened with O_PATH, stands for; flags such as O_NOATIME. -errno. */
int pf_opening_reopen(int path_fd, int flags);

/* The build-id of an opened file, in the same way, as far as it is in memory: its size, 0 for none; -ETIMEDOUT,
 * -EBUSY or another -errno. *broken as of pf_elf_id_read(), NULL after an error. */
int pf_opening_build_id(
	PfWorker *worker, int fd, uint8_t id[PF_SESSION_MAX_BUILD_ID], const char **broken);

/*
 * Closes it in the same way: that too may ask a server. 0: it is closed. -ETIMEDOUT: it will be when the server
 * answers. -EBUSY or another -errno: it is not, and is still the caller's.
 */
int pf_opening_close(PfWorker *worker, int fd);
