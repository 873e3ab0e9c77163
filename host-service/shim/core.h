/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The transactions on guest memory: fuse, revoke, discard, release. The only code that touches it.
 * It is part of a library that is loaded into QEMU: libc only, no allocation and no logging on
 * these paths, never exits or aborts. The theory of operation stands in core.c.
 *
 * One instance a process. All functions may be called from any thread, except where it says
 * otherwise. Results for pages are PfShimResult; other functions return 0 or -errno.
 */
#include "common/page.h"
#include "host-service/shim/lock.h"
#include "proto/shim_protocol.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Makes the userfaultfd from device (/dev/userfaultfd, opened by the service; not consumed) and
 * starts the fault and the revoke thread. Once a process; later calls return 0. -EOPNOTSUPP: the
 * kernel lacks *missing_features.
 */
int pf_core_start(int device, uint64_t *missing_features) PF_NO_LOCK;
bool pf_core_started(void);

/* A RAM block: what QEMU advised with MADV_DONTFORK. Not private anonymous memory: -EINVAL, and it
 * is left alone. */
int pf_core_add_block(void *start, size_t length_bytes) PF_NO_LOCK;
unsigned pf_core_n_blocks(void) PF_NO_LOCK;

/* Whether any byte of the range may belong to a RAM block; false is exact. Takes no lock. */
bool pf_core_touches(const void *start, size_t length_bytes);

/* Frames come from this store: a read-only descriptor of a memfd sealed against shrinking;
 * consumed. Once a process while anything is fused (-EBUSY); -EINVAL when it is not such a
 * descriptor. Called from the thread that fuses. */
int pf_core_set_store(int store, const uint8_t group_id[16]) PF_NO_LOCK;
/* The store's descriptor (not a copy) and id, or -1. */
int pf_core_get_store(uint8_t group_id[16]) PF_NO_LOCK;

/*
 * QEMU is about to use a userfaultfd of its own on its RAM (postcopy, background snapshot), or has closed the last one.
 * Going aside releases everything and takes our registrations off all guest RAM before it returns; fusing gives
 * PF_SHIM_ASIDE until it comes back. Nests.
 */
void pf_core_step_aside(void) PF_NO_LOCK;
void pf_core_come_back(void) PF_NO_LOCK;

/* Fuses one run; results has room for run->n_pages. To be called from one thread at a time (the
 * link's). */
void pf_core_fuse(const PfShimRun *run, uint8_t *results) PF_NO_LOCK;

/* Copies a page into fd at byte offset. PfShimResult. */
int pf_core_capture(PfHva hva, int fd, uint64_t offset_bytes) PF_NO_LOCK;

/*
 * Makes every fused page of the range private, from its edges. n_pages UINT64_MAX: to the end of memory. -EIO: there is a
 * page that still maps its frame, which can be neither read nor copied (PF_PAGE_BROKEN).
 */
int pf_core_release(PfHva hva, uint64_t n_pages) PF_NO_LOCK;

/*
 * The real call behind an interposed one, and what must be done to the pages before. They return
 * what the call returns and set errno as it does.
 */
int pf_core_madvise(void *start, size_t length_bytes, int advice) PF_NO_LOCK;
int pf_core_munmap(void *start, size_t length_bytes) PF_NO_LOCK;
void *pf_core_mmap(void *start, size_t length_bytes, int prot, int flags, int fd,
	int64_t offset_bytes) PF_NO_LOCK;
void *pf_core_mremap(
	void *old, size_t old_bytes, size_t new_bytes, int flags, void *new_start) PF_NO_LOCK;

/*
 * For pthread_atfork(). A fork waits for the end of a transaction: between the mapping of a frame and its DONTFORK a
 * child would get that map. In the child, once there was a RAM block, it belongs to the parent, and every later call
 * goes straight to the kernel.
 */
void pf_core_before_fork(void) PF_TAKES_LOCK;
void pf_core_after_fork(void) PF_GIVES_LOCK;
void pf_core_forked(void) PF_GIVES_LOCK;
bool pf_core_is_child(void);

/*
 * Fused pages that were lost since the last call, as runs: up to max of them into lost. *overflow:
 * so many that some were forgotten, and the list must be read anew (pf_core_list). Called from the
 * link's thread.
 */
size_t pf_core_take_lost(PfShimLost *lost, size_t max, bool *overflow) PF_NO_LOCK;
/* Becomes readable (eventfd) when there is something to take, or the state changed. */
int pf_core_event_fd(void);

/* Fused runs from *cursor on (0 at start), up to max of them; *cursor moves on, UINT64_MAX at the
 * end. */
size_t pf_core_list(uint64_t *cursor, PfShimRun *runs, size_t max) PF_NO_LOCK;

/* A snapshot; counts maps anew when recount is set (reads /proc/self/maps). cpu_ns counts the
 * core's two threads. */
void pf_core_state(PfShimState *state, bool recount) PF_NO_LOCK;
