/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A pool is a list of chunks that are never moved; records that were given back form a list, in each chunk, through
 * their first four bytes. So a link between records costs four bytes instead of eight, and no record costs an
 * allocation. A chunk without records gives its memory back, all but one of them, so that a record that comes and goes
 * does not cost an allocation each time. What a VM leaves behind are chunks with records of others in them, and
 * these are filled before there is a new one.
 *
 * An index is a table of item numbers with open addressing and linear probing, filled to 7/8 at
 * most: 4.6 to 9.1 bytes an item. It stores no keys: the hash of an item is computed from the item
 * again where it is needed, by a function of the caller. Removing moves the followers of the hole
 * up, so there are no tombstones and a table that has seen many removals is as fast as a new one.
 * It shrinks when it is nearly empty.
 *
 * Guests choose most of what is hashed. With hashes that they could foresee, or pairs that collide under every key,
 * linear probing would go quadratic. Digests and names, which they choose byte by byte, go through SipHash (Aumasson
 * and Bernstein, "SipHash: a fast short-input PRF", 2012), with one round a word and three at the end. Numbers of
 * pages have 40 bits, and records and frames are numbered by ourselves; with those a multiplication does, at a third
 * of the cost: no set of numbers that is spanned by some bits, or some differences, makes probing longer than a random
 * one does (unit/fusion_index). Seeds and keys are drawn for each trust group, and hashes never leave the process.
 */
#include "host-service/decide/fusion_index.h"
#include <assert.h>
#include <string.h>

#define MIN_CAPACITY 4u

static PfChunk *chunk_at(const PfPool *pool, uint32_t number)
{
	return &g_array_index(pool->chunks, PfChunk, number);
}

void pf_pool_init(PfPool *pool, size_t item_size, uint64_t *bytes)
{
	assert(item_size >= sizeof(uint32_t));
	*pool = (PfPool){
		.chunks = g_array_new(FALSE, TRUE, sizeof(PfChunk)),
		.item_size = (uint32_t)item_size,
		.bytes = bytes,
	};
}

static size_t chunk_bytes(const PfPool *pool)
{
	return (size_t)pool->item_size * PF_POOL_CHUNK_ITEMS;
}

static void give_chunk_back(PfPool *pool, PfChunk *chunk)
{
	if (chunk->items)
		*pool->bytes -= chunk_bytes(pool);
	g_clear_pointer(&chunk->items, g_free);
}

void pf_pool_deinit(PfPool *pool)
{
	for (uint32_t i = 0; i < pool->chunks->len; i++)
		give_chunk_back(pool, chunk_at(pool, i));
	g_array_unref(pool->chunks);
	*pool = (PfPool){0};
}

static void link_roomy(PfPool *pool, uint32_t number)
{
	PfChunk *chunk = chunk_at(pool, number);

	chunk->prev = 0;
	chunk->next = pool->roomy;
	if (chunk->next != 0)
		chunk_at(pool, chunk->next - 1)->prev = number + 1;
	pool->roomy = number + 1;
}

static void unlink_roomy(PfPool *pool, const PfChunk *chunk)
{
	if (chunk->next != 0)
		chunk_at(pool, chunk->next - 1)->prev = chunk->prev;
	if (chunk->prev != 0)
		chunk_at(pool, chunk->prev - 1)->next = chunk->next;
	else
		pool->roomy = chunk->next;
}

static void add_chunk(PfPool *pool)
{
	uint32_t number = pool->chunks->len;
	PfChunk *chunk;

	if (pool->vacant != 0) {
		number = pool->vacant - 1;
		pool->vacant = chunk_at(pool, number)->next;
	} else {
		g_array_set_size(pool->chunks, number + 1);
	}
	chunk = chunk_at(pool, number);
	/* The first place of all would have number 0. */
	*chunk = (PfChunk){.items = g_malloc(chunk_bytes(pool)), .n_begun = number == 0};
	*pool->bytes += chunk_bytes(pool);
	pool->n_empty++;
	link_roomy(pool, number);
}

uint64_t pf_pool_growth(const PfPool *pool)
{
	return pool->roomy == 0 ? chunk_bytes(pool) : 0;
}

uint32_t pf_pool_take(PfPool *pool)
{
	PfChunk *chunk;
	uint32_t item;

	if (pool->roomy == 0)
		add_chunk(pool);
	chunk = chunk_at(pool, pool->roomy - 1);
	item = chunk->free;
	if (item != 0)
		memcpy(&chunk->free, pf_pool_at(pool, item), sizeof(chunk->free));
	else
		item = ((pool->roomy - 1) << PF_POOL_CHUNK_SHIFT) + chunk->n_begun++;
	if (chunk->n_items++ == 0)
		pool->n_empty--;
	if (chunk->free == 0 && chunk->n_begun == PF_POOL_CHUNK_ITEMS)
		unlink_roomy(pool, chunk);
	pool->n_items++;
	memset(pf_pool_at(pool, item), 0, pool->item_size);
	return item;
}

void pf_pool_give(PfPool *pool, uint32_t item)
{
	uint32_t number = item >> PF_POOL_CHUNK_SHIFT;
	PfChunk *chunk = chunk_at(pool, number);

	assert(item % PF_POOL_CHUNK_ITEMS < chunk->n_begun && chunk->n_items > 0);
	if (chunk->free == 0 && chunk->n_begun == PF_POOL_CHUNK_ITEMS)
		link_roomy(pool, number);
	memcpy(pf_pool_at(pool, item), &chunk->free, sizeof(chunk->free));
	chunk->free = item;
	pool->n_items--;
	if (--chunk->n_items > 0)
		return;
	if (pool->n_empty++ == 0)
		return;
	pool->n_empty--;
	unlink_roomy(pool, chunk);
	give_chunk_back(pool, chunk);
	chunk->next = pool->vacant;
	pool->vacant = number + 1;
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

static uint64_t max_items(uint64_t capacity)
{
	return capacity - capacity / 8 - 1;
}

uint64_t pf_index_growth(const PfIndex *index, uint64_t n)
{
	uint64_t capacity = MAX(index->capacity, MIN_CAPACITY);

	while (index->count + n > max_items(capacity))
		capacity *= 2;
	return capacity * sizeof(*index->slots) - pf_index_bytes(index);
}

void pf_index_insert(PfIndex *index, uint32_t item, PfIndexHash hash, const void *context)
{
	if (index->capacity == 0)
		resize(index, MIN_CAPACITY, hash, context);
	else if (index->count >= max_items(index->capacity))
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

static inline uint64_t rotate(uint64_t x, unsigned n)
{
	return x << n | x >> (64 - n);
}

static inline void sip_round(uint64_t v[4])
{
	v[0] += v[1];
	v[2] += v[3];
	v[1] = rotate(v[1], 13) ^ v[0];
	v[3] = rotate(v[3], 16) ^ v[2];
	v[0] = rotate(v[0], 32);
	v[2] += v[1];
	v[0] += v[3];
	v[1] = rotate(v[1], 17) ^ v[2];
	v[3] = rotate(v[3], 21) ^ v[0];
	v[2] = rotate(v[2], 32);
}

static inline void sip_word(uint64_t v[4], uint64_t word)
{
	v[3] ^= word;
	sip_round(v);
	v[0] ^= word;
}

uint64_t pf_hash_bytes(const PfHashKey *key, const void *data, size_t size)
{
	const uint8_t *bytes = data;
	uint64_t v[4] = {
		key->words[0] ^ 0x736f6d6570736575u,
		key->words[1] ^ 0x646f72616e646f6du,
		key->words[0] ^ 0x6c7967656e657261u,
		key->words[1] ^ 0x7465646279746573u,
	};
	uint64_t word, last = (uint64_t)size << 56;

	for (; size >= sizeof(word); size -= sizeof(word), bytes += sizeof(word)) {
		memcpy(&word, bytes, sizeof(word));
		sip_word(v, word);
	}
	word = 0;
	memcpy(&word, bytes, size);
	sip_word(v, last | word);
	v[2] ^= 0xff;
	for (unsigned i = 0; i < 3; i++)
		sip_round(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}
