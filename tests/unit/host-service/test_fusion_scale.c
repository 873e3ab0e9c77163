/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Many pages, many VMs: the quality of runs, the numbers against a model, and what it all costs. */
#include "tests/unit/host-service/fusion_rig.h"
#include "host-service/decide/fusion_private.h"
#include <malloc.h>

static void assert_runs_of_a_thousand(const RigVm *m)
{
	assert_int_equal(m->n_run_pages[32], 31);
	assert_int_equal(m->n_run_pages[8], 1);
	assert_int_equal(rig_stats(m).fused, 1000);
	assert_int_equal(rig_stats(m).runs, 1);
}

static void test_long_module_fuses_in_full_runs(void **state)
{
	Rig rig;
	RigVm *a, *b;

	rig_init(&rig);
	a = rig_add(&rig, 0, 4096);
	b = rig_add(&rig, 0, 4096);
	rig_hint(a, 0, 100, 1000, 1);
	rig_run(&rig);
	rig_hint(b, 0, 2000, 1000, 1);
	rig_run(&rig);
	assert_runs_of_a_thousand(a);
	assert_runs_of_a_thousand(b);
	rig_deinit(&rig);
}

static void test_hints_in_pieces_fuse_in_full_runs(void **state)
{
	Rig rig;
	RigVm *a, *b;

	rig_init(&rig);
	a = rig_add(&rig, 0, 4096);
	b = rig_add(&rig, 0, 4096);
	/* Pieces from the end to the start, and nobody ready before all were said. */
	pf_fusion_set_ready(a->vm, false);
	pf_fusion_set_ready(b->vm, false);
	for (uint32_t i = 0; i < 100; i++) {
		rig_hint(a, 990 - i * 10, 1090 - i * 10, 10, 991 - i * 10);
		rig_hint(b, 990 - i * 10, 2990 - i * 10, 10, 991 - i * 10);
	}
	pf_fusion_set_ready(a->vm, true);
	pf_fusion_set_ready(b->vm, true);
	rig_run(&rig);
	assert_int_equal(rig_stats(a).runs, 1);
	assert_int_equal(rig_stats(b).runs, 1);
	/* One more cut than need be: where the look back ended. */
	assert_true(a->n_run_pages[32] >= 30);
	assert_true(b->n_run_pages[32] >= 30);
	rig_deinit(&rig);
}

static void test_emptied_shim_fuses_in_full_runs_again(void **state)
{
	Rig rig;
	RigVm *a, *b;

	rig_init(&rig);
	a = rig_add(&rig, 0, 4096);
	b = rig_add(&rig, 0, 4096);
	rig_hint(a, 0, 100, 1000, 1);
	rig_hint(b, 0, 2000, 1000, 1);
	rig_run(&rig);
	memset(a->n_run_pages, 0, sizeof(a->n_run_pages));
	rig_empty(a);
	rig_check(&rig);
	assert_int_equal(rig_stats(a).fused, 0);
	assert_int_equal(rig_total(&rig).shared, 0);
	rig_run(&rig);
	assert_runs_of_a_thousand(a);
	rig_deinit(&rig);
}

/* Sum over frames of (mappings - 1), from what the shims have mapped. */
static uint64_t model_shared(const Rig *rig)
{
	g_autoptr(GHashTable) frames = g_hash_table_new(NULL, NULL);
	uint64_t n = 0;

	for (guint i = 0; i < rig->vms->len; i++) {
		const RigVm *m = rig->vms->pdata[i];

		for (uint64_t k = 0; k < m->n_pages; k++) {
			uint64_t key = ((uint64_t)m->group << 40 | (uint64_t)m->mapped[k]) + 1;

			if (m->mapped[k] >= 0)
				n += !g_hash_table_add(frames, GSIZE_TO_POINTER(key));
		}
	}
	return n;
}

/* 1,500 pages of libraries that all VMs of a group have in some order, 300 of this VM alone, 200
 * zero pages. */
static void hint_simulated(RigVm *m, uint32_t n)
{
	for (uint32_t i = 0; i < 30; i++) {
		uint32_t library = (i + n) % 30;

		rig_hint(m, library * 50, i * 50, 50, 1000 + library * 50);
	}
	rig_hint(m, 10000, 1500, 300, 1000000 + n * 300);
	for (uint32_t i = 0; i < 200; i++)
		rig_hint(m, 20000 + i, 1800 + i, 1, 0);
}

static void test_two_hundred_vms(void **state)
{
	enum { N_VMS = 200, N_PAGES = 2000 };
	Rig rig;
	uint32_t random = 1;
	uint64_t n_revoked = 0;

	rig_init(&rig);
	for (uint32_t i = 0; i < N_VMS; i++) {
		RigVm *m = rig_add(&rig, i % 2, N_PAGES);

		hint_simulated(m, i / 2);
		if (i % 7 == 0)
			rig_run(&rig);
	}
	rig_run(&rig);
	/* In each group: 1,501 frames with 100 times 1,700 mappings. */
	assert_int_equal(rig_total(&rig).frames, 2 * 1501);
	assert_int_equal(rig_total(&rig).shared, 2 * (100 * 1700 - 1501));
	assert_int_equal(rig_total(&rig).shared, model_shared(&rig));
	assert_int_equal(rig_total(&rig).candidates, N_VMS * 300);
	for (uint32_t i = 0; i < 20000; i++) {
		RigVm *m = rig.vms->pdata[(random = random * 1664525u + 1013904223u) >> 8 & 127];
		uint32_t gfn = (random >> 12) % N_PAGES;

		if (m->mapped[gfn] < 0)
			continue;
		assert_int_equal(rig_write(m, gfn, 2000000 + i), 0);
		n_revoked++;
	}
	while (rig.vms->len > N_VMS / 2)
		rig_remove(rig.vms->pdata[rig.vms->len / 3]);
	assert_int_equal(rig_total(&rig).revoked, n_revoked);
	assert_int_equal(rig_total(&rig).shared, model_shared(&rig));
	rig_deinit(&rig);
}

/* Pages of one VM among 16 that all hint the same: what a page costs, all indexes included. */
static void test_memory_of_a_page(void **state)
{
	enum { N_VMS = 16, N_PAGES = 20000 };
	PfFusion *fusion = pf_fusion_new(&PF_FUSION_DEFAULTS);
	g_autofree PfDigest *digests = g_new0(PfDigest, N_PAGES);
	PfModuleInfo info = {NULL, 0, "module", N_PAGES};
	PfFusionVm *vms[N_VMS];
	size_t before, after;

	for (uint32_t i = 0; i < N_PAGES; i++)
		digests[i] = rig_digest(i);
	before = mallinfo2().uordblks + mallinfo2().hblkhd;
	for (uint32_t i = 0; i < N_VMS; i++) {
		vms[i] = pf_fusion_add_vm(fusion, "group", NULL);
		pf_fusion_module(vms[i], 0, &info);
		pf_fusion_hints(vms[i], 0, 0, (PfGfn){1000}, N_PAGES, digests, 0);
	}
	after = mallinfo2().uordblks + mallinfo2().hblkhd;
	/* The sanitizers' allocator does not tell. */
	if (after > before)
		assert_in_range((after - before) / (N_VMS * N_PAGES), 40, 110);
	assert_null(pf_fusion_check(fusion));
	for (uint32_t i = 0; i < N_VMS; i++)
		pf_fusion_remove_vm(vms[i]);
	pf_fusion_free(fusion);
}

/* One digest for every page of two VMs: the worst for everything that walks over holders or
 * pages. */
static void test_one_digest_for_everything(void **state)
{
	enum { N_PAGES = 30000 };
	Rig rig;
	RigVm *a, *b;

	rig_init(&rig);
	a = rig_add(&rig, 0, N_PAGES);
	b = rig_add(&rig, 0, N_PAGES);
	for (uint32_t i = 0; i < N_PAGES; i++) {
		rig_hint_only(a, i, i, 1, 77);
		rig_hint_only(b, i, i, 1, 77);
	}
	/* None of them is what it was said to be: each capture fails, one after the other. */
	rig_run(&rig);
	assert_int_equal(rig_total(&rig).frames, 0);
	assert_in_range(rig_stats(a).hinted + rig_stats(b).hinted, 0, N_PAGES);
	assert_int_equal(rig_stats(a).capture_mismatches + rig_stats(b).capture_mismatches +
				 rig_stats(a).hinted + rig_stats(b).hinted,
		2 * N_PAGES);
	rig_check(&rig);
	for (uint32_t i = 0; i < N_PAGES; i++) {
		rig_hint(a, i, i, 1, 77);
		rig_hint(b, i, i, 1, 77);
	}
	rig_run(&rig);
	assert_int_equal(rig_total(&rig).frames, 1);
	assert_int_equal(rig_total(&rig).shared, 2 * N_PAGES - 1);
	assert_int_equal(rig_stats(b).shared, N_PAGES);
	rig_deinit(&rig);
}

/* A guest that declares all modules and says one page of each, again and again. */
static void test_modules_in_a_loop(void **state)
{
	Rig rig;
	RigVm *a;
	PfDigest digest = rig_digest(1);
	PfModuleInfo info = {NULL, 0, "huge", PF_SESSION_MAX_MODULE_PAGES};

	rig_init(&rig);
	a = rig_add(&rig, 0, 16);
	for (uint32_t i = 0; i < 3 * PF_SESSION_MAX_MODULES; i++) {
		uint32_t module = i % PF_SESSION_MAX_MODULES;

		pf_fusion_module(a->vm, module, &info);
		pf_fusion_hints(a->vm, module, info.n_pages - 1, (PfGfn){i % 16}, 1, &digest, 0);
	}
	assert_int_equal(rig_stats(a).hinted, 16);
	rig_deinit(&rig);
}

static void test_frame_numbers_run_out(void **state)
{
	Rig rig;
	RigVm *a, *b;

	rig_init(&rig);
	a = rig_add(&rig, 0, 64);
	b = rig_add(&rig, 0, 64);
	a->vm->group->layout.limit = PF_LAYOUT_ALIGN + PF_LAYOUT_CHUNK_FRAMES;
	rig_hint(a, 0, 0, 10, 1);
	rig_hint(b, 0, 0, 10, 1);
	rig_run(&rig);
	assert_int_equal(rig_stats(a).fused, 10);
	/* Another part of the file, for which there is no range any more. */
	rig_hint(a, 100000, 20, 10, 100);
	rig_hint(b, 100000, 20, 10, 100);
	rig_run(&rig);
	assert_int_equal(rig_total(&rig).frames, 10);
	assert_int_equal(rig_stats(a).fused, 10);
	assert_int_equal(pf_fusion_next_tick_us(rig.fusion), -1);
	/* What has a frame still serves. */
	rig_hint(a, 50, 40, 1, 1);
	rig_run(&rig);
	assert_int_equal(rig_stats(a).fused, 11);
	rig_deinit(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_long_module_fuses_in_full_runs),
		cmocka_unit_test(test_hints_in_pieces_fuse_in_full_runs),
		cmocka_unit_test(test_emptied_shim_fuses_in_full_runs_again),
		cmocka_unit_test(test_two_hundred_vms),
		cmocka_unit_test(test_memory_of_a_page),
		cmocka_unit_test(test_one_digest_for_everything),
		cmocka_unit_test(test_modules_in_a_loop),
		cmocka_unit_test(test_frame_numbers_run_out),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
