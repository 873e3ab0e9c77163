/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/fusion_layout.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static uint32_t take(PfLayout *layout, uint64_t module, uint32_t module_pages, uint32_t file_page)
{
	PfLayoutPlace place = {module, module_pages, file_page};
	uint32_t frame = 0;

	assert_true(pf_layout_take(layout, &place, &frame));
	return frame;
}

static void test_file_order_is_frame_order(void **state)
{
	PfLayout layout;
	uint32_t base;

	pf_layout_init(&layout, PF_LAYOUT_FRAMES);
	base = take(&layout, 1, 1000, 500) - 500;
	assert_int_equal(base % PF_LAYOUT_ALIGN, 0);
	assert_int_equal(take(&layout, 1, 1000, 0), base);
	assert_int_equal(take(&layout, 1, 1000, 999), base + 999);
	pf_layout_deinit(&layout);
}

static void test_ranges_are_disjoint(void **state)
{
	PfLayout layout;
	GHashTable *seen = g_hash_table_new(NULL, NULL);

	pf_layout_init(&layout, PF_LAYOUT_FRAMES);
	for (uint32_t page = 0; page < 700; page++) {
		for (uint64_t module = 0; module < 5; module++) {
			uint32_t frame = take(&layout, module, 700, page);

			assert_true(g_hash_table_add(seen, GUINT_TO_POINTER(frame)));
		}
		/* Same identity, another length: another file. */
		assert_true(g_hash_table_add(seen, GUINT_TO_POINTER(take(&layout, 0, 701, page))));
	}
	g_hash_table_unref(seen);
	pf_layout_deinit(&layout);
}

static void test_used_place_goes_to_spare_range(void **state)
{
	PfLayout layout;
	uint32_t first, second, third;

	pf_layout_init(&layout, PF_LAYOUT_FRAMES);
	first = take(&layout, 1, 10, 3);
	second = take(&layout, 1, 10, 3);
	third = take(&layout, 1, 10, 3);
	assert_int_not_equal(second, first);
	assert_int_equal(third, second + 1);
	assert_int_equal(take(&layout, 1, 10, 4), first + 1);
	pf_layout_deinit(&layout);
}

static void test_long_file_costs_a_chunk(void **state)
{
	PfLayout layout;
	uint32_t a, b;

	pf_layout_init(&layout, PF_LAYOUT_FRAMES);
	a = take(&layout, 1, 1u << 28, (1u << 28) - 1);
	assert_int_equal(layout.next, PF_LAYOUT_CHUNK_FRAMES);
	b = take(&layout, 1, 1u << 28, (1u << 28) - 2);
	assert_int_equal(b + 1, a);
	take(&layout, 1, 1u << 28, 0);
	assert_int_equal(layout.next, 2 * PF_LAYOUT_CHUNK_FRAMES);
	pf_layout_deinit(&layout);
}

static void test_untake(void **state)
{
	PfLayout layout;
	PfLayoutPlace place = {1, 10, 3};
	uint32_t first, spare;

	pf_layout_init(&layout, PF_LAYOUT_FRAMES);
	first = take(&layout, 1, 10, 3);
	pf_layout_untake(&layout, &place, first);
	assert_int_equal(take(&layout, 1, 10, 3), first);
	spare = take(&layout, 1, 10, 3);
	pf_layout_untake(&layout, &place, spare);
	assert_int_equal(take(&layout, 1, 10, 3), spare);
	pf_layout_deinit(&layout);
}

static void test_numbers_run_out(void **state)
{
	PfLayout layout;
	PfLayoutPlace place = {9, 1, 0};
	uint32_t frame, n = 0;

	pf_layout_init(&layout, 3 * PF_LAYOUT_ALIGN);
	assert_int_equal(take(&layout, 1, 1, 0), 0);
	assert_int_equal(take(&layout, 2, 513, 0), PF_LAYOUT_ALIGN);
	while (pf_layout_take(&layout, &place, &frame))
		n++;
	assert_int_equal(n, 0);
	/* Ranges that exist go on. */
	assert_int_equal(take(&layout, 2, 513, 512), 2 * PF_LAYOUT_ALIGN);
	pf_layout_deinit(&layout);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_file_order_is_frame_order),
		cmocka_unit_test(test_ranges_are_disjoint),
		cmocka_unit_test(test_used_place_goes_to_spare_range),
		cmocka_unit_test(test_long_file_costs_a_chunk),
		cmocka_unit_test(test_untake),
		cmocka_unit_test(test_numbers_run_out),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
