/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * Who may share what: hints and results in, orders out. No I/O and no clock of its own (times are
 * microseconds of a monotonic clock that the caller hands in), so that it can be unit-tested,
 * fuzzed and simulated with thousands of VMs.
 *
 * Every index is keyed by trust group: a digest hinted in one group is unknown in every other.
 *
 * The life of a hinted page:  WAITING (until `admission` VMs of the group hint its digest)
 *   -> CAPTURING (one page of those that hold the digest is copied to become the frame)
 *   -> READY (a frame with its digest is in the store)  -> ORDERED  -> FUSED
 * and from any of these back: DROPPED (its bytes were not the hinted ones, or it was lost: nothing
 * happens until the guest reports it again), DELAYED (busy or not present: READY again after a
 * back-off).
 *
 * Placement: a module (build-id, or else name and length) gets a range of frames as long as its
 * file, and a page's frame goes to the same place in it if that was never used; else behind
 * everything. So a run of a module is a run in the store, and one mmap covers it. Frame numbers are
 * never used again.
 */
#include "common/page.h"
#include "host-service/session.h"
#include "proto/shim_protocol.h"
#include <glib.h>

typedef struct PfFusion PfFusion;
typedef struct PfFusionGroup PfFusionGroup; /* a trust group; lives while it has a VM */
typedef struct PfFusionVm PfFusionVm;       /* a VM in it */

PfFusion *pf_fusion_new(void);
void pf_fusion_free(PfFusion *fusion); /* no VM may be left */

/* A VM joins the trust group of this name. userdata is for the caller, see
 * pf_fusion_vm_userdata(). */
PfFusionVm *pf_fusion_add_vm(PfFusion *fusion, const char *group, void *userdata);

/*
 * The VM is gone, with its mappings. What waited for its answers goes on with others. When the last
 * VM of a group leaves, so does the group, and its frame numbers begin anew: the caller drops
 * the store.
 */
void pf_fusion_remove_vm(PfFusionVm *vm);

void *pf_fusion_vm_userdata(const PfFusionVm *vm);

/* Whether the caller can carry out orders for this VM (its shim is ready and its RAM is located).
 * Off at start. */
void pf_fusion_set_ready(PfFusionVm *vm, bool ready);

/* The shim is new or was reset: none of the VM's pages is fused or ordered any more; hints
 * stand. */
void pf_fusion_shim_reset(PfFusionVm *vm);

/* What the guest said; the arguments are as the session's sink gets them. */
void pf_fusion_session_started(PfFusionVm *vm); /* forgets every hint; what is fused stays fused */
void pf_fusion_module(PfFusionVm *vm, uint32_t module_id, const PfModuleInfo *info);
void pf_fusion_hints(PfFusionVm *vm, uint32_t module_id, uint64_t file_page, PfGfn gfn,
	uint32_t n_pages, const PfDigest *digests, int64_t now_us);
void pf_fusion_withdrawn(
	PfFusionVm *vm, uint32_t module_id, const PfFileRange *ranges, size_t n_ranges);

/* One order for a VM's shim. */
typedef enum PfOrderType {
	PF_ORDER_CAPTURE, /* n_runs runs, PF_SHIM_MAX_CAPTURE pages at most; no `frame` */
	PF_ORDER_FUSE,    /* n_runs runs of up to PF_SHIM_RUN_PAGES pages */
} PfOrderType;

typedef struct PfOrderRun {
	PfGfn gfn;
	PfFrame frame;
	uint32_t n_pages;
} PfOrderRun;

typedef struct PfOrder {
	uint64_t id; /* unique in this PfFusion, never 0 */
	PfOrderType type;
	uint32_t n_pages; /* in all runs */
	uint32_t n_runs;
	PfOrderRun runs[PF_SHIM_MAX_RUNS];
} PfOrder;

/*
 * The next order for this VM; false when there is none, or it is not ready. The pages are taken as
 * ordered until pf_fusion_done() or pf_fusion_shim_reset(). Call it again for each free place in
 * the shim's queue: after hints, results, or a tick.
 */
bool pf_fusion_next_order(PfFusionVm *vm, PfOrder *order, int64_t now_us);

/* VMs with orders waiting: calls wanted() for each. */
void pf_fusion_foreach_pending(
	PfFusion *fusion, void (*wanted)(PfFusionVm *vm, void *userdata), void *userdata);

/*
 * Results of an order, one PfShimResult a page, in the order of its runs. For CAPTURE, the digests
 * are those of the copies that the shim made (hashed by the caller, only where the result is
 * PF_SHIM_DONE). For each copy whose digest is the hinted one, publish() writes it to the store as
 * the given frame; false: it could not (memory), try later. -EPROTO: no such order, or another
 * number of pages: that shim is not to be trusted any more.
 */
typedef struct PfCapture {
	const uint8_t *results;  /* n_pages */
	const PfDigest *digests; /* n_pages */
	bool (*publish)(void *userdata, uint32_t page_of_order, PfFrame frame);
	void *userdata;
} PfCapture;
int pf_fusion_captured(PfFusionVm *vm, uint64_t order_id, uint32_t n_pages,
	const PfCapture *capture, int64_t now_us);
int pf_fusion_fused(PfFusionVm *vm, uint64_t order_id, uint32_t n_pages, const uint8_t *results,
	int64_t now_us);

/*
 * Pages that the shim no longer has fused. -EPROTO when one of them was not fused with that frame
 * (the others are taken; the caller should have the shim list what it has, or drop it).
 */
int pf_fusion_lost(PfFusionVm *vm, PfGfn gfn, PfFrame frame, uint32_t n_pages, PfShimLoss loss,
	int64_t now_us);

/* When pf_fusion_tick() should be called next, or -1: for pages whose back-off ends. */
int64_t pf_fusion_next_tick_us(const PfFusion *fusion);
void pf_fusion_tick(PfFusion *fusion, int64_t now_us);

/* Numbers, all in pages unless the name says otherwise (definitions: man pagefusion-metrics). */
typedef struct PfFusionVmStats {
	uint64_t hinted;  /* pages with a standing hint */
	uint64_t fused;   /* pages mapped to a frame */
	uint64_t shared;  /* of these, pages whose frame another VM maps too */
	uint64_t runs;    /* pieces of consecutive fused pages with consecutive frames */
	uint64_t revoked; /* so far */
	uint64_t refused[PF_SHIM_N_RESULTS]; /* results of FUSE that were not DONE, so far */
	uint64_t capture_mismatches;         /* copies that had not the hinted digest, so far */
} PfFusionVmStats;
void pf_fusion_vm_stats(const PfFusionVm *vm, PfFusionVmStats *stats);

typedef struct PfFusionStats {
	uint64_t shared; /* sum over frames of (mappings - 1), where mappings > 0: RAM/VMM/Shared */
	uint64_t frames; /* frames in the stores */
	uint64_t revoked;    /* so far, of VMs that are gone too */
	uint64_t candidates; /* hinted pages that are not fused */
	/*
	 * Time from the moment a page could be fused (it was hinted, and its digest by `admission`
	 * VMs) to fused: 90th percentile over all so far, from a histogram with 16 steps an octave;
	 * -1 before the first.
	 */
	int64_t hint_to_fused_us_p90;
} PfFusionStats;
void pf_fusion_stats(const PfFusion *fusion, PfFusionStats *stats);

/*
 * Checks every invariant between the indexes (slow; for tests and fuzzing). NULL when all hold,
 * else a sentence about the first that does not.
 */
const char *pf_fusion_check(const PfFusion *fusion);
