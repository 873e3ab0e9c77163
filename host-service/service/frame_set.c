/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bitmaps of 32768 frames (128 MiB of store), made when the first of them is added. */
#include "host-service/service/frame_set.h"
#include <glib.h>

#define CHUNK_SHIFT 15
#define CHUNK_BYTES ((1u << CHUNK_SHIFT) / 8)
#define CHUNK_MASK  ((UINT64_C(1) << CHUNK_SHIFT) - 1)

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

/* So many frames from this one on are in the set, or are not: as many as can be told at once. 0: not this one. */
static uint64_t alike(const uint8_t *chunk, PfFrame frame, bool in_set)
{
	if (!chunk)
		return in_set ? 0 : CHUNK_MASK + 1 - (frame.v & CHUNK_MASK);
	if ((frame.v & 7) == 0 && chunk[byte_of(frame)] == (in_set ? 0xff : 0))
		return 8;
	return ((chunk[byte_of(frame)] & bit_of(frame)) != 0) == in_set;
}

uint64_t pf_frame_set_stretch(const PfFrameSet *set, PfFrame first, uint64_t max_frames)
{
	const uint8_t *chunk = find_chunk(set, first);
	bool in_set = pf_frame_set_has(set, first);
	uint64_t n = 0;

	while (n < max_frames) {
		PfFrame frame = {first.v + n};
		uint64_t more;

		if ((frame.v & CHUNK_MASK) == 0)
			chunk = find_chunk(set, frame);
		more = alike(chunk, frame, in_set);
		if (more == 0)
			break;
		n += more;
	}
	return MIN(n, max_frames);
}
