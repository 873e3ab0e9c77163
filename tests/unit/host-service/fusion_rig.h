/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * VMs with honest shims, and stores, around a PfFusion: RAM is a number a page, its content, of
 * which the digest is made. Everything that fusion asks for is checked against what RAM and stores
 * really hold.
 */
#include "host-service/decide/fusion.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <errno.h>

typedef struct Rig {
	PfFusion *fusion;
	int64_t now_us;
	GPtrArray *vms;    /* RigVm */
	GHashTable *store; /* group and frame -> content + 1 */
	GHashTable *gone;  /* group and frame: freed */
	bool no_memory;    /* publishing fails */
	uint32_t n_published, n_refused, n_freed, n_hashed;
} Rig;

typedef struct RigVm {
	Rig *rig;
	PfFusionVm *vm;
	uint32_t group;
	uint32_t given; /* bits: groups whose store of an earlier service its process was given */
	uint64_t n_pages;
	uint32_t *ram;
	int64_t *mapped;  /* frame, or -1 */
	uint8_t *results; /* PfShimResult that its shim gives for the page, if DONE is no lie */
	uint32_t n_run_pages[PF_SHIM_RUN_PAGES + 1]; /* FUSE runs by length */
} RigVm;

static inline int64_t *rig_key(uint32_t group, uint64_t frame)
{
	int64_t key = (int64_t)((uint64_t)group << 40 | frame);

	return g_memdup2(&key, sizeof(key));
}

/* Its content + 1; 0: there is no such frame. */
static inline uint32_t rig_stored(const Rig *rig, uint32_t group, uint64_t frame)
{
	g_autofree int64_t *key = rig_key(group, frame);

	return GPOINTER_TO_UINT(g_hash_table_lookup(rig->store, key));
}

static inline void rig_store(Rig *rig, uint32_t group, uint64_t frame, uint32_t content)
{
	g_autofree int64_t *key = rig_key(group, frame);

	assert_false(g_hash_table_contains(rig->store, key));
	assert_false(g_hash_table_contains(rig->gone, key));
	g_hash_table_insert(rig->store, g_steal_pointer(&key), GUINT_TO_POINTER(content + 1));
}

static inline PfDigest rig_digest(uint32_t content)
{
	PfDigest digest = {{0}};

	memcpy(digest.bytes, &content, sizeof(content));
	return digest;
}

static inline void rig_init(Rig *rig)
{
	*rig = (Rig){
		.fusion = pf_fusion_new(&PF_FUSION_DEFAULTS),
		.now_us = 5000000,
		.vms = g_ptr_array_new(),
		.store = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL),
		.gone = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL),
	};
}

static inline void rig_check(const Rig *rig)
{
	const char *broken = pf_fusion_check(rig->fusion);

	if (broken)
		fail_msg("%s", broken);
}

/*
 * A VM of which nothing was heard yet, and which was given the group's store, if there was one. group: a digit. RAM is
 * filled with contents that no other page of the group has.
 */
static inline RigVm *rig_add_unknown(Rig *rig, uint32_t group, uint64_t n_pages)
{
	char name[] = {(char)('0' + group), 0};
	PfModuleInfo info = {NULL, 0, "module", PF_SESSION_MAX_MODULE_PAGES};
	RigVm *m = g_new0(RigVm, 1);

	m->rig = rig;
	m->group = group;
	m->given = 1u << group;
	m->n_pages = n_pages;
	m->ram = g_new(uint32_t, n_pages);
	m->mapped = g_new(int64_t, n_pages);
	m->results = g_new0(uint8_t, n_pages);
	for (uint64_t i = 0; i < n_pages; i++) {
		m->ram[i] = (uint32_t)(rig->vms->len << 20 | 0x80000000u | i);
		m->mapped[i] = -1;
	}
	m->vm = pf_fusion_add_vm(rig->fusion, name, m);
	pf_fusion_set_ready(m->vm, true);
	pf_fusion_module(m->vm, 0, &info);
	g_ptr_array_add(rig->vms, m);
	return m;
}

/* Likewise, and its shim is new. */
static inline RigVm *rig_add(Rig *rig, uint32_t group, uint64_t n_pages)
{
	RigVm *m = rig_add_unknown(rig, group, n_pages);

	pf_fusion_shim_empty(m->vm);
	return m;
}

static inline void rig_remove(RigVm *m)
{
	g_ptr_array_remove(m->rig->vms, m);
	pf_fusion_remove_vm(m->vm);
	g_free(m->ram);
	g_free(m->mapped);
	g_free(m->results);
	g_free(m);
}

static inline void rig_deinit(Rig *rig)
{
	PfFusionStats stats;

	rig_check(rig);
	while (rig->vms->len > 0)
		rig_remove(rig->vms->pdata[0]);
	rig_check(rig);
	pf_fusion_stats(rig->fusion, &stats);
	assert_int_equal(stats.frames, 0);
	assert_int_equal(stats.shared, 0);
	assert_int_equal(stats.candidates, 0);
	pf_fusion_free(rig->fusion);
	g_ptr_array_unref(rig->vms);
	g_hash_table_unref(rig->store);
	g_hash_table_unref(rig->gone);
}

/* The pages hold content and what counts up from it, and are hinted so. */
static inline void rig_fill(RigVm *m, uint64_t gfn, uint32_t n_pages, uint32_t content)
{
	for (uint32_t i = 0; i < n_pages; i++)
		m->ram[gfn + i] = content + i;
}

static inline void rig_hint_only(
	RigVm *m, uint64_t file_page, uint64_t gfn, uint32_t n_pages, uint32_t content)
{
	g_autofree PfDigest *digests = g_new(PfDigest, n_pages);

	for (uint32_t i = 0; i < n_pages; i++)
		digests[i] = rig_digest(content + i);
	pf_fusion_hints(m->vm, 0, file_page, (PfGfn){gfn}, n_pages, digests, m->rig->now_us);
}

static inline void rig_hint(
	RigVm *m, uint64_t file_page, uint64_t gfn, uint32_t n_pages, uint32_t content)
{
	rig_fill(m, gfn, n_pages, content);
	rig_hint_only(m, file_page, gfn, n_pages, content);
}

static inline bool rig_next(RigVm *m, PfOrder *order)
{
	if (!pf_fusion_next_order(m->vm, order, m->rig->now_us))
		return false;
	for (uint32_t i = 0; order->type == PF_ORDER_FUSE && i < order->n_runs; i++) {
		assert_in_range(order->runs[i].n_pages, 1, PF_SHIM_RUN_PAGES);
		m->n_run_pages[order->runs[i].n_pages]++;
	}
	return true;
}

typedef struct RigCapture {
	RigVm *m;
	const PfDigest *digests;
} RigCapture;

static inline bool rig_publish(void *userdata, uint32_t page_of_order, PfFrame frame)
{
	const RigCapture *capture = userdata;
	Rig *rig = capture->m->rig;
	uint32_t content;

	if (rig->no_memory) {
		rig->n_refused++;
		return false;
	}
	memcpy(&content, capture->digests[page_of_order].bytes, sizeof(content));
	rig_store(rig, capture->m->group, frame.v, content);
	rig->n_published++;
	return true;
}

static inline int rig_answer_capture(RigVm *m, const PfOrder *order)
{
	uint8_t results[PF_SHIM_MAX_CAPTURE];
	PfDigest digests[PF_SHIM_MAX_CAPTURE];
	RigCapture userdata = {m, digests};
	PfCapture capture = {results, digests, rig_publish, &userdata, NULL};
	uint32_t n = 0;

	for (uint32_t i = 0; i < order->n_runs; i++) {
		for (uint32_t k = 0; k < order->runs[i].n_pages; k++, n++) {
			results[n] = m->results[order->runs[i].gfn.v + k];
			digests[n] = rig_digest(m->ram[order->runs[i].gfn.v + k]);
		}
	}
	return pf_fusion_captured(m->vm, order->id, n, &capture, m->rig->now_us);
}

static inline uint8_t rig_fuse_page(RigVm *m, uint64_t gfn, uint64_t frame)
{
	uint32_t content = rig_stored(m->rig, m->group, frame);

	assert_int_not_equal(content, 0);
	assert_int_equal(m->mapped[gfn], -1);
	if (m->results[gfn] != PF_SHIM_DONE)
		return m->results[gfn];
	if (content - 1 != m->ram[gfn])
		return PF_SHIM_DIFFERENT;
	m->mapped[gfn] = (int64_t)frame;
	return PF_SHIM_DONE;
}

static inline int rig_answer_fuse(RigVm *m, const PfOrder *order)
{
	g_autofree uint8_t *results = g_malloc(order->n_pages);
	uint32_t n = 0;

	for (uint32_t i = 0; i < order->n_runs; i++) {
		const PfOrderRun *run = &order->runs[i];

		for (uint32_t k = 0; k < run->n_pages; k++)
			results[n++] = rig_fuse_page(m, run->gfn.v + k, run->frame.v + k);
	}
	return pf_fusion_fused(m->vm, order->id, n, results, m->rig->now_us);
}

static inline void rig_answer(RigVm *m, const PfOrder *order)
{
	assert_int_equal(order->type == PF_ORDER_CAPTURE ? rig_answer_capture(m, order)
							 : rig_answer_fuse(m, order),
		0);
}

/* Carries out every order that there is, one VM after the other, until nobody has any. */
static inline void rig_run(Rig *rig)
{
	g_autofree PfOrder *order = g_new(PfOrder, 1);
	bool more = true;

	while (more) {
		more = false;
		for (guint i = 0; i < rig->vms->len; i++) {
			while (rig_next(rig->vms->pdata[i], order)) {
				rig_answer(rig->vms->pdata[i], order);
				more = true;
			}
		}
	}
}

static inline void rig_tick(Rig *rig, int64_t after_us)
{
	rig->now_us += after_us;
	pf_fusion_tick(rig->fusion, rig->now_us);
}

/* The guest writes to a fused page. */
static inline int rig_write(RigVm *m, uint64_t gfn, uint32_t content)
{
	uint64_t frame = (uint64_t)m->mapped[gfn];

	m->mapped[gfn] = -1;
	m->ram[gfn] = content;
	return pf_fusion_lost(
		m->vm, (PfGfn){gfn}, (PfFrame){frame}, 1, PF_SHIM_LOST_REVOKED, m->rig->now_us);
}

/* The shim maps nothing any more, and says so. */
static inline void rig_empty(RigVm *m)
{
	for (uint64_t i = 0; i < m->n_pages; i++)
		m->mapped[i] = -1;
	pf_fusion_shim_empty(m->vm);
}

static inline bool rig_digest_of(void *userdata, PfFrame frame, PfDigest *digest)
{
	const RigVm *m = userdata;
	uint32_t content = rig_stored(m->rig, m->group, frame.v);

	m->rig->n_hashed++;
	*digest = rig_digest(content - 1);
	return content != 0;
}

static inline int rig_listed(RigVm *m, uint64_t gfn, uint64_t frame)
{
	return pf_fusion_listed(
		m->vm, (PfGfn){gfn}, (PfFrame){frame}, rig_digest_of, m, m->rig->now_us);
}

/* The shim lists what it maps, and makes private again what has no place here; how many pages that was. */
static inline uint32_t rig_list(RigVm *m)
{
	uint32_t n_released = 0;

	pf_fusion_list_begin(m->vm);
	for (uint64_t i = 0; i < m->n_pages; i++) {
		if (m->mapped[i] < 0 || rig_listed(m, i, (uint64_t)m->mapped[i]) == 0)
			continue;
		m->mapped[i] = -1;
		n_released++;
	}
	rig_check(m->rig);
	pf_fusion_list_end(m->vm, m->rig->now_us);
	rig_check(m->rig);
	return n_released;
}

/* Nobody may map it, whatever is known of the VM. */
static inline void rig_freed(void *userdata, const char *group, PfFrame frame)
{
	Rig *rig = userdata;
	uint32_t number = (uint32_t)(group[0] - '0');
	int64_t *key = rig_key(number, frame.v);

	for (guint i = 0; i < rig->vms->len; i++) {
		const RigVm *m = rig->vms->pdata[i];

		for (uint64_t k = 0; m->group == number && k < m->n_pages; k++)
			assert_int_not_equal(m->mapped[k], (int64_t)frame.v);
	}
	assert_true(g_hash_table_remove(rig->store, key));
	assert_true(g_hash_table_add(rig->gone, key));
	rig->n_freed++;
}

/* As the service does it: a group is complete when all are known that its store was given to. */
static inline void rig_update_complete(Rig *rig)
{
	for (uint32_t group = 0; group < 10; group++) {
		char name[] = {(char)('0' + group), 0};
		bool complete = true;

		for (guint i = 0; i < rig->vms->len; i++) {
			const RigVm *m = rig->vms->pdata[i];

			if (m->given & 1u << group)
				complete &= pf_fusion_vm_is_known(m->vm);
		}
		pf_fusion_set_complete(rig->fusion, name, complete);
	}
}

/* How many frames could be freed. */
static inline uint32_t rig_free(Rig *rig)
{
	uint32_t before = rig->n_freed;

	rig_update_complete(rig);
	assert_true(pf_fusion_free_unused(rig->fusion, UINT32_MAX, rig_freed, rig));
	rig_check(rig);
	return rig->n_freed - before;
}

static inline PfFusionVmStats rig_stats(const RigVm *m)
{
	PfFusionVmStats stats;

	pf_fusion_vm_stats(m->vm, &stats);
	return stats;
}

static inline PfFusionStats rig_total(const Rig *rig)
{
	PfFusionStats stats;

	pf_fusion_stats(rig->fusion, &stats);
	return stats;
}
