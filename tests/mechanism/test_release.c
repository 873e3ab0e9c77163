/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Releasing: everything private again, with the bytes it had, and the maps as before. */
#include "tests/mechanism/mech.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define N        512u
#define N_RUNS   24u
#define RUN      8u
#define DISTANCE 20u

static uint8_t *page_of(uint8_t *block, size_t i)
{
	return block + i * PF_PAGE_SIZE;
}

static bool in_a_run(size_t i)
{
	return i / DISTANCE < N_RUNS && i % DISTANCE < RUN;
}

static uint8_t *fused_block(void)
{
	uint8_t *block = mech_block(N), results[RUN];

	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(block, i), i);
	for (size_t run = 0; run < N_RUNS; run++) {
		PfFrame frame;

		mech_skip_frames(3);
		frame = mech_publish(page_of(block, run * DISTANCE));
		for (size_t i = 1; i < RUN; i++)
			mech_publish(page_of(block, run * DISTANCE + i));
		mech_fuse(page_of(block, run * DISTANCE), frame, RUN, results);
		for (size_t i = 0; i < RUN; i++)
			assert_int_equal(results[i], PF_SHIM_DONE);
	}
	return block;
}

static void expect_released(uint8_t *block, size_t first, size_t n)
{
	PfShimLost lost;

	for (size_t i = 0; i < N; i++) {
		bool fused = in_a_run(i) && (i < first || i >= first + n);

		assert_true(mech_holds(page_of(block, i), i));
		assert_int_equal(mech_is_file_page(page_of(block, i)), fused);
		if (in_a_run(i) && !fused) {
			assert_true(mech_wait_lost(page_of(block, i), &lost));
			assert_int_equal(lost.loss, PF_SHIM_LOST_RELEASED);
		}
	}
}

static void test_everything(void **state)
{
	uint8_t *empty = mech_block(N), *block;
	char before_flags[256], after_flags[256];
	size_t before = mech_n_maps(), after;
	PfShimState snapshot;

	mech_block_free(empty, N);
	block = fused_block();
	pf_core_state(&snapshot, false);
	assert_int_equal(snapshot.fused_pages, N_RUNS * RUN);
	assert_int_equal(snapshot.runs, N_RUNS);
	pf_core_release((PfHva){0}, UINT64_MAX);
	expect_released(block, 0, N);
	pf_core_state(&snapshot, true);
	assert_int_equal(snapshot.fused_pages, 0);
	assert_int_equal(snapshot.runs, 0);
	after = mech_n_maps();
	print_message("maps %zu before, %zu released\n", before, after);
	assert_true(after <= before + 8);
	mech_vm_flags(page_of(block, N - 1), before_flags);
	mech_vm_flags(page_of(block, 3), after_flags);
	assert_string_equal(after_flags, before_flags);
	for (size_t i = 0; i < N; i++) {
		mech_fill(page_of(block, i), 9000 + i);
		assert_true(mech_holds(page_of(block, i), 9000 + i));
	}
	mech_block_free(block, N);
	mech_drop_lost();
}

static void test_range(void **state)
{
	uint8_t *block = fused_block();
	PfHva hva = {(uintptr_t)page_of(block, 2)};

	/* The end of the first run, and the start of the second. */
	pf_core_release(hva, DISTANCE);
	expect_released(block, 2, DISTANCE);
	pf_core_release((PfHva){0}, 1);
	pf_core_release((PfHva){UINT64_MAX - 4095}, UINT64_MAX);
	pf_core_release((PfHva){(uintptr_t)block}, 0);
	expect_released(block, 2, DISTANCE);
	pf_core_release(hva, UINT64_MAX);
	expect_released(block, 2, N);
	mech_block_free(block, N);
	mech_drop_lost();
}

static void test_nothing_fused(void **state)
{
	uint8_t *block = mech_block(N);
	PfShimState snapshot;

	mech_fill(block, 1);
	pf_core_release((PfHva){0}, UINT64_MAX);
	pf_core_state(&snapshot, false);
	assert_int_equal(snapshot.fused_pages, 0);
	assert_true(mech_holds(block, 1));
	mech_block_free(block, N);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_everything),
		cmocka_unit_test(test_range),
		cmocka_unit_test(test_nothing_fused),
	};

	mech_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
