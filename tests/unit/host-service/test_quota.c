/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How much of the service a VM may use, with a clock that the test sets. */
#include "host-service/decide/quota.h"
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#define SECOND 1000000ll
#define BEGIN  (1000 * SECOND)

static const PfPolicy policy = {.bytes_per_s = 1000, .hints_per_s = 200, .cpu_percent = 5};

static PfQuota new_quota(void)
{
	PfQuota quota;

	pf_quota_init(&quota, &policy, BEGIN);
	return quota;
}

static void test_burst_and_rate(void **unused)
{
	PfQuota quota = new_quota();
	int64_t now = BEGIN;

	/* What it may take at once, to the last byte, and then one more. */
	assert_int_equal(pf_quota_spend(&quota, 1000 * PF_POLICY_BURST_S, 0, 0, now), 0);
	assert_int_equal(pf_quota_spend(&quota, 1, 0, 0, now), 1000);
	/* In the long run it gets its rate, whatever the messages' sizes. */
	for (unsigned total = 0, n = 0; total < 100000; total += n) {
		n = 1 + total % 700;
		now += pf_quota_spend(&quota, n, 0, 0, now);
	}
	assert_in_range(now - BEGIN, 99 * SECOND, 101 * SECOND);
	/* Quiet for a while, it has its burst again, and not more. */
	now += 3600 * SECOND;
	assert_int_equal(pf_quota_spend(&quota, 1000 * PF_POLICY_BURST_S, 0, 0, now), 0);
	assert_int_equal(pf_quota_spend(&quota, 500, 0, 0, now), SECOND / 2);
}

static void test_processor_time(void **unused)
{
	PfQuota quota = new_quota();
	const PfPolicy generous = {.bytes_per_s = 1, .hints_per_s = 1, .cpu_percent = 100};

	/* 5 % of a processor: 400 ms in 8 s. */
	assert_int_equal(pf_quota_spend(&quota, 0, 0, 400000, BEGIN), 0);
	assert_int_equal(pf_quota_spend(&quota, 0, 0, 1000, BEGIN), 20000);
	/* Never more than a second at once. */
	pf_quota_init(&quota, &generous, BEGIN);
	assert_int_equal(pf_quota_spend(&quota, 0, 0, 1000000, BEGIN), 0);
	assert_true(pf_quota_spend(&quota, 0, 0, 1, BEGIN) > 0);
}

/* One is empty: who takes nothing of it does not wait for it. */
static void test_buckets_are_apart(void **unused)
{
	PfQuota quota = new_quota();

	assert_null(pf_quota_exceeded(&quota, BEGIN));
	assert_int_equal(pf_quota_spend(&quota, 10, 1600 + 200, 10, BEGIN), SECOND);
	assert_int_equal(pf_quota_spend(&quota, 10, 0, 10, BEGIN), 0);
	assert_int_equal(pf_quota_spend(&quota, 10, 1, 10, BEGIN), SECOND + SECOND / 200);
	assert_string_equal(pf_quota_exceeded(&quota, BEGIN), "hints a second");
	assert_string_equal(pf_quota_exceeded(&quota, BEGIN + 3 * SECOND), "hints a second");
	assert_null(pf_quota_exceeded(&quota, BEGIN + 8 * SECOND));
	/* The longest pause is the one that counts. */
	assert_true(pf_quota_spend(&quota, 100000, 1, 10, BEGIN) > 10 * SECOND);
	assert_string_equal(
		pf_quota_exceeded(&quota, BEGIN), "bytes of its guest channel a second");
}

static void test_pauses_at_the_same_time(void **unused)
{
	PfQuota quota = new_quota();

	/* The guest waits a second; half of it has passed when QEMU has to wait as long. */
	assert_int_equal(pf_quota_spend(&quota, 0, 0, 450000, BEGIN), SECOND);
	assert_int_equal(quota.paused_us, SECOND);
	assert_int_equal(pf_quota_spend(&quota, 0, 0, 25000, BEGIN + SECOND / 2), SECOND);
	assert_int_equal(quota.paused_us, SECOND + SECOND / 2);
	assert_int_equal(quota.paused_until_us, BEGIN + SECOND + SECOND / 2);
}

static void test_absurd_amounts(void **unused)
{
	const PfPolicy endless = {
		.bytes_per_s = UINT64_MAX, .hints_per_s = 0, .cpu_percent = UINT32_MAX};
	PfQuota quota = new_quota();
	int64_t wait;

	/* It is slowed, and comes back. */
	wait = pf_quota_spend(&quota, UINT64_MAX, UINT64_MAX, UINT64_MAX, BEGIN);
	assert_in_range(wait, SECOND, 60 * SECOND);
	assert_int_equal(pf_quota_spend(&quota, UINT64_MAX, 0, 0, BEGIN), wait);
	assert_int_equal(pf_quota_spend(&quota, 1, 0, 1, BEGIN + wait + SECOND), 0);
	/* Whatever a policy says, nothing overflows, and the clock may stand. */
	pf_quota_init(&quota, &endless, BEGIN);
	assert_int_equal(pf_quota_spend(&quota, 1ull << 38, 0, 100, BEGIN), 0);
	assert_int_equal(pf_quota_spend(&quota, 1ull << 38, 0, 100, BEGIN + INT32_MAX * SECOND), 0);
	assert_int_equal(pf_quota_spend(&quota, 0, 8, 0, BEGIN), 0);
	assert_int_equal(pf_quota_spend(&quota, 0, 1, 0, BEGIN), SECOND);
	pf_quota_init(&quota, &policy, BEGIN);
	assert_int_equal(pf_quota_spend(&quota, 8000, 0, 0, BEGIN - SECOND), 0);
	assert_int_equal(pf_quota_spend(&quota, 1000, 0, 0, BEGIN - SECOND), SECOND);
}

static void test_another_policy(void **unused)
{
	PfQuota quota = new_quota();
	PfPolicy faster = policy, slower = policy;

	faster.bytes_per_s = 100000;
	slower.bytes_per_s = 10;
	pf_quota_spend(&quota, 9000, 0, 0, BEGIN);
	pf_quota_set_policy(&quota, &faster, BEGIN + SECOND / 2);
	/* Half of the overdraft is left; it is filled a hundred times as fast. */
	assert_int_equal(pf_quota_spend(&quota, 1, 0, 0, BEGIN + SECOND / 2), 5010);
	pf_quota_init(&quota, &faster, BEGIN);
	pf_quota_set_policy(&quota, &slower, BEGIN);
	assert_int_equal(pf_quota_spend(&quota, 80, 0, 0, BEGIN), 0);
	assert_int_equal(pf_quota_spend(&quota, 1, 0, 0, BEGIN), SECOND / 10);
	assert_int_equal(pf_quota_session_hints(&quota), 200);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_burst_and_rate),
		cmocka_unit_test(test_processor_time),
		cmocka_unit_test(test_buckets_are_apart),
		cmocka_unit_test(test_pauses_at_the_same_time),
		cmocka_unit_test(test_absurd_amounts),
		cmocka_unit_test(test_another_policy),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
