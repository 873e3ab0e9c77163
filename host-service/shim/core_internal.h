/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What core.c, fuse.c, revoke.c, discard.c and aside.c share. lock.h has what the marks mean. */
#include "host-service/shim/core.h"
#include "host-service/shim/lock.h"
#include "host-service/shim/ram.h"
#include <stdatomic.h>

/* Pages that are looked at before others have their turn at the lock. */
#define PAGES_A_TURN 16384u

typedef struct PfCore {
	pthread_cond_t drained; /* nothing is pending */
	atomic_uint
		pending; /* faults read and not yet resolved, and calls of QEMU's that wait for the lock; no lock */
	_Atomic bool started; /* userfaultfd and threads are there; no lock */
	_Atomic bool forked;  /* this is a child: straight to the kernel; no lock */
	int uffd;
	int pagemap;
	int store PF_GUARDED; /* -1: none */
	uint8_t group_id[16] PF_GUARDED;
	uint64_t store_pages PF_GUARDED;
	char *scratch
		PF_GUARDED; /* PF_SHIM_RUN_PAGES pages, registered MISSING: where a run is frozen */
	char *spare
		PF_GUARDED; /* as many, not registered: where the bytes of a revoked page are made ready */
	uint8_t *
		frames; /* as many, of the link's thread alone: the frames of the run to be fused */
	int stopped_error PF_GUARDED; /* not 0: fusing has stopped for good */
	unsigned aside PF_GUARDED;    /* QEMU uses so many userfaultfds: nothing is fused */
	bool unregistered
		PF_GUARDED; /* no registration of ours is on guest RAM, but QEMU's may be */
	uint64_t maps
		PF_GUARDED; /* VMAs of the process: counted, and then what may have been added since */
	uint64_t maps_added PF_GUARDED;  /* by our account, since the process started */
	uint64_t maps_limit PF_GUARDED;  /* vm.max_map_count */
	uint64_t maps_budget PF_GUARDED; /* three quarters of it */
	uint64_t maps_reserved
		PF_GUARDED; /* a sixteenth: left to QEMU also by revokes and discards */
	uint64_t revoked PF_GUARDED, discarded PF_GUARDED, written PF_GUARDED, ways_out PF_GUARDED,
		busy PF_GUARDED;
	atomic_int event_fd;
} PfCore;

extern PfCore pf_core;

void pf_core_lock(void) PF_TAKES_LOCK;
void pf_core_unlock(void) PF_GIVES_LOCK;

/* The same, ahead of the link's thread: QEMU waits in a call, or a guest for a page. */
void pf_core_lock_first(void) PF_TAKES_LOCK;

/* Lets everybody who is pending have his turn. The lock is given up meanwhile. */
void pf_core_yield(void) PF_NEEDS_LOCK;

/* The same, and for everybody else who waits for the lock. */
void pf_core_give_way(void) PF_NEEDS_LOCK;

/* One who was pending has had his turn, or has the lock now. */
void pf_core_served(void) PF_NEEDS_LOCK;

/* Makes an eventfd readable. No lock. */
void pf_core_signal(int fd);

/* Starts the fault and the revoke thread. No lock. */
int pf_faults_start(void);
uint64_t pf_faults_cpu_ns(void);

/* An error that cannot be undone: nothing is fused any more, revoking goes on. */
void pf_core_stop(int error) PF_NEEDS_LOCK;

/*
 * Whether a piece of n pages may be fused within the budget of maps; counts anew when the estimate says no, but not
 * while pages are frozen.
 */
bool pf_core_may_fuse(size_t n_pages, bool frozen) PF_NEEDS_LOCK;
/* Whether there are maps for a revoke: it may go beyond the budget, up to a reserve that is QEMU's.
 */
bool pf_core_may_revoke_maps(void) PF_NEEDS_LOCK;
void pf_core_added_maps(unsigned n) PF_NEEDS_LOCK;
/*
 * Counts; takes the lock itself, but not while it counts: with tens of thousands of maps that takes milliseconds.
 */
void pf_core_recount_maps(void) PF_NO_LOCK;

/* pagemap entries of n pages (at most PF_SHIM_RUN_PAGES). 0 or -errno. */
int pf_core_pagemap(const char *start, size_t n, uint64_t *entries);

/* The flags of the block's VMAs onto a new mapping: anonymous, or of frames (which never become
 * huge). */
void pf_core_advise_anonymous(const PfRamBlock *block, char *start, size_t length) PF_NEEDS_LOCK;
void pf_core_advise_frames(const PfRamBlock *block, char *start, size_t length) PF_NEEDS_LOCK;

/* Fresh anonymous memory with a block's flags and policy: at start with MAP_FIXED, or anywhere and registered MISSING
 * when it is NULL. */
char *pf_core_map_anonymous(
	const PfRamBlock *block, char *start, size_t length, int *error) PF_NEEDS_LOCK;

/*
 * Moves n pages to missing ones, both sides registered or ours; copies where moving is refused. Does not return before
 * it is done: a guest waits for these bytes.
 */
void pf_core_put_pages(char *to, const char *from, size_t n) PF_NEEDS_LOCK;

/*
 * n pages of anonymous memory with these bytes come there, whatever is there now, atomic for everybody. For what cannot
 * be left as it is: does not return before it is done.
 */
void pf_core_replace_pages(
	const PfRamBlock *block, char *start, const char *from, size_t n) PF_NEEDS_LOCK;

void pf_core_nap(void);

/* Notes that n fused pages from page on are lost, before their state changes. */
void pf_core_note_lost(
	const PfRamBlock *block, size_t page, size_t n, PfShimLoss loss) PF_NEEDS_LOCK;

/*
 * Makes n fused pages with consecutive frames private again, n at most PF_SHIM_RUN_PAGES. Never
 * fails: where maps run out, the kernel copies and the pages stay private in a file VMA.
 */
void pf_core_make_private(PfRamBlock *block, size_t page, size_t n, PfShimLoss loss) PF_NEEDS_LOCK;

/* The same for everything fused in [start, end). The lock may be given up between runs when yield
 * is set. */
void pf_core_make_range_private(char *start, char *end, PfShimLoss loss, bool yield) PF_NEEDS_LOCK;

/* The length of the piece (fused, consecutive frames) that begins at page, at most limit pages. */
size_t pf_core_piece(const PfRamBlock *block, size_t page, size_t limit) PF_NEEDS_LOCK;

/* A fault that the fault thread read. Called by the revoke thread. */
void pf_core_resolve_fault(char *address, bool write_protect) PF_NEEDS_LOCK;

/*
 * Lifts the write protection of a page in a file VMA and has the kernel copy it there. false: it has no bytes of its own,
 * because the protection cannot be lifted or the frame cannot be read (a memory error, a failed swap-in).
 */
bool pf_core_copy_in_place(char *page) PF_NEEDS_LOCK;

/* Parts a page from its frame in this way, and says that it is lost; false: it is PF_PAGE_BROKEN, and not lost. */
bool pf_core_part(PfRamBlock *block, size_t page, PfShimLoss loss) PF_NEEDS_LOCK;
