// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/ranges.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static void check(
	const PfPageRange *in, size_t n_in, uint64_t end, const PfPageRange *out, size_t n_out)
{
	PfPageRanges ranges = {0};

	for (size_t i = 0; i < n_in; i++)
		assert_int_equal(pf_page_ranges_add(&ranges, in[i].first, in[i].n_pages), 0);
	pf_page_ranges_normalise(&ranges, end);
	assert_int_equal(ranges.n, n_out);
	for (size_t i = 0; i < n_out; i++) {
		assert_int_equal(ranges.items[i].first, out[i].first);
		assert_int_equal(ranges.items[i].n_pages, out[i].n_pages);
	}
	pf_page_ranges_deinit(&ranges);
}

static void test_union(void **state)
{
	const PfPageRange in[] = {{40, 8}, {0, 4}, {4, 2}, {40, 8}, {42, 2}, {20, 5}, {24, 3}};
	const PfPageRange out[] = {{0, 6}, {20, 7}, {40, 8}};

	check(in, 7, 100, out, 3);
}

static void test_clip(void **state)
{
	const PfPageRange in[] = {{0, 4}, {8, 8}, {12, 8}, {30, 2}};
	const PfPageRange out[] = {{0, 4}, {8, 2}};

	check(in, 4, 10, out, 2);
	check(in, 4, 0, NULL, 0);
	check(NULL, 0, 10, NULL, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_union), cmocka_unit_test(test_clip)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
