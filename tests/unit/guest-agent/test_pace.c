// SPDX-License-Identifier: LGPL-2.1-or-later
/* The pace by a clock of its own. */
#include "guest-agent/pace.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define START 1000000

static PfPace pace;
static PfAgentConfig config;

static int setup(void **state)
{
	config = (PfAgentConfig){.slow_interval_s = 600,
		.hash_limit = 128 << 20,
		.cpu_limit_permyriad = 10,
		.classes = {[PF_CLASS_MAPPED] = true}};
	pf_pace_init(&pace, START);
	pf_pace_configure(&pace, &config, 60, START);
	return 0;
}

static void expect_pass(PfPageClass class, PfPaceReason reason, int64_t due_ms, int64_t now_ms)
{
	PfTurn turn = pf_pace_next(&pace, now_ms);

	assert_int_equal(turn.work, PF_WORK_PASS);
	assert_int_equal(turn.class, class);
	assert_int_equal(turn.reason, reason);
	assert_int_equal(turn.due_ms, due_ms);
}

/* Does what is next, at its time; gives that. */
static int64_t do_next(uint64_t cpu_us, int64_t now_ms)
{
	PfTurn turn = pf_pace_next(&pace, now_ms);
	pid_t pids[PF_PACE_MAX_PENDING];

	if (turn.due_ms > now_ms)
		now_ms = turn.due_ms;
	if (turn.work == PF_WORK_LOOK)
		assert_true(pf_pace_take(&pace, pids, now_ms) > 0);
	else
		pf_pace_begin(&pace, turn.class, now_ms);
	pf_pace_done(&pace, &turn, cpu_us, now_ms);
	return now_ms;
}

static void test_interval(void **state)
{
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ASKED, START, START);
	assert_int_equal(do_next(500000, START), START);
	/* The first one costs what it costs. */
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, START + 60000, START);
	assert_int_equal(do_next(1000, START), START + 60000);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, START + 120000, START + 60000);
}

static void test_cpu_limit(void **state)
{
	int64_t now = do_next(0, START), began = now;
	uint64_t spent_us = 0;

	/* 150 ms each: 0.1 % of 150 s. */
	for (int i = 0; i < 20; i++) {
		now = do_next(150000, now);
		spent_us += 150000;
	}
	/* The interval is what the first of them waited for. */
	assert_int_equal(now - began, 60000 + 19 * 150000);
	assert_true(spent_us * 1000 <= (uint64_t)(now - began + 150000) * 1000);
	/* Another class waits for that too. */
	config.classes[PF_CLASS_CACHE] = true;
	config.slow_interval_s = 10;
	pf_pace_configure(&pace, &config, 60, now);
	assert_int_equal(do_next(0, now), now);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, now + 150000, now + 1);
}

static void test_classes(void **state)
{
	for (int c = 0; c < PF_N_CLASSES; c++)
		config.classes[c] = true;
	pf_pace_configure(&pace, &config, 60, START);
	for (int c = 0; c < PF_N_CLASSES; c++) {
		expect_pass(c, PF_PACE_ASKED, START, START);
		do_next(1000, START);
	}
	/* What must hold still is looked at twice before its own interval begins. */
	expect_pass(PF_CLASS_BUFFERS, PF_PACE_ASKED, START + PF_PACE_SETTLE_MS, START);
	do_next(1000, START);
	expect_pass(PF_CLASS_KERNEL, PF_PACE_ASKED, START + PF_PACE_SETTLE_MS, START);
	do_next(1000, START);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, START + 60000, START);
	pf_pace_switch_off(&pace, PF_CLASS_MAPPED);
	expect_pass(PF_CLASS_CACHE, PF_PACE_ROUTINE, START + 600000, START);
	pf_pace_switch_off(&pace, PF_CLASS_CACHE);
	expect_pass(PF_CLASS_BUFFERS, PF_PACE_ROUTINE, START + PF_PACE_SETTLE_MS + 600000, START);
	config = (PfAgentConfig){.hash_limit = 1 << 20, .cpu_limit_permyriad = 10};
	pf_pace_configure(&pace, &config, 60, START);
	assert_int_equal(pf_pace_next(&pace, START).due_ms, PF_PACE_NEVER);
	assert_int_equal(pf_pace_next(&pace, START).work, PF_WORK_NONE);
	pf_pace_ask(&pace, START);
	pf_pace_lost(&pace, START);
	pf_pace_ended(&pace, 1, START);
	pf_pace_started(&pace, (pid_t[]){1}, 1, START);
	assert_int_equal(pf_pace_next(&pace, START).work, PF_WORK_NONE);
}

static void test_asked(void **state)
{
	int64_t now = do_next(0, START);

	now = do_next(3000000, now);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, now + 3000000, now);
	pf_pace_ask(&pace, now + 5);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ASKED, now + 5, now + 5);
}

static void test_shorter_interval(void **state)
{
	int64_t now = do_next(0, START);

	pf_pace_configure(&pace, &config, 5, now + 10);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, now + 5010, now + 10);
	/* A longer one begins with the next pass. */
	pf_pace_configure(&pace, &config, 3600, now + 10);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, now + 5010, now + 10);
}

static void expect_look(int64_t due_ms, int64_t now_ms)
{
	PfTurn turn = pf_pace_next(&pace, now_ms);

	assert_int_equal(turn.work, PF_WORK_LOOK);
	assert_int_equal(turn.due_ms, due_ms);
}

static void test_looks(void **state)
{
	pid_t pids[PF_PACE_MAX_PENDING];
	int64_t now = do_next(0, START) + 1000;

	pf_pace_started(&pace, (pid_t[]){10, 11}, 2, now);
	pf_pace_started(&pace, (pid_t[]){12}, 1, now + 300);
	pf_pace_started(&pace, (pid_t[]){13}, 1, now + 600);
	expect_look(now + PF_PACE_FIRST_LOOK_MS, now);
	/* The third is near enough to be looked at together with the first two. */
	now += PF_PACE_FIRST_LOOK_MS;
	assert_int_equal(pf_pace_take(&pace, pids, now), 3);
	assert_int_equal(pids[2], 12);
	expect_look(now + 600, now);
	/* It has started another program meanwhile. */
	pf_pace_started(&pace, (pid_t[]){11}, 1, now);
	now += PF_PACE_FIRST_LOOK_MS;
	assert_int_equal(pf_pace_take(&pace, pids, now), 2);
	expect_look(now - 2 * PF_PACE_FIRST_LOOK_MS + PF_PACE_SECOND_LOOK_MS, now);
	now += PF_PACE_SECOND_LOOK_MS;
	assert_int_equal(pf_pace_take(&pace, pids, now), 4);
	assert_int_equal(pf_pace_take(&pace, pids, now + 100000), 0);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, START + 60000, now);
}

/* A pass that is due long since waits for them. */
static void test_looks_go_first(void **state)
{
	int64_t now = do_next(0, START) + 100000;

	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, START + 60000, now);
	pf_pace_started(&pace, (pid_t[]){10}, 1, now - PF_PACE_FIRST_LOOK_MS);
	expect_look(now, now);
}

static void test_too_many(void **state)
{
	pid_t pids[PF_PACE_MAX_PENDING];
	int64_t now = do_next(0, START);

	for (int i = 0; i < PF_PACE_MAX_PENDING; i++)
		pids[i] = i + 1;
	pf_pace_started(&pace, pids, PF_PACE_MAX_PENDING, now);
	expect_look(now + PF_PACE_FIRST_LOOK_MS, now);
	/* The same again is no more than that. */
	pf_pace_started(&pace, pids, PF_PACE_MAX_PENDING, now);
	expect_look(now + PF_PACE_FIRST_LOOK_MS, now);
	pf_pace_started(&pace, (pid_t[]){PF_PACE_MAX_PENDING + 1}, 1, now);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_EVENT, now + PF_PACE_SECOND_LOOK_MS, now);
	assert_int_equal(pf_pace_take(&pace, pids, now + 100000), 0);
	/* Once. */
	do_next(0, now);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, now + PF_PACE_SECOND_LOOK_MS + 60000, now);
}

static void test_lost(void **state)
{
	int64_t now = do_next(0, START);

	pf_pace_lost(&pace, now);
	pf_pace_lost(&pace, now + 1000);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_EVENT, now + PF_PACE_SECOND_LOOK_MS, now + 1000);
}

/* What is wanted while a pass is made is made after it. */
static void test_wanted_during_pass(void **state)
{
	int64_t now = do_next(0, START) + 60000, lost;
	PfTurn turn = pf_pace_next(&pace, now);

	assert_int_equal(turn.reason, PF_PACE_ROUTINE);
	pf_pace_begin(&pace, turn.class, now);
	assert_int_equal(pf_pace_next(&pace, now).due_ms, PF_PACE_NEVER);
	lost = now + 1000;
	pf_pace_lost(&pace, lost);
	/* It lasts longer than they need to load their libraries. */
	now += 5000;
	pf_pace_done(&pace, &turn, 0, now);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_EVENT, lost + PF_PACE_SECOND_LOOK_MS, now);
	now = do_next(0, now);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, now + 60000, now);
	pf_pace_begin(&pace, PF_CLASS_MAPPED, now);
	pf_pace_ended(&pace, 1, now);
	pf_pace_done(&pace, &turn, 0, now + 1);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_EVENT, now + 15000, now + 1);
}

/* A pass that begins before they have done that does not do for them. */
static void test_too_early_for_lost(void **state)
{
	int64_t now = do_next(0, START) + 60000;

	pf_pace_lost(&pace, now - 100);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, START + 60000, now);
	do_next(0, now);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_EVENT, now - 100 + PF_PACE_SECOND_LOOK_MS, now);
	now = do_next(0, now);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, now + 60000, now);
}

static void give_up(uint64_t cpu_us, int64_t now_ms)
{
	PfTurn turn = pf_pace_next(&pace, now_ms);
	pid_t pids[PF_PACE_MAX_PENDING];

	assert_true(turn.due_ms <= now_ms);
	if (turn.work == PF_WORK_LOOK)
		assert_true(pf_pace_take(&pace, pids, now_ms) > 0);
	else
		pf_pace_begin(&pace, turn.class, now_ms);
	pf_pace_given_up(&pace, &turn, cpu_us, now_ms);
}

static void test_given_up(void **state)
{
	int64_t now = START;

	/* The first pass stays the first. */
	give_up(1000000, now);
	assert_int_equal(pace.n_passes[PF_CLASS_MAPPED], 0);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ASKED, START, now);
	now = do_next(0, now) + 60000;
	/* What the guest pays is paid. */
	give_up(150000, now);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, now + 150000, now);
	now = do_next(0, now);
	/* Processes that were not come to are found by a pass. */
	pf_pace_started(&pace, (pid_t[]){10, 11}, 2, now - PF_PACE_FIRST_LOOK_MS);
	give_up(0, now);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_EVENT, now + PF_PACE_SECOND_LOOK_MS, now);
	/* A class that was switched off meanwhile is not wanted any more. */
	pf_pace_ask(&pace, now);
	pf_pace_begin(&pace, PF_CLASS_MAPPED, now);
	pf_pace_switch_off(&pace, PF_CLASS_MAPPED);
	pf_pace_given_up(
		&pace, &(PfTurn){PF_WORK_PASS, PF_CLASS_MAPPED, PF_PACE_ASKED, now}, 0, now);
	assert_int_equal(pf_pace_next(&pace, now).work, PF_WORK_NONE);
}

static void test_ended(void **state)
{
	int64_t now = do_next(0, START);

	pf_pace_ended(&pace, 0, now);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_ROUTINE, now + 60000, now);
	pf_pace_ended(&pace, 3, now);
	pf_pace_ended(&pace, 3, now + 1000);
	expect_pass(PF_CLASS_MAPPED, PF_PACE_EVENT, now + 15000, now + 1000);
}

/* Programs start as fast as they can, for an hour: the agent gets its share and some for a
 * burst. */
static void test_storm(void **state)
{
	int64_t now = do_next(0, START), began = now;
	uint64_t spent_us = 0;
	pid_t pid = 1;

	while (now < began + 3600000) {
		PfTurn turn = pf_pace_next(&pace, now);
		pid_t pids[PF_PACE_MAX_PENDING];

		pf_pace_started(&pace, (pid_t[]){pid, pid + 1}, 2, now);
		pid += 2;
		if (turn.due_ms <= now) {
			if (turn.work == PF_WORK_LOOK)
				pf_pace_take(&pace, pids, now);
			else
				pf_pace_begin(&pace, turn.class, now);
			pf_pace_done(&pace, &turn, 40000, now);
			spent_us += 40000;
		}
		now += 1000;
	}
	/* 1 % and 0.1 % of an hour, and a second. */
	assert_in_range(spent_us, 30000000, 36000000 + 3600000 + 1000000 + 80000);
}

static void test_hash_limit(void **state)
{
	const uint64_t pages_a_second = (128 << 20) / PF_PAGE_SIZE;
	int64_t now = START, wait;
	uint64_t n = 0;

	/* A second's worth at once. */
	assert_int_equal(pf_pace_hashed(&pace, pages_a_second, now), 0);
	wait = pf_pace_hashed(&pace, pages_a_second / 2, now);
	assert_in_range(wait, 500, 502);
	now += wait;
	assert_in_range(pf_pace_hashed(&pace, pages_a_second * 3, now), 2990, 3002);
	now += 3001;
	assert_int_equal(pf_pace_hashed(&pace, 0, now), 0);
	for (int i = 0; i < 1000; i++) {
		now += pf_pace_hashed(&pace, 2048, now);
		n += 2048;
	}
	assert_in_range(
		n * 1000 / (uint64_t)(now - START), 0, pages_a_second + pages_a_second / 10);
	/* An idle month is worth a second. */
	now += 30ll * 86400 * 1000;
	assert_int_equal(pf_pace_hashed(&pace, pages_a_second, now), 0);
	assert_true(pf_pace_hashed(&pace, 2, now) > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_interval, setup),
		cmocka_unit_test_setup(test_cpu_limit, setup),
		cmocka_unit_test_setup(test_classes, setup),
		cmocka_unit_test_setup(test_asked, setup),
		cmocka_unit_test_setup(test_shorter_interval, setup),
		cmocka_unit_test_setup(test_looks, setup),
		cmocka_unit_test_setup(test_looks_go_first, setup),
		cmocka_unit_test_setup(test_too_many, setup),
		cmocka_unit_test_setup(test_lost, setup),
		cmocka_unit_test_setup(test_wanted_during_pass, setup),
		cmocka_unit_test_setup(test_too_early_for_lost, setup),
		cmocka_unit_test_setup(test_given_up, setup),
		cmocka_unit_test_setup(test_ended, setup),
		cmocka_unit_test_setup(test_storm, setup),
		cmocka_unit_test_setup(test_hash_limit, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
