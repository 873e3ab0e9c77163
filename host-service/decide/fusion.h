/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * Who may share what: hints and results in, orders out. No I/O and no clock of its own (times are
 * microseconds of a monotonic clock that the caller hands in), so that it can be unit-tested,
 * fuzzed and simulated with thousands of VMs.
 *
 * Every index is keyed by trust group: a digest hinted in one group is unknown in every other.
 *
 * What one VM makes us hold is charged to it (pf_fusion_set_policy()): hints beyond that are not taken, and no other
 * VM's hints ever suffer for it.
 *
 * The life of a hinted page:  WAITING (until `admission` VMs of the group hint its digest)
 *   -> CAPTURING (one page of those that hold the digest is copied to become the frame)
 *   -> READY (a frame with its digest is in the store)  -> ORDERED  -> FUSED
 * and from any of these back: DROPPED (its bytes were not the hinted ones, or it was lost: nothing
 * happens until the guest reports it again), DELAYED (refused for a reason that may pass, as busy or in
 * a huge page: READY again after a back-off).
 *
 * Placement: a module (build-id, or else name and length) gets a range of frames as long as its
 * file, and a page's frame goes to the same place in it if that was never used; else behind
 * everything. So a run of a module is a run in the store, and one mmap covers it. Frame numbers are
 * never used again, also when their frame was freed.
 *
 * What a shim maps is known as long as its connection stands, and stands as it was when the connection is gone: shims
 * go on alone. pf_fusion_shim_away() says that it is gone, and when the shim is back either pf_fusion_shim_empty()
 * that it maps nothing, or pf_fusion_list_begin(), _listed() and _list_end() what it maps. Of a VM that is new here
 * nothing is known until one of the two: it may map frames that an earlier service has made. Before that, and while
 * the shim is away or lists, the VM gets no orders.
 */
#include "common/page.h"
#include "host-service/config/policy.h"
#include "host-service/config/thp.h"
#include "host-service/decide/session.h"
#include "proto/shim_protocol.h"
#include <glib.h>

typedef struct PfFusion PfFusion;
typedef struct PfFusionGroup PfFusionGroup; /* a trust group; lives while it has a VM */
typedef struct PfFusionVm PfFusionVm;       /* a VM in it */

typedef struct PfFusionConfig {
	int64_t revoke_delay_us; /* wait after a page's first revoke before a new hint counts; doubles each time */
} PfFusionConfig;
#define PF_FUSION_DEFAULTS ((PfFusionConfig){.revoke_delay_us = 1000000})

PfFusion *pf_fusion_new(const PfFusionConfig *config);
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

/*
 * The connection to the shim is gone. Its captures are void, its mappings stand. What it was ordered to fuse may be
 * fused or not: those frames are not freed before it has been heard of again. Implies "not ready".
 */
void pf_fusion_shim_away(PfFusionVm *vm);

/* The shim maps nothing: it is new, or it has released everything. Its orders are void; hints stand. */
void pf_fusion_shim_empty(PfFusionVm *vm);

/*
 * The shim's list of what it maps, page by page: what was FUSED or ORDERED and is not on the list is no longer, at
 * _list_end(). digest_of() reads and hashes a frame that is not known here (of an earlier service); false: there is no
 * such frame. pf_fusion_listed() returns 0, or 1 when the page has to be released by the caller: there is no such
 * frame, or it is of this service and the page was neither FUSED nor ORDERED to it, or its bytes have another frame
 * here already, or there is no memory left for a record of the page. It has to be released before _list_end(), after
 * which its frame counts as unused. A page of frames of an earlier service that is listed twice is what it is listed as
 * last.
 * _list_begin() voids the VM's orders as pf_fusion_shim_away() does: it comes after the answers to all orders that the
 * shim has carried out.
 */
typedef bool (*PfFrameDigest)(void *userdata, PfFrame frame, PfDigest *digest);
void pf_fusion_list_begin(PfFusionVm *vm);
int pf_fusion_listed(PfFusionVm *vm, PfGfn gfn, PfFrame frame, PfFrameDigest digest_of,
	void *userdata, int64_t now_us);
void pf_fusion_list_end(PfFusionVm *vm, int64_t now_us);

/*
 * The VM's group goes on with the store of an earlier service, which has used the frame numbers below first_own. To be
 * called before the group has a frame of its own. These frames are freed only while the group is complete.
 * Said again, for another VM or one whose shim came back, it changes nothing.
 */
void pf_fusion_adopt_store(PfFusionVm *vm, uint64_t first_own);

/*
 * Whether what every process maps that may map a frame of an earlier service in this group's store is known: each is a
 * VM here, of this group or of another one by now, and pf_fusion_vm_is_known(). False at start, and where there is no
 * such group.
 */
void pf_fusion_set_complete(PfFusion *fusion, const char *group, bool complete);
bool pf_fusion_is_complete(const PfFusion *fusion, const char *group);

/*
 * Whether the VM's shim was heard of once: it maps nothing but what is FUSED or ORDERED here, and so no frame of another
 * group. That stays so.
 */
bool pf_fusion_vm_is_known(const PfFusionVm *vm);

/* Whether that holds for all VMs. */
bool pf_fusion_knows_all(const PfFusion *fusion);

/*
 * Frames that nobody maps, that no order names and that too few VMs hint: calls freed() for each, after which it is
 * forgotten. At most max_frames; false: there are more. group is the trust group's name.
 */
bool pf_fusion_free_unused(PfFusion *fusion, uint32_t max_frames,
	void (*freed)(void *userdata, const char *group, PfFrame frame), void *userdata);

/*
 * What the VM's group asks for a capture, and what this VM may make us hold: candidates, frames made of its pages that
 * still exist, and memory for its records, in parts of its memory_pages. Before the first call: an admission of 2, and
 * no quotas. May be called again. All VMs of a group have one admission: what was said last, for any of them, holds
 * at once. A quota that shrinks takes nothing away; it lets nothing in until there is room.
 *
 * A hint beyond the quota of candidates or of memory is not taken, and counted as over_quota. Beyond the quota of frames
 * the VM is not asked for captures; another that holds the digest may be. A frame stays with the VM that gave it,
 * whoever maps it, and when that VM leaves, with nobody. There may be orders afterwards that there were not before.
 */
void pf_fusion_set_policy(PfFusionVm *vm, const PfPolicy *policy, uint64_t memory_pages);

/*
 * So many pages may be hinted in a session without one being refused for the VM's quota of candidates, whatever becomes
 * of them, and for that of memory, if it has none that were hinted before.
 */
uint64_t pf_fusion_sure_hints(const PfFusionVm *vm);

/*
 * Memory for all records of all VMs, in bytes; 0, as at the start: no limit. When half of it is used up, hints are not
 * taken of VMs whose records need more than an equal part of what is left, and when all of it is, of nobody; they are
 * counted as over_quota. No more pages are captured for such a VM then either, and what its shim lists is refused.
 */
void pf_fusion_set_memory_limit(PfFusion *fusion, uint64_t bytes);

/*
 * Whether the VM's shim can be counted on for captures; true at start. If not, it is asked only for what others have had
 * PF_FUSION_PATIENCE_US of time to give, and have not given.
 */
#define PF_FUSION_PATIENCE_US INT64_C(10000000)
void pf_fusion_set_capturing(PfFusionVm *vm, bool allowed);

/* When this VM's huge pages may be broken; PF_THP_ALL at start. Not PF_THP_DEFAULT. */
void pf_fusion_set_thp(PfFusionVm *vm, PfThp thp);

/* The host is short of memory: pages that were left alone in huge pages (PF_THP_BALANCED) are fused now. */
void pf_fusion_set_pressure(PfFusion *fusion, bool pressure);

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
	bool may_break_huge; /* of FUSE */
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
 * ordered until its result or pf_fusion_shim_empty() or the end of a list. Call it again for each free place in
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
 * the given frame; false: it could not (memory), try later. Of a digest that one VM has not given, others that hint it are
 * asked first for the next PF_FUSION_PATIENCE_US. -EPROTO: no such order, or another
 * number of pages: that shim is not to be trusted any more.
 */
typedef struct PfCapture {
	const uint8_t *results;  /* n_pages */
	const PfDigest *digests; /* n_pages */
	bool (*publish)(void *userdata, uint32_t page_of_order, PfFrame frame);
	void *userdata;
	uint32_t *
		n_not_given; /* counts pages that had not the hinted bytes, or none; NULL: nobody counts */
} PfCapture;
int pf_fusion_captured(PfFusionVm *vm, uint64_t order_id, uint32_t n_pages,
	const PfCapture *capture, int64_t now_us);
int pf_fusion_fused(PfFusionVm *vm, uint64_t order_id, uint32_t n_pages, const uint8_t *results,
	int64_t now_us);

/*
 * Pages that the shim no longer has fused. -EPROTO when one of them was not fused with that frame
 * (the others are taken; the caller should have the shim list what it has, or drop it). Not while the shim is away
 * or lists: then it may have lost what was not heard of yet.
 */
int pf_fusion_lost(PfFusionVm *vm, PfGfn gfn, PfFrame frame, uint32_t n_pages, PfShimLoss loss,
	int64_t now_us);

/* When pf_fusion_tick() should be called next, or -1: for pages whose back-off ends. */
int64_t pf_fusion_next_tick_us(const PfFusion *fusion);
void pf_fusion_tick(PfFusion *fusion, int64_t now_us);

/* Which quota holds a VM back now. */
typedef enum PfFusionQuota {
	PF_QUOTA_NONE,
	PF_QUOTA_CANDIDATES, /* hints are not taken */
	PF_QUOTA_FRAMES,     /* pages are not captured that could be */
	PF_QUOTA_INDEX, /* hints are not taken: its own records, or all together, need too much memory */
} PfFusionQuota;

/* Numbers, all in pages unless the name says otherwise (definitions: man pagefusion-metrics). */
typedef struct PfFusionVmStats {
	uint64_t hinted;  /* pages with a standing hint */
	uint64_t fused;   /* pages mapped to a frame */
	uint64_t shared;  /* of these, pages whose frame another VM maps too */
	uint64_t runs;    /* pieces of consecutive fused pages with consecutive frames */
	uint64_t revoked; /* so far */
	uint64_t refused[PF_SHIM_N_RESULTS]; /* results of FUSE that were not DONE, so far */
	uint64_t capture_mismatches;         /* copies that had not the hinted digest, so far */
	uint64_t over_quota;                 /* hints that were not taken, so far */
	PfFusionQuota quota;
} PfFusionVmStats;
void pf_fusion_vm_stats(const PfFusionVm *vm, PfFusionVmStats *stats);

typedef struct PfFusionStats {
	uint64_t shared; /* sum over frames of (mappings - 1), where mappings > 0: RAM/VMM/Shared */
	uint64_t frames; /* frames in the stores */
	uint64_t freed;  /* frames given back so far */
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
