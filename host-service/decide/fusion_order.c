/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Orders and their results.
 *
 * Captures go before fuses: an answer to a capture makes up to 256 pages ready at once, and what is
 * ready together is fused in long runs. Pages come in any order: from the first in the queue we go
 * back, over pages that are ready and whose frames follow each other too, to where that stretch
 * begins, and cut the run there. So a stretch is cut into full runs and one rest. The way back is
 * limited: it costs a few steps a page even when a stretch was said backwards.
 *
 * Where huge pages are not to be broken at any price, a run ends where a 2 MiB range of gfns does, and
 * says whether it may break the huge page there. Under PF_THP_BALANCED that depends on how many pages
 * of the range could be fused or are: they are looked up one by one, so an order ends before it names
 * too many ranges. A page that is left alone is tried again later; then its range may have more.
 *
 * A VM that cannot be counted on for captures is left out by time: where somebody else holds the digest and answers,
 * that one has given it long before. So nobody has to know who else could, and what nobody gives is asked of it
 * in the end. Its candidates come in the order in which they were offered, so the first of them says when. The same
 * holds for a single digest that a VM was asked for and has not given: it offers that as a spare candidate.
 *
 * The record of an order names pages and entries by number. Neither can go away before the answer:
 * a page in an order keeps its record whatever the guest says meanwhile, and so does an entry that
 * is counted as ordered. An entry that is being captured may get its frame from another side first:
 * from the list of a shim that maps one with these bytes. Then the copy is not needed any more.
 *
 * A shim is not trusted either: it can fuse a page and lose it, nothing more. An answer that fits
 * no order, or a loss of what was not fused, is -EPROTO. A result number that does not exist counts
 * as PF_SHIM_FAILED.
 */
#include "host-service/decide/fusion_private.h"
#include <errno.h>

#define SECOND             INT64_C(1000000)
#define BUSY_US            (SECOND / 2)
#define BUSY_MAX_US        (60 * SECOND)
#define NOT_PRESENT_US     (2 * SECOND)
#define NOT_PRESENT_MAX_US (300 * SECOND)
#define STOPPED_US         (60 * SECOND)
#define ASIDE_US           (5 * SECOND)
#define SHORTAGE_US        (SECOND / 2)
#define SHORTAGE_MAX_US    (60 * SECOND)
#define LOOK_BACK_PAGES    (16 * PF_SHIM_RUN_PAGES)
#define ORDER_MAX_REGIONS  8u

void pf_order_record_free(PfOrderRecord *record)
{
	g_array_unref(record->pages);
	g_free(record);
}

static bool may_capture(const PfFusionGroup *group)
{
	return !group->short_of_memory && !group->full;
}

static bool gets_orders(const PfFusionVm *vm)
{
	return vm->ready && vm->shim == PF_VM_SHIM_HERE;
}

/* When others have had time enough to give the page's bytes, in ticks. */
static uint32_t patience_ends(const PfFusionVm *vm, uint32_t page)
{
	uint32_t entry = pf_page_hinted_entry(vm->group, page);

	return pf_entry(vm->group, entry)->offered + pf_ticks_up(PF_FUSION_PATIENCE_US);
}

static uint32_t ticks_now(const PfFusionVm *vm)
{
	return (uint32_t)(vm->group->fusion->now_us / PF_FUSION_TICK_US);
}

/* The page to capture next; 0: there is none, or others have time still. */
static uint32_t next_capture(const PfFusionVm *vm)
{
	uint32_t page = vm->candidates.head, spare = vm->spare_candidates.head;

	if ((page == 0 && spare == 0) || !may_capture(vm->group) || !pf_vm_may_give(vm))
		return 0;
	if (page != 0 && (vm->capturing || patience_ends(vm, page) <= ticks_now(vm)))
		return page;
	return spare != 0 && patience_ends(vm, spare) <= ticks_now(vm) ? spare : 0;
}

bool pf_vm_next_capture(const PfFusionVm *vm, uint32_t *when)
{
	uint32_t page = vm->candidates.head, spare = vm->spare_candidates.head;

	if (!gets_orders(vm) || !may_capture(vm->group) || !pf_vm_may_give(vm) ||
		next_capture(vm) != 0)
		return false;
	*when = UINT32_MAX;
	if (page != 0)
		*when = patience_ends(vm, page);
	if (spare != 0)
		*when = MIN(*when, patience_ends(vm, spare));
	return *when != UINT32_MAX;
}

bool pf_vm_has_orders(const PfFusionVm *vm)
{
	return gets_orders(vm) && (vm->fusible.head != 0 || next_capture(vm) != 0);
}

static PfOrderRecord *start_order(PfFusionVm *vm, PfOrder *order, PfOrderType type)
{
	PfOrderRecord *record = g_new(PfOrderRecord, 1);

	order->id = ++vm->group->fusion->last_order_id;
	order->type = type;
	order->n_pages = 0;
	order->n_runs = 0;
	*record = (PfOrderRecord){
		.id = order->id,
		.type = type,
		.pages = g_array_new(FALSE, FALSE, sizeof(PfOrderedPage)),
	};
	g_ptr_array_add(vm->orders, record);
	return record;
}

static void add_to_record(PfOrderRecord *record, uint32_t page, uint32_t entry)
{
	PfOrderedPage ordered = {page, entry};

	g_array_append_val(record->pages, ordered);
}

static void capture_page(PfFusionVm *vm, uint32_t page, PfOrder *order, PfOrderRecord *record)
{
	PfFusionGroup *group = vm->group;
	PfPage *p = pf_page(group, page);
	uint32_t entry = pf_holder(group, p->holder)->entry;
	PfOrderRun *last = order->n_runs > 0 ? &order->runs[order->n_runs - 1] : NULL;

	pf_entry_capturing(group, entry);
	pf_holder_page_taken(group, page, PF_HINT_CAPTURING);
	add_to_record(record, page, entry);
	vm->n_capturing++;
	group->fusion->n_capturing++;
	if (last && last->gfn.v + last->n_pages == p->gfn)
		last->n_pages++;
	else
		order->runs[order->n_runs++] = (PfOrderRun){.gfn = {p->gfn}, .n_pages = 1};
	order->n_pages++;
}

static void capture_order(PfFusionVm *vm, PfOrder *order)
{
	PfOrderRecord *record = start_order(vm, order, PF_ORDER_CAPTURE);
	uint32_t page;

	while (order->n_pages < PF_SHIM_MAX_CAPTURE && (page = next_capture(vm)) != 0)
		capture_page(vm, page, order, record);
}

static uint32_t hinted_frame(const PfFusionGroup *group, uint32_t page)
{
	return pf_entry(group, pf_page_hinted_entry(group, page))->frame;
}

/* The page that the run goes on with behind this one (step 1) or before it (step -1), or 0. */
static uint32_t run_next(const PfFusionVm *vm, uint32_t page, int step)
{
	const PfFusionGroup *group = vm->group;
	uint64_t frame = (uint64_t)hinted_frame(group, page) + (uint64_t)(int64_t)step;
	uint32_t next =
		pf_page_find(vm, (uint64_t)pf_page(group, page)->gfn + (uint64_t)(int64_t)step);

	if (next == 0 || pf_page(group, next)->state != PF_HINT_READY)
		return 0;
	return hinted_frame(group, next) == frame ? next : 0;
}

static uint32_t run_start(const PfFusionVm *vm, uint32_t page)
{
	for (unsigned n = 1; n < LOOK_BACK_PAGES; n++) {
		uint32_t before = run_next(vm, page, -1);

		if (before == 0)
			break;
		page = before;
	}
	return page;
}

/* The 2 MiB ranges of gfns that an order has met, where that matters. */
typedef struct Regions {
	uint64_t numbers[ORDER_MAX_REGIONS];
	bool dense[ORDER_MAX_REGIONS];
	unsigned n;
} Regions;

/* Whether enough pages of the range are fused, or could be, to give the huge page up. */
static bool is_dense(const PfFusionVm *vm, uint64_t region)
{
	unsigned n = 0;

	for (uint64_t i = 0; i < PF_HUGE_PAGE_PAGES && n < PF_THP_BALANCED_PAGES; i++) {
		uint32_t page = pf_page_find(vm, region * PF_HUGE_PAGE_PAGES + i);
		PfHintState state =
			page != 0 ? (PfHintState)pf_page(vm->group, page)->state : PF_HINT_NONE;

		n += state == PF_HINT_READY || state == PF_HINT_ORDERED || state == PF_HINT_FUSED;
	}
	return n >= PF_THP_BALANCED_PAGES;
}

/* false: the order has met enough ranges. */
static bool may_break_huge(const PfFusionVm *vm, uint64_t gfn, Regions *regions, bool *may)
{
	uint64_t region = gfn / PF_HUGE_PAGE_PAGES;
	unsigned i = 0;

	*may = vm->thp == PF_THP_ALL || (vm->thp == PF_THP_BALANCED && vm->group->fusion->pressure);
	if (*may || vm->thp == PF_THP_PRESERVE)
		return true;
	while (i < regions->n && regions->numbers[i] != region)
		i++;
	if (i == ORDER_MAX_REGIONS)
		return false;
	if (i == regions->n) {
		regions->numbers[i] = region;
		regions->dense[i] = is_dense(vm, region);
		regions->n++;
	}
	*may = regions->dense[i];
	return true;
}

static bool ends_run(const PfFusionVm *vm, uint64_t gfn)
{
	return vm->thp != PF_THP_ALL && gfn % PF_HUGE_PAGE_PAGES == PF_HUGE_PAGE_PAGES - 1;
}

/* false: there is no room for it in this order. */
static bool fuse_run(PfFusionVm *vm, PfOrder *order, PfOrderRecord *record, Regions *regions)
{
	PfFusionGroup *group = vm->group;
	uint32_t page = run_start(vm, vm->fusible.head);
	PfOrderRun run = {.gfn = {pf_page(group, page)->gfn}, .frame = {hinted_frame(group, page)}};

	if (!may_break_huge(vm, run.gfn.v, regions, &run.may_break_huge))
		return false;
	while (page != 0 && run.n_pages < PF_SHIM_RUN_PAGES) {
		PfPage *p = pf_page(group, page);
		uint32_t next = ends_run(vm, p->gfn) ? 0 : run_next(vm, page, 1);

		pf_queue_remove(group, &vm->fusible, page);
		pf_holder_page_taken(group, page, PF_HINT_ORDERED);
		p->target = pf_page_hinted_entry(group, page);
		pf_entry_ordered(group, p->target);
		vm->n_ordered++;
		add_to_record(record, page, p->target);
		run.n_pages++;
		page = next;
	}
	order->runs[order->n_runs++] = run;
	order->n_pages += run.n_pages;
	return true;
}

static void fuse_order(PfFusionVm *vm, PfOrder *order)
{
	PfOrderRecord *record = start_order(vm, order, PF_ORDER_FUSE);
	Regions regions = {.n = 0};

	while (vm->fusible.head != 0 && order->n_runs < PF_SHIM_MAX_RUNS) {
		if (!fuse_run(vm, order, record, &regions))
			break;
	}
}

bool pf_fusion_next_order(PfFusionVm *vm, PfOrder *order, int64_t now_us)
{
	pf_fusion_set_now(vm->group->fusion, now_us);
	if (!pf_vm_has_orders(vm))
		return false;
	if (next_capture(vm) != 0)
		capture_order(vm, order);
	else
		fuse_order(vm, order);
	return true;
}

/* Takes the record out of the VM's orders; NULL when the answer fits none. The caller frees it. */
static PfOrderRecord *answered(PfFusionVm *vm, uint64_t id, PfOrderType type, uint32_t n_pages)
{
	for (guint i = 0; i < vm->orders->len; i++) {
		PfOrderRecord *record = vm->orders->pdata[i];

		if (record->id != id)
			continue;
		if (record->type != type || record->pages->len != n_pages)
			return NULL;
		return g_ptr_array_steal_index(vm->orders, i);
	}
	return NULL;
}

static int64_t growing(int64_t first_us, unsigned n, int64_t max_us)
{
	return MIN(first_us << MIN(n, 15u), max_us);
}

static void retry_later(PfFusionVm *vm, uint32_t page, int64_t first_us, int64_t max_us)
{
	PfPage *p = pf_page(vm->group, page);
	int64_t delay_us = growing(first_us, p->tries, max_us);

	p->tries = MIN(p->tries + 1, 15);
	pf_page_settle_later(vm, page, delay_us);
}

/* The page has not the bytes of this digest. A hint for another digest, which came meanwhile, still
 * stands. */
static void settle_differs(PfFusionVm *vm, uint32_t page, uint32_t entry)
{
	if (pf_page_hinted_entry(vm->group, page) == entry)
		pf_page_settle_dropped(vm, page);
	else
		pf_page_settle(vm, page);
}

static void settle_refused(PfFusionVm *vm, uint32_t page, uint32_t entry, PfShimResult result)
{
	switch (result) {
	case PF_SHIM_BUSY:
		retry_later(vm, page, BUSY_US, BUSY_MAX_US);
		break;
	case PF_SHIM_NOT_PRESENT:
		retry_later(vm, page, NOT_PRESENT_US, NOT_PRESENT_MAX_US);
		break;
	case PF_SHIM_NO_MAPS:
	case PF_SHIM_STOPPED:
		pf_page_settle_later(vm, page, STOPPED_US);
		break;
	case PF_SHIM_ASIDE:
		pf_page_settle_later(vm, page, ASIDE_US);
		break;
	case PF_SHIM_HUGE:
		pf_page_settle_huge(vm, page);
		break;
	case PF_SHIM_DIFFERENT:
		settle_differs(vm, page, entry);
		break;
	default:
		pf_page_settle_dropped(vm, page);
	}
}

static PfShimResult checked_result(uint8_t result)
{
	return result < PF_SHIM_N_RESULTS ? (PfShimResult)result : PF_SHIM_FAILED;
}

/* Some page that is hinted to have the entry's digest; there is one. */
static uint32_t any_hinted(const PfFusionGroup *group, uint32_t entry)
{
	uint32_t holder = pf_entry(group, entry)->holders;

	while (pf_holder(group, holder)->pages == 0)
		holder = pf_holder(group, holder)->next;
	return pf_holder(group, holder)->pages;
}

static PfLayoutPlace place_for(
	const PfFusionGroup *group, uint32_t entry, uint32_t page, uint32_t giver)
{
	const PfPage *p;
	const PfModule *module;

	if (pf_page_hinted_entry(group, page) != entry)
		page = any_hinted(group, entry);
	p = pf_page(group, page);
	module = pf_vm_module(pf_holder_vm(group, pf_holder(group, p->holder)), p->module);
	return (PfLayoutPlace){module->identity, module->n_pages, p->file_page, giver};
}

static void note_shortage(PfFusionGroup *group)
{
	int64_t delay_us = growing(SHORTAGE_US, group->shortages, SHORTAGE_MAX_US);

	group->short_of_memory = true;
	group->short_until = pf_ticks_up(group->fusion->now_us + delay_us);
	group->shortages++;
}

/* Makes the page's copy the frame of its entry, if there is room for it. */
static void make_frame(PfFusionVm *vm, const PfOrderedPage *ordered, uint32_t page_of_order,
	const PfCapture *capture)
{
	PfFusionGroup *group = vm->group;
	PfLayoutPlace place;
	uint32_t frame;

	/* A page of the same order may have found out already that there is none. */
	if (!may_capture(group))
		return;
	place = place_for(group, ordered->entry, ordered->page, vm->giver);
	if (!pf_layout_take(&group->layout, &place, &frame)) {
		group->full = true;
		return;
	}
	if (!capture->publish(capture->userdata, page_of_order, (PfFrame){frame})) {
		pf_layout_untake(&group->layout, frame);
		note_shortage(group);
		return;
	}
	group->shortages = 0;
	pf_entry_framed(group, ordered->entry, frame, vm);
}

/* Somebody else can be asked for the bytes of an entry that is being captured. */
static bool others_offer(const PfFusionVm *vm, const PfEntry *e)
{
	const PfFusionGroup *group = vm->group;

	for (uint32_t holder = e->holders; holder != 0; holder = pf_holder(group, holder)->next) {
		const PfHolder *h = pf_holder(group, holder);

		if (h->vm != vm->slot && h->pages != 0 && gets_orders(pf_holder_vm(group, h)) &&
			pf_page(group, h->pages)->state == PF_HINT_IDLE)
			return true;
	}
	return false;
}

/* The VM was asked for the entry's bytes: others come first now. */
static void not_given(const PfFusionVm *vm, uint32_t entry)
{
	PfEntry *e = pf_entry(vm->group, entry);

	if (e->state == PF_ENTRY_CAPTURING && others_offer(vm, e))
		e->failed = vm->slot + 1;
}

static void page_captured(
	PfFusionVm *vm, const PfOrderedPage *ordered, uint32_t i, const PfCapture *capture)
{
	PfFusionGroup *group = vm->group;
	const PfEntry *e = pf_entry(group, ordered->entry);
	PfShimResult result = checked_result(capture->results[i]);
	bool given = result == PF_SHIM_DONE && pf_digest_equal(&capture->digests[i], &e->digest);

	vm->n_capturing--;
	group->fusion->n_capturing--;
	if (!given)
		not_given(vm, ordered->entry);
	if (!given && capture->n_not_given)
		++*capture->n_not_given;
	if (result != PF_SHIM_DONE) {
		settle_refused(vm, ordered->page, ordered->entry, result);
	} else if (!given) {
		vm->stats.capture_mismatches++;
		settle_differs(vm, ordered->page, ordered->entry);
	} else {
		/* A frame that too few VMs still want would save nothing. */
		if (e->state == PF_ENTRY_CAPTURING && e->n_hint_vms >= group->admission)
			make_frame(vm, ordered, i, capture);
		pf_page_settle(vm, ordered->page);
	}
	pf_entry_answered(group, ordered->entry);
}

int pf_fusion_captured(PfFusionVm *vm, uint64_t order_id, uint32_t n_pages,
	const PfCapture *capture, int64_t now_us)
{
	PfOrderRecord *record = answered(vm, order_id, PF_ORDER_CAPTURE, n_pages);

	pf_fusion_set_now(vm->group->fusion, now_us);
	if (!record)
		return -EPROTO;
	for (uint32_t i = 0; i < n_pages; i++)
		page_captured(vm, &g_array_index(record->pages, PfOrderedPage, i), i, capture);
	pf_order_record_free(record);
	return 0;
}

static void page_fused(PfFusionVm *vm, const PfOrderedPage *ordered)
{
	PfFusionGroup *group = vm->group;
	PfFusion *fusion = group->fusion;
	const PfPage *p = pf_page(group, ordered->page);

	pf_page_fused(vm, ordered->page, ordered->entry);
	if (pf_page_hinted_entry(group, ordered->page) == ordered->entry)
		pf_latency_add(&fusion->latency,
			fusion->now_us - (int64_t)MAX(p->since,
						 pf_entry(group, ordered->entry)->admitted_us));
}

int pf_fusion_fused(
	PfFusionVm *vm, uint64_t order_id, uint32_t n_pages, const uint8_t *results, int64_t now_us)
{
	PfOrderRecord *record = answered(vm, order_id, PF_ORDER_FUSE, n_pages);

	pf_fusion_set_now(vm->group->fusion, now_us);
	if (!record)
		return -EPROTO;
	for (uint32_t i = 0; i < n_pages; i++) {
		const PfOrderedPage *ordered = &g_array_index(record->pages, PfOrderedPage, i);
		PfShimResult result = checked_result(results[i]);

		vm->n_ordered--;
		if (result == PF_SHIM_DONE) {
			page_fused(vm, ordered);
		} else {
			vm->stats.refused[result]++;
			settle_refused(vm, ordered->page, ordered->entry, result);
		}
		pf_entry_answered(vm->group, ordered->entry);
	}
	pf_order_record_free(record);
	return 0;
}

static void void_capture(PfFusionVm *vm, const PfOrderRecord *record)
{
	for (guint i = 0; i < record->pages->len; i++) {
		const PfOrderedPage *ordered = &g_array_index(record->pages, PfOrderedPage, i);

		vm->n_capturing--;
		vm->group->fusion->n_capturing--;
		not_given(vm, ordered->entry);
		pf_page_settle(vm, ordered->page);
		pf_entry_answered(vm->group, ordered->entry);
	}
}

void pf_vm_void_orders(PfFusionVm *vm)
{
	g_autoptr(GPtrArray) orders = vm->orders;

	vm->orders = g_ptr_array_new_with_free_func((GDestroyNotify)pf_order_record_free);
	for (guint i = 0; i < orders->len; i++) {
		const PfOrderRecord *record = orders->pdata[i];

		if (record->type == PF_ORDER_CAPTURE)
			void_capture(vm, record);
	}
}
