/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/fusion_index.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

typedef struct Item {
	uint32_t link; /* the pool's, while the record is free */
	uint32_t key;
} Item;

/* Few hashes, so that probing is long and wraps at the end of the table. */
static uint64_t bad_hash(uint32_t key)
{
	return UINT64_MAX - key % 3;
}

static uint64_t item_hash(const void *context, uint32_t item)
{
	const Item *i = pf_pool_at(context, item);

	return bad_hash(i->key);
}

static bool item_match(const void *context, uint32_t item, const void *key)
{
	const Item *i = pf_pool_at(context, item);

	return i->key == *(const uint32_t *)key;
}

static uint32_t find(const PfIndex *index, const PfPool *pool, uint32_t key)
{
	return pf_index_find(index, bad_hash(key), item_match, pool, &key);
}

static void test_pool_reuses_and_clears(void **state)
{
	PfPool pool;
	uint32_t a, b;
	Item *item;

	pf_pool_init(&pool, sizeof(Item));
	a = pf_pool_take(&pool);
	b = pf_pool_take(&pool);
	assert_int_not_equal(a, 0);
	assert_int_not_equal(a, b);
	item = pf_pool_at(&pool, a);
	item->key = 7;
	pf_pool_give(&pool, a);
	assert_int_equal(pool.n_items, 1);
	assert_int_equal(pf_pool_take(&pool), a);
	assert_int_equal(item->key, 0);
	assert_int_equal(item->link, 0);
	pf_pool_deinit(&pool);
}

static void test_pool_records_do_not_move(void **state)
{
	PfPool pool;
	Item *first;

	pf_pool_init(&pool, sizeof(Item));
	first = pf_pool_at(&pool, pf_pool_take(&pool));
	first->key = 42;
	for (uint32_t i = 0; i < 5000; i++) {
		Item *item = pf_pool_at(&pool, pf_pool_take(&pool));

		item->key = i;
	}
	assert_ptr_equal(first, pf_pool_at(&pool, 1));
	assert_int_equal(first->key, 42);
	assert_int_equal(((Item *)pf_pool_at(&pool, 5001))->key, 4999);
	pf_pool_deinit(&pool);
}

static void test_index_against_table(void **state)
{
	PfPool pool;
	PfIndex index = {0};
	uint32_t there[200] = {0}, n = 0, random = 1;

	pf_pool_init(&pool, sizeof(Item));
	for (unsigned step = 0; step < 6000; step++) {
		uint32_t key = (random = random * 1664525u + 1013904223u) >> 16;

		key %= step < 3000 ? 200 : 20;
		if (there[key] == 0) {
			there[key] = pf_pool_take(&pool);
			((Item *)pf_pool_at(&pool, there[key]))->key = key;
			pf_index_insert(&index, there[key], item_hash, &pool);
			n++;
		} else {
			pf_index_remove(&index, there[key], item_hash, &pool);
			pf_pool_give(&pool, there[key]);
			there[key] = 0;
			n--;
		}
		assert_int_equal(index.count, n);
		if (step % 10 == 0) {
			for (uint32_t i = 0; i < 200; i++)
				assert_int_equal(find(&index, &pool, i), there[i]);
		}
	}
	pf_index_clear(&index);
	assert_int_equal(find(&index, &pool, 1), 0);
	pf_pool_deinit(&pool);
}

static void test_index_is_compact(void **state)
{
	PfPool pool;
	PfIndex index = {0};

	pf_pool_init(&pool, sizeof(Item));
	for (uint32_t i = 1; i <= 2000; i++) {
		uint32_t item = pf_pool_take(&pool);

		((Item *)pf_pool_at(&pool, item))->key = i;
		pf_index_insert(&index, item, item_hash, &pool);
		if (i >= 8)
			assert_true(index.capacity <= i * 16 / 7 + 3);
		assert_true(index.capacity > index.count);
	}
	for (uint32_t item = 2000; item > 1; item--)
		pf_index_remove(&index, item, item_hash, &pool);
	assert_true(index.capacity <= 8);
	pf_index_remove(&index, 1, item_hash, &pool);
	assert_null(index.slots);
	pf_pool_deinit(&pool);
}

static void test_hash_bytes(void **state)
{
	/* Every byte, the length, and the seed matter. */
	uint8_t a[20] = {0}, b[20];

	for (unsigned i = 0; i < sizeof(a); i++) {
		memcpy(b, a, sizeof(a));
		b[i] = 1;
		assert_true(pf_hash_bytes(1, a, sizeof(a)) != pf_hash_bytes(1, b, sizeof(b)));
	}
	assert_true(pf_hash_bytes(1, a, 19) != pf_hash_bytes(1, a, 20));
	assert_true(pf_hash_bytes(1, a, 20) != pf_hash_bytes(2, a, 20));
	assert_true(pf_hash_bytes(1, a, 20) == pf_hash_bytes(1, a, 20));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pool_reuses_and_clears),
		cmocka_unit_test(test_pool_records_do_not_move),
		cmocka_unit_test(test_index_against_table),
		cmocka_unit_test(test_index_is_compact),
		cmocka_unit_test(test_hash_bytes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
