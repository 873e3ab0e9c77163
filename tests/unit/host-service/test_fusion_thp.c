/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Huge pages of the guest: which runs may break them, and what becomes of those that may not. */
#include "tests/unit/host-service/fusion_pair.h"

/* b gets n pages from gfn on that could be fused at once: a has them, and b is not asked before all are there. */
static void make_ready(Pair *t, uint64_t gfn, uint32_t n)
{
	pf_fusion_set_ready(t->b->vm, false);
	rig_hint(t->a, gfn, gfn, n, 1 + (uint32_t)gfn);
	rig_hint(t->b, gfn, gfn, n, 1 + (uint32_t)gfn);
	rig_run(&t->rig);
	pf_fusion_set_ready(t->b->vm, true);
}

static void test_all_breaks_everything(void **state)
{
	Pair *t = *state;

	make_ready(t, 500, 24);
	assert_true(rig_next(t->b, &t->order));
	assert_int_equal(t->order.n_runs, 1);
	assert_true(t->order.runs[0].may_break_huge);
	rig_answer(t->b, &t->order);
}

static void test_preserve_breaks_nothing(void **state)
{
	Pair *t = *state;

	pf_fusion_set_thp(t->b->vm, PF_THP_PRESERVE);
	pf_fusion_set_pressure(t->rig.fusion, true);
	make_ready(t, 0, 512);
	make_ready(t, 1020, 8);
	assert_true(rig_next(t->b, &t->order));
	assert_int_equal(t->order.n_pages, 520);
	for (uint32_t i = 0; i < t->order.n_runs; i++)
		assert_false(t->order.runs[i].may_break_huge);
	rig_answer(t->b, &t->order);
}

static void test_runs_end_with_the_huge_page(void **state)
{
	Pair *t = *state;

	pf_fusion_set_thp(t->b->vm, PF_THP_BALANCED);
	make_ready(t, 500, 24);
	assert_true(rig_next(t->b, &t->order));
	assert_int_equal(t->order.n_runs, 2);
	assert_int_equal(t->order.runs[0].gfn.v, 500);
	assert_int_equal(t->order.runs[0].n_pages, 12);
	assert_int_equal(t->order.runs[1].gfn.v, 512);
	assert_int_equal(t->order.runs[1].n_pages, 12);
	rig_answer(t->b, &t->order);
	assert_int_equal(rig_stats(t->b).runs, 1);
}

static void test_balanced_counts_pages(void **state)
{
	Pair *t = *state;

	pf_fusion_set_thp(t->b->vm, PF_THP_BALANCED);
	/* One short of it, in pieces. */
	make_ready(t, 512, 30);
	make_ready(t, 1024 - 33, 33);
	make_ready(t, 1024, 5);
	assert_true(rig_next(t->b, &t->order));
	assert_int_equal(t->order.n_pages, 68);
	for (uint32_t i = 0; i < t->order.n_runs; i++)
		assert_false(t->order.runs[i].may_break_huge);
	rig_answer(t->b, &t->order);
	/* With those that are fused, the next one makes it; the neighbour has too few. */
	make_ready(t, 600, 1);
	make_ready(t, 1100, 1);
	assert_true(rig_next(t->b, &t->order));
	assert_int_equal(t->order.n_runs, 2);
	assert_true(t->order.runs[0].may_break_huge);
	assert_int_equal(t->order.runs[1].gfn.v, 1100);
	assert_false(t->order.runs[1].may_break_huge);
	rig_answer(t->b, &t->order);
}

static void test_pressure_breaks(void **state)
{
	Pair *t = *state;

	pf_fusion_set_thp(t->b->vm, PF_THP_BALANCED);
	pf_fusion_set_pressure(t->rig.fusion, true);
	make_ready(t, 500, 24);
	assert_true(rig_next(t->b, &t->order));
	assert_int_equal(t->order.n_runs, 2);
	assert_true(t->order.runs[0].may_break_huge);
	assert_true(t->order.runs[1].may_break_huge);
	rig_answer(t->b, &t->order);
	pf_fusion_set_pressure(t->rig.fusion, false);
	make_ready(t, 100, 1);
	assert_true(rig_next(t->b, &t->order));
	assert_false(t->order.runs[0].may_break_huge);
	rig_answer(t->b, &t->order);
}

/* Pages far from each other: an order looks into a few huge pages only. */
static void test_balanced_order_is_bounded(void **state)
{
	Rig rig;
	RigVm *a, *b;
	PfOrder order;
	uint32_t n_orders = 0;

	rig_init(&rig);
	a = rig_add(&rig, 0, 40 * 512);
	b = rig_add(&rig, 0, 40 * 512);
	pf_fusion_set_ready(b->vm, false);
	for (uint32_t i = 0; i < 40; i++) {
		rig_hint(a, i * 512, i * 512, 1, i);
		rig_hint(b, i * 512, i * 512, 1, i);
	}
	rig_run(&rig);
	pf_fusion_set_ready(b->vm, true);
	pf_fusion_set_thp(b->vm, PF_THP_BALANCED);
	while (rig_next(b, &order)) {
		assert_in_range(order.n_runs, 1, 8);
		rig_check(&rig);
		rig_answer(b, &order);
		n_orders++;
	}
	assert_int_equal(n_orders, 5);
	assert_int_equal(rig_stats(b).fused, 40);
	rig_deinit(&rig);
}

static void test_huge_backs_off_to_five_minutes(void **state)
{
	static const int64_t delays[] = {30, 60, 120, 240, 300, 300};
	Pair *t = *state;

	pf_fusion_set_thp(t->b->vm, PF_THP_BALANCED);
	t->b->results[0] = PF_SHIM_HUGE;
	make_ready(t, 0, 1);
	for (unsigned i = 0; i < G_N_ELEMENTS(delays); i++) {
		rig_run(&t->rig);
		rig_check(&t->rig);
		assert_int_equal(rig_stats(t->b).refused[PF_SHIM_HUGE], i + 1);
		assert_int_equal(
			pf_fusion_next_tick_us(t->rig.fusion), t->rig.now_us + delays[i] * SEC);
		rig_tick(&t->rig, delays[i] * SEC);
	}
	/* Dense enough by now. */
	make_ready(t, 10, 64);
	assert_true(rig_next(t->b, &t->order));
	assert_true(t->order.runs[0].may_break_huge);
	t->b->results[0] = PF_SHIM_DONE;
	rig_answer(t->b, &t->order);
}

static void test_pressure_ends_the_wait(void **state)
{
	Pair *t = *state;

	pf_fusion_set_thp(t->a->vm, PF_THP_PRESERVE);
	pf_fusion_set_thp(t->b->vm, PF_THP_BALANCED);
	t->a->results[100] = t->b->results[0] = t->b->results[1] = PF_SHIM_HUGE;
	t->b->results[2] = PF_SHIM_BUSY;
	make_ready(t, 0, 3);
	rig_hint(t->a, 100, 100, 1, 1);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).refused[PF_SHIM_HUGE], 1);
	pf_fusion_set_pressure(t->rig.fusion, false);
	assert_false(rig_next(t->b, &t->order));
	pf_fusion_set_pressure(t->rig.fusion, true);
	rig_check(&t->rig);
	assert_false(rig_next(t->a, &t->order));
	assert_true(rig_next(t->b, &t->order));
	assert_int_equal(t->order.n_pages, 2);
	assert_int_equal(t->order.runs[0].gfn.v, 0);
	assert_true(t->order.runs[0].may_break_huge);
	rig_answer(t->b, &t->order);
	/* It goes on, and does not begin anew. */
	pf_fusion_set_pressure(t->rig.fusion, true);
	assert_false(rig_next(t->b, &t->order));
}

static void test_another_policy_ends_the_wait(void **state)
{
	Pair *t = *state;

	pf_fusion_set_thp(t->a->vm, PF_THP_BALANCED);
	pf_fusion_set_thp(t->b->vm, PF_THP_BALANCED);
	t->a->results[0] = t->b->results[0] = PF_SHIM_HUGE;
	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	rig_run(&t->rig);
	assert_false(rig_next(t->a, &t->order));
	pf_fusion_set_thp(t->b->vm, PF_THP_BALANCED);
	assert_false(rig_next(t->b, &t->order));
	pf_fusion_set_thp(t->b->vm, PF_THP_ALL);
	rig_check(&t->rig);
	assert_false(rig_next(t->a, &t->order));
	assert_true(rig_next(t->b, &t->order));
	rig_answer(t->b, &t->order);
	/* Both pages could not even be copied: the wait is the first one again. */
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), t->rig.now_us + 30 * SEC);
}

static void test_aside_is_tried_again_soon(void **state)
{
	Pair *t = *state;

	t->b->results[0] = PF_SHIM_ASIDE;
	make_ready(t, 0, 1);
	for (unsigned i = 0; i < 3; i++) {
		rig_run(&t->rig);
		assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), t->rig.now_us + 5 * SEC);
		rig_tick(&t->rig, 5 * SEC);
	}
	t->b->results[0] = PF_SHIM_DONE;
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->b).fused, 1);
	assert_int_equal(rig_stats(t->b).refused[PF_SHIM_ASIDE], 3);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_all_breaks_everything),
		T(test_preserve_breaks_nothing),
		T(test_runs_end_with_the_huge_page),
		T(test_balanced_counts_pages),
		T(test_pressure_breaks),
		T(test_balanced_order_is_bounded),
		T(test_huge_backs_off_to_five_minutes),
		T(test_pressure_ends_the_wait),
		T(test_another_policy_ends_the_wait),
		T(test_aside_is_tried_again_soon),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
