/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bitmaps of 32768 frames (128 MiB of store), made when the first of them is added. */
#include "host-service/frame_set.h"
#include <glib.h>

#define CHUNK_SHIFT 15
#define CHUNK_BYTES ((1u << CHUNK_SHIFT) / 8)

struct PfFrameSet {
	GHashTable *chunks; /* frame number >> CHUNK_SHIFT to its bitmap; both owned */
};

PfFrameSet *pf_frame_set_new(void)
{
	PfFrameSet *set = g_new0(PfFrameSet, 1);

	set->chunks = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
	return set;
}

void pf_frame_set_free(PfFrameSet *set)
{
	g_hash_table_unref(set->chunks);
	g_free(set);
}

static size_t byte_of(PfFrame frame)
{
	return (frame.v >> 3) & (CHUNK_BYTES - 1);
}

static uint8_t bit_of(PfFrame frame)
{
	return (uint8_t)(1u << (frame.v & 7));
}

/* NULL when no frame near this one was ever added. */
static uint8_t *find_chunk(const PfFrameSet *set, PfFrame frame)
{
	gint64 number = (gint64)(frame.v >> CHUNK_SHIFT);

	return g_hash_table_lookup(set->chunks, &number);
}

bool pf_frame_set_has(const PfFrameSet *set, PfFrame frame)
{
	const uint8_t *chunk = find_chunk(set, frame);

	return chunk && chunk[byte_of(frame)] & bit_of(frame);
}

void pf_frame_set_add(PfFrameSet *set, PfFrame frame)
{
	gint64 number = (gint64)(frame.v >> CHUNK_SHIFT);
	uint8_t *chunk = find_chunk(set, frame);

	if (!chunk) {
		chunk = g_malloc0(CHUNK_BYTES);
		g_hash_table_insert(set->chunks, g_memdup2(&number, sizeof number), chunk);
	}
	chunk[byte_of(frame)] |= bit_of(frame);
}

void pf_frame_set_remove(PfFrameSet *set, PfFrame frame)
{
	uint8_t *chunk = find_chunk(set, frame);

	if (chunk)
		chunk[byte_of(frame)] &= (uint8_t)~bit_of(frame);
}
