/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the agent knows of the guest's pages that are worth sharing, and what of it the host was
 * told. No I/O. */
#include "guest-agent/file.h"
#include "guest-agent/owners.h"

enum {
	PF_STATE_OK = 0,
	PF_STATE_E_FULL, /* the file's owner has enough files: it is not one for us */
};

#define PF_STATE_MAX_IDLE_PAGES 16384 /* digests kept for pages that are not resident */

typedef struct PfState {
	PfFile **files; /* owned */
	size_t n, capacity;
	void *by_key;                      /* tsearch tree over the same files */
	PfOwners owners;                   /* of the same files */
	uint64_t n_left_out[PF_N_CLASSES]; /* files of full owners, by the last complete pass */
	uint64_t pass_left_out;            /* by the current pass */
	uint32_t pass;                     /* number of the current pass, or of the last */
	PfPageClass pass_class;
	bool pass_complete; /* the pass sees all that its class has */
	bool scanned;  /* a pass that has something to tell has ended, and the host was not told */
	bool complete; /* at least one pass has ended */
	uint8_t ids[PF_SESSION_MAX_MODULES / 8]; /* module ids in use */
	uint32_t next_id;
} PfState;

/* How much of the state the host is to know (or, where it was not told yet, will be). */
typedef struct PfStateCount {
	struct {
		uint64_t n_files, n_pages;
	} classes[PF_N_CLASSES];   /* a page of a file that is mapped too counts as mapped */
	uint64_t n_left_out;       /* files of full owners, by the last complete passes */
	uint64_t n_unsteady_pages; /* resident, but their digests have not held still yet */
} PfStateCount;

void pf_state_init(PfState *state);
void pf_state_deinit(PfState *state);

/*
 * A pass of a class begins. A complete one sees everything of its class, so what it does not see
 * is gone when it ends; another one (the mappings of some new processes) only adds.
 */
void pf_state_begin(PfState *state, PfPageClass class, bool complete);

/*
 * The pass found this file. *file is the state's; *fresh says that it is new or changed, so that
 * all its digests were dropped and its build-id must be set: when it has come to rest, if it is
 * restless. In a complete pass of the mappings its mapped ranges are empty when it is seen first.
 * PF_STATE_OK, PF_STATE_E_FULL or -ENOMEM. name need not be clean.
 */
int pf_state_see(PfState *state, const PfFileKey *key, const PfFileStamp *stamp, uid_t owner,
	const char *name, PfFile **file, bool *fresh);

/* The pass has ended. After a complete one: files that it did not see are no longer of its class,
 * and pages that are of no class any more are not to be reported. */
void pf_state_end(PfState *state);

/* The pass was given up: what it did not commit stays as it was. */
void pf_state_cancel(PfState *state);

/* The class was switched off, while no pass is under way: its files and pages are those of the others, or gone. */
void pf_state_drop_class(PfState *state, PfPageClass class);

/* A new session: the host knows nothing. */
void pf_state_forget_told(PfState *state);

void pf_state_count(const PfState *state, PfStateCount *count);

/* Takes a free module id; false when none is left. */
bool pf_state_take_id(PfState *state, uint32_t *id);
void pf_state_release_id(PfState *state, uint32_t id);
