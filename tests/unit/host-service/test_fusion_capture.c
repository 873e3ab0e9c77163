/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Who is asked for the bytes of a digest, when a VM that was asked does not give them. */
#include "fusion_pair.h"

static bool wants(RigVm *m)
{
	return pf_vm_has_orders(m->vm);
}

/* A VM has the digest in many pages, so that it has always one more to offer. b comes when a is asked already. */
static void ask_a(Pair *t)
{
	pf_fusion_set_ready(t->b->vm, false);
	for (unsigned i = 0; i < 8; i++)
		rig_hint(t->a, i, i, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	pf_fusion_set_ready(t->b->vm, true);
	assert_true(rig_next(t->a, &t->order));
	assert_int_equal(t->order.type, PF_ORDER_CAPTURE);
	assert_int_equal(t->order.n_pages, 1);
}

static void expect_b_comes_first(Pair *t)
{
	rig_check(&t->rig);
	assert_false(wants(t->a));
	assert_true(rig_next(t->b, &t->order));
	rig_answer(t->b, &t->order);
	rig_run(&t->rig);
	assert_true(rig_stats(t->a).fused >= 1);
	assert_int_equal(rig_stats(t->b).fused, 1);
	rig_check(&t->rig);
}

static void check_result(Pair *t, uint8_t result)
{
	ask_a(t);
	memset(t->a->results, result, 8);
	rig_answer(t->a, &t->order);
	memset(t->a->results, PF_SHIM_DONE, 8);
	expect_b_comes_first(t);
}

static void test_busy(void **state)
{
	check_result(*state, PF_SHIM_BUSY);
}

static void test_different(void **state)
{
	check_result(*state, PF_SHIM_DIFFERENT);
}

static void test_other_bytes(void **state)
{
	Pair *t = *state;

	ask_a(t);
	t->a->ram[t->order.runs[0].gfn.v] = 99;
	rig_answer(t->a, &t->order);
	expect_b_comes_first(t);
}

/* It goes away with the order, and comes back. */
static void test_order_is_void(void **state)
{
	Pair *t = *state;

	ask_a(t);
	pf_fusion_shim_away(t->a->vm);
	rig_empty(t->a);
	pf_fusion_set_ready(t->a->vm, true);
	expect_b_comes_first(t);
}

/* That it hints it anew changes nothing. */
static void test_new_hint(void **state)
{
	Pair *t = *state;

	ask_a(t);
	memset(t->a->results, PF_SHIM_BUSY, 8);
	rig_answer(t->a, &t->order);
	memset(t->a->results, PF_SHIM_DONE, 8);
	pf_fusion_withdrawn(t->a->vm, 0, &(PfFileRange){0, 8}, 1);
	rig_hint(t->a, 100, 100, 1, 7);
	expect_b_comes_first(t);
}

static void test_asked_in_the_end(void **state)
{
	Pair *t = *state;
	int64_t failed_us, due_us;

	ask_a(t);
	t->a->results[t->order.runs[0].gfn.v] = PF_SHIM_DIFFERENT;
	rig_answer(t->a, &t->order);
	failed_us = t->rig.now_us;
	/* The other one goes away: nobody else gives it. */
	pf_fusion_set_ready(t->b->vm, false);
	assert_false(wants(t->a));
	due_us = pf_fusion_next_tick_us(t->rig.fusion);
	assert_in_range(due_us, failed_us + PF_FUSION_PATIENCE_US,
		failed_us + PF_FUSION_PATIENCE_US + PF_FUSION_TICK_US);
	rig_tick(&t->rig, due_us - 1 - t->rig.now_us);
	assert_false(wants(t->a));
	rig_tick(&t->rig, 1);
	assert_true(wants(t->a));
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).frames, 1);
	rig_check(&t->rig);
}

/* It waits for one digest, not for the others that it hints. */
static void test_other_digests_go_on(void **state)
{
	Pair *t = *state;

	ask_a(t);
	memset(t->a->results, PF_SHIM_BUSY, 8);
	rig_answer(t->a, &t->order);
	rig_hint(t->b, 50, 50, 1, 8);
	rig_hint(t->a, 50, 50, 1, 8);
	assert_true(rig_next(t->a, &t->order));
	assert_int_equal(t->order.runs[0].gfn.v, 50);
	assert_int_equal(t->order.n_pages, 1);
	rig_answer(t->a, &t->order);
	assert_int_equal(rig_total(&t->rig).frames, 1);
	rig_check(&t->rig);
}

/* Who is alone with it is asked as ever. */
static void test_nobody_else(void **state)
{
	Pair *t = *state;

	ask_a(t);
	pf_fusion_set_ready(t->b->vm, false);
	t->a->results[t->order.runs[0].gfn.v] = PF_SHIM_DIFFERENT;
	rig_answer(t->a, &t->order);
	assert_true(wants(t->a));
}

static void note(PfFusionVm *vm, void *userdata)
{
	PfFusionVm **first = userdata;

	if (!*first)
		*first = vm;
}

/* Nobody is always the first. */
static void test_turns(void **state)
{
	PfFusionVm *first[4] = {NULL};
	Pair *t = *state;

	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	for (size_t i = 0; i < G_N_ELEMENTS(first); i++)
		pf_fusion_foreach_pending(t->rig.fusion, note, &first[i]);
	assert_ptr_not_equal(first[0], first[1]);
	assert_ptr_equal(first[0], first[2]);
	assert_ptr_equal(first[1], first[3]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_busy),
		T(test_different),
		T(test_other_bytes),
		T(test_order_is_void),
		T(test_new_hint),
		T(test_asked_in_the_end),
		T(test_other_digests_go_on),
		T(test_nobody_else),
		T(test_turns),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
