/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Each step in the life of a page, one after the other, with small numbers. */
#include "tests/unit/host-service/fusion_pair.h"

static void test_one_vm_is_not_enough(void **state)
{
	Pair *t = *state;

	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->a, 1, 1, 1, 7);
	assert_false(rig_next(t->a, &t->order));
	assert_int_equal(rig_stats(t->a).hinted, 2);
	assert_int_equal(rig_total(&t->rig).candidates, 2);
	rig_hint(t->b, 0, 0, 1, 7);
	rig_run(&t->rig);
	/* Copies inside a VM count too: three mappings. */
	assert_int_equal(rig_total(&t->rig).shared, 2);
	assert_int_equal(rig_total(&t->rig).frames, 1);
	assert_int_equal(rig_total(&t->rig).candidates, 0);
	assert_int_equal(rig_stats(t->a).shared, 2);
	assert_int_equal(rig_stats(t->b).shared, 1);
}

static void test_groups_are_apart(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 1, 16);

	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(c, 0, 0, 1, 7);
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).frames, 0);
	rig_hint(t->b, 0, 0, 1, 7);
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).frames, 1);
	assert_int_equal(rig_stats(c).fused, 0);
}

static void test_not_ready_gets_no_orders(void **state)
{
	Pair *t = *state;

	pf_fusion_set_ready(t->a->vm, false);
	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	assert_false(rig_next(t->a, &t->order));
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->b).fused, 1);
	assert_int_equal(rig_stats(t->a).fused, 0);
	pf_fusion_set_ready(t->a->vm, true);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 1);
}

static void note_pending(PfFusionVm *vm, void *userdata)
{
	const RigVm *m = pf_fusion_vm_userdata(vm);
	const RigVm **only = userdata;

	assert_null(*only);
	*only = m;
}

static void test_pending_names_who_has_orders(void **state)
{
	Pair *t = *state;
	const RigVm *only = NULL;

	pf_fusion_foreach_pending(t->rig.fusion, note_pending, &only);
	assert_null(only);
	pf_fusion_set_ready(t->b->vm, false);
	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	pf_fusion_foreach_pending(t->rig.fusion, note_pending, &only);
	assert_ptr_equal(only, t->a);
}

static void test_one_capture_at_a_time(void **state)
{
	Pair *t = *state;
	PfOrder other;

	rig_hint(t->a, 0, 0, 2, 7);
	rig_hint(t->b, 0, 0, 2, 7);
	assert_true(rig_next(t->a, &t->order));
	assert_int_equal(t->order.type, PF_ORDER_CAPTURE);
	assert_int_equal(t->order.n_pages, 2);
	assert_int_equal(t->order.n_runs, 1);
	assert_false(rig_next(t->b, &other));
	rig_check(&t->rig);
	rig_answer(t->a, &t->order);
	assert_true(rig_next(t->b, &other));
	assert_int_equal(other.type, PF_ORDER_FUSE);
	assert_int_equal(other.n_runs, 1);
	assert_int_not_equal(other.id, t->order.id);
	rig_answer(t->b, &other);
	assert_int_equal(rig_stats(t->b).runs, 1);
}

/* a's page cannot be captured: b's is, if two VMs still hint it; a's comes back after delay_us, or
 * never. */
static void check_failed_capture(Pair *t, uint32_t gfn, uint8_t result, int64_t delay_us)
{
	bool dropped = delay_us < 0;
	uint64_t fused = rig_stats(t->a).fused;

	rig_hint(t->a, gfn, gfn, 1, 100 + gfn);
	rig_hint(t->b, gfn, gfn, 1, 100 + gfn);
	t->a->results[gfn] = result;
	assert_true(rig_next(t->a, &t->order));
	rig_answer(t->a, &t->order);
	rig_check(&t->rig);
	t->a->results[gfn] = PF_SHIM_DONE;
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, fused);
	assert_int_equal(rig_stats(t->b).fused, fused + !dropped);
	if (dropped)
		return;
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), t->rig.now_us + delay_us);
	rig_tick(&t->rig, delay_us - 1);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, fused);
	rig_tick(&t->rig, 1);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, fused + 1);
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), -1);
}

static void test_capture_goes_on_with_another(void **state)
{
	Pair *t = *state;

	check_failed_capture(t, 0, PF_SHIM_BUSY, 500 * MS);
	check_failed_capture(t, 1, PF_SHIM_NOT_PRESENT, 2 * SEC);
	check_failed_capture(t, 2, PF_SHIM_NO_MAPS, 60 * SEC);
	check_failed_capture(t, 3, PF_SHIM_STOPPED, 60 * SEC);
	check_failed_capture(t, 4, PF_SHIM_DIFFERENT, -1);
	check_failed_capture(t, 5, PF_SHIM_NOT_RAM, -1);
	check_failed_capture(t, 6, 200, -1);
}

static void test_capture_with_other_bytes(void **state)
{
	Pair *t = *state;

	rig_hint_only(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	assert_true(rig_next(t->a, &t->order));
	rig_answer(t->a, &t->order);
	assert_int_equal(rig_stats(t->a).capture_mismatches, 1);
	assert_int_equal(rig_stats(t->a).hinted, 0);
	assert_int_equal(t->rig.n_published, 0);
	rig_run(&t->rig);
	assert_int_equal(t->rig.n_published, 0);
	/* A new report is a new chance. */
	rig_hint(t->a, 0, 0, 1, 7);
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).shared, 1);
}

static void test_capture_outlives_its_vm(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 0, 16);

	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	rig_hint(c, 0, 0, 1, 7);
	assert_true(rig_next(c, &t->order));
	rig_remove(c);
	rig_check(&t->rig);
	assert_true(rig_next(t->b, &t->order));
	assert_int_equal(t->order.type, PF_ORDER_CAPTURE);
	pf_fusion_shim_empty(t->b->vm);
	rig_check(&t->rig);
	assert_int_equal(rig_answer_capture(t->b, &t->order), -EPROTO);
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).shared, 1);
}

static void test_hint_changes_during_capture(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 0, 16);

	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	rig_hint(c, 0, 0, 1, 7);
	assert_true(rig_next(t->a, &t->order));
	rig_hint_only(t->a, 0, 0, 1, 8);
	rig_check(&t->rig);
	/* The copy has the bytes that b and c want. */
	rig_answer(t->a, &t->order);
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).shared, 1);
	assert_int_equal(rig_stats(t->a).hinted, 1);
	assert_int_equal(rig_stats(t->a).capture_mismatches, 0);
}

static void test_bytes_change_during_capture(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 0, 16);

	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	assert_true(rig_next(t->a, &t->order));
	rig_hint(t->a, 0, 0, 1, 8);
	rig_answer(t->a, &t->order);
	assert_int_equal(rig_stats(t->a).capture_mismatches, 1);
	/* The hint for the new bytes stands. */
	assert_int_equal(rig_stats(t->a).hinted, 1);
	rig_hint(c, 0, 0, 1, 8);
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).shared, 1);
}

static void test_new_hint_in_an_order_starts_anew(void **state)
{
	Pair *t = *state;

	t->a->results[0] = t->b->results[0] = PF_SHIM_BUSY;
	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	pf_fusion_set_ready(t->b->vm, false);
	for (int64_t delay_us = 500 * MS; delay_us <= 4 * SEC; delay_us *= 2) {
		rig_run(&t->rig);
		assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), t->rig.now_us + delay_us);
		rig_tick(&t->rig, delay_us);
	}
	assert_true(rig_next(t->a, &t->order));
	rig_hint(t->a, 0, 0, 1, 8);
	rig_answer(t->a, &t->order);
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), t->rig.now_us + 500 * MS);
}

static void test_capture_nobody_wants_any_more(void **state)
{
	Pair *t = *state;

	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	assert_true(rig_next(t->a, &t->order));
	pf_fusion_withdrawn(t->a->vm, 0, &(PfFileRange){0, 1}, 1);
	pf_fusion_withdrawn(t->b->vm, 0, &(PfFileRange){0, 1}, 1);
	rig_check(&t->rig);
	rig_answer(t->a, &t->order);
	rig_check(&t->rig);
	assert_int_equal(t->rig.n_published, 0);
}

static void test_store_is_short_of_memory(void **state)
{
	Pair *t = *state;
	const RigVm *only = NULL;
	uint32_t n_tries = 0;

	t->rig.no_memory = true;
	rig_hint(t->a, 0, 0, 4, 7);
	rig_hint(t->b, 0, 0, 4, 7);
	for (int64_t delay_us = 500 * MS; delay_us <= 4 * SEC; delay_us *= 2) {
		rig_run(&t->rig);
		rig_check(&t->rig);
		pf_fusion_foreach_pending(t->rig.fusion, note_pending, &only);
		assert_null(only);
		/* One page of the four finds it out. */
		assert_int_equal(t->rig.n_refused, ++n_tries);
		assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), t->rig.now_us + delay_us);
		rig_tick(&t->rig, delay_us);
	}
	t->rig.no_memory = false;
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).shared, 4);
	/* The numbers that could not be published are used after all. */
	assert_int_equal(rig_stats(t->a).runs, 1);
	assert_int_equal(t->a->mapped[0] % PF_LAYOUT_ALIGN, 0);
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), -1);
}

/* b's page is refused with this result: it comes back after delay_us, or never. */
static void check_refused(Pair *t, uint32_t gfn, PfShimResult result, int64_t delay_us)
{
	uint64_t fused = rig_stats(t->b).fused;
	uint64_t refused = rig_stats(t->b).refused[result];

	rig_hint(t->a, gfn, gfn, 1, 100 + gfn);
	rig_hint(t->b, gfn, gfn, 1, 100 + gfn);
	assert_true(rig_next(t->a, &t->order));
	rig_answer(t->a, &t->order);
	t->b->results[gfn] = (uint8_t)result;
	rig_run(&t->rig);
	rig_check(&t->rig);
	assert_int_equal(rig_stats(t->b).refused[result], refused + 1);
	assert_int_equal(rig_stats(t->b).hinted, fused + (delay_us >= 0));
	t->b->results[gfn] = PF_SHIM_DONE;
	if (delay_us < 0) {
		assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), -1);
		return;
	}
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), t->rig.now_us + delay_us);
	rig_tick(&t->rig, delay_us);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->b).fused, fused + 1);
}

static void test_refused_pages(void **state)
{
	Pair *t = *state;

	check_refused(t, 0, PF_SHIM_BUSY, 500 * MS);
	check_refused(t, 1, PF_SHIM_NOT_PRESENT, 2 * SEC);
	check_refused(t, 2, PF_SHIM_NO_MAPS, 60 * SEC);
	check_refused(t, 3, PF_SHIM_STOPPED, 60 * SEC);
	check_refused(t, 4, PF_SHIM_DIFFERENT, -1);
	check_refused(t, 5, PF_SHIM_WRITTEN, -1);
	check_refused(t, 6, PF_SHIM_NOT_RAM, -1);
	check_refused(t, 7, PF_SHIM_NOT_PRIVATE, -1);
	check_refused(t, 8, PF_SHIM_FAILED, -1);
	check_refused(t, 9, PF_SHIM_NO_FRAME, -1);
}

/* The page is refused n times in sequence; the last delay. */
static int64_t last_delay(Pair *t, PfShimResult result, unsigned n)
{
	int64_t delay_us = 0;

	rig_hint(t->b, 0, 0, 1, 7);
	rig_hint(t->a, 0, 0, 1, 7);
	pf_fusion_set_ready(t->a->vm, false);
	t->b->results[0] = (uint8_t)result;
	while (n-- > 0) {
		rig_run(&t->rig);
		delay_us = pf_fusion_next_tick_us(t->rig.fusion) - t->rig.now_us;
		rig_tick(&t->rig, delay_us);
	}
	return delay_us;
}

static void test_busy_backs_off_to_a_minute(void **state)
{
	Pair *t = *state;

	assert_int_equal(last_delay(t, PF_SHIM_BUSY, 7), 32 * SEC);
	assert_int_equal(last_delay(t, PF_SHIM_BUSY, 1), 60 * SEC);
	assert_int_equal(last_delay(t, PF_SHIM_BUSY, 30), 60 * SEC);
	/* A hint for other bytes starts anew. */
	rig_hint(t->b, 0, 0, 1, 9);
	rig_hint(t->a, 0, 0, 1, 9);
	rig_run(&t->rig);
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), t->rig.now_us + 500 * MS);
}

static void test_not_present_backs_off_to_five_minutes(void **state)
{
	Pair *t = *state;

	assert_int_equal(last_delay(t, PF_SHIM_NOT_PRESENT, 8), 256 * SEC);
	assert_int_equal(last_delay(t, PF_SHIM_NOT_PRESENT, 1), 300 * SEC);
	assert_int_equal(last_delay(t, PF_SHIM_NOT_PRESENT, 20), 300 * SEC);
}

static void test_wrong_answers(void **state)
{
	Pair *t = *state;
	uint8_t results[2] = {0};
	PfDigest digests[2] = {{{0}}};
	PfCapture capture = {results, digests, NULL, NULL, NULL};

	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	assert_true(rig_next(t->a, &t->order));
	assert_int_equal(pf_fusion_fused(t->a->vm, t->order.id, 1, results, 0), -EPROTO);
	assert_int_equal(pf_fusion_captured(t->a->vm, t->order.id, 2, &capture, 0), -EPROTO);
	assert_int_equal(pf_fusion_captured(t->a->vm, t->order.id + 1, 1, &capture, 0), -EPROTO);
	assert_int_equal(pf_fusion_captured(t->b->vm, t->order.id, 1, &capture, 0), -EPROTO);
	rig_answer(t->a, &t->order);
	assert_int_equal(pf_fusion_captured(t->a->vm, t->order.id, 1, &capture, 0), -EPROTO);
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).shared, 1);
}

static void test_withdrawn_stays_fused(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	pf_fusion_withdrawn(t->a->vm, 0, &(PfFileRange){0, 1000}, 1);
	rig_check(&t->rig);
	assert_int_equal(rig_stats(t->a).hinted, 0);
	assert_int_equal(rig_stats(t->a).fused, 1);
	assert_int_equal(rig_total(&t->rig).shared, 1);
	/* The same again: still fused, nothing to do. */
	rig_hint_only(t->a, 3, 10, 1, 7);
	assert_false(rig_next(t->a, &t->order));
	assert_int_equal(rig_total(&t->rig).candidates, 0);
	pf_fusion_session_started(t->a->vm);
	assert_int_equal(rig_stats(t->a).hinted, 0);
	assert_int_equal(rig_stats(t->a).shared, 1);
}

static void test_withdrawn_while_ordered(void **state)
{
	Pair *t = *state;

	rig_hint(t->a, 0, 0, 2, 7);
	rig_hint(t->b, 0, 0, 2, 7);
	assert_true(rig_next(t->a, &t->order));
	rig_answer(t->a, &t->order);
	assert_true(rig_next(t->b, &t->order));
	assert_int_equal(t->order.type, PF_ORDER_FUSE);
	pf_fusion_withdrawn(t->b->vm, 0, &(PfFileRange){0, 2}, 1);
	rig_check(&t->rig);
	t->b->results[1] = PF_SHIM_BUSY;
	rig_answer(t->b, &t->order);
	rig_check(&t->rig);
	assert_int_equal(rig_stats(t->b).fused, 1);
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), -1);
	assert_int_equal(rig_write(t->b, 0, 9), 0);
}

static void test_withdrawn_ranges(void **state)
{
	Pair *t = *state;

	rig_hint(t->a, 100, 0, 50, 1000);
	pf_fusion_withdrawn(t->a->vm, 0, &(PfFileRange){0, 100}, 1);
	assert_int_equal(rig_stats(t->a).hinted, 50);
	pf_fusion_withdrawn(t->a->vm, 0, &(PfFileRange){150, UINT64_MAX}, 1);
	pf_fusion_withdrawn(t->a->vm, 0, &(PfFileRange){UINT64_MAX, UINT64_MAX}, 1);
	pf_fusion_withdrawn(t->a->vm, 77, &(PfFileRange){0, UINT64_MAX}, 1);
	assert_int_equal(rig_stats(t->a).hinted, 50);
	pf_fusion_withdrawn(t->a->vm, 0, &(PfFileRange){110, 5}, 1);
	assert_int_equal(rig_stats(t->a).hinted, 45);
	pf_fusion_withdrawn(t->a->vm, 0, &(PfFileRange){120, UINT64_MAX}, 1);
	assert_int_equal(rig_stats(t->a).hinted, 15);
	rig_check(&t->rig);
}

static void test_hints_replace(void **state)
{
	Pair *t = *state;
	PfModuleInfo info = {NULL, 0, "other", 1000};
	PfDigest digest = rig_digest(7);

	/* A page of the file moves; a gfn goes to another page of the file, and to another
	 * module. */
	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->a, 0, 1, 1, 7);
	assert_int_equal(rig_stats(t->a).hinted, 1);
	rig_hint(t->a, 5, 1, 1, 7);
	assert_int_equal(rig_stats(t->a).hinted, 1);
	pf_fusion_module(t->a->vm, 1, &info);
	pf_fusion_hints(t->a->vm, 1, 9, (PfGfn){1}, 1, &digest, t->rig.now_us);
	assert_int_equal(rig_stats(t->a).hinted, 1);
	rig_check(&t->rig);
	pf_fusion_withdrawn(t->a->vm, 0, &(PfFileRange){0, 1000}, 1);
	assert_int_equal(rig_stats(t->a).hinted, 1);
	/* Declared again: its hints are gone. */
	pf_fusion_module(t->a->vm, 1, &info);
	assert_int_equal(rig_stats(t->a).hinted, 0);
}

static void test_absurd_hints_are_dropped(void **state)
{
	Pair *t = *state;
	PfModuleInfo info = {NULL, 0, "small", 2};
	PfDigest digests[4] = {{{0}}};

	pf_fusion_module(t->a->vm, 1, &info);
	pf_fusion_hints(t->a->vm, 1, 1, (PfGfn){0}, 4, digests, 0);
	assert_int_equal(rig_stats(t->a).hinted, 1);
	pf_fusion_hints(t->a->vm, 1, UINT64_MAX, (PfGfn){0}, 4, digests, 0);
	pf_fusion_hints(t->a->vm, 1, 0, (PfGfn){UINT64_MAX}, 2, digests, 0);
	pf_fusion_hints(t->a->vm, 2, 0, (PfGfn){0}, 1, digests, 0);
	assert_int_equal(rig_stats(t->a).hinted, 1);
	rig_check(&t->rig);
}

static void test_revoked_waits_for_a_report(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	assert_int_equal(rig_write(t->a, 10, 8), 0);
	assert_int_equal(rig_stats(t->a).revoked, 1);
	assert_int_equal(rig_total(&t->rig).revoked, 1);
	assert_int_equal(rig_total(&t->rig).shared, 0);
	assert_int_equal(rig_stats(t->b).shared, 0);
	assert_int_equal(rig_stats(t->b).fused, 1);
	rig_tick(&t->rig, 3600 * SEC);
	assert_false(rig_next(t->a, &t->order));
	assert_int_equal(rig_stats(t->a).hinted, 0);
	/* The frame is still there: no capture is needed. */
	rig_hint(t->a, 3, 10, 1, 7);
	assert_true(rig_next(t->a, &t->order));
	assert_int_equal(t->order.type, PF_ORDER_FUSE);
	rig_answer(t->a, &t->order);
	assert_int_equal(rig_total(&t->rig).shared, 1);
}

static void test_hint_for_new_bytes_before_the_loss(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 0, 128);

	fuse_both(t);
	rig_hint(c, 4, 11, 1, 8);
	rig_hint_only(t->a, 3, 10, 1, 8);
	rig_check(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 1);
	/* a's page cannot be captured while it is fused; c's is. */
	assert_false(rig_next(t->a, &t->order));
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).frames, 2);
	assert_int_equal(rig_write(t->a, 10, 8), 0);
	rig_check(&t->rig);
	assert_int_equal(rig_stats(t->a).hinted, 1);
	rig_tick(&t->rig, SEC);
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).shared, 1);
	assert_int_equal(rig_stats(c).shared, 1);
}

static void test_revokes_back_off(void **state)
{
	Pair *t = *state;
	int64_t delay_us = SEC;

	fuse_both(t);
	for (unsigned i = 0; i < 16; i++) {
		int64_t wait_us;

		assert_int_equal(rig_write(t->a, 10, 8), 0);
		rig_hint(t->a, 3, 10, 1, 7);
		rig_run(&t->rig);
		assert_int_equal(rig_stats(t->a).fused, 0);
		wait_us = pf_fusion_next_tick_us(t->rig.fusion) - t->rig.now_us;
		assert_true(wait_us >= delay_us && wait_us < 2 * delay_us + 100 * MS);
		rig_tick(&t->rig, wait_us);
		rig_run(&t->rig);
		assert_int_equal(rig_stats(t->a).fused, 1);
		delay_us = MIN(2 * delay_us, 3600 * SEC);
	}
	/* After a long peace, the first delay again. */
	rig_tick(&t->rig, 7 * 3600 * SEC);
	assert_int_equal(rig_write(t->a, 10, 8), 0);
	rig_hint(t->a, 3, 10, 1, 7);
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), t->rig.now_us + SEC);
}

/* The page cache of a guest that works: each page is written to now and then, and never waits longer for it. */
static void test_revokes_now_and_then(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	for (unsigned i = 0; i < 10; i++) {
		rig_tick(&t->rig, 17 * SEC);
		assert_int_equal(rig_write(t->a, 10, 8), 0);
		rig_hint(t->a, 3, 10, 1, 7);
		assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), t->rig.now_us + SEC);
		rig_tick(&t->rig, SEC);
		rig_run(&t->rig);
		assert_int_equal(rig_stats(t->a).fused, 1);
	}
}

/* What the first wait after a revoke is with this setting; 0: none. */
static int64_t first_wait(int64_t revoke_delay_us)
{
	PfFusionConfig config = {.revoke_delay_us = revoke_delay_us};
	int64_t wait_us = 0;
	Rig rig;
	RigVm *a, *b;

	rig_init(&rig);
	pf_fusion_free(rig.fusion);
	rig.fusion = pf_fusion_new(&config);
	a = rig_add(&rig, 0, 16);
	b = rig_add(&rig, 0, 16);
	rig_hint(a, 0, 0, 1, 7);
	rig_hint(b, 0, 0, 1, 7);
	rig_run(&rig);
	assert_int_equal(rig_write(a, 0, 8), 0);
	rig_hint(a, 0, 0, 1, 7);
	rig_run(&rig);
	if (rig_stats(a).fused == 0)
		wait_us = pf_fusion_next_tick_us(rig.fusion) - rig.now_us;
	rig_deinit(&rig);
	return wait_us;
}

static void test_revoke_delay_is_set(void **state)
{
	assert_int_equal(first_wait(0), 0);
	assert_int_equal(first_wait(-5), 0);
	assert_int_equal(first_wait(100 * MS), 100 * MS);
	assert_int_equal(first_wait(2 * SEC), 2 * SEC);
	assert_int_equal(first_wait(INT64_MAX), 3600 * SEC);
}

static void test_back_off_counts_from_the_revoke(void **state)
{
	Pair *t = *state;

	fuse_both(t);
	assert_int_equal(rig_write(t->a, 10, 8), 0);
	pf_fusion_session_started(t->a->vm);
	rig_check(&t->rig);
	PfModuleInfo info = {NULL, 0, "module", 1000};
	pf_fusion_module(t->a->vm, 0, &info);
	rig_tick(&t->rig, SEC);
	rig_hint(t->a, 3, 10, 1, 7);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 1);
}

static void test_discarded_does_not_back_off(void **state)
{
	Pair *t = *state;
	uint64_t frame;

	fuse_both(t);
	frame = (uint64_t)t->a->mapped[10];
	t->a->mapped[10] = -1;
	assert_int_equal(pf_fusion_lost(t->a->vm, (PfGfn){10}, (PfFrame){frame}, 1,
				 PF_SHIM_LOST_DISCARDED, t->rig.now_us),
		0);
	assert_int_equal(rig_stats(t->a).revoked, 0);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 0);
	rig_hint(t->a, 3, 10, 1, 7);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 1);
}

static void test_lost_what_was_not_fused(void **state)
{
	Pair *t = *state;
	uint64_t frame;
	PfFusionVm *vm;

	rig_hint(t->a, 0, 0, 10, 1000);
	rig_hint(t->b, 0, 0, 10, 1000);
	rig_run(&t->rig);
	vm = t->a->vm;
	frame = (uint64_t)t->a->mapped[2];
	assert_int_equal(
		pf_fusion_lost(vm, (PfGfn){2}, (PfFrame){frame + 1}, 1, PF_SHIM_LOST_REVOKED, 0),
		-EPROTO);
	assert_int_equal(
		pf_fusion_lost(vm, (PfGfn){50}, (PfFrame){frame}, 1, PF_SHIM_LOST_REVOKED, 0),
		-EPROTO);
	assert_int_equal(rig_stats(t->a).fused, 10);
	/* Those of an absurd range that were fused are taken. */
	assert_int_equal(pf_fusion_lost(vm, (PfGfn){2}, (PfFrame){frame}, UINT32_MAX,
				 PF_SHIM_LOST_DISCARDED, 0),
		-EPROTO);
	assert_int_equal(rig_stats(t->a).fused, 2);
	assert_int_equal(rig_stats(t->a).runs, 1);
	rig_check(&t->rig);
}

static void test_runs_are_counted(void **state)
{
	Pair *t = *state;

	rig_hint(t->a, 0, 0, 9, 1000);
	rig_hint(t->b, 0, 0, 9, 1000);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).runs, 1);
	assert_int_equal(rig_write(t->a, 4, 1), 0);
	assert_int_equal(rig_stats(t->a).runs, 2);
	assert_int_equal(rig_write(t->a, 0, 2), 0);
	assert_int_equal(rig_stats(t->a).runs, 2);
	for (uint32_t i = 5; i < 9; i++)
		assert_int_equal(rig_write(t->a, i, 3), 0);
	assert_int_equal(rig_stats(t->a).runs, 1);
	/* Consecutive pages with frames that are not. */
	rig_hint(t->a, 40, 4, 1, 1008);
	rig_tick(&t->rig, SEC);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 4);
	assert_int_equal(rig_stats(t->a).runs, 2);
}

static void test_shared_follows_the_last_but_one(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 0, 128);

	fuse_both(t);
	rig_hint(t->b, 20, 20, 1, 7);
	rig_hint(c, 0, 0, 1, 7);
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).shared, 3);
	assert_int_equal(rig_stats(t->b).shared, 2);
	rig_remove(c);
	assert_int_equal(rig_stats(t->b).shared, 2);
	assert_int_equal(rig_write(t->a, 10, 1), 0);
	assert_int_equal(rig_stats(t->b).shared, 0);
	assert_int_equal(rig_total(&t->rig).shared, 1);
}

static void test_latency(void **state)
{
	Pair *t = *state;

	assert_int_equal(rig_total(&t->rig).hint_to_fused_us_p90, -1);
	/* a's hint counts from b's on, for only then the page could be fused. */
	rig_hint(t->a, 0, 0, 1, 7);
	t->rig.now_us += 100 * SEC;
	rig_hint(t->b, 0, 0, 1, 7);
	t->rig.now_us += 30;
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).hint_to_fused_us_p90, 30);
}

static void test_last_vm_takes_the_group_along(void **state)
{
	Pair *t = *state;
	RigVm *c = rig_add(&t->rig, 1, 16), *d = rig_add(&t->rig, 1, 16);

	rig_hint(c, 0, 0, 2, 7);
	rig_hint(d, 0, 0, 2, 7);
	rig_run(&t->rig);
	assert_int_equal(rig_total(&t->rig).frames, 2);
	rig_remove(c);
	/* The frames stay for who comes next. */
	assert_int_equal(rig_total(&t->rig).frames, 2);
	c = rig_add(&t->rig, 1, 16);
	rig_hint(c, 0, 0, 2, 7);
	rig_run(&t->rig);
	assert_int_equal(t->rig.n_published, 2);
	assert_int_equal(rig_total(&t->rig).shared, 2);
	rig_remove(c);
	rig_remove(d);
	assert_int_equal(rig_total(&t->rig).frames, 0);
	assert_int_equal(rig_total(&t->rig).shared, 0);
}

static void test_clock_never_goes_back(void **state)
{
	Pair *t = *state;
	int64_t due_us;

	rig_hint(t->a, 0, 0, 1, 7);
	rig_hint(t->b, 0, 0, 1, 7);
	t->b->results[0] = t->a->results[0] = PF_SHIM_BUSY;
	rig_run(&t->rig);
	due_us = pf_fusion_next_tick_us(t->rig.fusion);
	pf_fusion_tick(t->rig.fusion, INT64_MIN);
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), due_us);
	pf_fusion_tick(t->rig.fusion, INT64_MAX);
	assert_int_equal(pf_fusion_next_tick_us(t->rig.fusion), -1);
	rig_check(&t->rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_one_vm_is_not_enough),
		T(test_groups_are_apart),
		T(test_not_ready_gets_no_orders),
		T(test_pending_names_who_has_orders),
		T(test_one_capture_at_a_time),
		T(test_capture_goes_on_with_another),
		T(test_capture_with_other_bytes),
		T(test_capture_outlives_its_vm),
		T(test_hint_changes_during_capture),
		T(test_bytes_change_during_capture),
		T(test_new_hint_in_an_order_starts_anew),
		T(test_capture_nobody_wants_any_more),
		T(test_store_is_short_of_memory),
		T(test_refused_pages),
		T(test_busy_backs_off_to_a_minute),
		T(test_not_present_backs_off_to_five_minutes),
		T(test_wrong_answers),
		T(test_withdrawn_stays_fused),
		T(test_withdrawn_while_ordered),
		T(test_withdrawn_ranges),
		T(test_hints_replace),
		T(test_absurd_hints_are_dropped),
		T(test_revoked_waits_for_a_report),
		T(test_hint_for_new_bytes_before_the_loss),
		T(test_revokes_back_off),
		T(test_revokes_now_and_then),
		T(test_back_off_counts_from_the_revoke),
		cmocka_unit_test(test_revoke_delay_is_set),
		T(test_discarded_does_not_back_off),
		T(test_lost_what_was_not_fused),
		T(test_runs_are_counted),
		T(test_shared_follows_the_last_but_one),
		T(test_latency),
		T(test_last_vm_takes_the_group_along),
		T(test_clock_never_goes_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
