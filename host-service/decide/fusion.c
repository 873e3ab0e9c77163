/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The trust groups, their VMs, and what guests say; fusion.h has the life of a page.
 *
 * Everything is decided when something happens, from records that are found by hash: an event costs
 * a few steps for each page that it names, whatever the number of VMs. fusion_page.c has pages and
 * hints, fusion_entry.c digests and who shares them, fusion_frame.c frames and when they go,
 * fusion_order.c orders and results, fusion_quota.c what a VM may have, fusion_shim.c what is known of a shim,
 * fusion_layout.c the place of frames, fusion_check.c the rules that always hold between all of them. A hinted page of
 * a digest that several VMs have takes about 95 bytes.
 *
 * The worst that one message of a guest costs: hints, some steps for each page that they name. A withdrawal, what
 * is less of the pages in its ranges and the hints of its module (times a search in the ranges); the same for a module
 * that is declared again, and for a session that starts, all hints of the VM. What is taken away then had to be said
 * before; a withdrawal of what was never hinted walks over the module's hints and takes none, which is why its
 * time has to be charged to its VM. No message costs steps over what other VMs have hinted, but where a state of
 * their pages changes: when a frame comes, which takes a capture, or goes. fusion_entry.c has how they are found.
 *
 * Nothing passes from one trust group to another: each has its own records, indexes, frame numbers
 * and hash keys. A frame that nobody maps stays as long as enough VMs hint its digest; when the last
 * VM of the group leaves, the group goes with all its frames.
 *
 * The caller's clock is taken relative to its first value, and never goes back.
 */
#include "host-service/decide/fusion_private.h"
#include "host-service/service/store.h"
#include <errno.h>
#include <sys/random.h>

/* The last number means "no frame". */
#define LAYOUT_LIMIT (PF_LAYOUT_FRAMES - PF_LAYOUT_ALIGN)

/* Such that all its doublings can be computed. */
#define MAX_REVOKE_DELAY_US (INT64_C(3600) * 1000000)

PfFusion *pf_fusion_new(const PfFusionConfig *config)
{
	PfFusion *fusion = g_new0(PfFusion, 1);

	fusion->revoke_delay_us = CLAMP(config->revoke_delay_us, 0, MAX_REVOKE_DELAY_US);
	fusion->groups = g_hash_table_new(g_str_hash, g_str_equal);
	fusion->vms = g_ptr_array_new();
	return fusion;
}

void pf_fusion_free(PfFusion *fusion)
{
	assert(fusion->vms->len == 0);
	g_hash_table_unref(fusion->groups);
	g_ptr_array_unref(fusion->vms);
	g_free(fusion);
}

int64_t pf_fusion_set_now(PfFusion *fusion, int64_t now_us)
{
	int64_t elapsed_us;

	if (!fusion->started) {
		fusion->started = true;
		fusion->epoch_us = now_us;
	}
	if (!__builtin_sub_overflow(now_us, fusion->epoch_us, &elapsed_us))
		fusion->now_us = CLAMP(elapsed_us, fusion->now_us, PF_FUSION_MAX_US);
	return fusion->now_us;
}

/* Not GLib's numbers: without /dev/urandom, as in an empty root, it falls back to the time. */
static void draw(void *bytes, size_t size)
{
	if (getrandom(bytes, size, 0) != (ssize_t)size)
		g_error("the kernel has no random numbers: %s", g_strerror(errno));
}

static PfFusionGroup *group_get(PfFusion *fusion, const char *name)
{
	PfFusionGroup *group = g_hash_table_lookup(fusion->groups, name);

	if (group)
		return group;
	group = g_new0(PfFusionGroup, 1);
	group->fusion = fusion;
	group->name = g_strdup(name);
	draw(&group->seed, sizeof(group->seed));
	draw(&group->key, sizeof(group->key));
	group->admission = PF_FUSION_ADMISSION;
	group->vms = g_ptr_array_new();
	pf_pool_init(&group->pages, sizeof(PfPage), &fusion->memory_bytes);
	pf_pool_init(&group->holders, sizeof(PfHolder), &fusion->memory_bytes);
	pf_pool_init(&group->entries, sizeof(PfEntry), &fusion->memory_bytes);
	pf_pool_init(&group->givers, sizeof(PfGiver), &fusion->memory_bytes);
	group->unused = g_array_new(FALSE, FALSE, sizeof(uint32_t));
	group->unused_adopted = g_array_new(FALSE, FALSE, sizeof(uint32_t));
	pf_layout_init(&group->layout, PF_STORE_FIRST_FRAME, LAYOUT_LIMIT, pf_giver_charge_range,
		group, &fusion->memory_bytes);
	g_hash_table_insert(fusion->groups, group->name, group);
	return group;
}

static void group_free(PfFusionGroup *group)
{
	g_hash_table_remove(group->fusion->groups, group->name);
	group->fusion->stats.frames -= group->frames.count;
	pf_layout_deinit(&group->layout);
	g_array_unref(group->unused);
	g_array_unref(group->unused_adopted);
	pf_group_index_clear(group, &group->frames);
	pf_group_index_clear(group, &group->digests);
	pf_pool_deinit(&group->givers);
	pf_pool_deinit(&group->pages);
	pf_pool_deinit(&group->holders);
	pf_pool_deinit(&group->entries);
	g_ptr_array_unref(group->vms);
	g_free(group->name);
	g_free(group);
}

static uint32_t free_slot(PfFusionGroup *group)
{
	guint slot;

	if (g_ptr_array_find(group->vms, NULL, &slot))
		return slot;
	g_ptr_array_add(group->vms, NULL);
	return group->vms->len - 1;
}

PfFusionVm *pf_fusion_add_vm(PfFusion *fusion, const char *group_name, void *userdata)
{
	PfFusionGroup *group = group_get(fusion, group_name);
	PfFusionVm *vm = g_new0(PfFusionVm, 1);

	vm->group = group;
	vm->userdata = userdata;
	vm->thp = PF_THP_ALL;
	vm->modules = g_array_new(FALSE, TRUE, sizeof(PfModule));
	vm->orders = g_ptr_array_new_with_free_func((GDestroyNotify)pf_order_record_free);
	vm->slot = free_slot(group);
	vm->capturing = true;
	vm->limits = PF_NO_LIMITS;
	pf_giver_join(vm);
	group->vms->pdata[vm->slot] = vm;
	group->n_vms++;
	fusion->n_unknown++;
	g_ptr_array_add(fusion->vms, vm);
	return vm;
}

static void withdraw_module(PfFusionVm *vm, uint32_t module_id)
{
	pf_fusion_withdrawn(vm, module_id, &(PfFileRange){0, PF_SESSION_MAX_MODULE_PAGES}, 1);
}

static void forget_hints(PfFusionVm *vm)
{
	for (guint i = 0; i < vm->modules->len; i++)
		withdraw_module(vm, i);
	vm->group->fusion->memory_bytes -= pf_module_table_bytes(vm->modules->len);
	g_array_unref(vm->modules);
	vm->modules = g_array_new(FALSE, TRUE, sizeof(PfModule));
}

void pf_fusion_remove_vm(PfFusionVm *vm)
{
	PfFusionGroup *group = vm->group;

	forget_hints(vm);
	pf_vm_void_orders(vm);
	pf_vm_forget_mappings(vm);
	pf_giver_leave(vm);
	/* What is left are memories of revokes. */
	for (uint32_t i = 0; i < vm->pages.capacity; i++) {
		if (vm->pages.slots[i] != 0)
			pf_pool_give(&group->pages, vm->pages.slots[i]);
	}
	pf_group_index_clear(group, &vm->pages);
	g_array_unref(vm->modules);
	g_ptr_array_unref(vm->orders);
	g_ptr_array_remove_fast(group->fusion->vms, vm);
	group->vms->pdata[vm->slot] = NULL;
	group->fusion->n_unknown -= !vm->known;
	if (--group->n_vms == 0)
		group_free(group);
	g_free(vm);
}

void *pf_fusion_vm_userdata(const PfFusionVm *vm)
{
	return vm->userdata;
}

void pf_fusion_set_ready(PfFusionVm *vm, bool ready)
{
	vm->ready = ready;
}

void pf_fusion_set_thp(PfFusionVm *vm, PfThp thp)
{
	assert(thp != PF_THP_DEFAULT);
	if (vm->thp == thp)
		return;
	vm->thp = thp;
	pf_group_retry_huge(vm->group, vm);
}

void pf_fusion_set_pressure(PfFusion *fusion, bool pressure)
{
	bool begins = pressure && !fusion->pressure;
	GHashTableIter iter;
	gpointer group;

	fusion->pressure = pressure;
	g_hash_table_iter_init(&iter, fusion->groups);
	while (begins && g_hash_table_iter_next(&iter, NULL, &group))
		pf_group_retry_huge(group, NULL);
}

void pf_fusion_adopt_store(PfFusionVm *vm, uint64_t first_own)
{
	PfFusionGroup *group = vm->group;
	uint64_t next;

	first_own = MIN(first_own, LAYOUT_LIMIT);
	if (first_own <= group->first_own)
		return;
	assert(first_own <= PF_STORE_FIRST_FRAME || group->frames.count == 0);
	group->first_own = first_own;
	if (first_own <= PF_STORE_FIRST_FRAME)
		return;
	/* What could not be published so far had one of the earlier service's numbers, maybe. */
	next = MAX(first_own, group->layout.next);
	pf_layout_deinit(&group->layout);
	pf_layout_init(&group->layout, next, LAYOUT_LIMIT, pf_giver_charge_range, group,
		&group->fusion->memory_bytes);
}

void pf_fusion_set_complete(PfFusion *fusion, const char *group, bool complete)
{
	PfFusionGroup *found = g_hash_table_lookup(fusion->groups, group);

	if (found)
		found->complete = complete;
}

bool pf_fusion_is_complete(const PfFusion *fusion, const char *group)
{
	const PfFusionGroup *found = g_hash_table_lookup(fusion->groups, group);

	return found && found->complete;
}

bool pf_fusion_vm_is_known(const PfFusionVm *vm)
{
	return vm->known;
}

bool pf_fusion_knows_all(const PfFusion *fusion)
{
	return fusion->n_unknown == 0;
}

static uint64_t module_identity(const PfFusionGroup *group, const PfModuleInfo *info)
{
	PfHashKey other = {{~group->key.words[0], group->key.words[1]}};

	/* Two keys, so that no name can pass for a build-id. */
	if (info->build_id)
		return pf_hash_bytes(&group->key, info->build_id, info->build_id_size);
	return pf_hash_bytes(&other, info->name, strlen(info->name));
}

static int compare_to_range(const void *key, const void *element)
{
	uint64_t page = *(const uint64_t *)key;
	const PfFileRange *range = element;

	if (page < range->first_page)
		return -1;
	return page - range->first_page >= range->n_pages;
}

static void append_hinted_range(
	const PfFusionVm *vm, const PfModule *module, const PfFileRange *range, GArray *pages)
{
	for (uint64_t i = 0; i < range->n_pages && range->first_page + i < module->n_pages; i++) {
		uint32_t page = pf_page_by_file(vm, module, (uint32_t)(range->first_page + i));

		if (page != 0)
			g_array_append_val(pages, page);
	}
}

/*
 * The module's hinted pages in the ranges, which are ascending and disjoint. Costs what is less: the pages of the
 * ranges, or a search in the ranges for each of the module's hints.
 */
static GArray *hinted_pages(
	const PfFusionVm *vm, const PfModule *module, const PfFileRange *ranges, size_t n_ranges)
{
	const PfIndex *index = &module->pages;
	GArray *pages = g_array_new(FALSE, FALSE, sizeof(uint32_t));
	uint64_t n_pages = 0;

	for (size_t i = 0; i < n_ranges; i++)
		n_pages += MIN(ranges[i].n_pages, module->n_pages);
	for (size_t i = 0; n_pages < index->capacity && i < n_ranges; i++)
		append_hinted_range(vm, module, &ranges[i], pages);
	for (uint32_t i = 0; n_pages >= index->capacity && i < index->capacity; i++) {
		uint32_t page = index->slots[i];
		uint64_t file_page = page != 0 ? pf_page(vm->group, page)->file_page : 0;

		if (page != 0 &&
			bsearch(&file_page, ranges, n_ranges, sizeof *ranges, compare_to_range))
			g_array_append_val(pages, page);
	}
	return pages;
}

void pf_fusion_withdrawn(
	PfFusionVm *vm, uint32_t module_id, const PfFileRange *ranges, size_t n_ranges)
{
	const PfModule *module = pf_vm_module(vm, module_id);
	g_autoptr(GArray) pages = NULL;

	if (!module)
		return;
	pages = hinted_pages(vm, module, ranges, n_ranges);
	for (guint i = 0; i < pages->len; i++)
		pf_page_unhint(vm, g_array_index(pages, uint32_t, i));
}

void pf_fusion_session_started(PfFusionVm *vm)
{
	forget_hints(vm);
}

static void lengthen_module_table(PfFusionVm *vm, uint32_t n_modules)
{
	uint64_t before = pf_module_table_bytes(vm->modules->len);

	g_array_set_size(vm->modules, n_modules);
	vm->group->fusion->memory_bytes += pf_module_table_bytes(n_modules) - before;
}

void pf_fusion_module(PfFusionVm *vm, uint32_t module_id, const PfModuleInfo *info)
{
	PfModule *module;

	assert(module_id < PF_SESSION_MAX_MODULES);
	/* Its hints will be of no declared module then. */
	if (!pf_vm_takes_module(vm, module_id))
		return;
	withdraw_module(vm, module_id);
	if (module_id >= vm->modules->len)
		lengthen_module_table(vm, module_id + 1);
	module = &g_array_index(vm->modules, PfModule, module_id);
	module->identity = module_identity(vm->group, info);
	module->n_pages = (uint32_t)info->n_pages;
}

static void hint_page(PfFusionVm *vm, uint32_t module_id, uint32_t file_page, uint64_t gfn,
	const PfDigest *digest)
{
	PfFusionGroup *group = vm->group;
	uint32_t before = pf_page_by_file(vm, pf_vm_module(vm, module_id), file_page);
	uint32_t page;

	if (before != 0 && pf_page(group, before)->gfn != gfn) {
		pf_page_unhint(vm, before);
		before = 0;
	}
	page = pf_page_find(vm, gfn);
	if (before != 0 && pf_page_hinted_entry(group, page) == pf_entry_find(group, digest))
		return;
	/* What was said of it before is void in any case. */
	if (page != 0 && pf_page(group, page)->holder != 0) {
		pf_page_unhint(vm, page);
		page = pf_page_find(vm, gfn);
	}
	if (!pf_vm_takes_hint(vm, page, pf_vm_module(vm, module_id))) {
		vm->stats.over_quota++;
		return;
	}
	if (page == 0)
		page = pf_page_add(vm, gfn);
	pf_page_hint(vm, page, module_id, file_page, digest);
	if (pf_page(group, page)->state == PF_HINT_NONE)
		pf_page_settle_new(vm, page);
}

void pf_fusion_hints(PfFusionVm *vm, uint32_t module_id, uint64_t file_page, PfGfn gfn,
	uint32_t n_pages, const PfDigest *digests, int64_t now_us)
{
	const PfModule *module = pf_vm_module(vm, module_id);

	pf_fusion_set_now(vm->group->fusion, now_us);
	/* The session knows declared modules: it was not taken. */
	if (!module) {
		vm->stats.over_quota += n_pages;
		return;
	}
	for (uint32_t i = 0; i < n_pages; i++) {
		if (file_page + i >= module->n_pages || (gfn.v + i) >> PF_GFN_BITS)
			break;
		hint_page(vm, module_id, (uint32_t)(file_page + i), gfn.v + i, &digests[i]);
	}
}

void pf_fusion_foreach_pending(
	PfFusion *fusion, void (*wanted)(PfFusionVm *vm, void *userdata), void *userdata)
{
	guint n = fusion->vms->len, first = n > 0 ? fusion->turns++ % n : 0;

	/* Each in turn is the first: what one does not give, another comes to be asked for. */
	for (guint i = 0; i < n; i++) {
		PfFusionVm *vm = fusion->vms->pdata[(first + i) % n];

		if (pf_vm_has_orders(vm))
			wanted(vm, userdata);
	}
}

int64_t pf_fusion_next_tick_us(const PfFusion *fusion)
{
	GHashTableIter iter;
	gpointer group;
	uint32_t when, first = UINT32_MAX;

	if (fusion->room)
		return fusion->epoch_us + fusion->now_us;
	g_hash_table_iter_init(&iter, fusion->groups);
	while (g_hash_table_iter_next(&iter, NULL, &group)) {
		if (pf_group_next_tick(group, &when))
			first = MIN(first, when);
	}
	for (guint i = 0; i < fusion->vms->len; i++) {
		if (pf_vm_next_capture(fusion->vms->pdata[i], &when))
			first = MIN(first, when);
	}
	return first == UINT32_MAX ? -1 : fusion->epoch_us + (int64_t)first * PF_FUSION_TICK_US;
}

void pf_fusion_tick(PfFusion *fusion, int64_t now_us)
{
	GHashTableIter iter;
	gpointer group;

	pf_fusion_set_now(fusion, now_us);
	fusion->room = false;
	g_hash_table_iter_init(&iter, fusion->groups);
	while (g_hash_table_iter_next(&iter, NULL, &group))
		pf_group_tick(group);
}

void pf_fusion_stats(const PfFusion *fusion, PfFusionStats *stats)
{
	*stats = fusion->stats;
	stats->hint_to_fused_us_p90 = pf_latency_percentile(&fusion->latency, 90);
}
