/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What a PfFusion is told, and what is really so: stores, and the shims of a few VMs. RAM and store
 * are a byte a page: its content, of which the digest is made.
 *
 * A shim has two maps: what it really maps, and what it has told. They differ while it is away: then it
 * goes on alone, loses pages, and carries out orders that it still holds. The property for which all
 * this is kept: no frame is freed that a shim maps, or could map by an order that it holds.
 */
#include "host-service/decide/fusion_private.h"
#include <stdio.h>
#include <stdlib.h>

#define N_VMS     5u
#define N_GROUPS  2u
#define N_GFNS    48u
#define FIRST_GFN 488u /* the pages lie on both sides of the border of a huge page */
#define N_CONTENT 12u
#define N_FRAMES  4096u
#define FIRST     512 /* frame */

#define NEVER (-1) /* a frame that was never written */
#define GONE  (-2) /* and one that was freed */

/* A failed assertion would vanish with NDEBUG; a broken rule must always end the run. */
#define MUST(condition)                                                                            \
	do {                                                                                       \
		if (!(condition))                                                                  \
			die(#condition, __LINE__);                                                 \
	} while (0)

typedef enum ShimState {
	SHIM_UNHEARD,
	SHIM_AWAY,
	SHIM_HERE,
} ShimState;

typedef struct ModelVm {
	PfFusionVm *vm;
	unsigned group;
	ShimState state;
	unsigned given; /* bits: groups whose store of an earlier service its process was given */
	unsigned foreign_group; /* not yet heard of, it may map a frame of another group: */
	int64_t foreign;        /* that frame, or -1 */
	PfThp thp;
	uint64_t max_candidates, max_frames, max_index_bytes; /* its quotas */
	GQueue orders; /* of PfOrder, owned: what the shim still holds */
	uint8_t ram[N_GFNS];
	int64_t mapped[N_GFNS]; /* frame, or -1 */
	int64_t told[N_GFNS];   /* likewise */
} ModelVm;

typedef struct ModelStore {
	int16_t frames[N_FRAMES]; /* content, or NEVER or GONE */
	uint8_t givers[N_FRAMES]; /* the VM that gave it, plus one; 0: nobody that is here */
	int64_t first_own;        /* frames below are of an earlier service; 0: there was none */
	bool used;                /* a frame was published */
} ModelStore;

typedef struct Model {
	PfFusion *fusion;
	int64_t now_us;
	bool no_memory;
	bool pressure;
	uint64_t memory_limit; /* 0: none */
	uint64_t n_freed;
	ModelVm vms[N_VMS];
	ModelStore stores[N_GROUPS];
} Model;

typedef struct Publish {
	ModelStore *store;
	bool no_memory;
	const PfDigest *digests;
	uint8_t giver; /* VM, plus one */
} Publish;

static void die(const char *what, int line)
{
	fprintf(stderr, "line %d: %s\n", line, what);
	abort();
}

static PfDigest model_digest(unsigned content)
{
	PfDigest digest = {{(uint8_t)content, 1}};

	return digest;
}

static PfGfn model_gfn(uint64_t page)
{
	return (PfGfn){FIRST_GFN + page};
}

static ModelStore *model_store(Model *model, const ModelVm *m)
{
	return &model->stores[m->group];
}

static void forget_store(ModelStore *store)
{
	*store = (ModelStore){.used = false};
	for (unsigned i = 0; i < N_FRAMES; i++)
		store->frames[i] = NEVER;
}

static void drop_orders(ModelVm *m)
{
	PfOrder *order;

	while ((order = g_queue_pop_head(&m->orders)))
		g_free(order);
}

static void map_nothing(ModelVm *m)
{
	m->foreign = -1;
	for (unsigned i = 0; i < N_GFNS; i++)
		m->mapped[i] = m->told[i] = -1;
}

static bool publish(void *userdata, uint32_t page_of_order, PfFrame frame)
{
	Publish *p = userdata;

	MUST((int64_t)frame.v >= MAX(FIRST, p->store->first_own));
	if (p->no_memory || frame.v >= N_FRAMES)
		return false;
	MUST(p->store->frames[frame.v] == NEVER);
	p->store->frames[frame.v] = p->digests[page_of_order].bytes[0];
	p->store->givers[frame.v] = p->giver;
	p->store->used = true;
	return true;
}

/* Frames that the VM has given and that are there still, and pages in orders to capture, of a shim that is here. */
static uint64_t model_given(Model *model, const ModelVm *m)
{
	const ModelStore *store = model_store(model, m);
	uint64_t n = 0;

	for (unsigned i = 0; i < N_FRAMES; i++)
		n += store->frames[i] >= 0 && store->givers[i] == m - model->vms + 1;
	for (GList *link = m->orders.head; link; link = link->next) {
		const PfOrder *order = link->data;

		n += order->type == PF_ORDER_CAPTURE ? order->n_pages : 0;
	}
	return n;
}

static void forget_giver(Model *model, const ModelVm *m)
{
	ModelStore *store = model_store(model, m);

	for (unsigned i = 0; i < N_FRAMES; i++) {
		if (store->givers[i] == m - model->vms + 1)
			store->givers[i] = 0;
	}
}

static bool order_names(const PfOrder *order, uint64_t frame)
{
	for (uint32_t i = 0; order->type == PF_ORDER_FUSE && i < order->n_runs; i++) {
		const PfOrderRun *run = &order->runs[i];

		if (frame >= run->frame.v && frame - run->frame.v < run->n_pages)
			return true;
	}
	return false;
}

static bool could_map(const ModelVm *m, int64_t frame)
{
	for (unsigned i = 0; i < N_GFNS; i++) {
		if (m->mapped[i] == frame || m->told[i] == frame)
			return true;
	}
	for (GList *link = m->orders.head; link; link = link->next) {
		if (order_names(link->data, (uint64_t)frame))
			return true;
	}
	return false;
}

static bool is_unheard_member(const ModelVm *m, unsigned group)
{
	return m->vm && m->state == SHIM_UNHEARD && (m->given & 1u << group) != 0;
}

static void frame_freed(void *userdata, const char *group, PfFrame frame)
{
	Model *model = userdata;
	unsigned number = g_str_equal(group, "one") ? 0 : 1;
	ModelStore *store = &model->stores[number];
	bool old = (int64_t)frame.v < store->first_own;

	MUST(frame.v < N_FRAMES && store->frames[frame.v] >= 0);
	for (unsigned i = 0; i < N_VMS; i++) {
		const ModelVm *m = &model->vms[i];

		if (!m->vm)
			continue;
		MUST(m->foreign != (int64_t)frame.v || m->foreign_group != number);
		MUST(m->group != number || !could_map(m, (int64_t)frame.v));
		MUST(!old || !is_unheard_member(m, number));
	}
	store->frames[frame.v] = GONE;
	model->n_freed++;
}

static bool frame_digest(void *userdata, PfFrame frame, PfDigest *digest)
{
	const ModelStore *store = userdata;

	MUST((int64_t)frame.v >= FIRST && (int64_t)frame.v < store->first_own);
	if (frame.v >= N_FRAMES || store->frames[frame.v] < 0)
		return false;
	*digest = model_digest((unsigned)store->frames[frame.v]);
	return true;
}

/* So much memory is used that a VM may not get the chunks and tables that one page needs at worst. */
static bool model_is_tight(const Model *model)
{
	uint64_t growth = 160 * 1024 + model->fusion->n_capturing * (uint64_t)PF_LAYOUT_RANGE_BYTES;

	return model->memory_limit > 0 &&
	       model->fusion->memory_bytes + growth >= model->memory_limit / 2;
}

/* The service knows that the page is mapped so, or has ordered it. */
static bool model_is_target(const ModelVm *m, unsigned page, int64_t frame)
{
	const PfFusionGroup *group = m->vm->group;
	uint32_t number = pf_page_find(m->vm, model_gfn(page).v);
	const PfPage *p = number != 0 ? pf_page(group, number) : NULL;

	return p && (p->state == PF_HINT_FUSED || p->state == PF_HINT_ORDERED) &&
	       pf_entry(group, p->target)->frame == frame;
}

/* One item of its list, as if it were mapped so. */
static void model_list(Model *model, ModelVm *m, unsigned page, int64_t frame)
{
	ModelStore *store = model_store(model, m);
	bool exists = frame < (int64_t)N_FRAMES && store->frames[frame] >= 0;
	bool own = frame >= store->first_own, ordered = model_is_target(m, page, frame);
	bool full = pf_vm_index_bytes(m->vm) >= m->max_index_bytes || model_is_tight(model);
	int r = pf_fusion_listed(m->vm, model_gfn(page), (PfFrame){(uint64_t)frame}, frame_digest,
		store, model->now_us);

	MUST(r == 0 || r == 1);
	MUST(exists || r == 1);
	MUST(!own || r == 1 || ordered);
	MUST(!(exists && ordered) || r == 0 || full);
	/* What is refused is released at once. */
	m->mapped[page] = m->told[page] = r == 0 ? frame : -1;
}

static void model_away(ModelVm *m)
{
	pf_fusion_shim_away(m->vm);
	if (m->state == SHIM_HERE)
		m->state = SHIM_AWAY;
}

static void model_empty(ModelVm *m)
{
	drop_orders(m);
	map_nothing(m);
	pf_fusion_shim_empty(m->vm);
	m->state = SHIM_HERE;
}

/* The guest, or the shim, has given the page up. */
static void model_lose(ModelVm *m, unsigned page)
{
	m->mapped[page] = -1;
	if (m->state == SHIM_HERE)
		m->told[page] = -1;
}
