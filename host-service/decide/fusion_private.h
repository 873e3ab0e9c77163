/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The records of `fusion` and what its files do for each other. fusion_page.c has the theory of the
 * records.
 */
#include "host-service/decide/fusion.h"
#include "host-service/decide/fusion_index.h"
#include "host-service/decide/fusion_layout.h"
#include "host-service/decide/latency_histogram.h"
#include <assert.h>

#define PF_FUSION_ADMISSION 2u              /* of a group of which no policy was heard */
#define PF_FUSION_TICK_US   INT64_C(100000) /* back-offs are kept in these units, rounded up */
#define PF_FUSION_N_DELAYS  24u
#define PF_NO_FRAME         UINT32_MAX
#define PF_HUGE_PAGE_PAGES  512u

/* Since the first call; the clock stands still then. */
#define PF_FUSION_MAX_US ((INT64_C(1) << 47) - 1)

typedef enum PfHintState {
	PF_HINT_NONE,      /* no hint; the record only remembers that the page was revoked */
	PF_HINT_IDLE,      /* hinted; its digest has no frame */
	PF_HINT_CANDIDATE, /* likewise, and it may be captured: in vm->candidates or the spare ones */
	PF_HINT_READY,     /* hinted; its digest has a frame: it is in vm->fusible */
	PF_HINT_DELAYED,   /* hinted; nothing is done before `when`: it is in group->delayed */
	PF_HINT_CAPTURING, /* in an order of the VM; hinted or not */
	PF_HINT_ORDERED,   /* in an order of the VM, to be fused to `target`; hinted or not */
	PF_HINT_FUSED,     /* mapped to `target`'s frame; hinted or not, maybe for another digest */
} PfHintState;

/* One page of a VM's RAM. The links are numbers of pages of the group, 0: none. */
typedef struct PfPage {
	uint64_t gfn : PF_GFN_BITS;
	uint64_t state : 4;       /* PfHintState */
	uint64_t tries : 4;       /* busy or not present, in sequence */
	uint64_t revokes : 4;     /* in sequence; 0: none, or forgotten */
	uint64_t delay_class : 5; /* DELAYED: which of group->delayed */
	uint64_t listed : 1;      /* FUSED, and on the list that the shim is giving */
	uint64_t : 0;
	uint64_t since : 48;  /* us: when it was hinted */
	uint64_t module : 16; /* of the hint */
	uint32_t file_page;   /* of the hint */
	uint32_t when;        /* ticks; DELAYED: the end of it, else with revokes: the last one */
	uint32_t holder;      /* of the hint; 0: no hint stands */
	uint32_t target;      /* ORDERED, FUSED: an entry with a frame */
	uint32_t hint_next, hint_prev; /* ring of the holder's pages */
	uint32_t queue_next, queue_prev;
} PfPage;
static_assert(sizeof(PfPage) == 48, "there are millions of them");
static_assert(PF_SESSION_MAX_MODULES <= 1u << 16, "PfPage.module");
static_assert(PF_SESSION_MAX_MODULE_PAGES <= UINT32_MAX, "PfPage.file_page");

/* What one VM has to do with one digest. */
typedef struct PfHolder {
	uint32_t entry;
	uint32_t vm; /* slot in group->vms */
	uint32_t
		pages; /* ring of the pages with a hint: CANDIDATE first, then IDLE or READY, then others */
	uint32_t n_hints;    /* pages in that ring */
	uint32_t n_maps;     /* pages of the VM that are mapped to the frame, hinted or not */
	uint32_t next, prev; /* holders of the entry */
} PfHolder;
static_assert(sizeof(PfHolder) == 28, "there are millions of them");

typedef enum PfEntryState {
	PF_ENTRY_WAITING,   /* too few VMs hint it */
	PF_ENTRY_WANTED,    /* each holder with an IDLE page offers one as CANDIDATE */
	PF_ENTRY_CAPTURING, /* one order has a page for it */
	PF_ENTRY_FRAMED,    /* its bytes are in the store; until the frame is freed */
} PfEntryState;

/* One digest of a group. */
typedef struct PfEntry {
	PfDigest digest;
	uint64_t admitted_us : 48;
	uint64_t state : 8;  /* PfEntryState */
	uint64_t queued : 1; /* FRAMED: it is in group->unused or group->unused_adopted */
	uint32_t frame;      /* FRAMED only, else PF_NO_FRAME */
	uint32_t holders;    /* list */
	uint32_t n_hint_vms; /* holders with a hint */
	uint32_t n_map_vms;  /* holders with a mapping */
	union {
		/* FRAMED: exclusive or of their numbers: with one left, its number. */
		uint32_t map_vms_xor;
		/* Else: the last VM that has not given it, its slot plus one; 0: none. */
		uint32_t failed;
	};
	uint32_t n_maps;   /* mappings of all */
	uint32_t n_orders; /* pages that are CAPTURING for it or ORDERED to be fused to it */
	union {
		uint32_t offered; /* WANTED: since when, in ticks */
		uint32_t giver;   /* FRAMED: whom the frame is charged to; 0: nobody */
	};
} PfEntry;
static_assert(sizeof(PfEntry) == 72, "there are millions of them");

/* Who has given frames: a VM, or one that has left. */
typedef struct PfGiver {
	uint32_t n_frames;
	uint32_t vm;          /* its slot in group->vms, plus one; 0: it has left */
	uint64_t range_bytes; /* of the layout */
} PfGiver;

typedef struct PfQueue {
	uint32_t head, tail; /* pages */
} PfQueue;

typedef struct PfModule {
	PfIndex pages;     /* hinted, by file_page */
	uint64_t identity; /* see PfLayoutPlace */
	uint32_t n_pages;  /* 0: not declared */
} PfModule;

typedef struct PfOrderedPage {
	uint32_t page;
	uint32_t entry; /* the page is captured for it, or fused to its frame */
} PfOrderedPage;

typedef struct PfOrderRecord {
	uint64_t id;
	PfOrderType type;
	GArray *pages; /* of PfOrderedPage, in the order of the runs; owned */
} PfOrderRecord;

typedef enum PfVmShim {
	PF_VM_SHIM_AWAY,    /* or never heard: no orders; pages may be ORDERED in no order */
	PF_VM_SHIM_LISTING, /* likewise, and pages that it has listed so far are marked */
	PF_VM_SHIM_HERE,    /* what is FUSED here is what it maps */
} PfVmShim;

/* What is above them is not taken; UINT64_MAX: no limit. */
typedef struct PfVmLimits {
	uint64_t candidates; /* pages */
	uint64_t frames;
	uint64_t index_bytes;
} PfVmLimits;
#define PF_NO_LIMITS ((PfVmLimits){UINT64_MAX, UINT64_MAX, UINT64_MAX})

struct PfFusionVm {
	PfFusionGroup *group;
	uint32_t slot; /* in group->vms */
	void *userdata;
	bool ready;
	PfVmShim shim;
	bool known;         /* it was HERE once: it maps nothing that is not FUSED or ORDERED */
	PfThp thp;          /* not PF_THP_DEFAULT */
	PfIndex pages;      /* by gfn */
	PfIndex holders;    /* by entry */
	GArray *modules;    /* of PfModule, by module_id; owned */
	PfQueue candidates; /* to capture */
	PfQueue spare_candidates; /* likewise, if nobody else does: it could not the last time */
	PfQueue fusible;
	GPtrArray *orders; /* of PfOrderRecord, without an answer yet; owned */
	bool capturing;    /* pf_fusion_set_capturing() */
	PfVmLimits limits;
	uint32_t giver;
	uint32_t n_capturing;  /* pages in orders to capture */
	uint32_t n_ordered;    /* pages that are ORDERED */
	uint32_t n_given;      /* frames, so far */
	uint64_t n_candidates; /* pages with a hint that are not FUSED */
	uint64_t module_slots; /* of the indexes of its modules */
	PfFusionVmStats stats; /* but for `quota` */
};

struct PfFusionGroup {
	PfFusion *fusion;
	char *name;
	uint64_t seed;  /* of hashes of numbers */
	PfHashKey key;  /* of those of digests and names */
	GPtrArray *vms; /* by slot; NULL where one has left */
	uint32_t n_vms;
	uint32_t admission; /* VMs that must hint a digest before it is worth a frame */
	PfPool pages, holders, entries, givers;
	PfIndex digests;        /* entries */
	PfIndex frames;         /* entries that have one, by frame */
	uint64_t first_own;     /* frames below are of an earlier service; 0: there was none */
	bool complete;          /* pf_fusion_set_complete() */
	GArray *unused;         /* entries whose frame was unused once, each once; owned */
	GArray *unused_adopted; /* likewise, of frames below first_own */
	PfLayout layout;
	PfQueue delayed[PF_FUSION_N_DELAYS]; /* each in the order of `when` */
	bool short_of_memory;                /* nothing is captured until short_until */
	uint32_t short_until;                /* ticks */
	uint32_t shortages;                  /* in sequence */
	bool full; /* no frame number is left: nothing is captured any more */
};

struct PfFusion {
	GHashTable *groups; /* name -> PfFusionGroup */
	GPtrArray *vms;     /* PfFusionVm */
	int64_t epoch_us;   /* the caller's time of the first call that had one; everything inside
			       counts from it */
	int64_t now_us;     /* latest, since the epoch */
	bool started;       /* epoch_us is set */
	uint32_t n_unknown; /* VMs not known */
	uint64_t last_order_id;
	int64_t revoke_delay_us;
	bool pressure;
	bool room;             /* a VM may capture again */
	guint turns;           /* of pf_fusion_foreach_pending() */
	uint64_t memory_bytes; /* of all pools and indexes, and ranges of layouts */
	uint64_t memory_limit; /* 0: none */
	uint32_t n_capturing;  /* of all VMs */
	PfFusionStats stats;
	PfLatencyHistogram latency;
};

static inline PfPage *pf_page(const PfFusionGroup *group, uint32_t page)
{
	return pf_pool_at(&group->pages, page);
}

static inline PfHolder *pf_holder(const PfFusionGroup *group, uint32_t holder)
{
	return pf_pool_at(&group->holders, holder);
}

static inline PfEntry *pf_entry(const PfFusionGroup *group, uint32_t entry)
{
	return pf_pool_at(&group->entries, entry);
}

static inline PfFusionVm *pf_holder_vm(const PfFusionGroup *group, const PfHolder *holder)
{
	return group->vms->pdata[holder->vm];
}

/* The entry that the page is hinted to have the digest of, or 0. */
static inline uint32_t pf_page_hinted_entry(const PfFusionGroup *group, uint32_t page)
{
	uint32_t holder = pf_page(group, page)->holder;

	return holder != 0 ? pf_holder(group, holder)->entry : 0;
}

/* Its frame can be freed: nobody maps it or is about to, and too few want it. */
static inline bool pf_entry_is_unused(const PfFusionGroup *group, const PfEntry *e)
{
	return e->state == PF_ENTRY_FRAMED && e->n_maps == 0 && e->n_orders == 0 &&
	       e->n_hint_vms < group->admission;
}

/* The indexes of a group and of its VMs change through these, which count their memory. */
static inline void pf_group_index_add(
	PfFusionGroup *group, PfIndex *index, uint32_t item, PfIndexHash hash)
{
	group->fusion->memory_bytes -= pf_index_bytes(index);
	pf_index_insert(index, item, hash, group);
	group->fusion->memory_bytes += pf_index_bytes(index);
}

static inline void pf_group_index_remove(
	PfFusionGroup *group, PfIndex *index, uint32_t item, PfIndexHash hash)
{
	group->fusion->memory_bytes -= pf_index_bytes(index);
	pf_index_remove(index, item, hash, group);
	group->fusion->memory_bytes += pf_index_bytes(index);
}

static inline void pf_group_index_clear(PfFusionGroup *group, PfIndex *index)
{
	group->fusion->memory_bytes -= pf_index_bytes(index);
	pf_index_clear(index);
}

/* fusion_entry.c: digests, who holds them, who could have them captured */

/* Finds or makes. A new entry must get a holder, and a new holder a hint or a mapping. */
uint32_t pf_entry_get(PfFusionGroup *group, const PfDigest *digest);
uint32_t pf_entry_find(const PfFusionGroup *group, const PfDigest *digest);
uint32_t pf_holder_get(PfFusionVm *vm, uint32_t entry);
uint32_t pf_holder_find(const PfFusionVm *vm, uint32_t entry);

/* The page joins the ring of its holder, as none that could be captured or fused; or leaves it. */
void pf_holder_add_page(PfFusionGroup *group, uint32_t page);
void pf_holder_remove_page(PfFusionGroup *group, uint32_t page);

/*
 * The page, which is in the ring, may be captured from now on (IDLE); or fused, as its digest has a frame (READY; which
 * queue it is in is the caller's business); or is in a state where neither may happen.
 */
void pf_holder_page_idle(PfFusionGroup *group, uint32_t page);
void pf_holder_page_ready(PfFusionGroup *group, uint32_t page);
void pf_holder_page_taken(PfFusionGroup *group, uint32_t page, PfHintState state);

/* What its last mapping, order, hint or frame has gone from may be nothing to remember any more. */
void pf_holder_release(PfFusionGroup *group, uint32_t holder);
void pf_entry_release(PfFusionGroup *group, uint32_t entry);

/* An order has a page for the entry: to capture it, which no other may do then, or to fuse it. */
void pf_entry_capturing(PfFusionGroup *group, uint32_t entry);
void pf_entry_ordered(PfFusionGroup *group, uint32_t entry);

/* The page is settled. If it was to be captured, and no frame has come of it, others may be. */
void pf_entry_answered(PfFusionGroup *group, uint32_t entry);

/* It has a frame now, given by this VM (NULL: an earlier service made it); or no longer. */
void pf_entry_framed(PfFusionGroup *group, uint32_t entry, uint32_t frame, PfFusionVm *giver);
void pf_entry_unframed(PfFusionGroup *group, uint32_t entry);

/* All entries of the group, after its admission has changed. */
void pf_group_readmit(PfFusionGroup *group);

/* fusion_frame.c: frames, who maps them, and which can go */
uint32_t pf_frame_find(const PfFusionGroup *group, uint64_t frame); /* entry, or 0 */
void pf_frame_insert(PfFusionGroup *group, uint32_t entry);

/* Puts the entry on the list of unused frames if it belongs there. */
void pf_frame_note_unused(PfFusionGroup *group, uint32_t entry);

/* The page was mapped to the frame of its target (it is FUSED), or is to be no more (it still
 * is). */
void pf_entry_map(PfFusionVm *vm, uint32_t page);
void pf_entry_unmap(PfFusionVm *vm, uint32_t page);

/* fusion_page.c: pages, hints, queues */
uint32_t pf_page_find(const PfFusionVm *vm, uint64_t gfn);
uint32_t pf_page_add(PfFusionVm *vm, uint64_t gfn); /* there must be none */
uint32_t pf_page_get(PfFusionVm *vm, uint64_t gfn);
uint32_t pf_page_by_file(const PfFusionVm *vm, const PfModule *module, uint32_t file_page);
PfModule *pf_vm_module(const PfFusionVm *vm, uint32_t module_id); /* NULL: not declared */

/*
 * Those pages of the VM that have a record and are wanted (NULL: all), by gfn; of uint32_t, to be freed by the caller. It
 * costs a step for each record, and sorting what is wanted.
 */
GArray *pf_vm_pages(const PfFusionVm *vm, bool (*wanted)(const PfFusionVm *vm, uint32_t page));

void pf_queue_push(PfFusionGroup *group, PfQueue *queue, uint32_t page);
void pf_queue_remove(PfFusionGroup *group, PfQueue *queue, uint32_t page);

/* A hint for the page, which has none. What has to come next depends on its state. */
void pf_page_hint(PfFusionVm *vm, uint32_t page, uint32_t module_id, uint32_t file_page,
	const PfDigest *digest);

/* Takes the page's hint away; the record may be gone then. */
void pf_page_unhint(PfFusionVm *vm, uint32_t page);

/*
 * The page is neither ordered nor fused (any more): its hint, if it has one, is looked at afresh.
 * Without a hint and without revokes to remember, the record is gone then.
 */
void pf_page_settle(PfFusionVm *vm, uint32_t page);
void pf_page_settle_later(PfFusionVm *vm, uint32_t page, int64_t delay_us);
void pf_page_settle_dropped(PfFusionVm *vm, uint32_t page); /* its hint is void */

/* It is in a huge page that may not be broken now. Tried again later, and when pf_group_retry_huge() says so. */
void pf_page_settle_huge(PfFusionVm *vm, uint32_t page);

/* Ends these delays for the pages of one VM; NULL: of all whose huge pages may be broken under pressure. */
void pf_group_retry_huge(PfFusionGroup *group, const PfFusionVm *only);

/* The page, which is not FUSED, is mapped to the entry's frame now. */
void pf_page_fused(PfFusionVm *vm, uint32_t page, uint32_t entry);

/* As pf_page_settle() for a hint that is new: a page revoked a while ago has to wait. */
void pf_page_settle_new(PfFusionVm *vm, uint32_t page);

/* One more revoke to remember. */
void pf_page_revoked(PfFusionVm *vm, uint32_t page);

/* Ends the delays that are over. */
void pf_group_tick(PfFusionGroup *group);

/* When the next delay of the group ends, in ticks; false: there is none. */
bool pf_group_next_tick(const PfFusionGroup *group, uint32_t *when);

/* fusion.c: time since the epoch; never goes back. */
int64_t pf_fusion_set_now(PfFusion *fusion, int64_t now_us);

/* fusion_quota.c: what a VM may have here */

/* A VM joins or leaves its group. */
void pf_giver_join(PfFusionVm *vm);
void pf_giver_leave(PfFusionVm *vm);

/* The entry's frame was given by the VM (NULL: by nobody here); or goes. */
void pf_giver_charge(PfFusionGroup *group, uint32_t entry, PfFusionVm *vm);
void pf_giver_discharge(PfFusionGroup *group, uint32_t entry);

/* A PfLayoutCharge: the owner is a giver. */
void pf_giver_charge_range(void *group, uint32_t giver, int64_t bytes);

/* One hinted page more, or less, that is not FUSED. */
void pf_vm_add_candidate(PfFusionVm *vm);
void pf_vm_remove_candidate(PfFusionVm *vm);

/* Whether a hint may be taken, for this page (0: it has no record yet), which has none now. */
bool pf_vm_takes_hint(const PfFusionVm *vm, uint32_t page, const PfModule *module);

/* Likewise for a declaration of the module. */
bool pf_vm_takes_module(const PfFusionVm *vm, uint32_t module_id);

/* Likewise for a page that its shim lists and of which that is not known. */
bool pf_vm_takes_listed(const PfFusionVm *vm);

/* Whether one more of its pages may be captured. */
bool pf_vm_may_give(const PfFusionVm *vm);
uint64_t pf_vm_index_bytes(const PfFusionVm *vm);
uint64_t pf_module_table_bytes(uint64_t n_modules);

/* fusion_order.c */
bool pf_vm_has_orders(const PfFusionVm *vm);

/* When it will have a page to capture because others had time enough to; false: not for that reason. In ticks. */
bool pf_vm_next_capture(const PfFusionVm *vm, uint32_t *when);

/* None of the VM's orders will be answered. Pages to be captured are settled; those to be fused stay ORDERED. */
void pf_vm_void_orders(PfFusionVm *vm);
void pf_order_record_free(PfOrderRecord *record);

/* fusion_shim.c: none of the VM's pages is FUSED or ORDERED any more; its orders are void already. */
void pf_vm_forget_mappings(PfFusionVm *vm);

static inline uint32_t pf_ticks_up(int64_t us)
{
	return (uint32_t)((us + PF_FUSION_TICK_US - 1) / PF_FUSION_TICK_US);
}
