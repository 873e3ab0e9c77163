/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages and hints.
 *
 * A page record exists for each gfn that has a standing hint, is in an order, is fused, or was
 * revoked not long ago. It has at most one hint, so what a guest can make us hold is bounded by the
 * pages of its RAM, whatever it says. It is found by gfn, by (module, page of the file) while
 * hinted, and stands in the ring of its holder (fusion_entry.c) while hinted, and in one queue at
 * most. A hint that is void (DROPPED in fusion.h) is simply taken away.
 *
 * What the host does with a page goes its own way beside the hint: an ordered or fused page keeps
 * its record without a hint, and its hint may name another digest than the one that it is ordered
 * or fused for. Such a hint counts for its digest, and waits. When the order has failed, or the
 * page was lost, the page is "settled": its hint decides what comes next.
 *
 * Delays are taken from a short list of lengths, and each length has a queue of its own. So each
 * queue is in the order of time by itself, and looking for what is over looks at the heads only.
 * Pages that are left alone in a huge page have queues of their own, because more than time can end
 * their delay. Memory of revokes: a page that was revoked n times in sequence has to wait 2^(n-1)
 * times the configured delay from the last revoke on before a new hint for it counts, an hour at
 * most. A page that was left in peace for sixteen times as long (six hours at most) starts anew: the page cache of a
 * guest that works is reused all the time, and one revoke in a while costs less than a page that is not shared.
 */
#include "host-service/decide/fusion_private.h"

#define SECOND           INT64_C(1000000)
#define REVOKE_MAX_US    (3600 * SECOND)
#define REVOKE_PEACE     16 /* times the delay */
#define REVOKE_PEACE_US  (6 * 3600 * SECOND)
#define REVOKE_MAX_LEVEL 13 /* 2^12 seconds are more than an hour */

/* From FIRST_HUGE on, for pages in huge pages. Ascending in both parts. */
static const int64_t delays_us[] = {
	SECOND / 10,
	SECOND / 5,
	SECOND / 2,
	1 * SECOND,
	2 * SECOND,
	4 * SECOND,
	5 * SECOND,
	8 * SECOND,
	16 * SECOND,
	32 * SECOND,
	60 * SECOND,
	64 * SECOND,
	128 * SECOND,
	256 * SECOND,
	300 * SECOND,
	512 * SECOND,
	1024 * SECOND,
	2048 * SECOND,
	3600 * SECOND,
	30 * SECOND,
	60 * SECOND,
	120 * SECOND,
	240 * SECOND,
	300 * SECOND,
};
#define FIRST_HUGE (PF_FUSION_N_DELAYS - 5)
static_assert(G_N_ELEMENTS(delays_us) == PF_FUSION_N_DELAYS, "one queue a length");

static uint64_t gfn_hash(const void *context, uint32_t page)
{
	const PfFusionGroup *group = context;

	return pf_hash_u64(group->seed, pf_page(group, page)->gfn);
}

static bool gfn_match(const void *context, uint32_t page, const void *key)
{
	return pf_page(context, page)->gfn == *(const uint64_t *)key;
}

uint32_t pf_page_find(const PfFusionVm *vm, uint64_t gfn)
{
	return pf_index_find(
		&vm->pages, pf_hash_u64(vm->group->seed, gfn), gfn_match, vm->group, &gfn);
}

uint32_t pf_page_add(PfFusionVm *vm, uint64_t gfn)
{
	uint32_t page = pf_pool_take(&vm->group->pages);

	pf_page(vm->group, page)->gfn = gfn;
	pf_group_index_add(vm->group, &vm->pages, page, gfn_hash);
	return page;
}

uint32_t pf_page_get(PfFusionVm *vm, uint64_t gfn)
{
	uint32_t page = pf_page_find(vm, gfn);

	return page != 0 ? page : pf_page_add(vm, gfn);
}

static int64_t since_revoked_us(const PfFusionVm *vm, const PfPage *p)
{
	return vm->group->fusion->now_us - (int64_t)p->when * PF_FUSION_TICK_US;
}

/* What the page has to wait after the last of its revokes. */
static int64_t revoke_delay_us(const PfFusionVm *vm, const PfPage *p)
{
	return MIN(vm->group->fusion->revoke_delay_us << (p->revokes - 1), REVOKE_MAX_US);
}

static bool remembers_revokes(const PfFusionVm *vm, const PfPage *p)
{
	return p->revokes != 0 &&
	       since_revoked_us(vm, p) <=
		       MIN(REVOKE_PEACE * revoke_delay_us(vm, p), REVOKE_PEACE_US);
}

static void forget_if_idle(PfFusionVm *vm, uint32_t page)
{
	const PfPage *p = pf_page(vm->group, page);

	if (p->state != PF_HINT_NONE || p->holder != 0)
		return;
	if (remembers_revokes(vm, p))
		return;
	pf_group_index_remove(vm->group, &vm->pages, page, gfn_hash);
	pf_pool_give(&vm->group->pages, page);
}

static uint64_t file_page_hash(const void *context, uint32_t page)
{
	const PfFusionGroup *group = context;

	return pf_hash_u64(group->seed, pf_page(group, page)->file_page);
}

static bool file_page_match(const void *context, uint32_t page, const void *key)
{
	return pf_page(context, page)->file_page == *(const uint32_t *)key;
}

uint32_t pf_page_by_file(const PfFusionVm *vm, const PfModule *module, uint32_t file_page)
{
	return pf_index_find(&module->pages, pf_hash_u64(vm->group->seed, file_page),
		file_page_match, vm->group, &file_page);
}

PfModule *pf_vm_module(const PfFusionVm *vm, uint32_t module_id)
{
	PfModule *module;

	if (module_id >= vm->modules->len)
		return NULL;
	module = &g_array_index(vm->modules, PfModule, module_id);
	return module->n_pages > 0 ? module : NULL;
}

static gint compare_gfn(gconstpointer a, gconstpointer b, gpointer userdata)
{
	uint64_t x = pf_page(userdata, *(const uint32_t *)a)->gfn;
	uint64_t y = pf_page(userdata, *(const uint32_t *)b)->gfn;

	return x < y ? -1 : x > y;
}

GArray *pf_vm_pages(const PfFusionVm *vm, bool (*wanted)(const PfFusionVm *vm, uint32_t page))
{
	GArray *pages = g_array_new(FALSE, FALSE, sizeof(uint32_t));

	for (uint32_t i = 0; i < vm->pages.capacity; i++) {
		uint32_t page = vm->pages.slots[i];

		if (page != 0 && (!wanted || wanted(vm, page)))
			g_array_append_val(pages, page);
	}
	g_array_sort_with_data(pages, compare_gfn, vm->group);
	return pages;
}

void pf_queue_push(PfFusionGroup *group, PfQueue *queue, uint32_t page)
{
	PfPage *p = pf_page(group, page);

	p->queue_next = 0;
	p->queue_prev = queue->tail;
	if (queue->tail != 0)
		pf_page(group, queue->tail)->queue_next = page;
	else
		queue->head = page;
	queue->tail = page;
}

void pf_queue_remove(PfFusionGroup *group, PfQueue *queue, uint32_t page)
{
	PfPage *p = pf_page(group, page);

	if (p->queue_next != 0)
		pf_page(group, p->queue_next)->queue_prev = p->queue_prev;
	else
		queue->tail = p->queue_prev;
	if (p->queue_prev != 0)
		pf_page(group, p->queue_prev)->queue_next = p->queue_next;
	else
		queue->head = p->queue_next;
}

/* Of the module that the page is hinted in, which is declared as long as it has a hint. */
static PfIndex *module_index(const PfFusionVm *vm, uint32_t page)
{
	return &g_array_index(vm->modules, PfModule, pf_page(vm->group, page)->module).pages;
}

static void add_to_module(PfFusionVm *vm, uint32_t page)
{
	PfIndex *index = module_index(vm, page);

	vm->module_slots -= index->capacity;
	pf_group_index_add(vm->group, index, page, file_page_hash);
	vm->module_slots += index->capacity;
}

static void remove_from_module(PfFusionVm *vm, uint32_t page)
{
	PfIndex *index = module_index(vm, page);

	vm->module_slots -= index->capacity;
	pf_group_index_remove(vm->group, index, page, file_page_hash);
	vm->module_slots += index->capacity;
}

void pf_page_hint(PfFusionVm *vm, uint32_t page, uint32_t module_id, uint32_t file_page,
	const PfDigest *digest)
{
	PfFusionGroup *group = vm->group;
	PfPage *p = pf_page(group, page);

	p->module = module_id;
	p->file_page = file_page;
	p->since = (uint64_t)group->fusion->now_us;
	p->tries = 0;
	p->holder = pf_holder_get(vm, pf_entry_get(group, digest));
	add_to_module(vm, page);
	vm->stats.hinted++;
	if (p->state != PF_HINT_FUSED)
		pf_vm_add_candidate(vm);
	pf_holder_add_page(group, page);
}

/* Out of its queue, if it is in one. A CANDIDATE leaves its queue with its ring. */
static void leave_queue(PfFusionVm *vm, uint32_t page)
{
	PfPage *p = pf_page(vm->group, page);

	if (p->state == PF_HINT_READY)
		pf_queue_remove(vm->group, &vm->fusible, page);
	else if (p->state == PF_HINT_DELAYED)
		pf_queue_remove(vm->group, &vm->group->delayed[p->delay_class], page);
}

static void take_hint_away(PfFusionVm *vm, uint32_t page)
{
	PfFusionGroup *group = vm->group;
	PfPage *p = pf_page(group, page);

	leave_queue(vm, page);
	remove_from_module(vm, page);
	vm->stats.hinted--;
	if (p->state != PF_HINT_FUSED)
		pf_vm_remove_candidate(vm);
	pf_holder_remove_page(group, page);
	if (p->state < PF_HINT_CAPTURING)
		p->state = PF_HINT_NONE;
}

void pf_page_unhint(PfFusionVm *vm, uint32_t page)
{
	take_hint_away(vm, page);
	forget_if_idle(vm, page);
}

void pf_page_settle(PfFusionVm *vm, uint32_t page)
{
	PfFusionGroup *group = vm->group;
	PfPage *p = pf_page(group, page);

	p->state = PF_HINT_NONE;
	p->target = 0;
	if (p->holder == 0) {
		forget_if_idle(vm, page);
		return;
	}
	if (pf_entry(group, pf_holder(group, p->holder)->entry)->state == PF_ENTRY_FRAMED) {
		pf_holder_page_ready(group, page);
		pf_queue_push(group, &vm->fusible, page);
		return;
	}
	pf_holder_page_idle(group, page);
}

static unsigned delay_class(int64_t delay_us)
{
	unsigned i = 0;

	while (i < FIRST_HUGE - 1 && delays_us[i] < delay_us)
		i++;
	return i;
}

static void delay(PfFusionVm *vm, uint32_t page, unsigned class)
{
	PfFusionGroup *group = vm->group;
	PfPage *p = pf_page(group, page);

	p->target = 0;
	if (p->holder == 0) {
		pf_page_settle(vm, page);
		return;
	}
	p->state = PF_HINT_DELAYED;
	p->delay_class = class;
	p->when = pf_ticks_up(group->fusion->now_us + delays_us[class]);
	pf_queue_push(group, &group->delayed[class], page);
}

void pf_page_settle_later(PfFusionVm *vm, uint32_t page, int64_t delay_us)
{
	delay(vm, page, delay_class(delay_us));
}

void pf_page_settle_huge(PfFusionVm *vm, uint32_t page)
{
	PfPage *p = pf_page(vm->group, page);
	unsigned class = MIN(FIRST_HUGE + p->tries, PF_FUSION_N_DELAYS - 1);

	p->tries = MIN(p->tries + 1, 15);
	delay(vm, page, class);
}

void pf_page_settle_dropped(PfFusionVm *vm, uint32_t page)
{
	PfPage *p = pf_page(vm->group, page);

	p->state = PF_HINT_NONE;
	p->target = 0;
	if (p->holder != 0)
		take_hint_away(vm, page);
	forget_if_idle(vm, page);
}

void pf_page_settle_new(PfFusionVm *vm, uint32_t page)
{
	PfPage *p = pf_page(vm->group, page);
	int64_t wait_us;

	p->since = (uint64_t)vm->group->fusion->now_us;
	if (p->revokes == 0) {
		pf_page_settle(vm, page);
		return;
	}
	wait_us = revoke_delay_us(vm, p) - since_revoked_us(vm, p);
	if (wait_us <= 0) {
		pf_page_settle(vm, page);
		return;
	}
	pf_page_settle_later(vm, page, wait_us);
	p->since = (uint64_t)p->when * PF_FUSION_TICK_US;
}

void pf_page_revoked(PfFusionVm *vm, uint32_t page)
{
	PfPage *p = pf_page(vm->group, page);

	if (!remembers_revokes(vm, p))
		p->revokes = 0;
	p->revokes = MIN(p->revokes + 1, REVOKE_MAX_LEVEL);
	p->when = (uint32_t)(vm->group->fusion->now_us / PF_FUSION_TICK_US);
}

void pf_group_retry_huge(PfFusionGroup *group, const PfFusionVm *only)
{
	for (unsigned i = FIRST_HUGE; i < PF_FUSION_N_DELAYS; i++) {
		PfQueue *queue = &group->delayed[i];
		uint32_t next;

		for (uint32_t page = queue->head; page != 0; page = next) {
			PfPage *p = pf_page(group, page);
			PfFusionVm *vm = pf_holder_vm(group, pf_holder(group, p->holder));

			next = p->queue_next;
			if (only ? vm != only : vm->thp != PF_THP_BALANCED)
				continue;
			pf_queue_remove(group, queue, page);
			p->tries = 0;
			pf_page_settle(vm, page);
		}
	}
}

void pf_page_fused(PfFusionVm *vm, uint32_t page, uint32_t entry)
{
	PfPage *p = pf_page(vm->group, page);

	leave_queue(vm, page);
	if (p->state == PF_HINT_IDLE || p->state == PF_HINT_CANDIDATE || p->state == PF_HINT_READY)
		pf_holder_page_taken(vm->group, page, PF_HINT_FUSED);
	p->state = PF_HINT_FUSED;
	p->target = entry;
	p->tries = 0;
	pf_entry_map(vm, page);
}

void pf_group_tick(PfFusionGroup *group)
{
	uint32_t now = (uint32_t)(group->fusion->now_us / PF_FUSION_TICK_US);

	for (unsigned i = 0; i < PF_FUSION_N_DELAYS; i++) {
		PfQueue *queue = &group->delayed[i];

		while (queue->head != 0 && pf_page(group, queue->head)->when <= now) {
			uint32_t page = queue->head;
			const PfPage *p = pf_page(group, page);

			pf_queue_remove(group, queue, page);
			pf_page_settle(pf_holder_vm(group, pf_holder(group, p->holder)), page);
		}
	}
	if (group->short_of_memory && group->short_until <= now)
		group->short_of_memory = false;
}

bool pf_group_next_tick(const PfFusionGroup *group, uint32_t *when)
{
	bool found = group->short_of_memory;

	*when = group->short_until;
	for (unsigned i = 0; i < PF_FUSION_N_DELAYS; i++) {
		uint32_t head = group->delayed[i].head;

		if (head == 0 || (found && pf_page(group, head)->when >= *when))
			continue;
		*when = pf_page(group, head)->when;
		found = true;
	}
	return found;
}
