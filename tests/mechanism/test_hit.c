/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One run, plugged and fused again and again, and each time QEMU does something to a page in its middle at another
 * moment: it maps other memory over it, discards it, moves it away, or unmaps it. The page is what QEMU made it, and
 * stays so; the others are what they were.
 */
#include "tests/mechanism/mech.h"
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <cmocka.h>

#define RUN         PF_SHIM_RUN_PAGES /* the longest freeze */
#define HIT         13u
#define TRIES       2400u
#define MIN_TRIES   200u /* where it takes longer than that: */
#define MAX_S       6.0
#define PAUSE_STEPS 64u

typedef struct Target {
	uint8_t *block;
	PfFrame frame;
	atomic_bool stop;
	atomic_uint n_orders, n_done;
} Target;

static void *fuse_all_the_time(void *argument)
{
	PfShimLost lost[4 * RUN];
	Target *target = argument;
	uint8_t results[RUN];
	bool overflow;

	while (!atomic_load(&target->stop)) {
		mech_fuse(target->block, target->frame, RUN, results);
		for (size_t i = 0; i < RUN; i++)
			target->n_done += results[i] == PF_SHIM_DONE;
		target->n_orders++;
		pf_core_take_lost(lost, 4 * RUN, &overflow);
	}
	return NULL;
}

static void plug_target(Target *target)
{
	assert_true(mech_map_into_hole(target->block, RUN * PF_PAGE_SIZE));
	assert_int_equal(pf_core_madvise(target->block, RUN * PF_PAGE_SIZE, MADV_DONTFORK), 0);
	for (size_t i = 0; i < RUN; i++)
		mech_fill(target->block + i * PF_PAGE_SIZE, i + 1);
	assert_int_equal(pf_core_add_block(target->block, RUN * PF_PAGE_SIZE), 0);
}

/* What the page in the middle must hold after it: zeros, or nothing is there any more. */
static bool hit(uint8_t *page, unsigned kind)
{
	static uint8_t *elsewhere;

	if (!elsewhere)
		elsewhere = mmap(NULL, PF_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	switch (kind) {
	case 0:
		assert_ptr_equal(pf_core_mmap(page, PF_PAGE_SIZE, PROT_READ | PROT_WRITE,
					 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			page);
		return true;
	case 1:
		assert_int_equal(pf_core_madvise(page, PF_PAGE_SIZE, MADV_DONTNEED), 0);
		return true;
	case 2:
		assert_ptr_equal(pf_core_mremap(page, PF_PAGE_SIZE, PF_PAGE_SIZE,
					 MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere),
			elsewhere);
		assert_true(mech_holds(elsewhere, HIT + 1));
		return false;
	default:
		assert_int_equal(pf_core_munmap(page, PF_PAGE_SIZE), 0);
		return false;
	}
}

static void check_target(const Target *target, bool zeros)
{
	for (size_t i = 0; i < RUN; i++) {
		const uint8_t *page = target->block + i * PF_PAGE_SIZE;

		if (i != HIT)
			assert_true(mech_holds(page, i + 1));
		else if (zeros)
			assert_true(mech_is_zero(page));
	}
}

static void wait_for_orders(const Target *target)
{
	unsigned before = target->n_orders;

	while (target->n_orders - before < 2)
		sched_yield();
}

static void hit_once(Target *target, unsigned i)
{
	uint8_t *page = target->block + HIT * PF_PAGE_SIZE;
	bool zeros;

	plug_target(target);
	/* Sooner or later after it was plugged: before, in the middle of and after its being fused. */
	for (volatile unsigned pause = i / 4 % PAUSE_STEPS * 600; pause > 0;)
		pause--;
	zeros = hit(page, i % 4);
	check_target(target, zeros);
	/* And it stays so when orders have come after it. */
	if (i % 4 == 0 || i % 16 < 4) {
		wait_for_orders(target);
		check_target(target, zeros);
	}
	/* What was mapped over it is no RAM, whatever it holds. */
	if (i % 16 == 0) {
		mech_fill(page, HIT + 1);
		wait_for_orders(target);
		assert_false(mech_is_file_page(page));
	}
	assert_int_equal(pf_core_munmap(target->block, RUN * PF_PAGE_SIZE), 0);
}

static void test_a_page_of_a_run_is_hit(void **state)
{
	static Target target;
	double deadline = mech_now() + MAX_S;
	PfShimState snapshot;
	pthread_t orders;
	uint64_t seed = 1;
	unsigned i = 0;

	target.block =
		mmap(NULL, RUN * PF_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	target.frame = mech_publish_seed(1);
	while (mech_publish_seed(++seed).v + 1 < target.frame.v + RUN)
		;
	assert_int_equal(pthread_create(&orders, NULL, fuse_all_the_time, &target), 0);
	/* Not before: the thread's stack would take the place. */
	assert_int_equal(munmap(target.block, RUN * PF_PAGE_SIZE), 0);
	for (; i < TRIES && (i < MIN_TRIES || mech_now() < deadline); i++)
		hit_once(&target, i);
	atomic_store(&target.stop, true);
	pthread_join(orders, NULL);
	pf_core_state(&snapshot, false);
	print_message("%u tries, %u pages fused\n", i, target.n_done);
	assert_true(target.n_done > i);
	assert_int_equal(snapshot.fused_pages, 0);
	assert_int_equal(snapshot.stopped, 0);
	mech_drop_lost();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_page_of_a_run_is_hit),
	};

	mech_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
