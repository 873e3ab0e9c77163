/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Opens files of which nobody knows whether they answer. */
#include "guest-agent/find/worker.h"
#include "guest-agent/find/found.h"
#include "proto/limits.h"

enum {
	PF_OPENING_OK = 0,
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

/* The build-id of an opened file, in the same way, as far as it is in memory: its size, 0 for none; -ETIMEDOUT,
 * -EBUSY or another -errno. */
int pf_opening_build_id(PfWorker *worker, int fd, uint8_t id[PF_SESSION_MAX_BUILD_ID]);

/*
 * Closes it in the same way: that too may ask a server. 0: it is closed. -ETIMEDOUT: it will be when the server
 * answers. -EBUSY or another -errno: it is not, and is still the caller's.
 */
int pf_opening_close(PfWorker *worker, int fd);
