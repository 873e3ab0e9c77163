/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/decide/fusion_index.h"
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
	uint64_t bytes = 0;
	uint32_t a, b;
	Item *item;

	pf_pool_init(&pool, sizeof(Item), &bytes);
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
	uint64_t bytes = 0;
	Item *first;

	pf_pool_init(&pool, sizeof(Item), &bytes);
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
	uint64_t bytes = 0;
	PfIndex index = {0};
	uint32_t there[200] = {0}, n = 0, random = 1;

	pf_pool_init(&pool, sizeof(Item), &bytes);
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
	uint64_t bytes = 0;
	PfIndex index = {0};

	pf_pool_init(&pool, sizeof(Item), &bytes);
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

/* Chunks without records give their memory back, but for one. */
static void test_pool_gives_memory_back(void **state)
{
	enum { N = 10 * PF_POOL_CHUNK_ITEMS };
	static uint32_t items[N];
	PfPool pool;
	uint64_t bytes = 0, chunk = sizeof(Item) * PF_POOL_CHUNK_ITEMS;
	uint32_t kept;

	pf_pool_init(&pool, sizeof(Item), &bytes);
	assert_int_equal(bytes, 0);
	kept = pf_pool_take(&pool);
	for (uint32_t i = 0; i < N; i++)
		items[i] = pf_pool_take(&pool);
	assert_int_equal(bytes, 11 * chunk);
	for (uint32_t i = 0; i < N; i++)
		pf_pool_give(&pool, items[(i * 7919) % N]);
	assert_int_equal(bytes, 2 * chunk);
	((Item *)pf_pool_at(&pool, kept))->key = 5;
	/* The numbers of what was given back are used again. */
	for (uint32_t i = 0; i < N; i++) {
		items[i] = pf_pool_take(&pool);
		assert_in_range(items[i], 1, 11 * PF_POOL_CHUNK_ITEMS - 1);
		assert_int_not_equal(items[i], kept);
		((Item *)pf_pool_at(&pool, items[i]))->key = i;
	}
	for (uint32_t i = 0; i < N; i++)
		assert_int_equal(((Item *)pf_pool_at(&pool, items[i]))->key, i);
	assert_int_equal(((Item *)pf_pool_at(&pool, kept))->key, 5);
	assert_int_equal(bytes, 11 * chunk);
	pf_pool_deinit(&pool);
	assert_int_equal(bytes, 0);
}

/*
 * Made with an implementation in Python that agrees with the vector of the paper for SipHash-2-4, and with CPython's
 * own SipHash-1-3.
 */
static void test_hash_bytes(void **state)
{
	static const struct {
		uint8_t size;
		uint64_t hash;
	} known[] = {
		{0, 0xabac0158050fc4dcu},
		{1, 0xc9f49bf37d57ca93u},
		{8, 0x369095118d299a8eu},
		{15, 0xd320d86d2a519956u},
		{32, 0x81157b6c16a7b60du},
	};
	PfHashKey key;
	uint8_t bytes[32];

	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)i;
	memcpy(&key, bytes, sizeof(key));
	for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		assert_true(pf_hash_bytes(&key, bytes, known[i].size) == known[i].hash);
}

static uint64_t xorshift(uint64_t *random)
{
	*random ^= *random << 13;
	*random ^= *random >> 7;
	*random ^= *random << 17;
	return *random * 0x2545f4914f6cdd1du;
}

#define SPAN_BITS 12

/* The numbers spanned by these bits, in a table that is half full: steps to insert one, on average. */
static double mean_steps(const uint64_t basis[SPAN_BITS], uint64_t seed)
{
	static bool used[2u << SPAN_BITS];
	uint32_t mask = (2u << SPAN_BITS) - 1, steps = 0;

	memset(used, 0, sizeof(used));
	for (uint32_t i = 0; i < 1u << SPAN_BITS; i++) {
		uint64_t x = 0, slot;

		for (unsigned k = 0; k < SPAN_BITS; k++)
			x ^= i >> k & 1 ? basis[k] : 0;
		slot = pf_hash_u64(seed, x) & mask;
		for (; used[slot]; slot = (slot + 1) & mask)
			steps++;
		used[slot] = true;
	}
	return (double)steps / (1u << SPAN_BITS);
}

/*
 * Who does not know the seed can choose numbers that differ in some bits only, or by some differences. Random ones
 * take half a step. Differences are kept independent by a bit that each has alone.
 */
static void test_chosen_numbers_do_not_collide(void **state)
{
	uint64_t random = 88172645463325252u;

	for (unsigned round = 0; round < 400; round++) {
		unsigned first = (unsigned)(xorshift(&random) % (41 - SPAN_BITS));
		uint64_t noise = round % 2 ? xorshift(&random) >> 24 : 0, basis[SPAN_BITS];
		uint64_t own = ((UINT64_C(1) << SPAN_BITS) - 1) << first;

		for (unsigned i = 0; i < SPAN_BITS; i++)
			basis[i] = UINT64_C(1) << (first + i) | (noise << i & ~own & 0xffffffffff);
		assert_true(mean_steps(basis, xorshift(&random)) < 0.7);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pool_reuses_and_clears),
		cmocka_unit_test(test_pool_records_do_not_move),
		cmocka_unit_test(test_index_against_table),
		cmocka_unit_test(test_index_is_compact),
		cmocka_unit_test(test_pool_gives_memory_back),
		cmocka_unit_test(test_hash_bytes),
		cmocka_unit_test(test_chosen_numbers_do_not_collide),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
