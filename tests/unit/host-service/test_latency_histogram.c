/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/decide/latency_histogram.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void test_empty(void **state)
{
	PfLatencyHistogram h = {0};

	assert_int_equal(pf_latency_percentile(&h, 90), -1);
}

static void test_small_values_are_exact(void **state)
{
	for (int64_t us = 0; us < 32; us++) {
		PfLatencyHistogram h = {0};

		pf_latency_add(&h, us);
		assert_int_equal(pf_latency_percentile(&h, 90), us);
	}
}

static void test_error_is_below_a_sixteenth(void **state)
{
	for (int64_t us = 32; us < PF_LATENCY_MAX_US; us += us / 23 + 1) {
		PfLatencyHistogram h = {0};
		int64_t got;

		pf_latency_add(&h, us);
		got = pf_latency_percentile(&h, 50);
		assert_true(got >= us);
		assert_true(got - us < us / 16 + 1);
	}
}

static void test_buckets_touch(void **state)
{
	/* Whatever a bucket's last value is, the next value is in another one. */
	for (int64_t us = 0; us < 100000;) {
		PfLatencyHistogram h = {0};
		int64_t last;

		pf_latency_add(&h, us);
		last = pf_latency_percentile(&h, 100);
		pf_latency_add(&h, last + 1);
		assert_true(pf_latency_percentile(&h, 100) > last);
		assert_int_equal(pf_latency_percentile(&h, 50), last);
		us = last + 1;
	}
}

static void test_percentiles(void **state)
{
	PfLatencyHistogram h = {0};

	for (int i = 1; i <= 10; i++)
		pf_latency_add(&h, i);
	assert_int_equal(pf_latency_percentile(&h, 1), 1);
	assert_int_equal(pf_latency_percentile(&h, 10), 1);
	assert_int_equal(pf_latency_percentile(&h, 11), 2);
	assert_int_equal(pf_latency_percentile(&h, 90), 9);
	assert_int_equal(pf_latency_percentile(&h, 91), 10);
	assert_int_equal(pf_latency_percentile(&h, 100), 10);
}

static void test_extremes(void **state)
{
	PfLatencyHistogram h = {0};

	pf_latency_add(&h, INT64_MIN);
	assert_int_equal(pf_latency_percentile(&h, 100), 0);
	pf_latency_add(&h, INT64_MAX);
	assert_int_equal(pf_latency_percentile(&h, 100), PF_LATENCY_MAX_US);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_small_values_are_exact),
		cmocka_unit_test(test_error_is_below_a_sixteenth),
		cmocka_unit_test(test_buckets_touch),
		cmocka_unit_test(test_percentiles),
		cmocka_unit_test(test_extremes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
