// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/find/ranges.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
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

/* What the loader maps of a library in parts is one range, and others that map it alike add none. */
static void test_parts(void **state)
{
	const PfPageRange parts[] = {{0, 3}, {3, 10}, {13, 4}, {17, 1}};
	PfPageRanges ranges = {0};

	for (int process = 0; process < 100; process++) {
		for (size_t i = 0; i < 4; i++)
			assert_int_equal(
				pf_page_ranges_add(&ranges, parts[i].first, parts[i].n_pages), 0);
	}
	assert_int_equal(ranges.n, 1);
	assert_int_equal(ranges.capacity, 1);
	assert_int_equal(ranges.items[0].n_pages, 18);
	pf_page_ranges_deinit(&ranges);
}

/* Memory grows with the ranges that differ, whatever the number of processes. */
static void test_many(void **state)
{
	PfPageRanges ranges = {0};

	for (int process = 0; process < 50; process++) {
		for (uint64_t i = 0; i < 1000; i++)
			assert_int_equal(pf_page_ranges_add(&ranges, 2 * i, 1), 0);
	}
	assert_true(ranges.capacity <= 4096);
	pf_page_ranges_normalise(&ranges, 1999);
	assert_int_equal(ranges.n, 1000);
	for (uint64_t i = 0; i < 1000; i++)
		assert_true(ranges.items[i].first == 2 * i && ranges.items[i].n_pages == 1);
	pf_page_ranges_deinit(&ranges);
}

/* Against a set of pages. */
static void test_random(void **state)
{
	for (unsigned round = 1; round <= 300; round++) {
		uint64_t end = 1 + round % 100;
		bool wanted[128] = {false};
		PfPageRanges ranges = {0};
		unsigned seed = round;

		for (int i = rand_r(&seed) % 60; i > 0; i--) {
			uint64_t first = (uint64_t)rand_r(&seed) % 100;
			uint64_t n_pages = (uint64_t)rand_r(&seed) % 6;

			assert_int_equal(pf_page_ranges_add(&ranges, first, n_pages), 0);
			memset(&wanted[first], true, n_pages);
		}
		pf_page_ranges_normalise(&ranges, end);
		for (uint64_t page = 0, k = 0; page < 128; page++) {
			while (k < ranges.n &&
				ranges.items[k].first + ranges.items[k].n_pages <= page)
				k++;
			assert_int_equal(k < ranges.n && page >= ranges.items[k].first,
				page < end && wanted[page]);
		}
		for (size_t k = 1; k < ranges.n; k++)
			assert_true(ranges.items[k].first >
				    ranges.items[k - 1].first + ranges.items[k - 1].n_pages);
		pf_page_ranges_deinit(&ranges);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_union),
		cmocka_unit_test(test_clip),
		cmocka_unit_test(test_parts),
		cmocka_unit_test(test_many),
		cmocka_unit_test(test_random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
