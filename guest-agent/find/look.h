/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The part of a visit that can hang: a job that has all that it needs, so that it can be left behind.
 */
#include "guest-agent/facts.h"
#include "guest-agent/file.h"
#include "guest-agent/find/worker.h"

#define PF_LOOK_PAGES 2048u /* 8 MiB */

enum {
	PF_LOOK_OK = 0,
	PF_LOOK_E_FILE, /* the file cannot be looked at */
};

typedef struct PfLooker PfLooker;

typedef struct PfLook {
	PfJob job;
	int fd; /* of the file, or -1 */
	bool owns_fd;
	PfRam ram;                          /* pages outside are left out */
	uint64_t first, end;                /* what is still to be looked at of the file */
	size_t n_pages;                     /* length of the window that begins with first */
	bool known[PF_LOOK_PAGES];          /* of the window: digests that need not be found */
	PfObserved observed[PF_LOOK_PAGES]; /* what was found; without digest what was known */
	size_t n;
	uint64_t n_hashed;
	uint64_t n_unreadable; /* pages of the window that are within the file and raise SIGBUS */
	int result;            /* PF_LOOK_OK, PF_LOOK_E_FILE or a fatal -errno */
	PfLooker *looker;      /* owned */
} PfLook;

/* 0; -EPERM when the kernel does not tell page frame numbers; another -errno. */
int pf_look_new(PfLook **look);
void pf_look_free(PfLook *look);

/* Job: moves first to the next window of at most PF_LOOK_PAGES pages that may have resident pages;
 * n_pages is 0 when there is none below end. */
void pf_look_seek(PfJob *job);

/* Job: finds the resident pages of the window. */
void pf_look_at_window(PfJob *job);
