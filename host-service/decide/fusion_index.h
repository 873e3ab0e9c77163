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

#define PF_POOL_CHUNK_ITEMS (1u << PF_POOL_CHUNK_SHIFT)

/* The memory for as many records. */
typedef struct PfChunk {
	void *items;         /* owned; NULL: given back */
	uint32_t n_items;    /* given out now */
	uint32_t n_begun;    /* places from here on were never given out */
	uint32_t free;       /* first of the list of numbers given back; 0: none */
	uint32_t next, prev; /* chunks in pool->roomy; plus one, 0: none */
} PfChunk;

/* Records of one size. Number 0 is never given out: it means "none". A record never moves. */
typedef struct PfPool {
	GArray *chunks;     /* of PfChunk; owned */
	uint32_t item_size; /* bytes */
	uint32_t roomy;     /* first of the list of chunks with room; plus one, 0: none */
	uint32_t vacant;    /* likewise, of those whose memory was given back */
	uint32_t n_empty;   /* chunks with memory and no record: one at most */
	uint32_t n_items;   /* given out now */
	uint64_t *bytes;    /* counts the memory of the chunks */
} PfPool;

/* bytes: where its memory is added while it has it. */
void pf_pool_init(PfPool *pool, size_t item_size, uint64_t *bytes);
void pf_pool_deinit(PfPool *pool);

/* A record of zeros. */
uint32_t pf_pool_take(PfPool *pool);

/* Bytes that the next record costs. */
uint64_t pf_pool_growth(const PfPool *pool);

void pf_pool_give(PfPool *pool, uint32_t item);

static inline void *pf_pool_at(const PfPool *pool, uint32_t item)
{
	const PfChunk *chunk = &((const PfChunk *)pool->chunks->data)[item >> PF_POOL_CHUNK_SHIFT];

	return (uint8_t *)chunk->items + (size_t)(item % PF_POOL_CHUNK_ITEMS) * pool->item_size;
}

/* All zeros is an empty index. Nothing but its table of slots takes memory. */
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

static inline uint64_t pf_index_bytes(const PfIndex *index)
{
	return (uint64_t)index->capacity * sizeof(*index->slots);
}

/* Bytes that n more items cost. */
uint64_t pf_index_growth(const PfIndex *index, uint64_t n);

/* What nobody outside knows. */
typedef struct PfHashKey {
	uint64_t words[2];
} PfHashKey;

/* Of bytes that guests choose at will: SipHash-1-3. */
uint64_t pf_hash_bytes(const PfHashKey *key, const void *data, size_t size);

/* Of numbers: of pages, records, frames. Whoever does not know the seed cannot choose the result. */
static inline uint64_t pf_hash_u64(uint64_t seed, uint64_t x)
{
	unsigned __int128 product = (unsigned __int128)(x ^ seed) * 0x9e3779b97f4a7c15u;
	uint64_t folded = (uint64_t)product ^ (uint64_t)(product >> 64);

	folded ^= folded >> 32;
	folded *= 0xd6e8feb86659fd93u;
	return folded ^ (folded >> 32);
}
