/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/decide/fusion_layout.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define OWNER 5u

static int64_t charged;  /* bytes */
static uint64_t counted; /* likewise, of all ranges */

static void charge(void *userdata, uint32_t owner, int64_t bytes)
{
	int64_t *sum = userdata;

	assert_int_equal(owner, OWNER);
	*sum += bytes;
	assert_true(*sum >= 0);
}

static uint32_t take(PfLayout *layout, uint64_t module, uint32_t module_pages, uint32_t file_page)
{
	PfLayoutPlace place = {module, module_pages, file_page, OWNER};
	uint32_t frame = 0;

	assert_true(pf_layout_take(layout, &place, &frame));
	return frame;
}

static void test_file_order_is_frame_order(void **state)
{
	PfLayout layout;
	uint32_t base;

	pf_layout_init(&layout, 0, PF_LAYOUT_FRAMES, charge, &charged, &counted);
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

	pf_layout_init(&layout, 0, PF_LAYOUT_FRAMES, charge, &charged, &counted);
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

	pf_layout_init(&layout, 0, PF_LAYOUT_FRAMES, charge, &charged, &counted);
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

	pf_layout_init(&layout, 0, PF_LAYOUT_FRAMES, charge, &charged, &counted);
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
	uint32_t first, spare;

	pf_layout_init(&layout, 0, PF_LAYOUT_FRAMES, charge, &charged, &counted);
	first = take(&layout, 1, 10, 3);
	pf_layout_untake(&layout, first);
	assert_int_equal(take(&layout, 1, 10, 3), first);
	spare = take(&layout, 1, 10, 3);
	pf_layout_untake(&layout, spare);
	assert_int_equal(take(&layout, 1, 10, 3), spare);
	pf_layout_deinit(&layout);
}

static void test_numbers_run_out(void **state)
{
	PfLayout layout;
	PfLayoutPlace place = {9, 1, 0, OWNER};
	uint32_t frame, n = 0;

	pf_layout_init(&layout, 0, 3 * PF_LAYOUT_ALIGN, charge, &charged, &counted);
	assert_int_equal(take(&layout, 1, 1, 0), 0);
	assert_int_equal(take(&layout, 2, 513, 0), PF_LAYOUT_ALIGN);
	while (pf_layout_take(&layout, &place, &frame))
		n++;
	assert_int_equal(n, 0);
	/* Ranges that exist go on. */
	assert_int_equal(take(&layout, 2, 513, 512), 2 * PF_LAYOUT_ALIGN);
	pf_layout_deinit(&layout);
}

/* Takes the first n places of a module, one after the other; the first frame. */
static uint32_t take_many(PfLayout *layout, uint64_t module, uint32_t module_pages, uint32_t n)
{
	uint32_t first = take(layout, module, module_pages, 0);

	for (uint32_t i = 1; i < n; i++)
		assert_int_equal(take(layout, module, module_pages, i), first + i);
	return first;
}

static void free_many(PfLayout *layout, uint32_t first, uint32_t n)
{
	while (n-- > 0)
		pf_layout_free(layout, first + n);
}

static void test_first_number(void **state)
{
	PfLayout layout;

	pf_layout_init(&layout, 513, PF_LAYOUT_FRAMES, charge, &charged, &counted);
	assert_int_equal(take(&layout, 1, 10, 3), 1024 + 3);
	pf_layout_deinit(&layout);
	pf_layout_init(
		&layout, PF_LAYOUT_FRAMES, PF_LAYOUT_FRAMES - 512, charge, &charged, &counted);
	assert_false(pf_layout_take(&layout, &(PfLayoutPlace){1, 10, 3, OWNER}, &(uint32_t){0}));
	pf_layout_deinit(&layout);
}

static void test_freed_place_stays_used(void **state)
{
	PfLayout layout;
	uint32_t first, again;

	pf_layout_init(&layout, 0, PF_LAYOUT_FRAMES, charge, &charged, &counted);
	first = take_many(&layout, 1, 100, 10);
	pf_layout_free(&layout, first + 3);
	again = take(&layout, 1, 100, 3);
	assert_true(again >= first + PF_LAYOUT_ALIGN);
	/* In the spare range, which is never given up. */
	pf_layout_free(&layout, again);
	assert_int_equal(take(&layout, 1, 100, 3), again + 1);
	assert_int_equal(take(&layout, 1, 100, 10), first + 10);
	pf_layout_deinit(&layout);
}

static void test_emptied_range_is_replaced(void **state)
{
	PfLayout layout;
	uint32_t first, again;

	pf_layout_init(&layout, 0, PF_LAYOUT_FRAMES, charge, &charged, &counted);
	take(&layout, 9, 100, 0);
	first = take_many(&layout, 1, 600, 128);
	take(&layout, 8, 100, 0);
	free_many(&layout, first, 127);
	assert_int_equal(take(&layout, 1, 600, 130), first + 130);
	pf_layout_free(&layout, first + 127);
	assert_int_equal(layout.by_base->len, 3);
	pf_layout_free(&layout, first + 130);
	/* An eighth of 1024 was used: its numbers are lost, and the module is in one piece again. */
	assert_int_equal(layout.by_base->len, 2);
	again = take_many(&layout, 1, 600, 600);
	assert_true(again >= first + 1024);
	pf_layout_deinit(&layout);
}

static void test_emptied_range_serves_another_module(void **state)
{
	PfLayout layout;
	uint32_t first, next;

	pf_layout_init(&layout, 0, PF_LAYOUT_FRAMES, charge, &charged, &counted);
	first = take_many(&layout, 1, 600, 127);
	free_many(&layout, first, 127);
	next = (uint32_t)layout.next;
	/* Not for one of another length; and a place that was used is none. */
	assert_int_equal(take(&layout, 2, 500, 200), next + 200);
	assert_int_equal(take(&layout, 3, 700, 126), next + PF_LAYOUT_ALIGN);
	assert_int_equal(take(&layout, 3, 700, 127), first + 127);
	next = (uint32_t)layout.next;
	assert_int_equal(take(&layout, 1, 600, 127), next + 127);
	/* It is full enough now. */
	pf_layout_free(&layout, first + 127);
	next = (uint32_t)layout.next;
	assert_int_equal(take(&layout, 4, 700, 0), next);
	pf_layout_deinit(&layout);
}

/* One frame a range, freed at once, under ever new names. */
static void test_numbers_are_not_burnt(void **state)
{
	enum { N = 100000 };
	PfLayout layout;

	pf_layout_init(&layout, 0, PF_LAYOUT_FRAMES, charge, &charged, &counted);
	for (uint32_t i = 0; i < N; i++) {
		uint32_t module_pages = 1u << (i % 14);
		uint32_t frame = take(&layout, i, module_pages, i % module_pages);

		pf_layout_free(&layout, frame);
	}
	assert_in_range(layout.next, N, 8 * (uint64_t)N + 8 * PF_LAYOUT_CHUNK_FRAMES);
	assert_in_range(layout.by_base->len, 0, 16);
	pf_layout_deinit(&layout);
}

static void count_bytes(void *userdata, uint32_t owner, int64_t bytes)
{
	*(int64_t *)userdata += bytes;
}

static void test_owner_pays_until_the_module_loses_its_range(void **state)
{
	PfLayout layout;
	uint32_t frame, other, spare;
	int64_t first, all = 0;

	charged = 0;
	counted = 0;
	pf_layout_init(&layout, 0, PF_LAYOUT_FRAMES, charge, &charged, &counted);
	frame = take(&layout, 1, PF_LAYOUT_CHUNK_FRAMES, 0);
	first = charged;
	/* A bit for each frame, two in the store, and what finds it. */
	assert_in_range(
		first, 3 * PF_LAYOUT_CHUNK_FRAMES / 8, 3 * PF_LAYOUT_CHUNK_FRAMES / 8 + 200);
	take(&layout, 1, PF_LAYOUT_CHUNK_FRAMES, 1);
	assert_int_equal(charged, first);
	other = take(&layout, 2, 10, 0);
	assert_in_range(charged - first, 3 * PF_LAYOUT_ALIGN / 8, 3 * PF_LAYOUT_ALIGN / 8 + 200);
	assert_int_equal(counted, charged);
	pf_layout_foreach_range(&layout, count_bytes, &all);
	assert_int_equal(all, charged);
	/* The spare range is nobody's. */
	spare = take(&layout, 2, 10, 0);
	assert_int_equal(all, charged);
	pf_layout_free(&layout, spare);
	pf_layout_free(&layout, other);
	assert_int_equal(charged, first);
	pf_layout_free(&layout, frame);
	assert_int_equal(charged, first);
	pf_layout_free(&layout, frame + 1);
	assert_int_equal(charged, 0);
	/* A range that waits is there, and paid for anew when it is taken. */
	assert_true(counted > (uint64_t)first);
	assert_int_equal(counted, pf_layout_bytes(&layout));
	take(&layout, 3, PF_LAYOUT_CHUNK_FRAMES, 7);
	assert_int_equal(charged, first);
	assert_int_equal(counted, pf_layout_bytes(&layout));
	pf_layout_untake(&layout, frame + 7);
	assert_int_equal(charged, 0);
	pf_layout_deinit(&layout);
	assert_int_equal(counted, 0);
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
		cmocka_unit_test(test_first_number),
		cmocka_unit_test(test_freed_place_stays_used),
		cmocka_unit_test(test_emptied_range_is_replaced),
		cmocka_unit_test(test_emptied_range_serves_another_module),
		cmocka_unit_test(test_numbers_are_not_burnt),
		cmocka_unit_test(test_owner_pays_until_the_module_loses_its_range),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
