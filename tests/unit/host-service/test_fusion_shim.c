/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Shims that go away and come back, with nothing or with a list. */
#include "tests/unit/host-service/fusion_pair.h"

#define FIRST_OWN 10000u

/* Two unknown VMs of a group that goes on with the store of an earlier service. */
static int setup_adopted(void **state)
{
	Pair *t = g_new0(Pair, 1);

	rig_init(&t->rig);
	t->a = rig_add_unknown(&t->rig, 0, 64);
	t->b = rig_add_unknown(&t->rig, 0, 64);
	pf_fusion_adopt_store(t->a->vm, FIRST_OWN);
	*state = t;
	return 0;
}

#define ADOPTED(name) cmocka_unit_test_setup_teardown(name, setup_adopted, teardown)

static void test_away_voids_captures(void **state)
{
	Pair *t = *state;
	PfOrder other;

	rig_hint(t->a, 0, 0, 2, 7);
	rig_hint(t->b, 0, 0, 2, 7);
	assert_true(rig_next(t->a, &t->order));
	assert_false(rig_next(t->b, &other));
	pf_fusion_shim_away(t->a->vm);
	rig_check(&t->rig);
	assert_true(rig_next(t->b, &other));
	assert_int_equal(other.type, PF_ORDER_CAPTURE);
	assert_int_equal(other.n_pages, 2);
	assert_int_equal(rig_answer_capture(t->a, &t->order), -EPROTO);
	rig_answer(t->b, &other);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->b).fused, 2);
}

static void test_away_keeps_what_is_fused(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	pf_fusion_shim_away(t->a->vm);
	rig_check(&t->rig);
	assert_int_equal(rig_total(&t->rig).shared, 1);
	assert_int_equal(rig_stats(t->a).fused, 1);
	assert_int_equal(rig_stats(t->b).shared, 1);
	withdraw_all(t->a);
	withdraw_all(t->b);
	assert_int_equal(rig_discard(t->b, 10), 0);
	assert_int_equal(rig_free(&t->rig), 0);
	assert_int_equal(rig_list(t->a), 0);
	assert_int_equal(rig_stats(t->a).fused, 1);
	assert_int_equal(rig_free(&t->rig), 0);
	assert_int_equal(t->rig.n_hashed, 0);
}

static void test_away_gets_no_orders(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	pf_fusion_shim_away(t->a->vm);
	rig_hint(t->a, 20, 20, 1, 7);
	assert_false(rig_next(t->a, &t->order));
	pf_fusion_set_ready(t->a->vm, true);
	assert_false(rig_next(t->a, &t->order));
	pf_fusion_list_begin(t->a->vm);
	assert_false(rig_next(t->a, &t->order));
	assert_int_equal(rig_listed(t->a, 10, (uint64_t)t->a->mapped[10]), 0);
	pf_fusion_list_end(t->a->vm, t->rig.now_us);
	assert_true(rig_next(t->a, &t->order));
	rig_answer(t->a, &t->order);
	assert_int_equal(rig_stats(t->a).fused, 2);
	/* It is not ready by itself. */
	pf_fusion_shim_away(t->a->vm);
	rig_empty(t->a);
	assert_false(rig_next(t->a, &t->order));
}

static void test_unheard_gets_no_orders(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add_unknown(&t->rig, 0, 16);

	fuse_both(t);
	rig_hint(c, 0, 0, 1, 7);
	assert_false(rig_next(c, &t->order));
	rig_empty(c);
	assert_true(rig_next(c, &t->order));
	rig_answer(c, &t->order);
}

/* b's shim goes away with an order to fuse, and everybody else is gone from the frame. */
static void leave_only_the_order(Pair *t)
{
	fuse_a_order_b(t);
	pf_fusion_shim_away(t->b->vm);
	rig_check(&t->rig);
	withdraw_all(t->a);
	withdraw_all(t->b);
	assert_int_equal(rig_discard(t->a, 10), 0);
	assert_int_equal(rig_stats(t->b).fused, 0);
	assert_int_equal(rig_answer_fuse(t->b, &t->order), -EPROTO);
}

static void test_ordered_when_it_went_away_and_fused(void **state)
{
	Pair *t = *state;

	/* rig_answer_fuse() maps the page, and the answer is not heard. */
	leave_only_the_order(t);
	assert_int_equal(rig_free(&t->rig), 0);
	assert_int_equal(rig_list(t->b), 0);
	assert_int_equal(rig_stats(t->b).fused, 1);
	assert_int_equal(rig_free(&t->rig), 0);
	assert_int_equal(rig_discard(t->b, 10), 0);
	assert_int_equal(rig_free(&t->rig), 1);
}

static void test_ordered_when_it_went_away_and_not_listed(void **state)
{
	Pair *t = *state;

	leave_only_the_order(t);
	t->b->mapped[10] = -1;
	pf_fusion_list_begin(t->b->vm);
	assert_int_equal(rig_free(&t->rig), 0);
	pf_fusion_list_end(t->b->vm, t->rig.now_us);
	assert_int_equal(rig_free(&t->rig), 1);
}

static void test_ordered_when_it_went_away_and_emptied(void **state)
{
	Pair *t = *state;

	leave_only_the_order(t);
	assert_int_equal(rig_free(&t->rig), 0);
	rig_empty(t->b);
	assert_int_equal(rig_free(&t->rig), 1);
}

static void test_hints_of_an_ordered_page_while_away(void **state)
{
	Pair *t = *state;

	fuse_a_order_b(t);
	pf_fusion_shim_away(t->b->vm);
	withdraw_all(t->b);
	rig_check(&t->rig);
	rig_hint_only(t->b, 3, 10, 1, 7);
	rig_hint_only(t->b, 4, 10, 1, 7);
	rig_check(&t->rig);
	assert_int_equal(rig_stats(t->b).hinted, 1);
	/* Not fused after all: the hint stands, for nobody has seen another page there. */
	assert_int_equal(rig_list(t->b), 0);
	assert_int_equal(rig_stats(t->b).hinted, 1);
	pf_fusion_set_ready(t->b->vm, true);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->b).fused, 1);
}

static void test_not_listed_needs_a_new_report(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	pf_fusion_shim_away(t->a->vm);
	t->a->mapped[10] = -1;
	assert_int_equal(rig_list(t->a), 0);
	assert_int_equal(rig_stats(t->a).fused, 0);
	assert_int_equal(rig_stats(t->a).hinted, 0);
	assert_int_equal(rig_total(&t->rig).shared, 0);
	assert_int_equal(rig_stats(t->a).revoked, 0);
	pf_fusion_set_ready(t->a->vm, true);
	assert_false(rig_next(t->a, &t->order));
	rig_hint(t->a, 3, 10, 1, 7);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 1);
}

static void test_not_listed_keeps_a_hint_for_other_bytes(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	rig_hint_only(t->a, 3, 10, 1, 8);
	pf_fusion_shim_away(t->a->vm);
	t->a->mapped[10] = -1;
	t->a->ram[10] = 8;
	assert_int_equal(rig_list(t->a), 0);
	assert_int_equal(rig_stats(t->a).hinted, 1);
	rig_hint(t->b, 9, 30, 1, 8);
	pf_fusion_set_ready(t->a->vm, true);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 1);
}

static void test_emptied_keeps_its_hints(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	pf_fusion_shim_away(t->a->vm);
	rig_empty(t->a);
	rig_check(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 0);
	assert_int_equal(rig_stats(t->a).hinted, 1);
	pf_fusion_set_ready(t->a->vm, true);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 1);
}

/* The digests 7 and 9 have frames of an earlier service, which any page may turn out to map. */
static void adopt_seven_and_nine(Pair *t)
{
	rig_store(&t->rig, 0, 600, 7);
	rig_store(&t->rig, 0, 601, 9);
	t->b->mapped[60] = 600;
	t->b->mapped[61] = 601;
	assert_int_equal(rig_list(t->a), 0);
	assert_int_equal(rig_list(t->b), 0);
	pf_fusion_set_ready(t->a->vm, true);
	pf_fusion_set_ready(t->b->vm, true);
	assert_int_equal(rig_discard(t->b, 60), 0);
	assert_int_equal(rig_discard(t->b, 61), 0);
}

/* The list says another frame than the record. */
static void test_the_shims_word_is_taken(void **state)
{
	Pair *t = *state;
	int64_t seven, nine;

	adopt_seven_and_nine(t);
	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	rig_hint(t->a, 100, 1, 1, 9);
	rig_hint(t->b, 100, 1, 1, 9);
	rig_run(&t->rig);
	seven = t->a->mapped[0];
	nine = t->a->mapped[1];
	pf_fusion_shim_away(t->a->vm);
	t->a->mapped[0] = nine;
	t->a->mapped[1] = -1;
	assert_int_equal(rig_list(t->a), 0);
	assert_int_equal(rig_stats(t->a).fused, 1);
	assert_int_equal(rig_stats(t->a).shared, 1);
	assert_int_equal(rig_total(&t->rig).shared, 1);
	/* Its hint for 7 waits until the page is lost. */
	assert_int_equal(rig_stats(t->a).hinted, 1);
	assert_int_equal(rig_total(&t->rig).candidates, 0);
	pf_fusion_set_ready(t->a->vm, true);
	assert_false(rig_next(t->a, &t->order));
	t->a->ram[0] = 7;
	assert_int_equal(rig_discard(t->a, 0), 0);
	rig_run(&t->rig);
	assert_int_equal(t->a->mapped[0], seven);
}

static void test_listed_without_a_record(void **state)
{
	Pair *t = *state;

	adopt_seven_and_nine(t);
	fuse_both(t);
	pf_fusion_shim_away(t->a->vm);
	t->a->mapped[11] = t->a->mapped[10];
	assert_int_equal(rig_list(t->a), 0);
	assert_int_equal(rig_stats(t->a).fused, 2);
	assert_int_equal(rig_stats(t->a).hinted, 1);
	assert_int_equal(rig_total(&t->rig).shared, 2);
	assert_int_equal(rig_discard(t->a, 11), 0);
	assert_int_equal(rig_stats(t->a).fused, 1);
}

/* A page of a that is offered, ready or delayed turns out to be fused. */
static void test_listed_in_any_state(void **state)
{
	Pair *t = *state;
	uint64_t frame;

	adopt_seven_and_nine(t);
	fuse_both(t);
	frame = (uint64_t)t->a->mapped[10];
	/* Pages 20 and 21 could be captured, 30 is ready, 40 is delayed. */
	t->a->results[40] = PF_SHIM_BUSY;
	rig_hint(t->a, 40, 40, 1, 7);
	rig_run(&t->rig);
	pf_fusion_set_ready(t->b->vm, false);
	pf_fusion_set_ready(t->a->vm, false);
	rig_hint(t->b, 20, 20, 1, 5);
	rig_hint(t->a, 20, 20, 1, 5);
	rig_hint(t->a, 21, 21, 1, 5);
	rig_hint(t->a, 30, 30, 1, 7);
	pf_fusion_list_begin(t->a->vm);
	for (uint64_t i = 20; i <= 40; i += 10) {
		assert_int_equal(rig_listed(t->a, i, frame), 0);
		rig_check(&t->rig);
		t->a->mapped[i] = (int64_t)frame;
	}
	assert_int_equal(rig_listed(t->a, 10, frame), 0);
	pf_fusion_list_end(t->a->vm, t->rig.now_us);
	rig_check(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 4);
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), -1);
	/* The other page of the same digest is offered in its place. */
	pf_fusion_set_ready(t->a->vm, true);
	assert_true(rig_next(t->a, &t->order));
	assert_int_equal(t->order.type, PF_ORDER_CAPTURE);
	assert_int_equal(t->order.runs[0].gfn.v, 21);
	rig_answer(t->a, &t->order);
}

static void test_the_later_one_counts(void **state)
{
	Pair *t = *state;
	uint64_t seven, nine;

	adopt_seven_and_nine(t);
	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	rig_hint(t->a, 100, 1, 1, 9);
	rig_hint(t->b, 100, 1, 1, 9);
	rig_run(&t->rig);
	seven = (uint64_t)t->a->mapped[0];
	nine = (uint64_t)t->a->mapped[1];
	pf_fusion_list_begin(t->a->vm);
	assert_int_equal(rig_listed(t->a, 0, nine), 0);
	assert_int_equal(rig_listed(t->a, 0, seven), 0);
	assert_int_equal(rig_listed(t->a, 1, nine), 0);
	assert_int_equal(rig_listed(t->a, 1, 1000000), 1);
	rig_check(&t->rig);
	t->a->mapped[1] = -1;
	pf_fusion_list_end(t->a->vm, t->rig.now_us);
	rig_check(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 1);
	assert_int_equal(rig_discard(t->a, 0), 0);
}

static void test_list_that_broke_off(void **state)
{
	Pair *t = *state;

	rig_hint(t->a, 0, 0, 2, 7);
	rig_hint(t->b, 0, 0, 2, 7);
	rig_run(&t->rig);
	pf_fusion_shim_away(t->a->vm);
	pf_fusion_list_begin(t->a->vm);
	assert_int_equal(rig_listed(t->a, 0, (uint64_t)t->a->mapped[0]), 0);
	pf_fusion_shim_away(t->a->vm);
	rig_check(&t->rig);
	/* It was revoked before the next one. */
	t->a->mapped[0] = -1;
	assert_int_equal(rig_list(t->a), 0);
	assert_int_equal(rig_stats(t->a).fused, 1);
	pf_fusion_list_begin(t->a->vm);
	assert_int_equal(rig_listed(t->a, 1, (uint64_t)t->a->mapped[1]), 0);
	rig_empty(t->a);
	rig_check(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 0);
}

static void test_lost_before_it_was_listed(void **state)
{
	Pair *t = *state;
	uint64_t frame;

	fuse_a_order_b(t);
	frame = t->order.runs[0].frame.v;
	/* Not yet answered: it cannot be lost. */
	assert_int_equal(pf_fusion_lost(t->b->vm, (PfGfn){10}, (PfFrame){frame}, 1,
				 PF_SHIM_LOST_REVOKED, t->rig.now_us),
		-EPROTO);
	pf_fusion_shim_away(t->b->vm);
	assert_int_equal(pf_fusion_lost(t->b->vm, (PfGfn){10}, (PfFrame){frame}, 2,
				 PF_SHIM_LOST_REVOKED, t->rig.now_us),
		0);
	rig_check(&t->rig);
	assert_int_equal(rig_stats(t->b).revoked, 1);
	assert_int_equal(rig_stats(t->b).hinted, 0);
	assert_int_equal(rig_list(t->b), 0);
	assert_int_equal(rig_stats(t->b).fused, 0);
}

static void test_lost_after_it_was_listed(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	pf_fusion_list_begin(t->a->vm);
	assert_int_equal(rig_listed(t->a, 10, (uint64_t)t->a->mapped[10]), 0);
	assert_int_equal(rig_write(t->a, 10, 8), 0);
	rig_check(&t->rig);
	pf_fusion_list_end(t->a->vm, t->rig.now_us);
	assert_int_equal(rig_stats(t->a).fused, 0);
	assert_int_equal(rig_stats(t->a).revoked, 1);
}

static void test_absurd_lists(void **state)
{
	Pair *t = *state;
	uint64_t frame, next;

	fuse_both(t);
	frame = (uint64_t)t->a->mapped[10];
	next = t->a->vm->group->layout.next;
	pf_fusion_list_begin(t->a->vm);
	assert_int_equal(rig_listed(t->a, UINT64_C(1) << PF_GFN_BITS, frame), 1);
	assert_int_equal(rig_listed(t->a, UINT64_MAX, frame), 1);
	assert_int_equal(rig_listed(t->a, 5, 0), 1);
	assert_int_equal(rig_listed(t->a, 5, frame + 1), 1);
	assert_int_equal(rig_listed(t->a, 5, next), 1);
	assert_int_equal(rig_listed(t->a, 5, PF_NO_FRAME), 1);
	assert_int_equal(rig_listed(t->a, 5, frame + (UINT64_C(1) << 32)), 1);
	assert_int_equal(rig_listed(t->a, (UINT64_C(1) << PF_GFN_BITS) - 1, frame), 1);
	assert_int_equal(rig_listed(t->a, 10, frame), 0);
	pf_fusion_list_end(t->a->vm, t->rig.now_us);
	rig_check(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 1);
	/* There is no earlier service: nothing was read. */
	assert_int_equal(t->rig.n_hashed, 0);
}

/* What it was never ordered, it cannot keep for whoever gave it. */
static void test_list_pins_nothing(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	pf_fusion_shim_away(t->a->vm);
	for (uint64_t i = 20; i < 30; i++)
		t->a->mapped[i] = t->a->mapped[10];
	t->a->mapped[10] = -1;
	assert_int_equal(rig_list(t->a), 10);
	assert_int_equal(rig_stats(t->a).fused, 0);
	assert_int_equal(rig_total(&t->rig).frames, 1);
	withdraw_all(t->a);
	assert_int_equal(rig_discard(t->b, 10), 0);
	assert_int_equal(rig_free(&t->rig), 1);
	assert_int_equal(rig_total(&t->rig).frames, 0);
}

static void test_frame_of_an_earlier_service(void **state)
{
	Pair *t = *state;

	rig_store(&t->rig, 0, 600, 7);
	t->a->mapped[5] = t->a->mapped[6] = t->b->mapped[5] = 600;
	assert_int_equal(rig_list(t->a), 0);
	assert_int_equal(rig_list(t->b), 0);
	assert_int_equal(t->rig.n_hashed, 1);
	assert_int_equal(rig_total(&t->rig).frames, 1);
	assert_int_equal(rig_total(&t->rig).shared, 2);
	assert_int_equal(rig_stats(t->b).shared, 1);
	/* It serves new hints; and new frames begin behind all that are old. */
	rig_hint(t->b, 0, 0, 1, 7);
	rig_hint(t->a, 1, 1, 1, 8);
	rig_hint(t->b, 1, 1, 1, 8);
	rig_run(&t->rig);
	assert_int_equal(t->b->mapped[0], 600);
	assert_int_equal(t->rig.n_published, 1);
	assert_true(t->b->mapped[1] >= (int64_t)FIRST_OWN);
}

static void test_old_frames_that_are_none(void **state)
{
	Pair *t = *state;

	rig_store(&t->rig, 0, 600, 7);
	rig_store(&t->rig, 0, 601, 7);
	rig_store(&t->rig, 0, 0, 9);
	rig_store(&t->rig, 0, PF_LAYOUT_ALIGN - 1, 9);
	rig_store(&t->rig, 0, FIRST_OWN, 9);
	t->a->mapped[1] = 600;
	t->a->mapped[2] = 601;                 /* the same bytes again */
	t->a->mapped[3] = 602;                 /* nothing there */
	t->a->mapped[4] = 0;                   /* the label */
	t->a->mapped[5] = PF_LAYOUT_ALIGN - 1; /* before the first number */
	t->a->mapped[6] = FIRST_OWN;           /* not given out yet */
	assert_int_equal(rig_list(t->a), 5);
	assert_int_equal(rig_stats(t->a).fused, 1);
	assert_int_equal(rig_total(&t->rig).frames, 1);
	assert_int_equal(t->rig.n_hashed, 3);
}

static void test_old_frame_of_a_hinted_digest(void **state)
{
	Pair *t = *state;

	/* 7 is hinted by one, 8 wanted, and 9 was hinted by nobody. */
	rig_empty(t->b);
	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->a, 1, 1, 1, 8);
	rig_hint(t->b, 1, 1, 1, 8);
	for (uint32_t i = 0; i < 3; i++) {
		rig_store(&t->rig, 0, 600 + i, 7 + i);
		t->a->mapped[10 + i] = 600 + i;
	}
	assert_int_equal(rig_list(t->a), 0);
	assert_int_equal(rig_total(&t->rig).frames, 3);
	assert_true(rig_next(t->b, &t->order));
	assert_int_equal(t->order.type, PF_ORDER_FUSE);
	rig_answer(t->b, &t->order);
	rig_run(&t->rig);
	assert_int_equal(t->rig.n_published, 0);
	assert_int_equal(rig_stats(t->a).fused, 5);
	assert_int_equal(rig_stats(t->b).fused, 1);
}

static void test_old_frame_of_a_digest_being_captured(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 0, 64);

	rig_empty(t->b);
	rig_hint(t->b, 1, 1, 1, 8);
	rig_hint(c, 1, 1, 1, 8);
	assert_true(rig_next(c, &t->order));
	assert_int_equal(t->order.type, PF_ORDER_CAPTURE);
	rig_store(&t->rig, 0, 600, 8);
	t->a->mapped[10] = 600;
	assert_int_equal(rig_list(t->a), 0);
	assert_int_equal(rig_total(&t->rig).frames, 1);
	/* The frame is not forgotten under the order, though nobody else wants it. */
	withdraw_all(t->b);
	assert_int_equal(rig_discard(t->a, 10), 0);
	assert_int_equal(rig_free(&t->rig), 0);
	rig_answer(c, &t->order);
	rig_check(&t->rig);
	assert_int_equal(t->rig.n_published, 0);
	rig_run(&t->rig);
	assert_int_equal(c->mapped[1], 600);
}

static void test_copy_of_what_has_a_frame_by_now(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 0, 64);

	rig_empty(t->b);
	rig_hint(t->b, 1, 1, 1, 8);
	rig_hint(c, 1, 1, 1, 8);
	assert_true(rig_next(c, &t->order));
	rig_store(&t->rig, 0, 600, 8);
	t->a->mapped[10] = 600;
	assert_int_equal(rig_list(t->a), 0);
	rig_answer(c, &t->order);
	rig_check(&t->rig);
	assert_int_equal(t->rig.n_published, 0);
	assert_int_equal(rig_total(&t->rig).frames, 1);
	rig_run(&t->rig);
	assert_int_equal(c->mapped[1], 600);
	assert_int_equal(t->b->mapped[1], 600);
}

/* Each shim that is back with the store says so, also when frames have been made meanwhile. */
static void test_adopted_again(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 1, 64), *d = rig_add(&t->rig, 1, 64);

	rig_store(&t->rig, 0, 600, 7);
	t->a->mapped[10] = 600;
	assert_int_equal(rig_list(t->a), 0);
	rig_empty(t->b);
	rig_hint(t->a, 0, 0, 4, 20);
	rig_hint(t->b, 0, 0, 4, 20);
	rig_run(&t->rig);
	pf_fusion_adopt_store(t->b->vm, FIRST_OWN);
	rig_check(&t->rig);
	rig_hint(t->a, 4, 4, 4, 24);
	rig_hint(t->b, 4, 4, 4, 24);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->b).runs, 1);
	/* A store that this service made itself. */
	rig_hint(c, 0, 0, 4, 20);
	rig_hint(d, 0, 0, 4, 20);
	rig_run(&t->rig);
	pf_fusion_adopt_store(c->vm, PF_LAYOUT_ALIGN);
	rig_hint(c, 4, 4, 4, 24);
	rig_hint(d, 4, 4, 4, 24);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(c).runs, 1);
	assert_true(pf_fusion_knows_all(t->rig.fusion));
}

static void test_who_is_known(void **state)
{
	Pair *t = *state;
	RigVm *c;

	assert_false(pf_fusion_knows_all(t->rig.fusion));
	rig_empty(t->a);
	pf_fusion_list_begin(t->b->vm);
	assert_false(pf_fusion_knows_all(t->rig.fusion));
	pf_fusion_list_end(t->b->vm, t->rig.now_us);
	assert_true(pf_fusion_knows_all(t->rig.fusion));
	pf_fusion_shim_away(t->a->vm);
	assert_true(pf_fusion_knows_all(t->rig.fusion));
	c = rig_add_unknown(&t->rig, 0, 16);
	assert_false(pf_fusion_knows_all(t->rig.fusion));
	rig_remove(c);
	assert_true(pf_fusion_knows_all(t->rig.fusion));
	c = rig_add_unknown(&t->rig, 1, 16);
	assert_false(pf_fusion_knows_all(t->rig.fusion));
	assert_false(pf_fusion_vm_is_known(c->vm));
	assert_true(pf_fusion_vm_is_known(t->a->vm));
	rig_empty(c);
	assert_true(pf_fusion_knows_all(t->rig.fusion));
	assert_true(pf_fusion_vm_is_known(c->vm));
}

/* Each group's own word; a new group of the same name is not complete. */
static void test_which_group_is_complete(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 1, 16);

	pf_fusion_set_complete(t->rig.fusion, "1", true);
	pf_fusion_set_complete(t->rig.fusion, "2", true);
	assert_true(pf_fusion_is_complete(t->rig.fusion, "1"));
	assert_false(pf_fusion_is_complete(t->rig.fusion, "0"));
	assert_false(pf_fusion_is_complete(t->rig.fusion, "2"));
	rig_remove(c);
	assert_false(pf_fusion_is_complete(t->rig.fusion, "1"));
	rig_add(&t->rig, 1, 16);
	assert_false(pf_fusion_is_complete(t->rig.fusion, "1"));
}

/* Its bytes are what they were, and the guest will not say so again. */
static void test_released_is_fused_again(void **state)
{
	Pair *t = *state;
	PfFrame frame;

	fuse_both(t);
	frame = (PfFrame){(uint64_t)t->a->mapped[10]};
	t->a->mapped[10] = -1;
	assert_int_equal(pf_fusion_lost(t->a->vm, (PfGfn){10}, frame, 1, PF_SHIM_LOST_RELEASED,
				 t->rig.now_us),
		0);
	rig_check(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 0);
	assert_int_equal(rig_stats(t->a).hinted, 1);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 1);
}

static void test_nothing_adopted(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	assert_true(t->a->mapped[10] >= (int64_t)PF_LAYOUT_ALIGN);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_away_voids_captures),
		T(test_away_keeps_what_is_fused),
		T(test_away_gets_no_orders),
		T(test_unheard_gets_no_orders),
		T(test_ordered_when_it_went_away_and_fused),
		T(test_ordered_when_it_went_away_and_not_listed),
		T(test_ordered_when_it_went_away_and_emptied),
		T(test_hints_of_an_ordered_page_while_away),
		T(test_not_listed_needs_a_new_report),
		T(test_not_listed_keeps_a_hint_for_other_bytes),
		T(test_emptied_keeps_its_hints),
		ADOPTED(test_the_shims_word_is_taken),
		ADOPTED(test_listed_without_a_record),
		ADOPTED(test_listed_in_any_state),
		ADOPTED(test_the_later_one_counts),
		T(test_list_that_broke_off),
		T(test_lost_before_it_was_listed),
		T(test_lost_after_it_was_listed),
		T(test_absurd_lists),
		T(test_list_pins_nothing),
		ADOPTED(test_frame_of_an_earlier_service),
		ADOPTED(test_old_frames_that_are_none),
		ADOPTED(test_old_frame_of_a_hinted_digest),
		ADOPTED(test_old_frame_of_a_digest_being_captured),
		ADOPTED(test_copy_of_what_has_a_frame_by_now),
		ADOPTED(test_adopted_again),
		ADOPTED(test_who_is_known),
		ADOPTED(test_which_group_is_complete),
		T(test_released_is_fused_again),
		T(test_nothing_adopted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
