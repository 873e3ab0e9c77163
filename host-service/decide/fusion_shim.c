/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is known of a shim: that it went away, what it maps when it is back, and what it has lost.
 *
 * A shim goes on alone. While it is away, a page that is FUSED may be revoked, and a page that is
 * ORDERED may be fused, or fused and revoked; nothing else can become mapped, since nothing else was
 * ordered. So both states stand, each holding its frame, until the shim says what it maps. The list is
 * the truth then: what it names is FUSED, whatever it was before, and what it does not name is neither
 * FUSED nor ORDERED. Pages that were listed carry a mark until the end of the list.
 *
 * It can say no more than that of frames of our own: what the page was neither FUSED nor ORDERED to, no honest shim maps
 * there. Else it could name any frame of the store, without having its bytes, and so keep for ever what others gave and
 * are charged with.
 *
 * A list may also name frames of an earlier service, at any page. Their bytes are hashed again, and a frame whose
 * digest has none yet becomes that digest's frame. Else there are two frames with the same bytes: the
 * page has to give up the one that came late, for an index by digest can hold one only.
 *
 * A VM that was never heard of is not known: it may map any frame of an earlier service that it was
 * given, of this group or another. The knowledge stays when the shim goes away again.
 */
#include "host-service/decide/fusion_private.h"
#include "host-service/service/store.h"
#include <errno.h>

#define LOST_MAX_MISSES 65536u /* in one call; beyond that, the shim is not worth our time */

/* The page is FUSED or ORDERED, and is to be settled in any way now. */
static void leave_target(PfFusionVm *vm, uint32_t page)
{
	PfPage *p = pf_page(vm->group, page);

	if (p->state == PF_HINT_FUSED) {
		pf_entry_unmap(vm, page);
	} else {
		pf_entry_answered(vm->group, p->target);
		vm->n_ordered--;
	}
	p->listed = 0;
}

/* The page was FUSED and is no longer. A hint for the bytes that it was fused for needs a new report. */
static void settle_unmapped(PfFusionVm *vm, uint32_t page)
{
	if (pf_page_hinted_entry(vm->group, page) == pf_page(vm->group, page)->target)
		pf_page_settle_dropped(vm, page);
	else
		pf_page_settle_new(vm, page);
}

/* The page is FUSED or ORDERED, and its shim does not map it so. */
static void settle_not_listed(PfFusionVm *vm, uint32_t page)
{
	bool fused = pf_page(vm->group, page)->state == PF_HINT_FUSED;

	leave_target(vm, page);
	if (fused)
		settle_unmapped(vm, page);
	else
		pf_page_settle(vm, page);
}

static bool has_target(const PfFusionVm *vm, uint32_t page)
{
	const PfPage *p = pf_page(vm->group, page);

	return p->state == PF_HINT_FUSED || p->state == PF_HINT_ORDERED;
}

void pf_vm_forget_mappings(PfFusionVm *vm)
{
	g_autoptr(GArray) pages = NULL;

	/* A shim may say as often as it likes that it maps nothing. */
	if (vm->stats.fused == 0 && vm->n_ordered == 0)
		return;
	pages = pf_vm_pages(vm, has_target);
	for (guint i = 0; i < pages->len; i++) {
		uint32_t page = g_array_index(pages, uint32_t, i);
		PfPage *p = pf_page(vm->group, page);

		if (p->state == PF_HINT_FUSED)
			p->since = (uint64_t)vm->group->fusion->now_us;
		leave_target(vm, page);
		pf_page_settle(vm, page);
	}
}

/* Takes all marks away. Returns the pages that had none and are FUSED or ORDERED; to be freed by the caller. */
static GArray *clear_marks(PfFusionVm *vm)
{
	GArray *unmarked = g_array_new(FALSE, FALSE, sizeof(uint32_t));

	for (uint32_t i = 0; i < vm->pages.capacity; i++) {
		uint32_t page = vm->pages.slots[i];
		PfPage *p = page != 0 ? pf_page(vm->group, page) : NULL;

		if (p && !p->listed && has_target(vm, page))
			g_array_append_val(unmarked, page);
		if (p)
			p->listed = 0;
	}
	return unmarked;
}

static void shim_is_away(PfFusionVm *vm)
{
	pf_vm_void_orders(vm);
	if (vm->shim == PF_VM_SHIM_LISTING)
		g_array_unref(clear_marks(vm));
	vm->shim = PF_VM_SHIM_AWAY;
}

static void shim_is_here(PfFusionVm *vm)
{
	vm->shim = PF_VM_SHIM_HERE;
	vm->group->fusion->n_unknown -= !vm->known;
	vm->known = true;
}

void pf_fusion_shim_away(PfFusionVm *vm)
{
	shim_is_away(vm);
	vm->ready = false;
}

void pf_fusion_shim_empty(PfFusionVm *vm)
{
	shim_is_away(vm);
	pf_vm_forget_mappings(vm);
	shim_is_here(vm);
}

void pf_fusion_list_begin(PfFusionVm *vm)
{
	shim_is_away(vm);
	vm->shim = PF_VM_SHIM_LISTING;
}

/* The entry that gets the frame now, as one of an earlier service; 0: it has to be released. */
static uint32_t adopt_frame(
	PfFusionGroup *group, uint64_t frame, PfFrameDigest digest_of, void *userdata)
{
	PfDigest digest;
	uint32_t entry;

	if (frame < PF_STORE_FIRST_FRAME || frame >= group->first_own)
		return 0;
	if (!digest_of(userdata, (PfFrame){frame}, &digest))
		return 0;
	entry = pf_entry_get(group, &digest);
	if (pf_entry(group, entry)->state == PF_ENTRY_FRAMED)
		return 0;
	pf_entry_framed(group, entry, (uint32_t)frame, NULL);
	return entry;
}

/* Then nothing new has to be remembered. */
static bool is_target(const PfFusionVm *vm, uint32_t page, uint32_t entry)
{
	return page != 0 && entry != 0 && has_target(vm, page) &&
	       pf_page(vm->group, page)->target == entry;
}

static void page_listed(PfFusionVm *vm, uint32_t page, uint32_t entry)
{
	PfPage *p = pf_page(vm->group, page);

	if (p->state != PF_HINT_FUSED || p->target != entry) {
		if (has_target(vm, page))
			leave_target(vm, page);
		pf_page_fused(vm, page, entry);
	}
	p->listed = 1;
}

int pf_fusion_listed(PfFusionVm *vm, PfGfn gfn, PfFrame frame, PfFrameDigest digest_of,
	void *userdata, int64_t now_us)
{
	uint32_t entry, page;

	assert(vm->shim == PF_VM_SHIM_LISTING);
	pf_fusion_set_now(vm->group->fusion, now_us);
	if (gfn.v >> PF_GFN_BITS)
		return 1;
	page = pf_page_find(vm, gfn.v);
	entry = pf_frame_find(vm->group, frame.v);
	if (!is_target(vm, page, entry) &&
		(frame.v >= vm->group->first_own || !pf_vm_takes_listed(vm)))
		entry = 0;
	else if (entry == 0)
		entry = adopt_frame(vm->group, frame.v, digest_of, userdata);
	if (entry != 0) {
		page_listed(vm, page != 0 ? page : pf_page_add(vm, gfn.v), entry);
		return 0;
	}
	if (page != 0 && has_target(vm, page))
		settle_not_listed(vm, page);
	return 1;
}

void pf_fusion_list_end(PfFusionVm *vm, int64_t now_us)
{
	g_autoptr(GArray) missing = NULL;

	assert(vm->shim == PF_VM_SHIM_LISTING);
	pf_fusion_set_now(vm->group->fusion, now_us);
	missing = clear_marks(vm);
	for (guint i = 0; i < missing->len; i++)
		settle_not_listed(vm, g_array_index(missing, uint32_t, i));
	shim_is_here(vm);
}

/* Also one that was ordered before the shim went away, and has been fused since. */
static bool may_be_mapped(const PfFusionVm *vm, uint32_t page, uint64_t frame)
{
	const PfPage *p = pf_page(vm->group, page);
	bool fused = p->state == PF_HINT_FUSED;
	bool may_be = p->state == PF_HINT_ORDERED && vm->shim != PF_VM_SHIM_HERE;

	return (fused || may_be) && pf_entry(vm->group, p->target)->frame == frame;
}

static bool page_lost(PfFusionVm *vm, uint64_t gfn, uint64_t frame, PfShimLoss loss)
{
	uint32_t page = pf_page_find(vm, gfn);

	if (page == 0 || !may_be_mapped(vm, page, frame))
		return false;
	leave_target(vm, page);
	if (loss == PF_SHIM_LOST_REVOKED) {
		pf_page_revoked(vm, page);
		vm->stats.revoked++;
		vm->group->fusion->stats.revoked++;
	}
	if (loss == PF_SHIM_LOST_RELEASED)
		pf_page_settle_new(vm, page); /* its bytes are what they were */
	else
		settle_unmapped(vm, page);
	return true;
}

int pf_fusion_lost(
	PfFusionVm *vm, PfGfn gfn, PfFrame frame, uint32_t n_pages, PfShimLoss loss, int64_t now_us)
{
	uint32_t misses = 0;

	pf_fusion_set_now(vm->group->fusion, now_us);
	for (uint32_t i = 0; i < n_pages && misses < LOST_MAX_MISSES; i++) {
		if (!page_lost(vm, gfn.v + i, frame.v + i, loss))
			misses++;
	}
	return misses > 0 && vm->shim == PF_VM_SHIM_HERE ? -EPROTO : 0;
}
