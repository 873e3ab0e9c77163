/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* When a frame goes, and when it may not. */
#include "tests/unit/host-service/fusion_pair.h"

static void test_frame_that_nobody_uses(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	withdraw_all(t->a);
	withdraw_all(t->b);
	assert_int_equal(rig_free(&t->rig), 0);
	assert_int_equal(rig_write(t->a, 10, 8), 0);
	assert_int_equal(rig_free(&t->rig), 0);
	assert_int_equal(rig_write(t->b, 10, 8), 0);
	assert_int_equal(rig_free(&t->rig), 1);
	assert_int_equal(rig_total(&t->rig).frames, 0);
	assert_int_equal(rig_total(&t->rig).freed, 1);
	assert_int_equal(rig_free(&t->rig), 0);
}

static void test_mapped_again_before_it_was_freed(void **state)
{
	Pair *t = *state;
	int64_t frame;

	fuse_both(t);
	frame = t->a->mapped[10];
	withdraw_all(t->a);
	assert_int_equal(rig_discard(t->a, 10), 0);
	assert_int_equal(rig_discard(t->b, 10), 0);
	rig_hint(t->b, 3, 10, 1, 7);
	rig_run(&t->rig);
	assert_int_equal(t->b->mapped[10], frame);
	assert_int_equal(rig_free(&t->rig), 0);
	assert_int_equal(rig_discard(t->b, 10), 0);
	assert_int_equal(rig_free(&t->rig), 1);
}

static void test_ordered_is_used(void **state)
{
	Pair *t = *state;

	fuse_a_order_b(t);
	withdraw_all(t->a);
	withdraw_all(t->b);
	assert_int_equal(rig_discard(t->a, 10), 0);
	assert_int_equal(rig_free(&t->rig), 0);
	t->b->results[10] = PF_SHIM_BUSY;
	rig_answer(t->b, &t->order);
	assert_int_equal(rig_free(&t->rig), 1);
}

static void test_wanted_is_not_freed(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 0, 64);

	/* Published, and nobody was ordered to fuse it yet. */
	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	assert_true(rig_next(t->a, &t->order));
	rig_answer(t->a, &t->order);
	assert_int_equal(rig_free(&t->rig), 0);
	rig_hint(c, 0, 0, 1, 7);
	withdraw_all(t->b);
	assert_int_equal(rig_free(&t->rig), 0);
	withdraw_all(c);
	assert_int_equal(rig_free(&t->rig), 1);
	/* The one hint that is left waits for another. */
	assert_int_equal(rig_stats(t->a).hinted, 1);
	assert_false(rig_next(t->a, &t->order));
}

static void test_captured_again_with_another_number(void **state)
{
	Pair *t = *state;
	int64_t frame;

	fuse_both(t);
	frame = t->a->mapped[10];
	pf_fusion_set_ready(t->a->vm, false);
	rig_hint(t->a, 4, 11, 3, 7);
	for (uint32_t i = 11; i < 14; i++)
		rig_hint(t->a, i, i, 1, 7);
	withdraw_all(t->b);
	assert_int_equal(rig_discard(t->a, 10), 0);
	assert_int_equal(rig_discard(t->b, 10), 0);
	assert_int_equal(rig_free(&t->rig), 1);
	rig_hint(t->b, 3, 10, 1, 7);
	pf_fusion_set_ready(t->a->vm, true);
	rig_run(&t->rig);
	/* rig_publish() has seen that the number is new. */
	assert_int_equal(t->rig.n_published, 2);
	assert_int_not_equal(t->b->mapped[10], frame);
	assert_int_equal(t->b->mapped[10], t->a->mapped[11]);
	assert_int_equal(rig_stats(t->a).fused, 3);
}

static void test_delayed_page_of_a_freed_frame(void **state)
{
	Pair *t = *state;

	t->a->results[20] = PF_SHIM_BUSY;
	fuse_both(t);
	rig_hint(t->a, 20, 20, 1, 7);
	rig_run(&t->rig);
	withdraw_all(t->b);
	assert_int_equal(rig_discard(t->a, 10), 0);
	assert_int_equal(rig_discard(t->b, 10), 0);
	assert_int_equal(rig_free(&t->rig), 1);
	rig_tick(&t->rig, SEC);
	rig_check(&t->rig);
	assert_false(rig_next(t->a, &t->order));
	assert_int_equal(rig_stats(t->a).hinted, 1);
}

/* Pages whose state changes with the frame are found without a look at the others: they stand in front. */
static void test_ready_page_beside_a_delayed_one(void **state)
{
	Pair *t = *state;

	t->a->results[20] = PF_SHIM_BUSY;
	rig_hint(t->b, 10, 10, 1, 7);
	rig_hint(t->a, 20, 20, 1, 7);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->b).fused, 1);
	pf_fusion_set_ready(t->a->vm, false);
	rig_hint(t->a, 21, 21, 1, 7);
	rig_check(&t->rig);
	withdraw_all(t->b);
	assert_int_equal(rig_discard(t->b, 10), 0);
	assert_int_equal(rig_free(&t->rig), 1);
	/* It has to be captured again. */
	rig_hint(t->b, 10, 10, 1, 7);
	rig_run(&t->rig);
	pf_fusion_set_ready(t->a->vm, true);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 1);
}

/* Likewise when an order has some of them. */
static void test_ready_page_beside_an_ordered_one(void **state)
{
	Pair *t = *state;

	pf_fusion_set_ready(t->a->vm, false);
	for (uint32_t i = 0; i <= PF_SHIM_MAX_RUNS; i++)
		rig_hint(t->a, 100 + i, 100 + i, 1, 7);
	rig_hint(t->b, 10, 10, 1, 7);
	rig_run(&t->rig);
	pf_fusion_set_ready(t->a->vm, true);
	assert_true(rig_next(t->a, &t->order));
	assert_int_equal(t->order.n_pages, PF_SHIM_MAX_RUNS);
	rig_check(&t->rig);
	rig_answer(t->a, &t->order);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, PF_SHIM_MAX_RUNS + 1);
}

static void test_few_at_a_time(void **state)
{
	Pair *t = *state;

	rig_hint(t->a, 0, 0, 10, 7);
	rig_hint(t->b, 0, 0, 10, 7);
	rig_run(&t->rig);
	assert_true(pf_fusion_free_unused(t->rig.fusion, 0, rig_freed, &t->rig));
	withdraw_all(t->a);
	withdraw_all(t->b);
	rig_empty(t->a);
	rig_empty(t->b);
	assert_false(pf_fusion_free_unused(t->rig.fusion, 4, rig_freed, &t->rig));
	rig_check(&t->rig);
	assert_int_equal(rig_total(&t->rig).freed, 4);
	assert_false(pf_fusion_free_unused(t->rig.fusion, 0, rig_freed, &t->rig));
	assert_true(pf_fusion_free_unused(t->rig.fusion, 6, rig_freed, &t->rig));
	assert_int_equal(rig_total(&t->rig).frames, 0);
	assert_int_equal(t->rig.n_freed, 10);
}

static void test_groups_are_freed_apart(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 1, 16), *d = rig_add(&t->rig, 1, 16);

	fuse_both(t);
	rig_hint(c, 3, 10, 1, 7);
	rig_hint(d, 3, 10, 1, 7);
	rig_run(&t->rig);
	assert_int_equal(t->a->mapped[10], c->mapped[10]);
	withdraw_all(c);
	rig_empty(c);
	assert_int_equal(rig_discard(d, 10), 0);
	/* rig_freed() sees that no VM of that group maps it. */
	assert_int_equal(rig_free(&t->rig), 1);
	assert_int_equal(rig_total(&t->rig).frames, 1);
}

static void test_old_frames_wait_until_all_are_known(void **state)
{
	Rig rig;
	RigVm *a, *b, *c;

	rig_init(&rig);
	a = rig_add_unknown(&rig, 0, 64);
	b = rig_add_unknown(&rig, 0, 64);
	c = rig_add_unknown(&rig, 0, 64);
	pf_fusion_adopt_store(a->vm, 1024);
	rig_store(&rig, 0, 600, 7);
	a->mapped[1] = b->mapped[1] = 600;
	assert_int_equal(rig_list(a), 0);
	rig_empty(a);
	/* b maps it still, and nobody here knows. */
	assert_int_equal(rig_free(&rig), 0);
	/* A frame of our own is not b's. */
	rig_empty(c);
	rig_hint(a, 2, 2, 1, 8);
	rig_hint(c, 2, 2, 1, 8);
	rig_run(&rig);
	withdraw_all(a);
	withdraw_all(c);
	rig_empty(a);
	rig_empty(c);
	assert_int_equal(rig_free(&rig), 1);
	assert_int_equal(rig_list(b), 0);
	assert_int_equal(rig_free(&rig), 0);
	assert_int_equal(rig_discard(b, 1), 0);
	pf_fusion_shim_away(a->vm);
	assert_int_equal(rig_free(&rig), 1);
	rig_deinit(&rig);
}

/* Who was given the store counts, whatever group it is of by now; who was not does not. */
static void test_old_frames_wait_for_members_only(void **state)
{
	Rig rig;
	RigVm *a, *moved, *stranger;

	rig_init(&rig);
	a = rig_add_unknown(&rig, 0, 64);
	moved = rig_add_unknown(&rig, 1, 64);
	moved->given |= 1u << 0;
	stranger = rig_add_unknown(&rig, 0, 64);
	stranger->given = 0;
	rig_add_unknown(&rig, 1, 64);
	pf_fusion_adopt_store(a->vm, 1024);
	rig_store(&rig, 0, 600, 7);
	a->mapped[1] = 600;
	assert_int_equal(rig_list(a), 0);
	rig_empty(a);
	assert_int_equal(rig_free(&rig), 0);
	/* What it maps of the other store is released. */
	rig_empty(moved);
	assert_int_equal(rig_free(&rig), 1);
	assert_false(pf_fusion_knows_all(rig.fusion));
	rig_deinit(&rig);
}

static void test_unknown_vm_leaves(void **state)
{
	Rig rig;
	RigVm *a, *b;

	rig_init(&rig);
	a = rig_add_unknown(&rig, 0, 64);
	b = rig_add_unknown(&rig, 0, 64);
	pf_fusion_adopt_store(a->vm, 1024);
	rig_store(&rig, 0, 600, 7);
	a->mapped[1] = 600;
	assert_int_equal(rig_list(a), 0);
	rig_empty(a);
	assert_int_equal(rig_free(&rig), 0);
	rig_remove(b);
	assert_int_equal(rig_free(&rig), 1);
	rig_deinit(&rig);
}

static void test_frames_of_a_vm_that_leaves(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 0, 64);

	rig_hint(c, 0, 0, 2, 7);
	rig_hint(t->a, 0, 0, 2, 7);
	rig_run(&t->rig);
	withdraw_all(t->a);
	assert_int_equal(rig_discard(t->a, 0), 0);
	assert_int_equal(rig_free(&t->rig), 0);
	rig_remove(c);
	assert_int_equal(rig_free(&t->rig), 1);
	assert_int_equal(rig_total(&t->rig).frames, 1);
}

/* All of a module's frames go, and it comes back in one piece. */
static void test_module_after_a_night(void **state)
{
	Pair *t = *state;
	int64_t frame;

	rig_hint(t->a, 0, 0, 1000, 1);
	rig_hint(t->b, 0, 100, 1000, 1);
	rig_run(&t->rig);
	frame = t->a->mapped[0];
	withdraw_all(t->a);
	withdraw_all(t->b);
	rig_empty(t->a);
	rig_empty(t->b);
	assert_int_equal(rig_free(&t->rig), 1000);
	rig_hint(t->a, 0, 0, 1000, 1);
	rig_hint(t->b, 0, 100, 1000, 1);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 1000);
	assert_int_equal(rig_stats(t->a).runs, 1);
	assert_true(t->a->mapped[0] >= frame + 1000);
}

/* What is freed has been seen once; what is in use costs nothing. */
static void test_list_of_unused_stays_short(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	for (uint32_t i = 0; i < 1000; i++) {
		assert_int_equal(rig_discard(t->a, 10), 0);
		assert_int_equal(rig_discard(t->b, 10), 0);
		rig_hint(t->a, 3, 10, 1, 7);
		rig_hint(t->b, 3, 10, 1, 7);
		rig_run(&t->rig);
	}
	assert_in_range(t->a->vm->group->unused->len, 0, 1);
	assert_int_equal(t->rig.n_published, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_frame_that_nobody_uses),
		T(test_mapped_again_before_it_was_freed),
		T(test_ordered_is_used),
		T(test_wanted_is_not_freed),
		T(test_captured_again_with_another_number),
		T(test_delayed_page_of_a_freed_frame),
		T(test_ready_page_beside_a_delayed_one),
		T(test_ready_page_beside_an_ordered_one),
		T(test_few_at_a_time),
		T(test_groups_are_freed_apart),
		cmocka_unit_test(test_old_frames_wait_until_all_are_known),
		cmocka_unit_test(test_old_frames_wait_for_members_only),
		cmocka_unit_test(test_unknown_vm_leaves),
		T(test_frames_of_a_vm_that_leaves),
		T(test_module_after_a_night),
		T(test_list_of_unused_stays_short),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
