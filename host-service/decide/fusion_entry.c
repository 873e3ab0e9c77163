/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Entries and holders: who hints a digest, who maps its frame, and who could have it captured.
 *
 * An entry is a digest of a trust group. Between it and the pages stand holders, one for each VM
 * that hints the digest or maps the frame: they count, so that "how many distinct VMs" is known
 * without looking at a page. A holder lives while it has a hint or a mapping, an entry while it has
 * a holder, an order that names it, or a frame. An entry with a frame serves whoever hints its
 * digest later; fusion_frame.c has when the frame goes. What is left then is an entry as before its
 * capture: remembered while somebody hints it, and captured again when enough do.
 *
 * While an entry is WANTED, each of its holders offers one page for capture, if it has an idle one:
 * that page is a CANDIDATE, in the queue of its VM. Whichever VM takes its page first makes the
 * entry CAPTURING, and the other holders take their offers back, so that two captures of one digest
 * never run at the same time. All this costs a step a VM, not a page: the ring of a holder's pages
 * has those that can be offered, or fused, in front. When a frame comes or goes, only pages whose state changes by that
 * are looked at. How often an entry becomes WANTED or not any more, two VMs can say in turn: it has no more holders then
 * than its admission asks for, 64 at most.
 *
 * A VM that was asked to give an entry's bytes and has not given them comes after others when they are WANTED the
 * next time: what it offers then goes to a queue of its own (fusion_order.c).
 *
 * An order names entries by number, and more than one thing can happen to an entry before the answer:
 * each page in an order is counted in its entry, which is neither released nor loses its frame meanwhile.
 */
#include "host-service/decide/fusion_private.h"

static uint64_t digest_hash(const PfFusionGroup *group, const PfDigest *digest)
{
	return pf_hash_bytes(&group->key, digest->bytes, PF_DIGEST_SIZE);
}

static uint64_t entry_hash(const void *context, uint32_t entry)
{
	return digest_hash(context, &pf_entry(context, entry)->digest);
}

static bool entry_match(const void *context, uint32_t entry, const void *key)
{
	return pf_digest_equal(&pf_entry(context, entry)->digest, key);
}

uint32_t pf_entry_find(const PfFusionGroup *group, const PfDigest *digest)
{
	return pf_index_find(
		&group->digests, digest_hash(group, digest), entry_match, group, digest);
}

uint32_t pf_entry_get(PfFusionGroup *group, const PfDigest *digest)
{
	uint32_t entry = pf_entry_find(group, digest);
	PfEntry *e;

	if (entry != 0)
		return entry;
	entry = pf_pool_take(&group->entries);
	e = pf_entry(group, entry);
	e->digest = *digest;
	e->frame = PF_NO_FRAME;
	pf_group_index_add(group, &group->digests, entry, entry_hash);
	return entry;
}

void pf_entry_release(PfFusionGroup *group, uint32_t entry)
{
	const PfEntry *e = pf_entry(group, entry);

	if (e->holders != 0 || e->n_orders > 0 || e->state == PF_ENTRY_FRAMED)
		return;
	assert(e->state == PF_ENTRY_WAITING);
	pf_group_index_remove(group, &group->digests, entry, entry_hash);
	pf_pool_give(&group->entries, entry);
}

static uint64_t holder_hash(const void *context, uint32_t holder)
{
	const PfFusionGroup *group = context;

	return pf_hash_u64(group->seed, pf_holder(group, holder)->entry);
}

static bool holder_match(const void *context, uint32_t holder, const void *key)
{
	return pf_holder(context, holder)->entry == *(const uint32_t *)key;
}

uint32_t pf_holder_find(const PfFusionVm *vm, uint32_t entry)
{
	return pf_index_find(
		&vm->holders, pf_hash_u64(vm->group->seed, entry), holder_match, vm->group, &entry);
}

uint32_t pf_holder_get(PfFusionVm *vm, uint32_t entry)
{
	PfFusionGroup *group = vm->group;
	PfEntry *e = pf_entry(group, entry);
	uint32_t holder = pf_holder_find(vm, entry);
	PfHolder *h;

	if (holder != 0)
		return holder;
	holder = pf_pool_take(&group->holders);
	h = pf_holder(group, holder);
	h->entry = entry;
	h->vm = vm->slot;
	h->next = e->holders;
	if (h->next != 0)
		pf_holder(group, h->next)->prev = holder;
	e->holders = holder;
	pf_group_index_add(group, &vm->holders, holder, holder_hash);
	return holder;
}

void pf_holder_release(PfFusionGroup *group, uint32_t holder)
{
	PfHolder *h = pf_holder(group, holder);
	PfEntry *e = pf_entry(group, h->entry);
	uint32_t entry = h->entry;

	if (h->n_hints > 0 || h->n_maps > 0)
		return;
	if (h->next != 0)
		pf_holder(group, h->next)->prev = h->prev;
	if (h->prev != 0)
		pf_holder(group, h->prev)->next = h->next;
	else
		e->holders = h->next;
	pf_group_index_remove(group, &pf_holder_vm(group, h)->holders, holder, holder_hash);
	pf_pool_give(&group->holders, holder);
	pf_entry_release(group, entry);
}

static PfQueue *queue_for(const PfFusionGroup *group, const PfHolder *h)
{
	PfFusionVm *vm = pf_holder_vm(group, h);

	return pf_entry(group, h->entry)->failed == h->vm + 1 ? &vm->spare_candidates
							      : &vm->candidates;
}

static void offer(PfFusionGroup *group, uint32_t holder)
{
	PfHolder *h = pf_holder(group, holder);
	PfPage *p;

	if (h->pages == 0 || pf_entry(group, h->entry)->state != PF_ENTRY_WANTED)
		return;
	p = pf_page(group, h->pages);
	if (p->state != PF_HINT_IDLE)
		return;
	p->state = PF_HINT_CANDIDATE;
	pf_queue_push(group, queue_for(group, h), h->pages);
}

static void retract(PfFusionGroup *group, uint32_t holder)
{
	PfHolder *h = pf_holder(group, holder);
	PfPage *p;

	if (h->pages == 0)
		return;
	p = pf_page(group, h->pages);
	if (p->state != PF_HINT_CANDIDATE)
		return;
	pf_queue_remove(group, queue_for(group, h), h->pages);
	p->state = PF_HINT_IDLE;
}

static void each_holder(
	PfFusionGroup *group, uint32_t entry, void (*visit)(PfFusionGroup *group, uint32_t holder))
{
	for (uint32_t h = pf_entry(group, entry)->holders; h != 0; h = pf_holder(group, h)->next)
		visit(group, h);
}

/* An entry that is not captured, nor has a frame, is WANTED exactly as long as enough VMs hint
 * it. */
static void update_admission(PfFusionGroup *group, uint32_t entry)
{
	PfEntry *e = pf_entry(group, entry);
	bool admitted = e->n_hint_vms >= group->admission;

	if (e->state == PF_ENTRY_WAITING && admitted) {
		e->state = PF_ENTRY_WANTED;
		e->admitted_us = (uint64_t)group->fusion->now_us;
		e->offered = pf_ticks_up(group->fusion->now_us);
		each_holder(group, entry, offer);
	} else if (e->state == PF_ENTRY_WANTED && !admitted) {
		e->state = PF_ENTRY_WAITING;
		each_holder(group, entry, retract);
	}
}

static void ring_insert_before(PfFusionGroup *group, uint32_t page, uint32_t next)
{
	PfPage *p = pf_page(group, page), *n = pf_page(group, next);

	p->hint_next = next;
	p->hint_prev = n->hint_prev;
	pf_page(group, n->hint_prev)->hint_next = page;
	n->hint_prev = page;
}

static void ring_append(PfFusionGroup *group, PfHolder *h, uint32_t page)
{
	PfPage *p = pf_page(group, page);

	if (h->pages != 0) {
		ring_insert_before(group, page, h->pages);
		return;
	}
	p->hint_next = p->hint_prev = page;
	h->pages = page;
}

static void ring_remove(PfFusionGroup *group, PfHolder *h, uint32_t page)
{
	PfPage *p = pf_page(group, page);

	if (h->pages == page)
		h->pages = p->hint_next == page ? 0 : p->hint_next;
	pf_page(group, p->hint_prev)->hint_next = p->hint_next;
	pf_page(group, p->hint_next)->hint_prev = p->hint_prev;
}

void pf_holder_add_page(PfFusionGroup *group, uint32_t page)
{
	PfHolder *h = pf_holder(group, pf_page(group, page)->holder);

	ring_append(group, h, page);
	if (h->n_hints++ > 0)
		return;
	pf_entry(group, h->entry)->n_hint_vms++;
	update_admission(group, h->entry);
}

void pf_holder_remove_page(PfFusionGroup *group, uint32_t page)
{
	PfPage *p = pf_page(group, page);
	uint32_t holder = p->holder;
	PfHolder *h = pf_holder(group, holder);

	if (p->state == PF_HINT_CANDIDATE)
		retract(group, holder);
	ring_remove(group, h, page);
	p->holder = 0;
	h->n_hints--;
	if (h->n_hints > 0) {
		offer(group, holder);
		return;
	}
	pf_entry(group, h->entry)->n_hint_vms--;
	update_admission(group, h->entry);
	pf_frame_note_unused(group, h->entry);
	pf_holder_release(group, holder);
}

/* To the front of the ring, but behind a page that is offered. */
static void page_available(PfFusionGroup *group, uint32_t page, PfHintState state)
{
	PfPage *p = pf_page(group, page);
	PfHolder *h = pf_holder(group, p->holder);
	uint32_t first;

	ring_remove(group, h, page);
	p->state = state;
	first = h->pages;
	if (first == 0) {
		ring_append(group, h, page);
	} else if (pf_page(group, first)->state == PF_HINT_CANDIDATE) {
		ring_insert_before(group, page, pf_page(group, first)->hint_next);
	} else {
		ring_insert_before(group, page, first);
		h->pages = page;
	}
}

void pf_holder_page_idle(PfFusionGroup *group, uint32_t page)
{
	page_available(group, page, PF_HINT_IDLE);
	offer(group, pf_page(group, page)->holder);
}

void pf_holder_page_ready(PfFusionGroup *group, uint32_t page)
{
	page_available(group, page, PF_HINT_READY);
}

void pf_holder_page_taken(PfFusionGroup *group, uint32_t page, PfHintState state)
{
	PfPage *p = pf_page(group, page);
	PfHolder *h = pf_holder(group, p->holder);

	if (p->state == PF_HINT_CANDIDATE)
		retract(group, p->holder);
	p->state = state;
	ring_remove(group, h, page);
	ring_append(group, h, page);
	offer(group, p->holder);
}

void pf_entry_capturing(PfFusionGroup *group, uint32_t entry)
{
	each_holder(group, entry, retract);
	pf_entry(group, entry)->state = PF_ENTRY_CAPTURING;
	pf_entry_ordered(group, entry);
}

void pf_entry_ordered(PfFusionGroup *group, uint32_t entry)
{
	pf_entry(group, entry)->n_orders++;
}

void pf_entry_answered(PfFusionGroup *group, uint32_t entry)
{
	PfEntry *e = pf_entry(group, entry);
	uint64_t admitted_us = e->admitted_us;

	e->n_orders--;
	if (e->state == PF_ENTRY_CAPTURING) {
		e->state = PF_ENTRY_WAITING;
		update_admission(group, entry);
		e->admitted_us = admitted_us;
	}
	pf_frame_note_unused(group, entry);
	pf_entry_release(group, entry);
}

/* All pages that are IDLE: they are in front. */
static void ready_pages(PfFusionGroup *group, uint32_t holder)
{
	PfHolder *h = pf_holder(group, holder);
	uint32_t page = h->pages;

	for (uint32_t n = h->n_hints; n > 0; n--) {
		PfPage *p = pf_page(group, page);

		if (p->state != PF_HINT_IDLE)
			break;
		p->state = PF_HINT_READY;
		pf_queue_push(group, &pf_holder_vm(group, h)->fusible, page);
		page = p->hint_next;
	}
}

void pf_entry_framed(PfFusionGroup *group, uint32_t entry, uint32_t frame, PfFusionVm *giver)
{
	PfEntry *e = pf_entry(group, entry);

	assert(e->state != PF_ENTRY_FRAMED);
	if (e->state == PF_ENTRY_WANTED)
		each_holder(group, entry, retract);
	e->state = PF_ENTRY_FRAMED;
	e->frame = frame;
	e->map_vms_xor = 0;
	pf_giver_charge(group, entry, giver);
	pf_frame_insert(group, entry);
	each_holder(group, entry, ready_pages);
}

/* All pages that are READY, likewise. */
static void unready_pages(PfFusionGroup *group, uint32_t holder)
{
	PfHolder *h = pf_holder(group, holder);
	uint32_t page = h->pages;

	for (uint32_t n = h->n_hints; n > 0; n--) {
		PfPage *p = pf_page(group, page);

		if (p->state != PF_HINT_READY)
			break;
		pf_queue_remove(group, &pf_holder_vm(group, h)->fusible, page);
		p->state = PF_HINT_IDLE;
		page = p->hint_next;
	}
}

void pf_entry_unframed(PfFusionGroup *group, uint32_t entry)
{
	PfEntry *e = pf_entry(group, entry);

	assert(pf_entry_is_unused(group, e));
	pf_giver_discharge(group, entry);
	e->state = PF_ENTRY_WAITING;
	e->frame = PF_NO_FRAME;
	e->failed = 0;
	each_holder(group, entry, unready_pages);
	pf_entry_release(group, entry);
}

void pf_group_readmit(PfFusionGroup *group)
{
	const PfIndex *index = &group->digests;

	for (uint32_t i = 0; i < index->capacity; i++) {
		if (index->slots[i] == 0)
			continue;
		update_admission(group, index->slots[i]);
		pf_frame_note_unused(group, index->slots[i]);
	}
}
