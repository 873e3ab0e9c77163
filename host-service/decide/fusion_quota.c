/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What one VM may make us hold. Whatever it says or does costs memory here and, by captures, in the store; all of it is
 * counted for that VM alone, and what is beyond its quota is refused to that VM alone.
 *
 * Candidates are hinted pages that are not fused. A page that was fused with a hint becomes one when it is
 * lost, so there may be more than the quota allows, but no new ones.
 *
 * Index memory is what the VM's records would take if it were alone: its pages and holders, the slots that find
 * them, its table of modules, and for each holder a whole entry with its slot. Entries are shared, so the sum over all
 * VMs is more than the truth; but no VM's number depends on what others do. Because tables double, it may be
 * exceeded by one doubling.
 *
 * What counts for the limit of all together is what pools, indexes and ranges really have, and nothing is taken for
 * which they would have to grow beyond it: not the tables, not the chunks of the pools, not the ranges of what is being
 * captured. (Only the tables that find frames may double once more: a tenth of the limit at worst.) Up to half of it
 * whoever comes first is served. From there on a VM goes on as long as its records are no more than an nth of what is
 * left, n being the VMs that there are. Nothing is ever taken away, so what is promised to a VM that comes late is
 * little, but never nothing. n VMs at once have a 4nth of the limit each, whoever has had the first half. Where each
 * that comes takes all it can before the next does, the kth takes a (k+1)th of what the others have left of the second
 * half: the nth has an n(n+1)th of the limit then. A VM that leaves, or withdraws its hints, leaves more to all others.
 *
 * Frames are counted for whoever gave them. Each VM has a giver, which a frame's entry names by number; the giver
 * stays behind when its VM leaves, for as long as there are frames of it. So a frame that comes or goes costs one
 * step, and a VM that leaves likewise. Pages that are being captured count as frames already. A frame may stay because
 * somebody else wants it, and then it still counts for the one that gave it: else two VMs could pass the quota on
 * to each other, and make us hold more frames than both may. For what it cannot give it waits: others may, and can.
 *
 * The ranges of fusion_layout.c are index memory of whoever gave the first frame in them. They are made by captures,
 * so a VM without memory left gives nothing either; a page that is being captured counts as a range of its own. With a
 * range is charged what the store needs to remember its numbers.
 *
 * Frame numbers are never used again, and a group has 2^32; a frame takes eight of them at worst. A VM gives 2^25 frames
 * in its life, 128 GiB, so that it cannot use them up alone: a sixteenth, with all the time there is.
 */
#include "host-service/decide/fusion_private.h"

#define SLOT_BYTES 10 /* of an index, for one item at worst: filled to 7/16, behind a doubling */

#define MAX_GIVEN (1u << 25)

static PfGiver *giver_at(const PfFusionGroup *group, uint32_t giver)
{
	return pf_pool_at(&group->givers, giver);
}

void pf_giver_join(PfFusionVm *vm)
{
	vm->giver = pf_pool_take(&vm->group->givers);
	giver_at(vm->group, vm->giver)->vm = vm->slot + 1;
}

/* Nothing may be left of a giver whose VM has left. */
static void release_giver(PfFusionGroup *group, uint32_t number)
{
	const PfGiver *giver = giver_at(group, number);

	if (giver->vm == 0 && giver->n_frames == 0 && giver->range_bytes == 0)
		pf_pool_give(&group->givers, number);
}

void pf_giver_leave(PfFusionVm *vm)
{
	giver_at(vm->group, vm->giver)->vm = 0;
	release_giver(vm->group, vm->giver);
}

void pf_giver_charge(PfFusionGroup *group, uint32_t entry, PfFusionVm *vm)
{
	PfEntry *e = pf_entry(group, entry);

	e->giver = vm ? vm->giver : 0;
	if (!vm)
		return;
	giver_at(group, vm->giver)->n_frames++;
	vm->n_given++;
}

/* Who could have more memory, if there was more of it, has to wait. */
static bool is_tight(const PfFusion *fusion)
{
	return fusion->memory_limit > 0 && fusion->memory_bytes >= fusion->memory_limit / 2;
}

void pf_giver_discharge(PfFusionGroup *group, uint32_t entry)
{
	PfEntry *e = pf_entry(group, entry);
	uint32_t number = e->giver;
	PfGiver *giver;

	e->giver = 0;
	if (number == 0)
		return;
	giver = giver_at(group, number);
	giver->n_frames--;
	if (is_tight(group->fusion))
		group->fusion->room = true;
	else if (giver->vm != 0)
		group->fusion->room |= pf_vm_has_orders(group->vms->pdata[giver->vm - 1]);
	release_giver(group, number);
}

void pf_giver_charge_range(void *userdata, uint32_t number, int64_t bytes)
{
	PfFusionGroup *group = userdata;

	giver_at(group, number)->range_bytes += (uint64_t)bytes;
	release_giver(group, number);
}

void pf_vm_add_candidate(PfFusionVm *vm)
{
	vm->n_candidates++;
	vm->group->fusion->stats.candidates++;
}

void pf_vm_remove_candidate(PfFusionVm *vm)
{
	vm->n_candidates--;
	vm->group->fusion->stats.candidates--;
}

/* As GArray allocates it. */
uint64_t pf_module_table_bytes(uint64_t n_modules)
{
	uint64_t n = n_modules > 0 ? 1 : 0;

	while (n < n_modules)
		n *= 2;
	return n * sizeof(PfModule);
}

uint64_t pf_vm_index_bytes(const PfFusionVm *vm)
{
	return vm->pages.count * (uint64_t)sizeof(PfPage) + pf_index_bytes(&vm->pages) +
	       vm->holders.count * (uint64_t)(sizeof(PfHolder) + sizeof(PfEntry) + SLOT_BYTES) +
	       pf_index_bytes(&vm->holders) + vm->module_slots * sizeof(uint32_t) +
	       pf_module_table_bytes(vm->modules->len) +
	       giver_at(vm->group, vm->giver)->range_bytes;
}

/* Whether the memory of all together lets the VM have more. */
static bool has_share(const PfFusionVm *vm, uint64_t more)
{
	const PfFusion *fusion = vm->group->fusion;
	uint64_t limit = fusion->memory_limit;
	uint64_t total =
		fusion->memory_bytes + more + fusion->n_capturing * (uint64_t)PF_LAYOUT_RANGE_BYTES;

	if (limit == 0 || total < limit / 2)
		return true;
	return total < limit && pf_vm_index_bytes(vm) <= (limit - total) / fusion->vms->len;
}

/* By which pools and tables grow for a page that is new, with a digest that is. module: of its hint; NULL: it has none. */
static uint64_t page_growth(const PfFusionVm *vm, const PfModule *module)
{
	const PfFusionGroup *group = vm->group;

	return pf_pool_growth(&group->pages) + pf_pool_growth(&group->holders) +
	       pf_pool_growth(&group->entries) + pf_index_growth(&group->digests, 1) +
	       pf_index_growth(&vm->pages, 1) + pf_index_growth(&vm->holders, 1) +
	       (module ? pf_index_growth(&module->pages, 1) : 0);
}

static bool has_memory(const PfFusionVm *vm, const PfModule *module)
{
	return pf_vm_index_bytes(vm) < vm->limits.index_bytes &&
	       has_share(vm, page_growth(vm, module));
}

bool pf_vm_takes_hint(const PfFusionVm *vm, uint32_t page, const PfModule *module)
{
	bool fused = page != 0 && pf_page(vm->group, page)->state == PF_HINT_FUSED;

	return (fused || vm->n_candidates < vm->limits.candidates) && has_memory(vm, module);
}

bool pf_vm_takes_listed(const PfFusionVm *vm)
{
	return pf_vm_index_bytes(vm) < vm->limits.index_bytes &&
	       has_share(vm, page_growth(vm, NULL) + pf_index_growth(&vm->group->frames, 1));
}

bool pf_vm_takes_module(const PfFusionVm *vm, uint32_t module_id)
{
	uint64_t n = vm->modules->len, more;

	if (module_id < n)
		return true;
	more = pf_module_table_bytes((uint64_t)module_id + 1) - pf_module_table_bytes(n);
	return pf_vm_index_bytes(vm) + more < vm->limits.index_bytes && has_share(vm, more);
}

bool pf_vm_may_give(const PfFusionVm *vm)
{
	uint64_t n_frames = giver_at(vm->group, vm->giver)->n_frames + (uint64_t)vm->n_capturing;
	uint64_t ranges = (vm->n_capturing + UINT64_C(1)) * PF_LAYOUT_RANGE_BYTES;
	uint64_t n_more = vm->group->fusion->n_capturing + UINT64_C(1);

	return n_frames < vm->limits.frames && vm->n_given < MAX_GIVEN &&
	       pf_vm_index_bytes(vm) + ranges <= vm->limits.index_bytes &&
	       has_share(vm, PF_LAYOUT_RANGE_BYTES + pf_index_growth(&vm->group->frames, n_more));
}

static uint64_t percent_of(uint64_t whole, uint64_t percent)
{
	return whole / 100 * percent + whole % 100 * percent / 100;
}

void pf_fusion_set_policy(PfFusionVm *vm, const PfPolicy *policy, uint64_t memory_pages)
{
	uint64_t pages = MIN(memory_pages, PF_GFN_END);

	assert(policy->admission > 0);
	vm->limits = (PfVmLimits){
		.candidates = percent_of(pages, policy->candidates_percent),
		.frames = percent_of(pages, policy->frames_percent),
		.index_bytes = percent_of(pages * PF_PAGE_SIZE, policy->index_memory_percent),
	};
	if (vm->group->admission == policy->admission)
		return;
	vm->group->admission = policy->admission;
	pf_group_readmit(vm->group);
}

uint64_t pf_fusion_sure_hints(const PfFusionVm *vm)
{
	const uint64_t page_bytes =
		sizeof(PfPage) + sizeof(PfHolder) + sizeof(PfEntry) + UINT64_C(3) * SLOT_BYTES;

	return MIN(vm->limits.candidates, vm->limits.index_bytes / page_bytes);
}

void pf_fusion_set_memory_limit(PfFusion *fusion, uint64_t bytes)
{
	fusion->memory_limit = bytes;
}

void pf_fusion_set_capturing(PfFusionVm *vm, bool allowed)
{
	vm->capturing = allowed;
}

static PfFusionQuota quota_now(const PfFusionVm *vm)
{
	if (!has_memory(vm, NULL))
		return PF_QUOTA_INDEX;
	if (vm->n_candidates >= vm->limits.candidates)
		return PF_QUOTA_CANDIDATES;
	if ((vm->candidates.head != 0 || vm->spare_candidates.head != 0) && !pf_vm_may_give(vm))
		return PF_QUOTA_FRAMES;
	return PF_QUOTA_NONE;
}

void pf_fusion_vm_stats(const PfFusionVm *vm, PfFusionVmStats *stats)
{
	*stats = vm->stats;
	stats->quota = quota_now(vm);
}
