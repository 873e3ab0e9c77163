/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The bytes are a sequence of calls: what the guests of two trust groups say, and what their shims
 * answer, honestly or not. RAM and store are a byte a page: its content, of which the digest is
 * made. A model beside it keeps what is mapped where; after each call the rules between the indexes
 * are checked, and the numbers against the model.
 */
#include "host-service/fusion.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define N_VMS     5u
#define N_GROUPS  2u
#define N_GFNS    48u
#define N_MODULES 4u
#define N_PAGES   40u
#define N_CONTENT 12u
#define N_FRAMES  4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A failed assertion would vanish with NDEBUG; a broken rule must always end the run. */
#define MUST(condition)                                                                            \
	do {                                                                                       \
		if (!(condition))                                                                  \
			die(#condition, __LINE__);                                                 \
	} while (0)

typedef struct Input {
	const uint8_t *data;
	size_t size;
} Input;

typedef struct ModelVm {
	PfFusionVm *vm;
	unsigned group;
	GQueue orders; /* of PfOrder, owned */
	uint8_t ram[N_GFNS];
	int64_t mapped[N_GFNS]; /* frame, or -1 */
} ModelVm;

typedef struct Model {
	PfFusion *fusion;
	int64_t now_us;
	bool no_memory;
	ModelVm vms[N_VMS];
	int16_t store[N_GROUPS][N_FRAMES]; /* content, or -1 */
} Model;

typedef struct Publish {
	Model *model;
	unsigned group;
	const PfDigest *digests;
} Publish;

static void die(const char *what, int line)
{
	fprintf(stderr, "line %d: %s\n", line, what);
	abort();
}

static unsigned take(Input *in, unsigned limit)
{
	unsigned byte;

	if (in->size == 0)
		return 0;
	byte = *in->data++;
	in->size--;
	return byte % limit;
}

static PfDigest digest_of(unsigned content)
{
	PfDigest digest = {{(uint8_t)content, 1}};

	return digest;
}

static void forget_mappings(ModelVm *m)
{
	PfOrder *order;

	while ((order = g_queue_pop_head(&m->orders)))
		g_free(order);
	for (unsigned i = 0; i < N_GFNS; i++)
		m->mapped[i] = -1;
}

static void add_vm(Model *model, unsigned i, unsigned group)
{
	ModelVm *m = &model->vms[i];

	m->group = group;
	m->vm = pf_fusion_add_vm(model->fusion, group == 0 ? "one" : "two", m);
	MUST(pf_fusion_vm_userdata(m->vm) == m);
	g_queue_init(&m->orders);
	forget_mappings(m);
	pf_fusion_set_ready(m->vm, true);
	for (uint32_t k = 0; k < N_MODULES; k++) {
		uint8_t build_id = (uint8_t)k;
		PfModuleInfo info = {&build_id, 1, "module", N_PAGES};

		pf_fusion_module(m->vm, k, &info);
	}
}

static void remove_vm(Model *model, unsigned i)
{
	ModelVm *m = &model->vms[i];
	bool last = true;

	pf_fusion_remove_vm(m->vm);
	forget_mappings(m);
	m->vm = NULL;
	for (unsigned k = 0; k < N_VMS; k++)
		last &= !model->vms[k].vm || model->vms[k].group != m->group;
	if (last)
		memset(model->store[m->group], -1, sizeof(model->store[m->group]));
}

static void op_module(Model *model, ModelVm *m, Input *in)
{
	uint8_t build_id = (uint8_t)take(in, 8);
	PfModuleInfo info = {build_id < 6 ? &build_id : NULL, build_id < 6, "a name", 0};

	info.n_pages = 1 + take(in, N_PAGES);
	pf_fusion_module(m->vm, take(in, N_MODULES + 1), &info);
}

static void op_hints(Model *model, ModelVm *m, Input *in)
{
	uint32_t module = take(in, N_MODULES + 2);
	uint64_t file_page = take(in, N_PAGES);
	uint64_t gfn = take(in, N_GFNS);
	unsigned n = 1 + take(in, 16), step = take(in, 3), content = take(in, 256);
	PfDigest digests[16];

	for (unsigned i = 0; i < n; i++) {
		digests[i] = digest_of((content + i * step) % N_CONTENT);
		if (content & 128 && gfn + i < N_GFNS && m->mapped[gfn + i] < 0)
			m->ram[gfn + i] = digests[i].bytes[0];
	}
	pf_fusion_hints(m->vm, module, file_page, (PfGfn){gfn}, MIN(n, (unsigned)(N_GFNS - gfn)),
		digests, model->now_us);
}

static void op_next_order(Model *model, ModelVm *m)
{
	PfOrder *order = g_new(PfOrder, 1);
	uint32_t n = 0;

	if (!pf_fusion_next_order(m->vm, order, model->now_us)) {
		g_free(order);
		return;
	}
	MUST(order->id != 0 && order->n_runs > 0 && order->n_runs <= PF_SHIM_MAX_RUNS);
	for (uint32_t i = 0; i < order->n_runs; i++) {
		MUST(order->runs[i].n_pages > 0);
		MUST(order->type == PF_ORDER_CAPTURE ||
			order->runs[i].n_pages <= PF_SHIM_RUN_PAGES);
		MUST(order->runs[i].gfn.v + order->runs[i].n_pages <= N_GFNS);
		n += order->runs[i].n_pages;
	}
	MUST(n == order->n_pages);
	MUST(order->type == PF_ORDER_FUSE || n <= PF_SHIM_MAX_CAPTURE);
	g_queue_push_tail(&m->orders, order);
}

static bool publish(void *userdata, uint32_t page_of_order, PfFrame frame)
{
	Publish *p = userdata;

	if (p->model->no_memory)
		return false;
	MUST(frame.v < N_FRAMES * 8);
	if (frame.v >= N_FRAMES)
		return false;
	MUST(p->model->store[p->group][frame.v] < 0);
	p->model->store[p->group][frame.v] = p->digests[page_of_order].bytes[0];
	return true;
}

static void answer_capture(Model *model, ModelVm *m, const PfOrder *order, Input *in, bool honest)
{
	uint8_t results[PF_SHIM_MAX_CAPTURE];
	PfDigest digests[PF_SHIM_MAX_CAPTURE];
	Publish p = {model, m->group, digests};
	PfCapture capture = {results, digests, publish, &p};
	uint32_t n = 0;

	for (uint32_t i = 0; i < order->n_runs; i++) {
		for (uint32_t k = 0; k < order->runs[i].n_pages; k++, n++) {
			results[n] =
				honest ? PF_SHIM_DONE : (uint8_t)take(in, PF_SHIM_N_RESULTS + 1);
			digests[n] = digest_of(m->ram[order->runs[i].gfn.v + k]);
		}
	}
	MUST(pf_fusion_captured(m->vm, order->id, n, &capture, model->now_us) == 0);
}

static uint8_t fuse_page(Model *model, ModelVm *m, uint64_t gfn, uint64_t frame)
{
	MUST(frame < N_FRAMES && model->store[m->group][frame] >= 0);
	return model->store[m->group][frame] == m->ram[gfn] ? PF_SHIM_DONE : PF_SHIM_DIFFERENT;
}

static void answer_fuse(Model *model, ModelVm *m, const PfOrder *order, Input *in, bool honest)
{
	g_autofree uint8_t *results = g_malloc(order->n_pages);
	uint32_t n = 0;

	for (uint32_t i = 0; i < order->n_runs; i++) {
		const PfOrderRun *run = &order->runs[i];

		for (uint32_t k = 0; k < run->n_pages; k++, n++) {
			uint64_t gfn = run->gfn.v + k;

			MUST(m->mapped[gfn] < 0);
			results[n] = fuse_page(model, m, gfn, run->frame.v + k);
			if (!honest)
				results[n] = (uint8_t)take(in, PF_SHIM_N_RESULTS + 1);
			if (results[n] == PF_SHIM_DONE)
				m->mapped[gfn] = (int64_t)run->frame.v + k;
		}
	}
	MUST(pf_fusion_fused(m->vm, order->id, n, results, model->now_us) == 0);
}

static void op_answer(Model *model, ModelVm *m, Input *in, bool honest)
{
	guint which = honest ? 0 : take(in, 4);
	PfOrder *order = g_queue_pop_nth(&m->orders, which);

	if (!order)
		return;
	if (order->type == PF_ORDER_CAPTURE)
		answer_capture(model, m, order, in, honest);
	else
		answer_fuse(model, m, order, in, honest);
	g_free(order);
}

static void op_bad_answer(Model *model, ModelVm *m, Input *in)
{
	const PfOrder *order = g_queue_peek_head(&m->orders);
	uint64_t id = order ? order->id : take(in, 256);
	uint32_t n = order ? order->n_pages - 1 : 1;
	uint8_t result = PF_SHIM_DONE;
	PfDigest digest = digest_of(0);
	PfCapture capture = {&result, &digest, publish, NULL};

	MUST(pf_fusion_captured(m->vm, id, n, &capture, model->now_us) == -EPROTO);
	MUST(pf_fusion_fused(m->vm, id, n, &result, model->now_us) == -EPROTO);
}

static void op_lost(Model *model, ModelVm *m, Input *in)
{
	uint64_t gfn = take(in, N_GFNS);
	uint32_t n = 1 + take(in, 40);
	uint64_t frame = m->mapped[gfn] >= 0 ? (uint64_t)m->mapped[gfn] : take(in, 256);
	PfShimLoss loss = (PfShimLoss)take(in, PF_SHIM_N_LOSSES);
	int expected = 0;

	for (uint32_t i = 0; i < n; i++) {
		if (gfn + i < N_GFNS && m->mapped[gfn + i] == (int64_t)(frame + i))
			m->mapped[gfn + i] = -1;
		else
			expected = -EPROTO;
	}
	MUST(pf_fusion_lost(m->vm, (PfGfn){gfn}, (PfFrame){frame}, n, loss, model->now_us) ==
		expected);
}

static void op_write(Model *model, ModelVm *m, Input *in)
{
	uint64_t gfn = take(in, N_GFNS);
	int64_t frame = m->mapped[gfn];

	m->ram[gfn] = (uint8_t)take(in, N_CONTENT);
	m->mapped[gfn] = -1;
	if (frame >= 0)
		MUST(pf_fusion_lost(m->vm, (PfGfn){gfn}, (PfFrame){(uint64_t)frame}, 1,
			     PF_SHIM_LOST_REVOKED, model->now_us) == 0);
}

static void op_withdrawn(ModelVm *m, Input *in)
{
	unsigned module = take(in, N_MODULES + 1), first = take(in, N_PAGES);
	PfFileRange ranges[2] = {{first, UINT64_C(1) << take(in, 64)}};

	ranges[1].first_page = MIN(ranges[0].n_pages, N_PAGES) + first;
	ranges[1].n_pages = ranges[0].n_pages;
	pf_fusion_withdrawn(m->vm, module, ranges, 1 + (ranges[0].n_pages < N_PAGES));
}

static void op_time(Model *model, Input *in)
{
	int64_t next = pf_fusion_next_tick_us(model->fusion);
	unsigned how = take(in, 64);

	if (how < 48)
		model->now_us += INT64_C(1) << how % 42;
	else if (next >= 0 && how < 60)
		model->now_us = MAX(model->now_us, next);
	pf_fusion_tick(model->fusion, how == 63 ? INT64_MIN : model->now_us);
}

static void op_rare(Model *model, unsigned i, Input *in)
{
	ModelVm *m = &model->vms[i];

	switch (take(in, 8)) {
	case 0:
		pf_fusion_session_started(m->vm);
		break;
	case 1:
		pf_fusion_shim_reset(m->vm);
		forget_mappings(m);
		break;
	case 2:
		remove_vm(model, i);
		add_vm(model, i, take(in, N_GROUPS));
		break;
	case 3:
		pf_fusion_set_ready(m->vm, take(in, 4) != 0);
		break;
	case 4:
		model->no_memory = take(in, 2) == 1;
		break;
	default:
		op_module(model, m, in);
	}
}

static void one_call(Model *model, Input *in)
{
	unsigned op = take(in, 16), i = take(in, N_VMS);
	ModelVm *m = &model->vms[i];

	switch (op) {
	case 0:
	case 1:
	case 2:
	case 3:
		op_hints(model, m, in);
		break;
	case 4:
	case 5:
		op_next_order(model, m);
		break;
	case 6:
	case 7:
		op_answer(model, m, in, true);
		break;
	case 8:
		op_answer(model, m, in, false);
		break;
	case 9:
		op_lost(model, m, in);
		break;
	case 10:
		op_write(model, m, in);
		break;
	case 11:
		op_withdrawn(m, in);
		break;
	case 12:
		op_time(model, in);
		break;
	case 13:
		op_bad_answer(model, m, in);
		break;
	default:
		op_rare(model, i, in);
	}
}

static void check_against_model(const Model *model)
{
	const char *broken = pf_fusion_check(model->fusion);
	g_autofree uint32_t *maps = g_new0(uint32_t, N_GROUPS * N_FRAMES);
	uint64_t shared = 0;
	PfFusionStats stats;

	if (broken)
		die(broken, __LINE__);
	for (unsigned i = 0; i < N_VMS; i++) {
		const ModelVm *m = &model->vms[i];
		PfFusionVmStats vm_stats;
		uint64_t fused = 0;

		for (unsigned k = 0; k < N_GFNS; k++) {
			if (m->mapped[k] < 0)
				continue;
			fused++;
			if (maps[m->group * N_FRAMES + (uint64_t)m->mapped[k]]++ > 0)
				shared++;
		}
		pf_fusion_vm_stats(m->vm, &vm_stats);
		MUST(vm_stats.fused == fused);
	}
	pf_fusion_stats(model->fusion, &stats);
	MUST(stats.shared == shared);
}

static void count_wanted(PfFusionVm *vm, void *userdata)
{
	++*(unsigned *)userdata;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	Input in = {data, size};
	g_autofree Model *model = g_new0(Model, 1);
	unsigned wanted = 0;

	model->fusion = pf_fusion_new();
	memset(model->store, -1, sizeof(model->store));
	for (unsigned i = 0; i < N_VMS; i++)
		add_vm(model, i, i / 3);
	while (in.size > 0) {
		one_call(model, &in);
		check_against_model(model);
	}
	pf_fusion_foreach_pending(model->fusion, count_wanted, &wanted);
	MUST(wanted <= N_VMS);
	for (unsigned i = 0; i < N_VMS; i++)
		remove_vm(model, i);
	MUST(pf_fusion_check(model->fusion) == NULL);
	pf_fusion_free(model->fusion);
	return 0;
}
