/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The rules between the indexes, checked by counting everything anew, slowly. Each function looks
 * at one kind of record and returns the first rule that it finds broken; CHECK() is the only way
 * out before the end.
 */
#include "host-service/decide/fusion_private.h"

#define CHECK(rule, sentence)                                                                      \
	do {                                                                                       \
		if (!(rule))                                                                       \
			return sentence;                                                           \
	} while (0)

#define CHECK_ALL(call)                                                                            \
	do {                                                                                       \
		const char *sentence_ = (call);                                                    \
		if (sentence_)                                                                     \
			return sentence_;                                                          \
	} while (0)

/* What is counted anew over all groups. */
typedef struct Totals {
	uint64_t shared, frames, candidates, n_vms, n_unknown, n_capturing, memory_bytes;
} Totals;

/* What is counted anew over the pages of a VM. */
typedef struct VmTotals {
	uint64_t hinted, fused, shared, runs, candidates;
	uint64_t in_orders, capturing;
	uint64_t queued_candidates, queued_spares, queued_fusible;
} VmTotals;

static const PfEntry *hinted(const PfFusionGroup *group, const PfPage *p)
{
	return p->holder != 0 ? pf_entry(group, pf_holder(group, p->holder)->entry) : NULL;
}

static const char *check_hint(const PfFusionVm *vm, uint32_t page)
{
	const PfPage *p = pf_page(vm->group, page);
	const PfModule *module = pf_vm_module(vm, p->module);
	const PfHolder *h = pf_holder(vm->group, p->holder);

	CHECK(module, "a hint is of no declared module");
	CHECK(pf_page_by_file(vm, module, p->file_page) == page,
		"a hinted page is not found in its module");
	CHECK(pf_holder_vm(vm->group, h) == vm, "a hint counts for another VM");
	CHECK(pf_page(vm->group, p->hint_next)->hint_prev == page, "a ring of hints is broken");
	CHECK(pf_page(vm->group, p->hint_next)->holder == p->holder,
		"a ring of hints has pages of two holders");
	return NULL;
}

static const char *check_state(const PfFusionVm *vm, const PfPage *p)
{
	const PfEntry *e = hinted(vm->group, p);

	CHECK(!p->listed || vm->shim == PF_VM_SHIM_LISTING,
		"a mark is left of a list that is over");
	CHECK(!p->listed || p->state == PF_HINT_FUSED, "a page is marked as listed and not fused");

	switch ((PfHintState)p->state) {
	case PF_HINT_NONE:
		CHECK(!e, "a hinted page has no state");
		CHECK(p->revokes > 0, "a page is remembered for nothing");
		break;
	case PF_HINT_IDLE:
		CHECK(e && e->state != PF_ENTRY_FRAMED, "a page does not use its digest's frame");
		break;
	case PF_HINT_CANDIDATE:
		CHECK(e && e->state == PF_ENTRY_WANTED, "a page is offered that nobody wants");
		break;
	case PF_HINT_READY:
		CHECK(e && e->state == PF_ENTRY_FRAMED, "a page is ready without a frame");
		break;
	case PF_HINT_DELAYED:
		CHECK(e, "a page is delayed without a hint");
		break;
	case PF_HINT_CAPTURING:
		break;
	case PF_HINT_ORDERED:
	case PF_HINT_FUSED:
		CHECK(p->target != 0 && pf_entry(vm->group, p->target)->state == PF_ENTRY_FRAMED,
			"a page is fused to an entry without a frame");
		break;
	}
	return NULL;
}

static bool starts_run(const PfFusionVm *vm, const PfPage *p)
{
	const PfFusionGroup *group = vm->group;
	uint32_t before = pf_page_find(vm, p->gfn - UINT64_C(1));
	const PfPage *b = before != 0 ? pf_page(group, before) : NULL;

	if (!b || b->state != PF_HINT_FUSED)
		return true;
	return (uint64_t)pf_entry(group, b->target)->frame + 1 != pf_entry(group, p->target)->frame;
}

/* What is counted anew over the pages of all VMs of a group. */
typedef struct GroupTotals {
	GHashTable *
		ordered; /* entry -> pages that are ORDERED to be fused to it, or in an order to capture it */
	GHashTable *given;  /* giver -> frames */
	GHashTable *ranges; /* giver -> bytes */
	uint64_t delayed, n_pages, n_vms;
} GroupTotals;

static uint32_t counted(GHashTable *table, uint32_t number)
{
	return GPOINTER_TO_UINT(g_hash_table_lookup(table, GUINT_TO_POINTER(number)));
}

static void count(GHashTable *table, uint32_t number)
{
	g_hash_table_insert(
		table, GUINT_TO_POINTER(number), GUINT_TO_POINTER(counted(table, number) + 1));
}

static void count_page(const PfFusionVm *vm, const PfPage *p, GHashTable *maps, VmTotals *t)
{
	t->hinted += p->holder != 0;
	t->candidates += p->holder != 0 && p->state != PF_HINT_FUSED;
	t->capturing += p->state == PF_HINT_CAPTURING;
	t->in_orders += p->state == PF_HINT_CAPTURING || p->state == PF_HINT_ORDERED;
	if (p->state == PF_HINT_CANDIDATE)
		++*(hinted(vm->group, p)->failed == vm->slot + 1 ? &t->queued_spares
								 : &t->queued_candidates);
	t->queued_fusible += p->state == PF_HINT_READY;
	if (p->state == PF_HINT_FUSED) {
		t->fused++;
		t->runs += starts_run(vm, p);
		t->shared += pf_entry(vm->group, p->target)->n_map_vms >= 2;
		count(maps, pf_holder_find(vm, p->target));
	}
}

/* Its pages are all in the wanted state, and n of them. */
static const char *check_queue(
	const PfFusionGroup *group, const PfQueue *queue, PfHintState state, uint64_t n)
{
	uint32_t before = 0;

	for (uint32_t page = queue->head; page != 0; page = pf_page(group, page)->queue_next) {
		CHECK(pf_page(group, page)->state == state, "a queue has a page in another state");
		CHECK(pf_page(group, page)->queue_prev == before, "a queue is broken");
		CHECK(n-- > 0, "a queue is too long");
		before = page;
	}
	CHECK(queue->tail == before, "a queue's end is not its end");
	CHECK(n == 0, "a page is missing in its queue");
	return NULL;
}

static const char *check_orders(const PfFusionVm *vm, const VmTotals *t, GroupTotals *totals)
{
	uint64_t in_orders = 0, capturing = 0;

	for (guint i = 0; i < vm->orders->len; i++) {
		const PfOrderRecord *record = vm->orders->pdata[i];
		bool capture = record->type == PF_ORDER_CAPTURE;

		for (guint k = 0; k < record->pages->len; k++) {
			const PfOrderedPage *ordered =
				&g_array_index(record->pages, PfOrderedPage, k);
			const PfPage *p = pf_page(vm->group, ordered->page);

			CHECK(p->state == (capture ? PF_HINT_CAPTURING : PF_HINT_ORDERED),
				"an order has a page in another state");
			CHECK(capture || p->target == ordered->entry,
				"an order has a page for another frame");
			CHECK(!capture || pf_entry(vm->group, ordered->entry)->state >=
						  PF_ENTRY_CAPTURING,
				"a page is captured for an entry that is not capturing");
			in_orders++;
			capturing += capture;
			if (capture)
				count(totals->ordered, ordered->entry);
		}
	}
	CHECK(capturing == t->capturing, "a page is taken as captured and in no order");
	CHECK(vm->shim != PF_VM_SHIM_HERE || in_orders == t->in_orders,
		"a page is taken as ordered and in no order");
	CHECK(vm->shim == PF_VM_SHIM_HERE || vm->orders->len == 0,
		"a shim that is away has an order");
	return NULL;
}

/* CANDIDATE, if any, then IDLE or READY, then the others; and as many as the holder says. */
static const char *check_ring(const PfFusionGroup *group, uint32_t holder)
{
	const PfHolder *h = pf_holder(group, holder);
	bool wanted = pf_entry(group, h->entry)->state == PF_ENTRY_WANTED;
	bool others = false;
	uint32_t page = h->pages;

	CHECK((h->pages != 0) == (h->n_hints > 0), "a holder's number of hints is wrong");
	for (uint32_t i = 0; i < h->n_hints; i++) {
		const PfPage *p = pf_page(group, page);
		bool available = p->state == PF_HINT_IDLE || p->state == PF_HINT_READY;
		bool first = i == 0;

		CHECK(p->holder == holder, "a holder has the hint of another");
		CHECK(p->state != PF_HINT_CANDIDATE || first,
			"a holder offers a page not its first");
		CHECK(!available || !others,
			"a page that is idle or ready is hidden behind others");
		CHECK(p->state != PF_HINT_IDLE || !first || !wanted,
			"a wanted page is not offered");
		others |= !available && p->state != PF_HINT_CANDIDATE;
		page = p->hint_next;
	}
	CHECK(page == h->pages, "a holder has more hints than it counts");
	return NULL;
}

static const char *check_holders(const PfFusionVm *vm, GHashTable *maps, uint64_t n_hinted)
{
	const PfIndex *index = &vm->holders;
	uint64_t n_hints = 0, n_holders = 0;

	for (uint32_t i = 0; i < index->capacity; i++) {
		uint32_t holder = index->slots[i];
		const PfHolder *h = holder != 0 ? pf_holder(vm->group, holder) : NULL;

		if (!h)
			continue;
		CHECK(pf_holder_find(vm, h->entry) == holder,
			"a holder is not found, or there twice");
		CHECK(h->vm == vm->slot, "a holder is of another VM");
		CHECK(h->n_hints > 0 || h->n_maps > 0, "a holder holds nothing");
		CHECK(h->n_maps == counted(maps, holder), "a holder's number of mappings is wrong");
		CHECK_ALL(check_ring(vm->group, holder));
		n_hints += h->n_hints;
		n_holders++;
	}
	CHECK(n_hints == n_hinted, "a hint is in no ring");
	CHECK(n_holders == index->count, "a VM's number of holders is wrong");
	CHECK(!g_hash_table_contains(maps, GUINT_TO_POINTER(0)), "a fused page has no holder");
	return NULL;
}

static const char *check_module_counts(const PfFusionVm *vm)
{
	uint64_t n = 0, slots = 0;

	for (guint i = 0; i < vm->modules->len; i++) {
		n += g_array_index(vm->modules, PfModule, i).pages.count;
		slots += g_array_index(vm->modules, PfModule, i).pages.capacity;
	}
	CHECK(n == vm->stats.hinted, "a module has a page that is not hinted");
	CHECK(slots == vm->module_slots, "the slots of a VM's modules are miscounted");
	return NULL;
}

static const char *check_vm(const PfFusionVm *vm, Totals *totals, GroupTotals *of_group)
{
	g_autoptr(GHashTable) maps = g_hash_table_new(NULL, NULL);
	g_autoptr(GArray) pages = pf_vm_pages(vm, NULL);
	const PfFusionVmStats *stats = &vm->stats;
	VmTotals t = {0};

	CHECK(pages->len == vm->pages.count, "a VM's number of pages is wrong");
	for (guint i = 0; i < pages->len; i++) {
		uint32_t page = g_array_index(pages, uint32_t, i);
		const PfPage *p = pf_page(vm->group, page);

		CHECK(pf_page_find(vm, p->gfn) == page, "a gfn is not found, or there twice");
		if (p->holder != 0)
			CHECK_ALL(check_hint(vm, page));
		CHECK_ALL(check_state(vm, p));
		count_page(vm, p, maps, &t);
		of_group->delayed += p->state == PF_HINT_DELAYED;
		if (p->state == PF_HINT_ORDERED)
			count(of_group->ordered, p->target);
	}
	CHECK(stats->hinted == t.hinted, "a VM's hinted pages are miscounted");
	CHECK(stats->fused == t.fused, "a VM's fused pages are miscounted");
	CHECK(stats->shared == t.shared, "a VM's shared pages are miscounted");
	CHECK(stats->runs == t.runs, "a VM's runs are miscounted");
	CHECK_ALL(check_module_counts(vm));
	CHECK(vm->n_candidates == t.candidates, "a VM's candidates are miscounted");
	CHECK(vm->n_capturing == t.capturing, "a VM's captures are miscounted");
	CHECK(vm->n_ordered == t.in_orders - t.capturing, "a VM's ordered pages are miscounted");
	CHECK_ALL(check_queue(vm->group, &vm->candidates, PF_HINT_CANDIDATE, t.queued_candidates));
	CHECK_ALL(
		check_queue(vm->group, &vm->spare_candidates, PF_HINT_CANDIDATE, t.queued_spares));
	CHECK_ALL(check_queue(vm->group, &vm->fusible, PF_HINT_READY, t.queued_fusible));
	CHECK_ALL(check_orders(vm, &t, of_group));
	CHECK_ALL(check_holders(vm, maps, t.hinted));
	CHECK(vm->known || vm->shim != PF_VM_SHIM_HERE, "a shim is here and not known");
	CHECK(vm->thp != PF_THP_DEFAULT, "a VM has no policy for huge pages");
	totals->candidates += t.candidates;
	totals->n_vms++;
	of_group->n_pages += vm->pages.count;
	totals->n_unknown += !vm->known;
	totals->n_capturing += t.capturing;
	totals->memory_bytes += pf_index_bytes(&vm->pages) + pf_index_bytes(&vm->holders) +
				vm->module_slots * sizeof(uint32_t) +
				pf_module_table_bytes(vm->modules->len);
	of_group->n_vms++;
	return NULL;
}

static const char *check_entry_counts(
	const PfFusionGroup *group, const PfEntry *e, uint64_t *n_holders)
{
	uint32_t hint_vms = 0, map_vms = 0, maps = 0, map_vms_xor = 0, before = 0;

	for (uint32_t holder = e->holders; holder != 0; holder = pf_holder(group, holder)->next) {
		const PfHolder *h = pf_holder(group, holder);

		CHECK(h->prev == before, "a list of holders is broken");
		CHECK(pf_entry(group, h->entry) == e, "an entry has the holder of another");
		hint_vms += h->n_hints > 0;
		map_vms += h->n_maps > 0;
		maps += h->n_maps;
		map_vms_xor ^= h->n_maps > 0 ? holder : 0;
		before = holder;
		++*n_holders;
	}
	CHECK(e->n_hint_vms == hint_vms, "an entry's hinting VMs are miscounted");
	CHECK(e->n_map_vms == map_vms, "an entry's mapping VMs are miscounted");
	CHECK(map_vms_xor == (e->state == PF_ENTRY_FRAMED ? e->map_vms_xor : 0),
		"an entry's mapping VMs are not those");
	CHECK(e->n_maps == maps, "an entry's mappings are miscounted");
	return NULL;
}

static const char *check_frame(const PfFusionGroup *group, const PfEntry *e, uint32_t entry)
{
	CHECK(e->frame != PF_NO_FRAME, "an entry has not the frame it should have");
	CHECK(pf_frame_find(group, e->frame) == entry, "a frame is not found, or there twice");
	CHECK(e->frame < group->layout.next, "a frame has a number that was never given out");
	CHECK(e->queued || !pf_entry_is_unused(group, e), "an unused frame is on no list");
	return NULL;
}

static const char *check_entry(const PfFusionGroup *group, uint32_t entry, GHashTable *ordered)
{
	const PfEntry *e = pf_entry(group, entry);
	bool admitted = e->n_hint_vms >= group->admission;
	bool framed = e->state == PF_ENTRY_FRAMED;

	CHECK(e->n_orders == counted(ordered, entry), "an entry's ordered pages are miscounted");
	CHECK(e->state != PF_ENTRY_CAPTURING || e->n_orders == 1,
		"an entry is not captured by one order");
	CHECK(framed || e->state == PF_ENTRY_CAPTURING || e->n_orders == 0,
		"an entry is in an order for nothing");
	if (framed)
		CHECK_ALL(check_frame(group, e, entry));
	CHECK(framed || e->failed <= group->vms->len,
		"an entry was not given by a VM that there is not");
	CHECK(framed || e->frame == PF_NO_FRAME, "an entry has a frame it should not have");
	CHECK(framed || !e->queued, "an entry without a frame is on a list of unused frames");
	CHECK(framed || e->n_maps == 0, "an entry without a frame is mapped");
	CHECK(e->state != PF_ENTRY_WANTED || admitted, "an entry is wanted by too few VMs");
	CHECK(e->state != PF_ENTRY_WAITING || !admitted, "an entry waits though it is admitted");
	CHECK(e->state != PF_ENTRY_WAITING || e->holders != 0,
		"an entry is remembered for nothing");
	return NULL;
}

static void count_range(void *userdata, uint32_t giver, int64_t bytes)
{
	GHashTable *ranges = userdata;

	g_hash_table_insert(ranges, GUINT_TO_POINTER(giver),
		GUINT_TO_POINTER(counted(ranges, giver) + (uint32_t)bytes));
}

static const char *check_giver(
	const PfFusionGroup *group, const GroupTotals *totals, uint32_t number)
{
	const PfGiver *giver = pf_pool_at(&group->givers, number);

	CHECK(giver->n_frames == counted(totals->given, number),
		"the frames that a VM has given are miscounted");
	CHECK(giver->range_bytes == counted(totals->ranges, number),
		"the ranges that a VM has made are miscounted");
	return NULL;
}

static void add_keys(GHashTable *set, GHashTable *table)
{
	GHashTableIter iter;
	gpointer key;

	g_hash_table_iter_init(&iter, table);
	while (g_hash_table_iter_next(&iter, &key, NULL))
		g_hash_table_add(set, key);
}

/* Those of VMs, and of such that have left and left something. */
static const char *check_givers(const PfFusionGroup *group, const GroupTotals *totals)
{
	g_autoptr(GHashTable) givers = g_hash_table_new(NULL, NULL);
	GHashTableIter iter;
	gpointer number;

	for (guint i = 0; i < group->vms->len; i++) {
		const PfFusionVm *vm = group->vms->pdata[i];
		const PfGiver *giver = vm ? pf_pool_at(&group->givers, vm->giver) : NULL;

		CHECK(!vm || giver->vm == i + 1, "a VM gives for another");
		if (vm)
			g_hash_table_add(givers, GUINT_TO_POINTER(vm->giver));
	}
	add_keys(givers, totals->given);
	add_keys(givers, totals->ranges);
	g_hash_table_iter_init(&iter, givers);
	while (g_hash_table_iter_next(&iter, &number, NULL))
		CHECK_ALL(check_giver(group, totals, GPOINTER_TO_UINT(number)));
	CHECK(g_hash_table_size(givers) == group->givers.n_items,
		"a giver is left of which nothing is left");
	return NULL;
}

/* Each entry on it once, with its flag set. */
static const char *check_unused(const PfFusionGroup *group, const GArray *list, bool adopted)
{
	g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);

	for (guint i = 0; i < list->len; i++) {
		uint32_t entry = g_array_index(list, uint32_t, i);
		const PfEntry *e = pf_entry(group, entry);

		CHECK(g_hash_table_add(seen, GUINT_TO_POINTER(entry)),
			"a frame is on a list of unused ones twice");
		CHECK(e->state == PF_ENTRY_FRAMED && e->queued,
			"a list of unused frames has an entry that is not one");
		CHECK(adopted == (e->frame < group->first_own),
			"an unused frame is on the other list");
	}
	return NULL;
}

static const char *check_entries(const PfFusionGroup *group, GroupTotals *of_group, Totals *totals)
{
	uint64_t n_holders = 0, n_entries = 0, n_frames = 0, n_queued = 0;

	for (uint32_t i = 0; i < group->digests.capacity; i++) {
		uint32_t entry = group->digests.slots[i];
		const PfEntry *e = entry != 0 ? pf_entry(group, entry) : NULL;

		if (!e)
			continue;
		CHECK(pf_entry_find(group, &e->digest) == entry,
			"a digest is not found, or there twice");
		CHECK_ALL(check_entry_counts(group, e, &n_holders));
		CHECK_ALL(check_entry(group, entry, of_group->ordered));
		totals->shared += e->n_maps > 0 ? e->n_maps - 1 : 0;
		n_frames += e->state == PF_ENTRY_FRAMED;
		if (e->state == PF_ENTRY_FRAMED && e->giver != 0)
			count(of_group->given, e->giver);
		n_queued += e->queued;
		n_entries++;
	}
	CHECK(n_entries == group->digests.count && n_entries == group->entries.n_items,
		"a group's number of entries is wrong");
	CHECK(n_holders == group->holders.n_items, "a holder is in no list");
	CHECK(n_frames == group->frames.count, "a group's frames are miscounted");
	CHECK_ALL(check_unused(group, group->unused, false));
	CHECK_ALL(check_unused(group, group->unused_adopted, true));
	CHECK(n_queued == group->unused->len + group->unused_adopted->len,
		"a frame is on no list of unused ones and taken for it");
	totals->frames += n_frames;
	pf_layout_foreach_range(&group->layout, count_range, of_group->ranges);
	return check_givers(group, of_group);
}

static const char *check_delayed(const PfFusionGroup *group, uint64_t n)
{
	for (unsigned i = 0; i < PF_FUSION_N_DELAYS; i++) {
		const PfQueue *queue = &group->delayed[i];
		uint64_t length = 0;
		uint32_t when = 0;

		for (uint32_t page = queue->head; page != 0 && length <= n;
			page = pf_page(group, page)->queue_next) {
			const PfPage *p = pf_page(group, page);

			CHECK(p->delay_class == i, "a delayed page is in another queue");
			CHECK(p->when >= when, "delays are not in the order of time");
			when = p->when;
			length++;
		}
		CHECK(length <= n, "more pages are queued than delayed");
		CHECK_ALL(check_queue(group, queue, PF_HINT_DELAYED, length));
		n -= length;
	}
	CHECK(n == 0, "a delayed page is in no queue");
	return NULL;
}

static uint64_t pool_bytes(const PfPool *pool)
{
	uint64_t n = 0;

	for (guint i = 0; i < pool->chunks->len; i++)
		n += g_array_index(pool->chunks, PfChunk, i).items != NULL;
	return n * PF_POOL_CHUNK_ITEMS * pool->item_size;
}

static const char *check_group(const PfFusionGroup *group, Totals *totals)
{
	g_autoptr(GHashTable) ordered = g_hash_table_new(NULL, NULL);
	g_autoptr(GHashTable) given = g_hash_table_new(NULL, NULL);
	g_autoptr(GHashTable) ranges = g_hash_table_new(NULL, NULL);
	GroupTotals of_group = {.ordered = ordered, .given = given, .ranges = ranges};

	CHECK(group->n_vms > 0, "a group has no VM");
	for (guint i = 0; i < group->vms->len; i++) {
		const PfFusionVm *vm = group->vms->pdata[i];

		if (!vm)
			continue;
		CHECK(vm->group == group && vm->slot == i, "a VM is in the slot of another");
		CHECK_ALL(check_vm(vm, totals, &of_group));
	}
	CHECK(of_group.n_vms == group->n_vms, "a group's number of VMs is wrong");
	CHECK(of_group.n_pages == group->pages.n_items, "a page belongs to no VM");
	CHECK_ALL(check_delayed(group, of_group.delayed));
	totals->memory_bytes += pf_index_bytes(&group->digests) + pf_index_bytes(&group->frames) +
				pool_bytes(&group->pages) + pool_bytes(&group->holders) +
				pool_bytes(&group->entries) + pool_bytes(&group->givers) +
				pf_layout_bytes(&group->layout);
	return check_entries(group, &of_group, totals);
}

const char *pf_fusion_check(const PfFusion *fusion)
{
	GHashTableIter iter;
	gpointer group;
	Totals totals = {0};

	g_hash_table_iter_init(&iter, fusion->groups);
	while (g_hash_table_iter_next(&iter, NULL, &group))
		CHECK_ALL(check_group(group, &totals));
	CHECK(totals.n_vms == fusion->vms->len, "a VM is in no group");
	CHECK(fusion->n_unknown == totals.n_unknown, "the unknown VMs are miscounted");
	CHECK(fusion->stats.shared == totals.shared, "the shared pages are miscounted");
	CHECK(fusion->stats.frames == totals.frames, "the frames are miscounted");
	CHECK(fusion->stats.candidates == totals.candidates, "the candidates are miscounted");
	CHECK(fusion->n_capturing == totals.n_capturing, "the captures of all are miscounted");
	CHECK(fusion->memory_bytes == totals.memory_bytes, "the memory is miscounted");
	return NULL;
}
