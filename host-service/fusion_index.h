/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The two containers of `fusion`, made for millions of small records: a pool that names its records
 * by 32-bit numbers instead of pointers, and a hash index of such numbers that stores nothing else.
 */
#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PF_POOL_CHUNK_SHIFT 10

/* Records of one size. Number 0 is never given out: it means "none". A record never moves. */
typedef struct PfPool {
	GPtrArray *chunks;  /* owned */
	uint32_t item_size; /* bytes */
	uint32_t used;      /* numbers given out at least once, 0 included */
	uint32_t free;      /* first of the list of numbers given back */
	uint32_t n_items;   /* given out now */
} PfPool;

void pf_pool_init(PfPool *pool, size_t item_size);
void pf_pool_deinit(PfPool *pool);

/* A record of zeros. */
uint32_t pf_pool_take(PfPool *pool);
void pf_pool_give(PfPool *pool, uint32_t item);

static inline void *pf_pool_at(const PfPool *pool, uint32_t item)
{
	uint8_t *chunk = pool->chunks->pdata[item >> PF_POOL_CHUNK_SHIFT];

	return chunk + (size_t)(item & ((1u << PF_POOL_CHUNK_SHIFT) - 1)) * pool->item_size;
}

/* All zeros is an empty index. */
typedef struct PfIndex {
	uint32_t *slots;   /* capacity numbers, 0: empty; owned */
	uint32_t capacity; /* a power of two, or 0 */
	uint32_t count;
} PfIndex;

/* How an index sees its items. The same hash must come out as long as the item is in the index. */
typedef uint64_t (*PfIndexHash)(const void *context, uint32_t item);
typedef bool (*PfIndexMatch)(const void *context, uint32_t item, const void *key);

/* The item with this hash that matches the key; 0 when there is none. */
uint32_t pf_index_find(const PfIndex *index, uint64_t hash, PfIndexMatch match, const void *context,
	const void *key);

/* The item must not be in the index. */
void pf_index_insert(PfIndex *index, uint32_t item, PfIndexHash hash, const void *context);

/* The item must be in the index. */
void pf_index_remove(PfIndex *index, uint32_t item, PfIndexHash hash, const void *context);
void pf_index_clear(PfIndex *index);

/* Spreads x; seed keeps those who choose x from choosing the result. */
static inline uint64_t pf_hash_u64(uint64_t seed, uint64_t x)
{
	unsigned __int128 product = (unsigned __int128)(x ^ seed) * 0x9e3779b97f4a7c15u;
	uint64_t folded = (uint64_t)product ^ (uint64_t)(product >> 64);

	folded ^= folded >> 32;
	folded *= 0xd6e8feb86659fd93u;
	return folded ^ (folded >> 32);
}

uint64_t pf_hash_bytes(uint64_t seed, const void *data, size_t size);
