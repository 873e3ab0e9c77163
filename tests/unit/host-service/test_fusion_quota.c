/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a policy asks for, what one VM may make us hold, and that nobody else notices. */
#include "tests/unit/host-service/fusion_pair.h"

#define PLENTY 100000u

/* Of a VM with 100 pages, so that percents are pages; of index memory, 4 KiB. */
static void set_policy(RigVm *m, guint admission, guint candidates, guint frames, guint index)
{
	PfPolicy policy = PF_POLICY_DEFAULTS;

	policy.admission = admission;
	policy.candidates_percent = candidates;
	policy.frames_percent = frames;
	policy.index_memory_percent = index;
	pf_fusion_set_policy(m->vm, &policy, 100);
	rig_check(m->rig);
}

static void set_admission(Pair *t, guint admission)
{
	set_policy(t->a, admission, PLENTY, PLENTY, PLENTY);
}

static bool wants(RigVm *m)
{
	return pf_vm_has_orders(m->vm);
}

static uint32_t given(const RigVm *m)
{
	const PfGiver *giver = pf_pool_at(&m->vm->group->givers, m->vm->giver);

	return giver->n_frames;
}

static void test_admission_of_one_captures_at_once(void **state)
{
	Pair *t = *state;

	set_admission(t, 1);
	rig_hint(t->a, 0, 0, 10, 1);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 10);
	assert_int_equal(rig_total(&t->rig).shared, 0);
	rig_hint(t->b, 0, 100, 10, 1);
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).shared, 10);
	assert_int_equal(rig_total(&t->rig).frames, 10);
}

static void test_admission_of_three(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 0, 64);

	set_admission(t, 3);
	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	rig_run(&t->rig);
	assert_int_equal(t->rig.n_published, 0);
	rig_hint(c, 0, 0, 1, 7);
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).shared, 2);
}

static void test_another_admission_holds_at_once(void **state)
{
	Pair *t = *state;

	set_admission(t, 3);
	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	assert_false(wants(t->a) || wants(t->b));
	/* Said for one VM, it is the group's. */
	set_admission(t, 2);
	assert_true(wants(t->a) && wants(t->b));
	set_admission(t, 3);
	assert_false(wants(t->a) || wants(t->b));
}

static void test_admission_raised_over_a_frame(void **state)
{
	Pair *t = *state;

	set_admission(t, 1);
	rig_hint(t->a, 0, 0, 1, 7);
	assert_true(rig_next(t->a, &t->order));
	rig_answer(t->a, &t->order);
	/* Its VM may map it at any time. */
	assert_int_equal(rig_free(&t->rig), 0);
	set_admission(t, 2);
	assert_int_equal(rig_free(&t->rig), 1);
}

static void test_admission_is_of_one_group(void **state)
{
	Pair *t = *state;
	RigVm *other = rig_add(&t->rig, 1, 64);

	set_admission(t, 1);
	rig_hint(other, 0, 0, 1, 7);
	assert_false(wants(other));
	rig_hint(t->a, 0, 0, 1, 7);
	assert_true(wants(t->a));
}

static void test_candidates_beyond_the_quota(void **state)
{
	Pair *t = *state;

	set_policy(t->a, 2, 10, PLENTY, PLENTY);
	rig_hint(t->a, 0, 0, 15, 100);
	assert_int_equal(rig_stats(t->a).hinted, 10);
	assert_int_equal(rig_stats(t->a).over_quota, 5);
	assert_int_equal(rig_stats(t->a).quota, PF_QUOTA_CANDIDATES);
	/* Nobody else notices. */
	rig_hint(t->b, 0, 0, 15, 100);
	assert_int_equal(rig_stats(t->b).hinted, 15);
	assert_int_equal(rig_stats(t->b).over_quota, 0);
	assert_int_equal(rig_stats(t->b).quota, PF_QUOTA_NONE);
	/* What is fused is none any more. */
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 10);
	assert_int_equal(rig_stats(t->a).quota, PF_QUOTA_NONE);
	rig_hint(t->a, 10, 10, 5, 110);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 15);
	assert_int_equal(rig_stats(t->a).over_quota, 5);
}

static void test_candidate_said_anew_at_the_quota(void **state)
{
	Pair *t = *state;

	set_policy(t->a, 2, 10, PLENTY, PLENTY);
	rig_hint(t->a, 0, 0, 10, 100);
	rig_hint(t->a, 0, 0, 10, 200);
	rig_hint(t->a, 0, 20, 10, 300);
	assert_int_equal(rig_stats(t->a).hinted, 10);
	assert_int_equal(rig_stats(t->a).over_quota, 0);
	/* A quota that shrinks takes nothing away, and lets nothing in: what is said anew is gone. */
	set_policy(t->a, 2, 5, PLENTY, PLENTY);
	assert_int_equal(rig_stats(t->a).hinted, 10);
	rig_hint(t->a, 0, 20, 10, 400);
	rig_check(&t->rig);
	assert_int_equal(rig_stats(t->a).hinted, 5);
	assert_int_equal(rig_stats(t->a).over_quota, 5);
}

static void test_hint_of_a_fused_page_is_no_candidate(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	withdraw_all(t->a);
	set_policy(t->a, 2, 0, PLENTY, PLENTY);
	rig_hint_only(t->a, 3, 10, 1, 7);
	assert_int_equal(rig_stats(t->a).hinted, 1);
	rig_hint_only(t->a, 4, 11, 1, 8);
	assert_int_equal(rig_stats(t->a).hinted, 1);
}

static void test_frames_beyond_the_quota(void **state)
{
	Pair *t = *state;

	set_policy(t->a, 1, PLENTY, 4, PLENTY);
	rig_hint(t->a, 0, 0, 10, 100);
	rig_run(&t->rig);
	assert_int_equal(given(t->a), 4);
	assert_int_equal(rig_stats(t->a).fused, 4);
	assert_int_equal(rig_stats(t->a).quota, PF_QUOTA_FRAMES);
	assert_false(wants(t->a));
	/* Another may give them, and then they are fused here too. */
	rig_hint(t->b, 0, 0, 10, 100);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 10);
	assert_int_equal(given(t->b), 6);
	assert_int_equal(rig_stats(t->a).over_quota, 0);
	assert_int_equal(rig_stats(t->a).quota, PF_QUOTA_NONE);
}

static void test_captures_under_way_count(void **state)
{
	Pair *t = *state;
	PfOrder second;

	set_policy(t->a, 1, PLENTY, 4, PLENTY);
	rig_hint(t->a, 0, 0, 3, 100);
	assert_true(rig_next(t->a, &t->order));
	rig_hint(t->a, 3, 3, 7, 103);
	assert_true(rig_next(t->a, &second));
	assert_int_equal(second.n_pages, 1);
	assert_false(wants(t->a));
	/* A shim that goes away gives nothing. */
	pf_fusion_shim_away(t->a->vm);
	rig_empty(t->a);
	pf_fusion_set_ready(t->a->vm, true);
	assert_true(rig_next(t->a, &t->order));
	assert_int_equal(t->order.n_pages, 4);
	rig_answer(t->a, &t->order);
	rig_check(&t->rig);
}

static void count_wanted(PfFusionVm *vm, void *userdata)
{
	++*(unsigned *)userdata;
}

static void test_room_for_frames_wakes(void **state)
{
	Pair *t = *state;
	unsigned wanted = 0;

	set_policy(t->a, 1, PLENTY, 4, PLENTY);
	rig_hint(t->a, 0, 0, 10, 100);
	rig_run(&t->rig);
	for (uint64_t i = 0; i < 4; i++)
		assert_int_equal(rig_discard(t->a, i), 0);
	assert_false(wants(t->a));
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), -1);
	assert_int_equal(rig_free(&t->rig), 4);
	assert_in_range(pf_fusion_next_tick_us(t->rig.fusion), 0, t->rig.now_us);
	pf_fusion_tick(t->rig.fusion, t->rig.now_us);
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), -1);
	pf_fusion_foreach_pending(t->rig.fusion, count_wanted, &wanted);
	assert_int_equal(wanted, 1);
	rig_run(&t->rig);
	assert_int_equal(given(t->a), 4);
	assert_int_equal(rig_stats(t->a).fused, 4);
}

/* A VM whose shim never maps a page, and that says other contents again and again. */
static void test_frames_that_nobody_maps(void **state)
{
	Pair *t = *state;

	set_policy(t->a, 1, PLENTY, 20, PLENTY);
	for (uint32_t round = 0; round < 40; round++) {
		rig_hint(t->a, 0, round * 40, 40, 1000 + round * 40);
		while (rig_next(t->a, &t->order)) {
			bool capture = t->order.type == PF_ORDER_CAPTURE;

			memset(t->a->results, capture ? PF_SHIM_DONE : PF_SHIM_BUSY, 2048);
			rig_answer(t->a, &t->order);
		}
		assert_in_range(rig_total(&t->rig).frames, 1, 20);
		assert_int_equal(rig_stats(t->a).fused, 0);
		if (round % 3 == 0)
			rig_free(&t->rig);
		rig_check(&t->rig);
	}
	assert_in_range(t->rig.n_published, 100, 40 * 40);
	assert_int_equal(rig_stats(t->b).quota, PF_QUOTA_NONE);
}

static void test_frames_of_a_vm_that_left(void **state)
{
	Pair *t = *state;
	RigVm *c;

	set_policy(t->a, 1, PLENTY, 5, PLENTY);
	rig_hint(t->a, 0, 0, 5, 100);
	rig_run(&t->rig);
	rig_hint(t->b, 0, 0, 5, 100);
	rig_run(&t->rig);
	rig_remove(t->a);
	rig_check(&t->rig);
	/* Its slot is used again, and its frames are no business of the next one's. */
	c = rig_add(&t->rig, 0, 64);
	set_policy(c, 1, PLENTY, 5, PLENTY);
	assert_int_equal(given(c), 0);
	assert_int_equal(given(t->b), 0);
	rig_hint(c, 10, 0, 5, 200);
	rig_run(&t->rig);
	assert_int_equal(given(c), 5);
	/* What it has left goes when nobody wants it. */
	withdraw_all(t->b);
	rig_empty(t->b);
	assert_int_equal(rig_free(&t->rig), 5);
	/* c has frames in a range that it has made. */
	assert_int_equal(c->vm->group->givers.n_items, 3);
	withdraw_all(c);
	rig_empty(c);
	assert_int_equal(rig_free(&t->rig), 5);
	assert_int_equal(c->vm->group->givers.n_items, 2);
}

static void test_frames_of_an_earlier_service_are_nobodys(void **state)
{
	Pair *t = *state;

	set_policy(t->a, 1, PLENTY, 1, PLENTY);
	rig_store(&t->rig, 0, 512, 7);
	rig_store(&t->rig, 0, 513, 8);
	pf_fusion_adopt_store(t->a->vm, 520);
	t->a->ram[0] = 7;
	t->a->ram[1] = 8;
	t->a->mapped[0] = 512;
	t->a->mapped[1] = 513;
	assert_int_equal(rig_list(t->a), 0);
	assert_int_equal(rig_total(&t->rig).frames, 2);
	assert_int_equal(given(t->a), 0);
	rig_hint(t->a, 2, 2, 1, 9);
	assert_true(wants(t->a));
}

static void test_index_memory_beyond_the_quota(void **state)
{
	Pair *t = *state;
	uint64_t limit = UINT64_C(16) * 4096;

	set_policy(t->a, 2, PLENTY, PLENTY, 16);
	for (uint32_t i = 0; i < 2048; i++)
		rig_hint(t->a, i, i, 1, 1000 + i);
	assert_int_equal(rig_stats(t->a).quota, PF_QUOTA_INDEX);
	assert_int_equal(rig_stats(t->a).hinted + rig_stats(t->a).over_quota, 2048);
	/* 170 to 200 bytes a page; one doubling of three tables may pass the limit. */
	assert_in_range(rig_stats(t->a).hinted, limit / 200, limit / 150);
	assert_in_range(pf_vm_index_bytes(t->a->vm), limit, limit + limit / 8);
	rig_hint(t->b, 0, 0, 2048, 1000);
	assert_int_equal(rig_stats(t->b).hinted, 2048);
	withdraw_all(t->a);
	assert_int_equal(rig_stats(t->a).quota, PF_QUOTA_NONE);
}

/* A QEMU that says it had one frame of an earlier service everywhere. */
static void test_list_beyond_the_quota(void **state)
{
	Pair *t = *state;

	pf_fusion_adopt_store(t->a->vm, 1024);
	rig_store(&t->rig, 0, 600, 7);
	t->b->mapped[10] = 600;
	assert_int_equal(rig_list(t->b), 0);
	assert_int_equal(rig_discard(t->b, 10), 0);
	fuse_both(t);
	set_policy(t->a, 2, PLENTY, PLENTY, 4);
	pf_fusion_shim_away(t->a->vm);
	for (uint32_t i = 0; i < 2048; i++)
		t->a->mapped[i] = t->b->mapped[10];
	assert_in_range(rig_list(t->a), 1000, 2047);
	assert_in_range(rig_stats(t->a).fused, 100, 1000);
	assert_in_range(pf_vm_index_bytes(t->a->vm), 1, 5 * 4096);
	/* What was known of it is not refused. */
	assert_int_equal(t->a->mapped[10], t->b->mapped[10]);
}

/* Each frame in a range of its own. */
static void test_ranges_of_frames_are_index_memory(void **state)
{
	Pair *t = *state;
	uint64_t before;
	uint32_t n;

	set_policy(t->a, 1, PLENTY, PLENTY, 20);
	for (uint32_t i = 0; i < 150; i++)
		rig_hint(t->a, i * PF_LAYOUT_CHUNK_FRAMES, i, 1, 1000 + i);
	assert_int_equal(rig_stats(t->a).hinted, 150);
	before = pf_vm_index_bytes(t->a->vm);
	while (rig_next(t->a, &t->order)) {
		rig_answer(t->a, &t->order);
		rig_check(&t->rig);
	}
	n = given(t->a);
	assert_in_range(n, 10, 149);
	assert_in_range(pf_vm_index_bytes(t->a->vm) - before, n * 1500, n * PF_LAYOUT_RANGE_BYTES);
	assert_in_range(pf_vm_index_bytes(t->a->vm), before, 20 * 4096);
	assert_int_equal(rig_stats(t->a).quota, PF_QUOTA_FRAMES);
	/* They stay while others have frames in them, also of a VM that has left. */
	rig_hint(t->b, 0, 0, 1, 1000);
	rig_run(&t->rig);
	rig_remove(t->a);
	rig_check(&t->rig);
	assert_int_equal(rig_free(&t->rig), n - 1);
	rig_empty(t->b);
	withdraw_all(t->b);
	assert_int_equal(rig_free(&t->rig), 1);
	assert_int_equal(t->b->vm->group->givers.n_items, 1);
}

static void test_frames_of_a_life(void **state)
{
	Pair *t = *state;

	set_admission(t, 1);
	t->a->vm->n_given = (1u << 25) - 1;
	rig_hint(t->a, 0, 0, 1, 7);
	rig_run(&t->rig);
	assert_int_equal(given(t->a), 1);
	rig_hint(t->a, 1, 1, 1, 8);
	assert_false(wants(t->a));
	assert_int_equal(rig_stats(t->a).quota, PF_QUOTA_FRAMES);
	rig_hint(t->b, 1, 1, 1, 8);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 2);
}

static void test_neighbours_do_not_change_the_index_memory(void **state)
{
	Pair *t = *state;
	uint64_t alone;

	rig_hint(t->a, 0, 0, 500, 1);
	alone = pf_vm_index_bytes(t->a->vm);
	rig_hint(t->b, 0, 0, 500, 1);
	assert_int_equal(pf_vm_index_bytes(t->a->vm), alone);
	rig_remove(t->b);
	assert_int_equal(pf_vm_index_bytes(t->a->vm), alone);
}

static void test_module_table_beyond_the_quota(void **state)
{
	Pair *t = *state;
	PfModuleInfo info = {NULL, 0, "module", 100};
	PfDigest digest = rig_digest(7);

	set_policy(t->a, 2, PLENTY, PLENTY, 16);
	pf_fusion_module(t->a->vm, PF_SESSION_MAX_MODULES - 1, &info);
	pf_fusion_hints(
		t->a->vm, PF_SESSION_MAX_MODULES - 1, 0, (PfGfn){1}, 1, &digest, t->rig.now_us);
	assert_int_equal(rig_stats(t->a).hinted, 0);
	assert_int_equal(rig_stats(t->a).over_quota, 1);
	assert_in_range(pf_vm_index_bytes(t->a->vm), 0, 4096);
	/* A module that it has may be declared again, and one that fits too. */
	pf_fusion_module(t->a->vm, 0, &info);
	pf_fusion_module(t->a->vm, 100, &info);
	pf_fusion_hints(t->a->vm, 100, 0, (PfGfn){1}, 1, &digest, t->rig.now_us);
	assert_int_equal(rig_stats(t->a).hinted, 1);
	/* A session that starts gives the table back. */
	pf_fusion_session_started(t->a->vm);
	assert_int_equal(pf_vm_index_bytes(t->a->vm), 0);
	rig_check(&t->rig);
}

/* Takes what it gets, with hints of pages that nobody else has; bytes of its records. */
static uint64_t be_greedy(RigVm *m)
{
	uint32_t first = m->rig->vms->len << 20;

	rig_hint(m, 0, 0, (uint32_t)m->n_pages, first);
	assert_true(rig_stats(m).over_quota > 0);
	assert_int_equal(rig_stats(m).quota, PF_QUOTA_INDEX);
	return pf_vm_index_bytes(m->vm);
}

static void expect_within_limit(const Rig *rig)
{
	rig_check(rig);
	assert_in_range(rig->fusion->memory_bytes, 0, rig->fusion->memory_limit);
}

/* Each takes all it can before the next one comes. Chunks and tables of 64 KiB make it less than the formula by one each. */
static void test_memory_of_all_together(void **state)
{
	enum { LIMIT = 16 << 20, SLACK = 256 << 10 };
	Pair *t = *state;
	uint64_t left, bytes;

	pf_fusion_set_memory_limit(t->rig.fusion, LIMIT);
	for (uint32_t n = 3; n <= 12; n++) {
		RigVm *m = rig_add(&t->rig, 0, 150000);

		left = LIMIT - t->rig.fusion->memory_bytes;
		bytes = be_greedy(m);
		expect_within_limit(&t->rig);
		if (n == 3)
			assert_in_range(bytes, LIMIT / 2 - SLACK, LIMIT);
		else
			assert_in_range(bytes + SLACK, left / (n + 1), LIMIT / 2);
	}
	/* Those who were there first and have nothing get something as well. */
	rig_hint(t->a, 0, 0, 100, 1);
	assert_int_equal(rig_stats(t->a).hinted, 100);
	assert_int_equal(rig_stats(t->a).quota, PF_QUOTA_NONE);
	pf_fusion_set_memory_limit(t->rig.fusion, 0);
	assert_int_equal(rig_stats(t->rig.vms->pdata[2]).quota, PF_QUOTA_NONE);
}

/* One has had the first half. */
static void test_memory_of_many_at_once(void **state)
{
	enum { LIMIT = 16 << 20, N = 8 };
	Pair *t = *state;
	RigVm *first = rig_add(&t->rig, 0, 150000), *many[N - 3];

	pf_fusion_set_memory_limit(t->rig.fusion, LIMIT);
	be_greedy(first);
	for (uint32_t i = 0; i < G_N_ELEMENTS(many); i++)
		many[i] = rig_add(&t->rig, 0, 8192);
	for (uint32_t k = 0; k < 8192; k += 64)
		for (uint32_t i = 0; i < G_N_ELEMENTS(many); i++)
			rig_hint(many[i], k, k, 64, (i + 1) << 24 | k);
	expect_within_limit(&t->rig);
	for (uint32_t i = 0; i < G_N_ELEMENTS(many); i++)
		assert_in_range(pf_vm_index_bytes(many[i]->vm), LIMIT / (4 * N), LIMIT / N);
	/* Who leaves, leaves it to the others. */
	rig_remove(first);
	rig_hint(many[0], 0, 0, 8192, 99u << 24);
	assert_int_equal(rig_stats(many[0]).quota, PF_QUOTA_NONE);
	assert_int_equal(rig_stats(many[0]).hinted, 8192);
}

/* What a shim lists counts like what its guest hints. */
static void test_memory_for_a_list(void **state)
{
	enum { LIMIT = 4 << 20, N = 100000 };
	Pair *t = *state;
	RigVm *m = rig_add_unknown(&t->rig, 0, N);

	pf_fusion_set_memory_limit(t->rig.fusion, LIMIT);
	rig_store(&t->rig, 0, 512, 7);
	pf_fusion_adopt_store(m->vm, 520);
	for (uint32_t i = 0; i < N; i++)
		m->mapped[i] = 512;
	assert_in_range(rig_list(m), N / 4, N - LIMIT / 200);
	expect_within_limit(&t->rig);
}

/* Frames each in a range of its own: those that are used, and those that wait. */
static void test_memory_of_ranges(void **state)
{
	enum { LIMIT = 3 << 20, N = 6000 };
	Pair *t = *state;
	RigVm *m = rig_add(&t->rig, 0, N);

	set_admission(t, 1);
	pf_fusion_set_memory_limit(t->rig.fusion, LIMIT);
	for (uint32_t round = 0; round < 4; round++) {
		PfModuleInfo info = {NULL, 0, "module", PF_SESSION_MAX_MODULE_PAGES};

		info.n_pages -= round * PF_LAYOUT_ALIGN;
		pf_fusion_module(m->vm, 0, &info);
		for (uint32_t i = 0; i < N; i++)
			rig_hint(m, i * PF_LAYOUT_CHUNK_FRAMES, i, 1, (round + 1) << 20 | i);
		while (rig_next(m, &t->order))
			rig_answer(m, &t->order);
		expect_within_limit(&t->rig);
		assert_in_range(given(m), 100, N - 1);
		withdraw_all(m);
		rig_empty(m);
		rig_free(&t->rig);
	}
	/* There is room for another VM's. */
	rig_hint(t->b, 0, 0, 10, 1);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->b).fused, 10);
}

static void test_memory_for_captures(void **state)
{
	Pair *t = *state;

	set_admission(t, 1);
	rig_hint(t->a, 0, 0, 100, 1);
	pf_fusion_set_memory_limit(t->rig.fusion, t->rig.fusion->memory_bytes);
	assert_false(wants(t->a));
	pf_fusion_set_memory_limit(t->rig.fusion, t->rig.fusion->memory_bytes + 100000);
	assert_true(wants(t->a));
	/* What is promised is as good as taken. */
	assert_true(rig_next(t->a, &t->order));
	assert_in_range(t->order.n_pages, 2, 99);
	assert_false(wants(t->a));
	rig_answer(t->a, &t->order);
	expect_within_limit(&t->rig);
}

static void test_what_a_vm_leaves_behind(void **state)
{
	Pair *t = *state;
	uint64_t before;
	RigVm *c;

	rig_hint(t->a, 0, 0, 100, 1);
	before = t->rig.fusion->memory_bytes;
	c = rig_add(&t->rig, 0, 100000);
	rig_hint(c, 0, 0, 100000, 1000);
	assert_in_range(t->rig.fusion->memory_bytes, before + 100000 * 140, before + 100000 * 220);
	rig_remove(c);
	rig_check(&t->rig);
	/* The chunks that it shares with others, and one of each kind. */
	assert_in_range(t->rig.fusion->memory_bytes, before, before + 1024 * 160);
}

static void test_not_capturing_waits_for_others(void **state)
{
	Pair *t = *state;

	pf_fusion_set_capturing(t->a->vm, false);
	rig_hint(t->a, 0, 0, 5, 1);
	rig_hint(t->b, 0, 0, 5, 1);
	assert_false(wants(t->a));
	rig_run(&t->rig);
	assert_int_equal(given(t->b), 5);
	/* It is asked to fuse all the same. */
	assert_int_equal(rig_stats(t->a).fused, 5);
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), -1);
}

static void test_not_capturing_is_asked_in_the_end(void **state)
{
	Pair *t = *state;
	int64_t hinted_us = t->rig.now_us, due_us;

	pf_fusion_set_capturing(t->a->vm, false);
	pf_fusion_set_capturing(t->a->vm, false);
	pf_fusion_set_ready(t->b->vm, false);
	rig_hint(t->a, 0, 0, 5, 1);
	rig_hint(t->b, 0, 0, 5, 1);
	assert_false(wants(t->a));
	due_us = pf_fusion_next_tick_us(t->rig.fusion);
	assert_in_range(due_us, hinted_us + PF_FUSION_PATIENCE_US,
		hinted_us + PF_FUSION_PATIENCE_US + PF_FUSION_TICK_US);
	rig_tick(&t->rig, due_us - 1 - t->rig.now_us);
	assert_false(wants(t->a));
	rig_tick(&t->rig, 1);
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), -1);
	assert_true(rig_next(t->a, &t->order));
	/* A copy that never comes: whoever is there now gives it, and this one has to wait again. */
	pf_fusion_shim_away(t->a->vm);
	rig_empty(t->a);
	pf_fusion_set_ready(t->a->vm, true);
	assert_false(wants(t->a));
	pf_fusion_set_capturing(t->a->vm, true);
	assert_true(wants(t->a));
	rig_check(&t->rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_admission_of_one_captures_at_once),
		T(test_admission_of_three),
		T(test_another_admission_holds_at_once),
		T(test_admission_raised_over_a_frame),
		T(test_admission_is_of_one_group),
		T(test_candidates_beyond_the_quota),
		T(test_candidate_said_anew_at_the_quota),
		T(test_hint_of_a_fused_page_is_no_candidate),
		T(test_frames_beyond_the_quota),
		T(test_captures_under_way_count),
		T(test_room_for_frames_wakes),
		T(test_frames_that_nobody_maps),
		T(test_frames_of_a_vm_that_left),
		T(test_frames_of_an_earlier_service_are_nobodys),
		T(test_index_memory_beyond_the_quota),
		T(test_list_beyond_the_quota),
		T(test_ranges_of_frames_are_index_memory),
		T(test_frames_of_a_life),
		T(test_neighbours_do_not_change_the_index_memory),
		T(test_module_table_beyond_the_quota),
		T(test_memory_of_all_together),
		T(test_memory_of_many_at_once),
		T(test_memory_for_a_list),
		T(test_memory_of_ranges),
		T(test_memory_for_captures),
		T(test_what_a_vm_leaves_behind),
		T(test_not_capturing_waits_for_others),
		T(test_not_capturing_is_asked_in_the_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
