/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * protobuf-c does not say the size of what it frees, so each block begins with a header that knows
 * it. The header counts towards the limit, because many small blocks are what an attack is made of.
 */
#include "common/pb_alloc.h"

#include <assert.h>
#include <stdalign.h>
#include <stdlib.h>

typedef struct Block {
	size_t size; /* header included */
	alignas(max_align_t) unsigned char data[];
} Block;

static void *allocate(void *allocator_data, size_t size)
{
	PfPbAlloc *alloc = allocator_data;
	size_t room = alloc->limit - alloc->used;
	Block *block;

	if (room < sizeof(*block) || size > room - sizeof(*block))
		return NULL;
	block = malloc(sizeof(*block) + size);
	if (!block)
		return NULL;
	block->size = sizeof(*block) + size;
	alloc->used += block->size;
/* A pointer into the block stands for it: release() finds the block again. GCC 12 takes that for a
 * leak. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wanalyzer-malloc-leak"
#endif
	/* cppcheck-suppress memleak */
	return block->data;
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
}

static void release(void *allocator_data, void *pointer)
{
	PfPbAlloc *alloc = allocator_data;
	Block *block;

	if (!pointer)
		return;
	block = (Block *)((unsigned char *)pointer - offsetof(Block, data));
	assert(block->size <= alloc->used);
	alloc->used -= block->size;
	free(block);
}

void pf_pb_alloc_init(PfPbAlloc *alloc, size_t limit_bytes)
{
	alloc->base = (ProtobufCAllocator){
		.alloc = allocate,
		.free = release,
		.allocator_data = alloc,
	};
	alloc->limit = limit_bytes;
	alloc->used = 0;
}
