/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the agent knows of the guest's mapped files, and what of it the host was told. No I/O. */
#include "common/page.h"
#include "guest-agent/elf_id.h"
#include "guest-agent/ranges.h"
#include "proto/limits.h"
#include <stddef.h>
#include <sys/stat.h>

#define PF_STATE_MAX_IDLE_PAGES 65536 /* digests kept for pages that are not resident */

/* No page: frame 0 holds no page of a file. */
#define PF_NO_GFN ((PfGfn){0})

/* A page whose digest is known. */
typedef struct PfFilePage {
	PfGfn gfn;  /* where it was at the last scan, or PF_NO_GFN */
	PfGfn told; /* where the host thinks it is, or PF_NO_GFN */
	uint32_t file_page;
	PfDigest digest;
} PfFilePage;

/* A page as a scan found it. */
typedef struct PfObserved {
	PfGfn gfn;
	uint32_t file_page;
	PfDigest digest;
} PfObserved;

/* A file is the same as long as these do not change. */
typedef struct PfFileStamp {
	int64_t size;
	struct timespec mtime, ctime;
} PfFileStamp;

typedef struct PfFile {
	dev_t device;
	ino_t inode;
	PfFileStamp stamp;
	char name[PF_SESSION_MAX_NAME + 1]; /* as pf_text_clean() leaves it */
	uint8_t build_id[PF_SESSION_MAX_BUILD_ID];
	size_t build_id_size; /* 0: none */
	uint64_t n_pages;     /* its length, rounded up */

	PfFilePage *pages; /* ascending, owned */
	size_t n, n_resident;

	uint32_t module_id; /* valid when declared */
	bool declared;      /* the host has it under module_id */
	bool outdated;      /* it changed since: to be declared again */
	bool dirty;         /* the host was not told everything */

	uint64_t scan;       /* in which it was seen last */
	int fd;              /* during a scan, or -1; owned */
	PfPageRanges mapped; /* what processes map of it; during a scan */
} PfFile;

typedef struct PfState {
	PfFile **files; /* owned */
	size_t n, capacity;
	void *by_inode; /* tsearch tree over the same files */
	uint64_t scan;  /* number of the current scan, or of the last */
	bool scanned;   /* a scan is complete and the host was not told so */
	bool complete;  /* at least one scan was completed */
	uint8_t ids[PF_SESSION_MAX_MODULES / 8]; /* module ids in use */
	uint32_t next_id;
} PfState;

void pf_state_init(PfState *state);
void pf_state_deinit(PfState *state);

/* A scan begins. */
void pf_state_begin(PfState *state);

/*
 * The scan found the regular file that st describes. *file is the state's; *fresh says that it is
 * new or changed, so that its build-id must be read and set, and that all its digests were dropped.
 * 0 or -ENOMEM. name need not be clean.
 */
int pf_state_see(
	PfState *state, const struct stat *st, const char *name, PfFile **file, bool *fresh);

/* The page of that number with its digest, or NULL when the digest is not known. */
const PfFilePage *pf_file_find(const PfFile *file, uint64_t file_page);

/*
 * What the scan found of a file: n pages, ascending. Pages that are not among them are not
 * resident; their digests are kept. 0, or -ENOMEM: then nothing changed.
 */
int pf_file_commit(PfFile *file, const PfObserved *observed, size_t n);

/* The scan is complete: files it did not see are no longer mapped. */
void pf_state_end(PfState *state);

/* The scan was given up: what it did not commit stays as it was. */
void pf_state_cancel(PfState *state);

/* A new session: the host knows nothing. */
void pf_state_forget_told(PfState *state);

/* Takes a free module id; false when none is left. */
bool pf_state_take_id(PfState *state, uint32_t *id);
void pf_state_release_id(PfState *state, uint32_t id);
