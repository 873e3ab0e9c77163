/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Frames: who maps them, and which can go.
 *
 * The numbers of shared pages move when the second VM maps a frame, or the last but one leaves it.
 * The one VM that is left is found by the exclusive or of the numbers of all holders that map the
 * frame.
 *
 * A frame is unused when no page is FUSED to it, no order names it, and fewer VMs hint its digest
 * than a capture takes (with an admission of 1: none). The moment the last of these comes true, its entry goes to
 * a list; what happens to it afterwards is not followed: whether it is unused still is asked when it is taken from
 * there. An entry is on the list once at most. So the cost of freeing is a step for each time that a
 * frame became unused, and none for frames in use.
 *
 * Why nobody can read a frame after it was freed: what a shim maps is FUSED here while the shim is
 * connected, and was FUSED or ORDERED when its connection went; both stand until the shim has said
 * itself what it maps. A frame of an earlier service is more: a process that was not heard of yet may
 * map it, so these have a list of their own, which is looked at only while the group is complete. A
 * frame of our own cannot be mapped by such a process, since it had no order from us.
 */
#include "host-service/decide/fusion_private.h"

static uint64_t frame_hash(const void *context, uint32_t entry)
{
	const PfFusionGroup *group = context;

	return pf_hash_u64(group->seed, pf_entry(group, entry)->frame);
}

static bool frame_match(const void *context, uint32_t entry, const void *key)
{
	return pf_entry(context, entry)->frame == *(const uint64_t *)key;
}

uint32_t pf_frame_find(const PfFusionGroup *group, uint64_t frame)
{
	return pf_index_find(
		&group->frames, pf_hash_u64(group->seed, frame), frame_match, group, &frame);
}

void pf_frame_insert(PfFusionGroup *group, uint32_t entry)
{
	pf_group_index_add(group, &group->frames, entry, frame_hash);
	group->fusion->stats.frames++;
}

void pf_frame_note_unused(PfFusionGroup *group, uint32_t entry)
{
	PfEntry *e = pf_entry(group, entry);

	if (e->queued || !pf_entry_is_unused(group, e))
		return;
	e->queued = 1;
	g_array_append_val(
		e->frame < group->first_own ? group->unused_adopted : group->unused, entry);
}

static void forget_frame(PfFusionGroup *group, uint32_t entry)
{
	uint32_t frame = pf_entry(group, entry)->frame;

	if (frame >= group->first_own)
		pf_layout_free(&group->layout, frame);
	pf_group_index_remove(group, &group->frames, entry, frame_hash);
	group->fusion->stats.frames--;
	group->fusion->stats.freed++;
	pf_entry_unframed(group, entry);
}

/* Where the unused frames go: `left` of them at most. */
typedef struct Freeing {
	uint32_t left;
	void (*freed)(void *userdata, const char *group, PfFrame frame);
	void *userdata;
} Freeing;

/* false: there are more. */
static bool free_listed(PfFusionGroup *group, GArray *list, Freeing *freeing)
{
	while (list->len > 0) {
		uint32_t entry = g_array_index(list, uint32_t, list->len - 1);
		PfEntry *e = pf_entry(group, entry);

		if (freeing->left == 0 && pf_entry_is_unused(group, e))
			return false;
		g_array_set_size(list, list->len - 1);
		e->queued = 0;
		if (!pf_entry_is_unused(group, e))
			continue;
		freeing->freed(freeing->userdata, group->name, (PfFrame){e->frame});
		forget_frame(group, entry);
		freeing->left--;
	}
	return true;
}

static bool is_listing(const PfFusionGroup *group)
{
	for (guint i = 0; i < group->vms->len; i++) {
		const PfFusionVm *vm = group->vms->pdata[i];

		if (vm && vm->shim == PF_VM_SHIM_LISTING)
			return true;
	}
	return false;
}

bool pf_fusion_free_unused(PfFusion *fusion, uint32_t max_frames,
	void (*freed)(void *userdata, const char *group, PfFrame frame), void *userdata)
{
	Freeing freeing = {max_frames, freed, userdata};
	GHashTableIter iter;
	gpointer value;

	g_hash_table_iter_init(&iter, fusion->groups);
	while (g_hash_table_iter_next(&iter, NULL, &value)) {
		PfFusionGroup *group = value;

		/* What a list says last may be the only mapping left of what it has taken away first. */
		if (is_listing(group))
			continue;
		if (!free_listed(group, group->unused, &freeing))
			return false;
		if (group->complete && !free_listed(group, group->unused_adopted, &freeing))
			return false;
	}
	return true;
}

static bool is_mapped(const PfFusionVm *vm, uint64_t gfn, uint64_t frame)
{
	uint32_t page = pf_page_find(vm, gfn);
	const PfPage *p;

	if (page == 0)
		return false;
	p = pf_page(vm->group, page);
	return p->state == PF_HINT_FUSED && pf_entry(vm->group, p->target)->frame == frame;
}

/* Of the pages beside it, those that are in one run with this one. At the ends the number wraps,
 * and finds nothing. */
static unsigned run_neighbours(const PfFusionVm *vm, const PfPage *p)
{
	uint64_t frame = pf_entry(vm->group, p->target)->frame;

	return is_mapped(vm, p->gfn - UINT64_C(1), frame - 1) +
	       is_mapped(vm, p->gfn + UINT64_C(1), frame + 1);
}

void pf_entry_map(PfFusionVm *vm, uint32_t page)
{
	PfFusionGroup *group = vm->group;
	PfPage *p = pf_page(group, page);
	PfEntry *e = pf_entry(group, p->target);
	uint32_t holder = pf_holder_get(vm, p->target);
	PfHolder *h = pf_holder(group, holder);

	if (h->n_maps++ == 0) {
		e->n_map_vms++;
		e->map_vms_xor ^= holder;
		if (e->n_map_vms == 2) {
			PfHolder *other = pf_holder(group, e->map_vms_xor ^ holder);

			pf_holder_vm(group, other)->stats.shared += other->n_maps;
		}
	}
	if (e->n_map_vms >= 2)
		vm->stats.shared++;
	if (e->n_maps++ > 0)
		group->fusion->stats.shared++;
	vm->stats.fused++;
	vm->stats.runs = vm->stats.runs + 1 - run_neighbours(vm, p);
	if (p->holder != 0)
		pf_vm_remove_candidate(vm);
}

void pf_entry_unmap(PfFusionVm *vm, uint32_t page)
{
	PfFusionGroup *group = vm->group;
	PfPage *p = pf_page(group, page);
	PfEntry *e = pf_entry(group, p->target);
	uint32_t holder = pf_holder_find(vm, p->target);
	PfHolder *h = pf_holder(group, holder);

	if (e->n_map_vms >= 2)
		vm->stats.shared--;
	if (--h->n_maps == 0) {
		e->n_map_vms--;
		e->map_vms_xor ^= holder;
		if (e->n_map_vms == 1) {
			PfHolder *other = pf_holder(group, e->map_vms_xor);

			pf_holder_vm(group, other)->stats.shared -= other->n_maps;
		}
	}
	if (--e->n_maps > 0)
		group->fusion->stats.shared--;
	vm->stats.fused--;
	vm->stats.runs = vm->stats.runs - 1 + run_neighbours(vm, p);
	if (p->holder != 0)
		pf_vm_add_candidate(vm);
	pf_frame_note_unused(group, p->target);
	pf_holder_release(group, holder);
}
