/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The bytes are a sequence of calls: what the guests of two trust groups say, and what their shims
 * answer, honestly or not. After each call the rules between the indexes are checked, and the numbers
 * against the model (fusion_model.h), which also sees that no frame is freed too early.
 */
#include "tests/fuzz/fusion_model.h"
#include <errno.h>

#define N_MODULES 4u
#define N_PAGES   40u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct Input {
	const uint8_t *data;
	size_t size;
} Input;

static unsigned take(Input *in, unsigned limit)
{
	unsigned byte;

	if (in->size == 0)
		return 0;
	byte = *in->data++;
	in->size--;
	return byte % limit;
}

static void add_vm(Model *model, unsigned i, unsigned group)
{
	ModelVm *m = &model->vms[i];

	m->group = group;
	m->given = 0;
	m->vm = pf_fusion_add_vm(model->fusion, group == 0 ? "one" : "two", m);
	MUST(pf_fusion_vm_userdata(m->vm) == m);
	m->state = SHIM_UNHEARD;
	m->thp = PF_THP_ALL;
	m->max_candidates = m->max_frames = m->max_index_bytes = UINT64_MAX;
	g_queue_init(&m->orders);
	map_nothing(m);
	pf_fusion_set_ready(m->vm, true);
	for (uint32_t k = 0; k < N_MODULES; k++) {
		uint8_t build_id = (uint8_t)k;
		PfModuleInfo info = {&build_id, 1, "module", N_PAGES};

		pf_fusion_module(m->vm, k, &info);
	}
}

/* Whoever was given it may map it still, but nothing is freed in it any more. */
static void end_store(Model *model, unsigned group)
{
	forget_store(&model->stores[group]);
	for (unsigned i = 0; i < N_VMS; i++) {
		model->vms[i].given &= ~(1u << group);
		if (model->vms[i].foreign_group == group)
			model->vms[i].foreign = -1;
	}
}

static void remove_vm(Model *model, unsigned i)
{
	ModelVm *m = &model->vms[i];
	bool last = true;

	pf_fusion_remove_vm(m->vm);
	drop_orders(m);
	forget_giver(model, m);
	m->vm = NULL;
	for (unsigned k = 0; k < N_VMS; k++)
		last &= !model->vms[k].vm || model->vms[k].group != m->group;
	if (last)
		end_store(model, m->group);
}

static void op_module(Model *model, ModelVm *m, Input *in)
{
	uint8_t build_id = (uint8_t)take(in, 8);
	PfModuleInfo info = {build_id < 6 ? &build_id : NULL, build_id < 6, "a name", 0};

	info.n_pages = 1 + take(in, N_PAGES);
	pf_fusion_module(m->vm, take(in, N_MODULES + 1), &info);
}

/* What a hint changes. */
typedef struct Charges {
	uint64_t hinted, over_quota, candidates, index_bytes;
} Charges;

static void get_charges(const Model *model, Charges charges[N_VMS])
{
	for (unsigned i = 0; i < N_VMS; i++) {
		const PfFusionVm *vm = model->vms[i].vm;
		PfFusionVmStats stats;

		pf_fusion_vm_stats(vm, &stats);
		charges[i] = (Charges){
			stats.hinted, stats.over_quota, vm->n_candidates, pf_vm_index_bytes(vm)};
	}
}

/* The hints of m were taken as far as its quotas let them, and nobody else's changed. */
static void check_charges(const Model *model, const ModelVm *m, const Charges before[N_VMS])
{
	const Charges *old = &before[m - model->vms], *new;
	Charges after[N_VMS];

	get_charges(model, after);
	for (unsigned i = 0; i < N_VMS; i++)
		MUST(&model->vms[i] == m || memcmp(&after[i], &before[i], sizeof(after[i])) == 0);
	new = &after[m - model->vms];
	MUST(new->candidates <= MAX(old->candidates, m->max_candidates));
	/* The last hint that was taken may have doubled a table. */
	if (m->max_index_bytes < UINT64_MAX)
		MUST(new->index_bytes <= MAX(old->index_bytes, m->max_index_bytes) + 1024);
	if (new->over_quota > old->over_quota)
		MUST(MAX(new->candidates, old->candidates) >= m->max_candidates ||
			MAX(new->index_bytes, old->index_bytes) >= m->max_index_bytes ||
			model_is_tight(model));
}

static void op_hints(Model *model, ModelVm *m, Input *in)
{
	Charges before[N_VMS];
	uint32_t module = take(in, N_MODULES + 2);
	uint64_t file_page = take(in, N_PAGES);
	uint64_t gfn = take(in, N_GFNS);
	unsigned n = 1 + take(in, 16), step = take(in, 3), content = take(in, 256);
	PfDigest digests[16];

	for (unsigned i = 0; i < n; i++) {
		digests[i] = model_digest((content + i * step) % N_CONTENT);
		if (content & 128 && gfn + i < N_GFNS && m->mapped[gfn + i] < 0)
			m->ram[gfn + i] = digests[i].bytes[0];
	}
	get_charges(model, before);
	n = MIN(n, (unsigned)(N_GFNS - gfn));
	pf_fusion_hints(m->vm, module, file_page, model_gfn(gfn), n, digests, model->now_us);
	if (pf_vm_module(m->vm, module))
		check_charges(model, m, before);
}

static void check_run(
	const Model *model, const ModelVm *m, const PfOrder *order, const PfOrderRun *run)
{
	uint64_t last = run->gfn.v + run->n_pages - 1;

	MUST(run->n_pages > 0 && run->gfn.v >= FIRST_GFN && last < FIRST_GFN + N_GFNS);
	if (order->type == PF_ORDER_CAPTURE)
		return;
	MUST(run->n_pages <= PF_SHIM_RUN_PAGES);
	MUST(m->thp == PF_THP_ALL || run->gfn.v / 512 == last / 512);
	/* There are too few pages on each side of the border for BALANCED. */
	MUST(run->may_break_huge ==
		(m->thp == PF_THP_ALL || (m->thp == PF_THP_BALANCED && model->pressure)));
}

static void op_next_order(Model *model, ModelVm *m)
{
	PfOrder *order = g_new(PfOrder, 1);
	uint32_t n = 0;

	if (!pf_fusion_next_order(m->vm, order, model->now_us)) {
		g_free(order);
		return;
	}
	MUST(m->state == SHIM_HERE);
	MUST(order->id != 0 && order->n_runs > 0 && order->n_runs <= PF_SHIM_MAX_RUNS);
	for (uint32_t i = 0; i < order->n_runs; i++) {
		check_run(model, m, order, &order->runs[i]);
		n += order->runs[i].n_pages;
	}
	MUST(n == order->n_pages);
	MUST(order->type == PF_ORDER_FUSE || n <= PF_SHIM_MAX_CAPTURE);
	g_queue_push_tail(&m->orders, order);
	MUST(order->type == PF_ORDER_FUSE || model_given(model, m) <= m->max_frames);
}

static void answer_capture(Model *model, ModelVm *m, const PfOrder *order, Input *in, bool honest)
{
	uint8_t results[PF_SHIM_MAX_CAPTURE];
	PfDigest digests[PF_SHIM_MAX_CAPTURE];
	Publish p = {
		model_store(model, m), model->no_memory, digests, (uint8_t)(m - model->vms + 1)};
	PfCapture capture = {results, digests, publish, &p, NULL};
	uint32_t n = 0;

	for (uint32_t i = 0; i < order->n_runs; i++) {
		for (uint32_t k = 0; k < order->runs[i].n_pages; k++, n++) {
			results[n] =
				honest ? PF_SHIM_DONE : (uint8_t)take(in, PF_SHIM_N_RESULTS + 1);
			digests[n] = model_digest(m->ram[order->runs[i].gfn.v - FIRST_GFN + k]);
		}
	}
	MUST(pf_fusion_captured(m->vm, order->id, n, &capture, model->now_us) ==
		(m->state == SHIM_HERE ? 0 : -EPROTO));
}

static uint8_t fuse_page(Model *model, ModelVm *m, uint64_t gfn, uint64_t frame)
{
	const ModelStore *store = model_store(model, m);

	MUST(frame < N_FRAMES && store->frames[frame] >= 0);
	return store->frames[frame] == m->ram[gfn] ? PF_SHIM_DONE : PF_SHIM_DIFFERENT;
}

static void answer_fuse(Model *model, ModelVm *m, const PfOrder *order, Input *in, bool honest)
{
	g_autofree uint8_t *results = g_malloc(order->n_pages);
	uint32_t n = 0;

	for (uint32_t i = 0; i < order->n_runs; i++) {
		const PfOrderRun *run = &order->runs[i];

		for (uint32_t k = 0; k < run->n_pages; k++, n++) {
			uint64_t gfn = run->gfn.v - FIRST_GFN + k;

			MUST(m->mapped[gfn] < 0);
			results[n] = fuse_page(model, m, gfn, run->frame.v + k);
			if (!honest)
				results[n] = (uint8_t)take(in, PF_SHIM_N_RESULTS + 1);
			if (results[n] == PF_SHIM_DONE)
				m->mapped[gfn] = (int64_t)run->frame.v + k;
			if (m->state == SHIM_HERE)
				m->told[gfn] = m->mapped[gfn];
		}
	}
	MUST(pf_fusion_fused(m->vm, order->id, n, results, model->now_us) ==
		(m->state == SHIM_HERE ? 0 : -EPROTO));
}

/* Of a shim that is away: it does it, and its answer is not heard. */
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
	PfDigest digest = model_digest(0);
	PfCapture capture = {&result, &digest, publish, NULL, NULL};

	MUST(pf_fusion_captured(m->vm, id, n, &capture, model->now_us) == -EPROTO);
	MUST(pf_fusion_fused(m->vm, id, n, &result, model->now_us) == -EPROTO);
}

/* Of a shim that is away: it has come back, but does not list yet. What it has lost then, it really mapped. */
static void op_lost(Model *model, ModelVm *m, Input *in)
{
	unsigned gfn = take(in, N_GFNS);
	uint32_t n = 1 + take(in, 40);
	int64_t frame = m->mapped[gfn] >= 0 ? m->mapped[gfn] : take(in, 256);
	PfShimLoss loss = (PfShimLoss)take(in, PF_SHIM_N_LOSSES);
	int expected = 0;

	for (uint32_t i = 0; i < n; i++) {
		if (gfn + i < N_GFNS && m->mapped[gfn + i] == frame + i)
			m->mapped[gfn + i] = -1;
		else
			expected = m->state == SHIM_HERE ? -EPROTO : 0;
		if (gfn + i < N_GFNS && m->told[gfn + i] == frame + i)
			m->told[gfn + i] = -1;
	}
	MUST(pf_fusion_lost(m->vm, model_gfn(gfn), (PfFrame){(uint64_t)frame}, n, loss,
		     model->now_us) == expected);
}

static void op_write(Model *model, ModelVm *m, Input *in)
{
	unsigned gfn = take(in, N_GFNS);
	int64_t frame = m->mapped[gfn];

	m->ram[gfn] = (uint8_t)take(in, N_CONTENT);
	model_lose(m, gfn);
	if (frame >= 0 && m->state == SHIM_HERE)
		MUST(pf_fusion_lost(m->vm, model_gfn(gfn), (PfFrame){(uint64_t)frame}, 1,
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

/* A frame that there is, or one that there is not. */
static int64_t some_frame(const Model *model, Input *in)
{
	const ModelVm *m = &model->vms[take(in, N_VMS)];
	int64_t frame = m->mapped[take(in, N_GFNS)];
	unsigned how = take(in, 8);

	if (frame < 0 || how == 0)
		return (int64_t)take(in, 256) << take(in, 6);
	return how == 1 ? frame + 1 : frame;
}

/* Its list; before it some pages that it did not have. It may break off. */
static void op_list(Model *model, ModelVm *m, Input *in)
{
	unsigned n_foreign = take(in, 4), breaks_off = take(in, 4 * N_GFNS), twice = take(in, 255);
	int64_t before[N_GFNS];

	memcpy(before, m->mapped, sizeof(before));
	for (unsigned i = 0; i < n_foreign; i++)
		m->mapped[take(in, N_GFNS)] = some_frame(model, in);
	drop_orders(m);
	if (m->state == SHIM_HERE)
		m->state = SHIM_AWAY;
	/* It has the store, so it is written down that it has. */
	m->given |= 1u << m->group;
	pf_fusion_list_begin(m->vm);
	for (unsigned i = 0; i < N_GFNS; i++) {
		int64_t frame = m->mapped[i];

		if (i == breaks_off) {
			memcpy(&m->mapped[i], &before[i], (N_GFNS - i) * sizeof(before[0]));
			model_away(m);
			return;
		}
		if (i == twice % (2 * N_GFNS))
			model_list(model, m, i, some_frame(model, in));
		if (frame >= 0)
			model_list(model, m, i, frame);
	}
	MUST(pf_fusion_listed(m->vm, (PfGfn){PF_GFN_END + twice}, (PfFrame){FIRST}, NULL, NULL,
		     model->now_us) == 1);
	pf_fusion_list_end(m->vm, model->now_us);
	for (unsigned i = 0; i < N_GFNS; i++)
		m->told[i] = m->mapped[i];
	m->foreign = -1;
	m->state = SHIM_HERE;
}

/* An earlier service's store; VMs that were not heard of yet map frames of it, also such as are of another group now. */
static void op_adopt(Model *model, const ModelVm *of, Input *in)
{
	ModelStore *store = model_store(model, of);
	unsigned n = take(in, 128), content = take(in, N_CONTENT), n_maps = take(in, 16);

	if (store->used || store->first_own > 0) {
		/* The shim has it from this service. */
		store->first_own = MAX(store->first_own, FIRST);
		pf_fusion_adopt_store(of->vm, (uint64_t)store->first_own);
		return;
	}
	store->first_own = FIRST + n;
	for (unsigned i = 0; i < n; i++)
		store->frames[FIRST + i] =
			i % 5 == 4 ? NEVER : (int16_t)((content + i) % N_CONTENT);
	pf_fusion_adopt_store(of->vm, (uint64_t)store->first_own);
	for (unsigned i = 0; i < n_maps && n > 0; i++) {
		ModelVm *m = &model->vms[take(in, N_VMS)];
		unsigned frame = FIRST + take(in, n);

		if (m->state != SHIM_UNHEARD || store->frames[frame] < 0)
			continue;
		m->given |= 1u << of->group;
		if (m->group == of->group) {
			m->mapped[take(in, N_GFNS)] = frame;
		} else {
			m->foreign_group = of->group;
			m->foreign = frame;
		}
	}
}

/* false: there are more. */
static bool free_unused(Model *model, uint32_t max_frames)
{
	for (unsigned group = 0; group < N_GROUPS; group++) {
		bool complete = true;

		for (unsigned i = 0; i < N_VMS; i++)
			complete &= !is_unheard_member(&model->vms[i], group);
		pf_fusion_set_complete(model->fusion, group == 0 ? "one" : "two", complete);
	}
	return pf_fusion_free_unused(model->fusion, max_frames, frame_freed, model);
}

/* Of 100 pages, so that percents are pages, or of index memory 4 KiB. */
static void op_quotas(ModelVm *m, Input *in)
{
	PfPolicy policy = PF_POLICY_DEFAULTS;

	policy.admission = 1 + take(in, 4);
	policy.candidates_percent = take(in, 64);
	policy.frames_percent = take(in, 16);
	policy.index_memory_percent = take(in, 4);
	m->max_candidates = policy.candidates_percent;
	m->max_frames = policy.frames_percent;
	m->max_index_bytes = UINT64_C(4096) * policy.index_memory_percent;
	pf_fusion_set_policy(m->vm, &policy, 100);
}

static void op_policy(Model *model, ModelVm *m, Input *in)
{
	unsigned how = take(in, 12);

	if (how >= 8) {
		op_quotas(m, in);
	} else if (how == 7) {
		model->memory_limit = (uint64_t)take(in, 8) * 131072;
		pf_fusion_set_memory_limit(model->fusion, model->memory_limit);
	} else if (how == 6) {
		pf_fusion_set_capturing(m->vm, take(in, 2) == 0);
	} else if (how < 3) {
		m->thp = (PfThp)(PF_THP_PRESERVE + how);
		pf_fusion_set_thp(m->vm, m->thp);
	} else {
		model->pressure = how == 3;
		pf_fusion_set_pressure(model->fusion, model->pressure);
	}
}

static void op_rare(Model *model, unsigned i, Input *in)
{
	ModelVm *m = &model->vms[i];

	switch (take(in, 8)) {
	case 0:
		pf_fusion_session_started(m->vm);
		break;
	case 1:
		model_empty(m);
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
	case 5:
		op_adopt(model, m, in);
		break;
	case 6:
		op_policy(model, m, in);
		break;
	default:
		op_module(model, m, in);
	}
}

static void one_call(Model *model, Input *in)
{
	unsigned op = take(in, 20), i = take(in, N_VMS);
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
	case 14:
		model_away(m);
		break;
	case 15:
		op_list(model, m, in);
		break;
	case 16:
		free_unused(model, take(in, 256));
		break;
	default:
		op_rare(model, i, in);
	}
}

/* Each call takes memory below the limit only; but for a new group's first giver, and the tables that find frames. */
static void check_memory(const Model *model, uint64_t before)
{
	uint64_t limit = model->memory_limit;

	if (limit > 0)
		MUST(model->fusion->memory_bytes <= MAX(before, limit) + 20 * 1024);
}

static bool model_knows_all(const Model *model)
{
	bool all = true;

	for (unsigned i = 0; i < N_VMS; i++)
		all &= model->vms[i].state != SHIM_UNHEARD;
	return all;
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
			if (m->told[k] < 0)
				continue;
			fused++;
			if (maps[m->group * N_FRAMES + (uint64_t)m->told[k]]++ > 0)
				shared++;
		}
		pf_fusion_vm_stats(m->vm, &vm_stats);
		MUST(vm_stats.fused == fused);
	}
	MUST(pf_fusion_knows_all(model->fusion) == model_knows_all(model));
	for (unsigned i = 0; i < N_VMS; i++)
		MUST(pf_fusion_vm_is_known(model->vms[i].vm) ==
			(model->vms[i].state != SHIM_UNHEARD));
	pf_fusion_stats(model->fusion, &stats);
	MUST(stats.shared == shared);
	MUST(stats.freed == model->n_freed);
}

static void count_wanted(PfFusionVm *vm, void *userdata)
{
	++*(unsigned *)userdata;
}

/* When nobody maps or says anything any more, nothing is left. */
static void free_all(Model *model)
{
	PfFusionStats stats;

	for (unsigned i = 0; i < N_VMS; i++) {
		pf_fusion_session_started(model->vms[i].vm);
		model_empty(&model->vms[i]);
	}
	MUST(free_unused(model, UINT32_MAX));
	pf_fusion_stats(model->fusion, &stats);
	MUST(stats.frames == 0);
	check_against_model(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	Input in = {data, size};
	g_autofree Model *model = g_new0(Model, 1);
	unsigned wanted = 0;

	model->fusion = pf_fusion_new(&PF_FUSION_DEFAULTS);
	for (unsigned i = 0; i < N_GROUPS; i++)
		forget_store(&model->stores[i]);
	for (unsigned i = 0; i < N_VMS; i++)
		add_vm(model, i, i / 3);
	while (in.size > 0) {
		uint64_t memory_bytes = model->fusion->memory_bytes;

		one_call(model, &in);
		check_memory(model, memory_bytes);
		check_against_model(model);
	}
	pf_fusion_foreach_pending(model->fusion, count_wanted, &wanted);
	MUST(wanted <= N_VMS);
	free_all(model);
	for (unsigned i = 0; i < N_VMS; i++)
		remove_vm(model, i);
	MUST(pf_fusion_check(model->fusion) == NULL);
	pf_fusion_free(model->fusion);
	return 0;
}
