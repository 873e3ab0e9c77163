/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "common/pb_alloc.h"
#include "proto/agent.pb-c.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void *take(PfPbAlloc *alloc, size_t size)
{
	return alloc->base.alloc(alloc->base.allocator_data, size);
}

static void give(PfPbAlloc *alloc, void *pointer)
{
	alloc->base.free(alloc->base.allocator_data, pointer);
}

static void test_stops_at_limit(void **state)
{
	PfPbAlloc alloc;
	void *first, *second;

	pf_pb_alloc_init(&alloc, 1000);
	first = take(&alloc, 600);
	assert_non_null(first);
	memset(first, 0xaa, 600);
	assert_in_range(alloc.used, 600, 700);
	assert_null(take(&alloc, 600));
	second = take(&alloc, 200);
	assert_non_null(second);
	give(&alloc, first);
	give(&alloc, second);
	give(&alloc, NULL);
	assert_int_equal(alloc.used, 0);
}

static void test_no_overflow(void **state)
{
	PfPbAlloc alloc;

	pf_pb_alloc_init(&alloc, 1000);
	assert_null(take(&alloc, SIZE_MAX));
	assert_null(take(&alloc, SIZE_MAX - 8));
	assert_null(take(&alloc, 1000));
	pf_pb_alloc_init(&alloc, 4);
	assert_null(take(&alloc, 0));
	assert_int_equal(alloc.used, 0);
}

static void test_headers_count(void **state)
{
	PfPbAlloc alloc;
	void *blocks[100];
	size_t n = 0;

	pf_pb_alloc_init(&alloc, 640);
	while (n < 100 && (blocks[n] = take(&alloc, 1)))
		n++;
	assert_in_range(n, 1, 64);
	while (n > 0)
		give(&alloc, blocks[--n]);
	assert_int_equal(alloc.used, 0);
}

/* Two bytes on the wire make an empty run; half a megabyte of them must not become 40 MiB. */
static void test_message_that_explodes(void **state)
{
	enum { N_RUNS = 100000 };
	static uint8_t bytes[2 * N_RUNS];
	PfPbAlloc alloc;
	Pagefusion__Hints *hints;

	for (size_t i = 0; i < N_RUNS; i++)
		bytes[2 * i] = 2 << 3 | 2;
	pf_pb_alloc_init(&alloc, 1 << 20);
	assert_null(pagefusion__hints__unpack(&alloc.base, sizeof(bytes), bytes));
	assert_int_equal(alloc.used, 0);

	pf_pb_alloc_init(&alloc, 1 << 20);
	hints = pagefusion__hints__unpack(&alloc.base, 200, bytes);
	assert_non_null(hints);
	assert_int_equal(hints->n_runs, 100);
	assert_in_range(alloc.used, 100 * sizeof(Pagefusion__Run), 1 << 20);
	pagefusion__hints__free_unpacked(hints, &alloc.base);
	assert_int_equal(alloc.used, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_stops_at_limit),
		cmocka_unit_test(test_no_overflow),
		cmocka_unit_test(test_headers_count),
		cmocka_unit_test(test_message_that_explodes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
