/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Two VMs of one group, and what tests of `fusion` have in common. */
#include "tests/unit/host-service/fusion_rig.h"
#include "host-service/decide/fusion_private.h"

#define MS  INT64_C(1000)
#define SEC (1000 * MS)

typedef struct Pair {
	Rig rig;
	RigVm *a, *b;
	PfOrder order;
} Pair;

static int setup(void **state)
{
	Pair *t = g_new0(Pair, 1);

	rig_init(&t->rig);
	t->a = rig_add(&t->rig, 0, 2048);
	t->b = rig_add(&t->rig, 0, 2048);
	*state = t;
	return 0;
}

static int teardown(void **state)
{
	Pair *t = *state;

	rig_deinit(&t->rig);
	g_free(t);
	return 0;
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

/* Page 10 of both holds content 7, and is fused. */
static inline void fuse_both(Pair *t)
{
	rig_hint(t->a, 3, 10, 1, 7);
	rig_hint(t->b, 3, 10, 1, 7);
	rig_run(&t->rig);
	assert_int_equal(rig_stats(t->a).fused, 1);
	assert_int_equal(rig_stats(t->b).fused, 1);
}

/* Page 10 of both holds content 7, a has it fused, and b's shim has the order to. */
static inline void fuse_a_order_b(Pair *t)
{
	pf_fusion_set_ready(t->b->vm, false);
	rig_hint(t->a, 3, 10, 1, 7);
	rig_hint(t->b, 3, 10, 1, 7);
	rig_run(&t->rig);
	pf_fusion_set_ready(t->b->vm, true);
	assert_true(rig_next(t->b, &t->order));
	assert_int_equal(t->order.type, PF_ORDER_FUSE);
}

static inline void withdraw_all(RigVm *m)
{
	pf_fusion_withdrawn(m->vm, 0, &(PfFileRange){0, PF_SESSION_MAX_MODULE_PAGES}, 1);
}

/* The guest gives the page up. */
static inline int rig_discard(RigVm *m, uint64_t gfn)
{
	uint64_t frame = (uint64_t)m->mapped[gfn];

	m->mapped[gfn] = -1;
	return pf_fusion_lost(
		m->vm, (PfGfn){gfn}, (PfFrame){frame}, 1, PF_SHIM_LOST_DISCARDED, m->rig->now_us);
}
