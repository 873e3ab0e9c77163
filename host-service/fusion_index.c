/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A pool is a list of chunks that are never moved nor given back before its end; records that were
 * given back form a list through their first four bytes. So a link between records costs four bytes
 * instead of eight, and no record costs an allocation.
 *
 * An index is a table of item numbers with open addressing and linear probing, filled to 7/8 at
 * most: 4.6 to 9.1 bytes an item. It stores no keys: the hash of an item is computed from the item
 * again where it is needed, by a function of the caller. Removing moves the followers of the hole
 * up, so there are no tombstones and a table that has seen many removals is as fast as a new one.
 * It shrinks when it is nearly empty.
 */
#include "host-service/fusion_index.h"
#include <assert.h>
#include <string.h>

#define CHUNK_ITEMS  (1u << PF_POOL_CHUNK_SHIFT)
#define MIN_CAPACITY 4u

void pf_pool_init(PfPool *pool, size_t item_size)
{
	assert(item_size >= sizeof(uint32_t));
	*pool = (PfPool){
		.chunks = g_ptr_array_new_with_free_func(g_free),
		.item_size = (uint32_t)item_size,
		.used = 1,
	};
	g_ptr_array_add(pool->chunks, g_malloc(item_size * CHUNK_ITEMS));
}

void pf_pool_deinit(PfPool *pool)
{
	g_ptr_array_unref(pool->chunks);
	*pool = (PfPool){0};
}

uint32_t pf_pool_take(PfPool *pool)
{
	uint32_t item = pool->free;

	if (item != 0) {
		memcpy(&pool->free, pf_pool_at(pool, item), sizeof(pool->free));
	} else {
		item = pool->used++;
		if (item >> PF_POOL_CHUNK_SHIFT == pool->chunks->len)
			g_ptr_array_add(
				pool->chunks, g_malloc((size_t)pool->item_size * CHUNK_ITEMS));
	}
	pool->n_items++;
	memset(pf_pool_at(pool, item), 0, pool->item_size);
	return item;
}

void pf_pool_give(PfPool *pool, uint32_t item)
{
	assert(item != 0 && item < pool->used);
	memcpy(pf_pool_at(pool, item), &pool->free, sizeof(pool->free));
	pool->free = item;
	pool->n_items--;
}

uint32_t pf_index_find(const PfIndex *index, uint64_t hash, PfIndexMatch match, const void *context,
	const void *key)
{
	uint32_t mask = index->capacity - 1;

	if (index->capacity == 0)
		return 0;
	for (uint32_t i = (uint32_t)hash & mask; index->slots[i] != 0; i = (i + 1) & mask) {
		if (match(context, index->slots[i], key))
			return index->slots[i];
	}
	return 0;
}

static void place(PfIndex *index, uint32_t item, uint64_t hash)
{
	uint32_t mask = index->capacity - 1;
	uint32_t i = (uint32_t)hash & mask;

	while (index->slots[i] != 0)
		i = (i + 1) & mask;
	index->slots[i] = item;
}

static void resize(PfIndex *index, uint32_t capacity, PfIndexHash hash, const void *context)
{
	g_autofree uint32_t *old = index->slots;
	uint32_t old_capacity = index->capacity;

	index->slots = g_new0(uint32_t, capacity);
	index->capacity = capacity;
	for (uint32_t i = 0; i < old_capacity; i++) {
		if (old[i] != 0)
			place(index, old[i], hash(context, old[i]));
	}
}

void pf_index_insert(PfIndex *index, uint32_t item, PfIndexHash hash, const void *context)
{
	if (index->capacity == 0)
		resize(index, MIN_CAPACITY, hash, context);
	else if (index->count >= index->capacity - index->capacity / 8 - 1)
		resize(index, index->capacity * 2, hash, context);
	place(index, item, hash(context, item));
	index->count++;
}

void pf_index_remove(PfIndex *index, uint32_t item, PfIndexHash hash, const void *context)
{
	uint32_t mask = index->capacity - 1;
	uint32_t hole = (uint32_t)hash(context, item) & mask;

	while (index->slots[hole] != item) {
		assert(index->slots[hole] != 0);
		hole = (hole + 1) & mask;
	}
	for (uint32_t i = (hole + 1) & mask; index->slots[i] != 0; i = (i + 1) & mask) {
		uint32_t home = (uint32_t)hash(context, index->slots[i]) & mask;

		/* It may move up when its home is not between the hole and itself. */
		if (((i - home) & mask) >= ((i - hole) & mask)) {
			index->slots[hole] = index->slots[i];
			hole = i;
		}
	}
	index->slots[hole] = 0;
	index->count--;
	if (index->count == 0)
		pf_index_clear(index);
	else if (index->capacity > MIN_CAPACITY && index->count < index->capacity / 8)
		resize(index, index->capacity / 2, hash, context);
}

void pf_index_clear(PfIndex *index)
{
	g_free(index->slots);
	*index = (PfIndex){0};
}

uint64_t pf_hash_bytes(uint64_t seed, const void *data, size_t size)
{
	const uint8_t *bytes = data;
	uint64_t hash = pf_hash_u64(seed, size);

	while (size > 0) {
		uint64_t word = 0;
		size_t n = MIN(size, sizeof(word));

		memcpy(&word, bytes, n);
		hash = pf_hash_u64(seed, hash ^ word);
		bytes += n;
		size -= n;
	}
	return hash;
}
