/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A file gets a range of frame numbers as long as itself, and page n of the file the nth number of
 * it. So pages that follow each other in the file follow each other in the store, whatever order
 * they came in. Longer files get a range for each 16 MiB: they lose one map at each seam.
 *
 * A range is made when the first frame in it is, not when the guest declares the module: declaring
 * costs nothing here. One frame can use up 4096 numbers and 512 bytes of bitmap at most, so whoever
 * wants to exhaust the 2^32 numbers of a group has to have 4 GiB of frames published first. When
 * the place is used (another page of the same file and place, with other bytes: another version
 * under the same name) or no range can be had any more, the frame goes to the spare range, one
 * behind the other.
 */
#include "host-service/fusion_layout.h"
#include "host-service/fusion_index.h"
#include <assert.h>

typedef struct RangeKey {
	uint64_t module;
	uint32_t module_pages;
	uint32_t chunk; /* file_page / PF_LAYOUT_CHUNK_FRAMES */
} RangeKey;

typedef struct Range {
	RangeKey key;
	uint64_t base;
	uint64_t used[]; /* one bit a frame */
} Range;

static guint range_hash(gconstpointer data)
{
	const RangeKey *key = data;

	return (guint)pf_hash_u64(key->module, ((uint64_t)key->module_pages << 32) ^ key->chunk);
}

static gboolean range_equal(gconstpointer a, gconstpointer b)
{
	const RangeKey *x = a, *y = b;

	return x->module == y->module && x->module_pages == y->module_pages && x->chunk == y->chunk;
}

void pf_layout_init(PfLayout *layout, uint64_t limit_frames)
{
	assert(limit_frames <= PF_LAYOUT_FRAMES);
	*layout = (PfLayout){
		.ranges = g_hash_table_new_full(range_hash, range_equal, NULL, g_free),
		.limit = limit_frames,
	};
}

void pf_layout_deinit(PfLayout *layout)
{
	g_hash_table_unref(layout->ranges);
	*layout = (PfLayout){0};
}

static bool reserve(PfLayout *layout, uint32_t n_frames, uint64_t *base)
{
	uint64_t n = (n_frames + PF_LAYOUT_ALIGN - 1) / PF_LAYOUT_ALIGN * PF_LAYOUT_ALIGN;

	if (layout->limit - layout->next < n)
		return false;
	*base = layout->next;
	layout->next += n;
	return true;
}

static RangeKey key_of(const PfLayoutPlace *place)
{
	return (RangeKey){
		place->module, place->module_pages, place->file_page / PF_LAYOUT_CHUNK_FRAMES};
}

static Range *get_range(PfLayout *layout, const PfLayoutPlace *place)
{
	RangeKey key = key_of(place);
	Range *range = g_hash_table_lookup(layout->ranges, &key);
	uint32_t n_frames = MIN(
		place->module_pages - key.chunk * PF_LAYOUT_CHUNK_FRAMES, PF_LAYOUT_CHUNK_FRAMES);
	uint64_t base;

	if (range)
		return range;
	if (!reserve(layout, n_frames, &base))
		return NULL;
	range = g_malloc0(sizeof(*range) + (n_frames + 63) / 64 * sizeof(uint64_t));
	range->key = key;
	range->base = base;
	g_hash_table_insert(layout->ranges, &range->key, range);
	return range;
}

static bool take_spare(PfLayout *layout, uint32_t *frame)
{
	uint64_t base;

	if (layout->spare_next == layout->spare_end) {
		if (!reserve(layout, PF_LAYOUT_ALIGN, &base))
			return false;
		layout->spare_next = base;
		layout->spare_end = base + PF_LAYOUT_ALIGN;
	}
	*frame = (uint32_t)layout->spare_next++;
	return true;
}

bool pf_layout_take(PfLayout *layout, const PfLayoutPlace *place, uint32_t *frame)
{
	Range *range;
	uint32_t n = place->file_page % PF_LAYOUT_CHUNK_FRAMES;
	uint64_t bit = UINT64_C(1) << (n % 64);

	assert(place->file_page < place->module_pages);
	range = get_range(layout, place);
	if (!range || (range->used[n / 64] & bit))
		return take_spare(layout, frame);
	range->used[n / 64] |= bit;
	*frame = (uint32_t)(range->base + n);
	return true;
}

void pf_layout_untake(PfLayout *layout, const PfLayoutPlace *place, uint32_t frame)
{
	RangeKey key = key_of(place);
	Range *range = g_hash_table_lookup(layout->ranges, &key);
	uint32_t n = place->file_page % PF_LAYOUT_CHUNK_FRAMES;

	if (range && range->base + n == frame) {
		range->used[n / 64] &= ~(UINT64_C(1) << (n % 64));
		return;
	}
	assert(layout->spare_next == (uint64_t)frame + 1);
	layout->spare_next--;
}
