/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is logged about one VM, with a clock that the test sets. */
#include "host-service/service/log_limit.h"
#include "fake_broker.h"

#define SECOND G_USEC_PER_SEC

static unsigned take(PfLogLimit *limit, unsigned n, int64_t now_us)
{
	unsigned taken = 0;

	for (unsigned i = 0; i < n; i++)
		taken += pf_log_limit_take(limit, now_us);
	return taken;
}

static void test_limit(void **unused)
{
	LogCapture log = capture_log();
	PfLogLimit limit, other;

	pf_log_limit_init(&limit, "a", 0);
	pf_log_limit_init(&other, "b", 0);
	assert_int_equal(take(&limit, PF_LOG_LIMIT_LINES, SECOND), PF_LOG_LIMIT_LINES);
	assert_int_equal(count_logged(&log, "left out"), 0);
	assert_int_equal(take(&limit, 1000, 2 * SECOND), 0);
	assert_int_equal(count_logged(&log, "a: more about it is left out for a minute"), 1);
	assert_int_equal(take(&limit, 1, 60 * SECOND - 1), 0);
	/* One VM's lines are not another's. */
	assert_int_equal(take(&other, 1, 2 * SECOND), 1);
	/* It goes on, and is limited again. */
	assert_int_equal(take(&limit, 1000, 60 * SECOND), PF_LOG_LIMIT_LINES);
	assert_int_equal(count_logged(&log, "a: 1001 lines about it were left out"), 1);
	assert_int_equal(count_logged(&log, "more about it"), 2);
	/* One that was quiet has nothing to say of it. */
	assert_int_equal(take(&other, 1, 600 * SECOND), 1);
	assert_int_equal(count_logged(&log, "b:"), 0);
	end_capture(&log);
}

static void test_lines(void **unused)
{
	LogCapture log = capture_log();
	PfLogLimit limit;

	pf_log_limit_init(&limit, "a", g_get_monotonic_time());
	for (unsigned i = 0; i < 100; i++)
		pf_log_limited(&limit, PF_LOG_WARNING, "trouble number %u", i);
	assert_int_equal(count_logged(&log, "a: trouble number"), PF_LOG_LIMIT_LINES);
	assert_int_equal(count_logged(&log, "a: trouble number 19\n"), 1);
	pf_log_set_level(PF_LOG_DEBUG);
	pf_log_limited(&limit, PF_LOG_DEBUG, "for debugging");
	pf_log_set_level(PF_LOG_INFO);
	assert_int_equal(count_logged(&log, "a: for debugging"), 1);
	end_capture(&log);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_limit),
		cmocka_unit_test(test_lines),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
