/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A file gets a range of frame numbers as long as itself, and page n of the file the nth number of
 * it. So pages that follow each other in the file follow each other in the store, whatever order
 * they came in. Longer files get a range for each 16 MiB: they lose one map at each seam.
 *
 * A range is made when the first frame in it is, not when the guest declares the module: declaring
 * costs nothing here. When the place is used (another page of the same file and place, with other
 * bytes: another version under the same name; or a frame that was freed) or no range can be had any
 * more, the frame goes to the spare range, one behind the other.
 *
 * A number is never used again, so the bit of a place stays set when its frame is freed. When all
 * frames of a range have been freed, the module loses the range and gets another one with its next
 * frame: so modules stay contiguous after a night without VMs. Where at least an eighth of its
 * numbers was used, the range is forgotten, and the rest of the numbers is lost. Else it waits, with
 * its bits, for the next module that needs one of its length. So a number is lost for at most eight
 * that were used, and otherwise the most that one frame can hold is 4096 numbers and 512 bytes of
 * bitmap: whoever wants to exhaust the 2^32 numbers of a group has to have 2 TiB of frames published
 * one after the other, or 4 GiB at a time. The lists of waiting ranges are by length, and at worst
 * each is as long as the ranges of that length that were in use at a time.
 *
 * The memory of a range is charged to whoever gave the first frame in it, until its module loses it, and with it what the
 * store needs to remember its numbers. Ranges that wait are nobody's; of each length there are never more of them than
 * were in use, and paid for, at a time. They still count for the memory of all together.
 *
 * Freeing finds the range of a number by bisection: bases ascend in the order in which ranges are made.
 */
#include "host-service/decide/fusion_layout.h"
#include "host-service/decide/fusion_index.h"
#include <assert.h>

typedef struct RangeKey {
	uint64_t module;
	uint32_t module_pages;
	uint32_t chunk; /* file_page / PF_LAYOUT_CHUNK_FRAMES */
} RangeKey;

typedef struct Range {
	RangeKey key;
	uint64_t base;
	uint16_t n_blocks; /* of PF_LAYOUT_ALIGN numbers */
	uint16_t n_used;   /* bits that are set */
	uint16_t n_live;   /* of these, frames that were not freed */
	uint32_t owner;    /* of a range that a module has */
	uint64_t used[];   /* one bit a frame */
} Range;
static_assert(PF_LAYOUT_CHUNK_FRAMES <= UINT16_MAX, "Range.n_used");

#define TABLES_BYTES 48 /* of a range, in `ranges` and `by_base`, and what the allocator takes */
#define STORE_BYTES  (2 * PF_LAYOUT_ALIGN / 8) /* of a block, in the store's sets of frames */

static_assert(sizeof(Range) + PF_LAYOUT_CHUNK_FRAMES / 8 + PF_LAYOUT_BLOCKS * STORE_BYTES +
			      TABLES_BYTES <=
		      PF_LAYOUT_RANGE_BYTES,
	"what is charged for a range");

static guint range_hash(gconstpointer data)
{
	const RangeKey *key = data;

	/* The module is a keyed hash itself: guests do not know it. */
	return (guint)pf_hash_u64(key->module, ((uint64_t)key->module_pages << 32) ^ key->chunk);
}

static gboolean range_equal(gconstpointer a, gconstpointer b)
{
	const RangeKey *x = a, *y = b;

	return x->module == y->module && x->module_pages == y->module_pages && x->chunk == y->chunk;
}

void pf_layout_init(PfLayout *layout, uint64_t first_frame, uint64_t limit_frames,
	PfLayoutCharge charge, void *userdata, uint64_t *bytes)
{
	uint64_t rounded_up =
		(first_frame + PF_LAYOUT_ALIGN - 1) / PF_LAYOUT_ALIGN * PF_LAYOUT_ALIGN;

	assert(limit_frames <= PF_LAYOUT_FRAMES && first_frame <= PF_LAYOUT_FRAMES);
	*layout = (PfLayout){
		.ranges = g_hash_table_new(range_hash, range_equal),
		.by_base = g_ptr_array_new_with_free_func(g_free),
		.next = MIN(rounded_up, limit_frames),
		.limit = limit_frames,
		.charge = charge,
		.userdata = userdata,
		.bytes = bytes,
	};
	for (unsigned i = 0; i < PF_LAYOUT_BLOCKS; i++)
		layout->idle[i] = g_ptr_array_new();
}

static void count_bytes(PfLayout *layout, int64_t bytes)
{
	layout->own_bytes += (uint64_t)bytes;
	*layout->bytes += (uint64_t)bytes;
}

void pf_layout_deinit(PfLayout *layout)
{
	count_bytes(layout, -(int64_t)layout->own_bytes);
	g_hash_table_unref(layout->ranges);
	for (unsigned i = 0; i < PF_LAYOUT_BLOCKS; i++)
		g_ptr_array_unref(layout->idle[i]);
	g_ptr_array_unref(layout->by_base);
	*layout = (PfLayout){0};
}

static bool reserve(PfLayout *layout, uint32_t n_blocks, uint64_t *base)
{
	uint64_t n = (uint64_t)n_blocks * PF_LAYOUT_ALIGN;

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

static size_t range_bytes(uint32_t n_blocks)
{
	return sizeof(Range) + n_blocks * (PF_LAYOUT_ALIGN / 8);
}

static int64_t charged_bytes(const Range *range)
{
	return (int64_t)(range_bytes(range->n_blocks) + range->n_blocks * STORE_BYTES +
			 TABLES_BYTES);
}

void pf_layout_foreach_range(const PfLayout *layout, PfLayoutCharge charge, void *userdata)
{
	GHashTableIter iter;
	gpointer value;

	g_hash_table_iter_init(&iter, layout->ranges);
	while (g_hash_table_iter_next(&iter, NULL, &value)) {
		const Range *range = value;

		charge(userdata, range->owner, charged_bytes(range));
	}
}

uint64_t pf_layout_bytes(const PfLayout *layout)
{
	uint64_t bytes = 0;

	for (guint i = 0; i < layout->by_base->len; i++)
		bytes += (uint64_t)charged_bytes(layout->by_base->pdata[i]);
	return bytes;
}

static Range *new_range(PfLayout *layout, uint32_t n_blocks)
{
	Range *range;
	uint64_t base;

	if (!reserve(layout, n_blocks, &base))
		return NULL;
	range = g_malloc0(range_bytes(n_blocks));
	range->base = base;
	range->n_blocks = (uint16_t)n_blocks;
	g_ptr_array_add(layout->by_base, range);
	count_bytes(layout, charged_bytes(range));
	return range;
}

static Range *get_range(PfLayout *layout, const PfLayoutPlace *place)
{
	RangeKey key = key_of(place);
	Range *range = g_hash_table_lookup(layout->ranges, &key);
	uint32_t n_frames = MIN(
		place->module_pages - key.chunk * PF_LAYOUT_CHUNK_FRAMES, PF_LAYOUT_CHUNK_FRAMES);
	uint32_t n_blocks = (n_frames + PF_LAYOUT_ALIGN - 1) / PF_LAYOUT_ALIGN;
	GPtrArray *idle = layout->idle[n_blocks - 1];

	if (range)
		return range;
	if (idle->len > 0)
		range = g_ptr_array_steal_index(idle, idle->len - 1);
	else
		range = new_range(layout, n_blocks);
	if (!range)
		return NULL;
	range->key = key;
	range->owner = place->owner;
	g_hash_table_insert(layout->ranges, &range->key, range);
	layout->charge(layout->userdata, range->owner, charged_bytes(range));
	return range;
}

/* The place in by_base of the last range that begins at or before the frame, or -1. */
static gint find_base(const PfLayout *layout, uint32_t frame)
{
	gint low = 0, high = (gint)layout->by_base->len;

	while (low < high) {
		gint middle = low + (high - low) / 2;
		const Range *range = layout->by_base->pdata[middle];

		if (range->base <= frame)
			low = middle + 1;
		else
			high = middle;
	}
	return low - 1;
}

/* NULL: the frame is in the spare range. */
static Range *find_range(const PfLayout *layout, uint32_t frame)
{
	gint i = find_base(layout, frame);
	Range *range = i >= 0 ? layout->by_base->pdata[i] : NULL;

	if (!range || frame - range->base >= (uint64_t)range->n_blocks * PF_LAYOUT_ALIGN)
		return NULL;
	return range;
}

/* No frame is left in it: its module loses it. */
static void release_range(PfLayout *layout, Range *range)
{
	g_hash_table_remove(layout->ranges, &range->key);
	layout->charge(layout->userdata, range->owner, -charged_bytes(range));
	if (range->n_used < range->n_blocks * PF_LAYOUT_ALIGN / 8) {
		g_ptr_array_add(layout->idle[range->n_blocks - 1], range);
		return;
	}
	count_bytes(layout, -charged_bytes(range));
	g_ptr_array_remove_index(layout->by_base, (guint)find_base(layout, (uint32_t)range->base));
}

static bool take_spare(PfLayout *layout, uint32_t *frame)
{
	uint64_t base;

	if (layout->spare_next == layout->spare_end) {
		if (!reserve(layout, 1, &base))
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
	if (!range || (range->used[n / 64] & bit)) {
		/* Nothing else would ever make an empty range idle again. */
		if (range && range->n_live == 0)
			release_range(layout, range);
		return take_spare(layout, frame);
	}
	range->used[n / 64] |= bit;
	range->n_used++;
	range->n_live++;
	*frame = (uint32_t)(range->base + n);
	return true;
}

void pf_layout_untake(PfLayout *layout, uint32_t frame)
{
	Range *range = find_range(layout, frame);
	uint64_t n;

	if (!range) {
		assert(layout->spare_next == (uint64_t)frame + 1);
		layout->spare_next--;
		return;
	}
	n = frame - range->base;
	range->used[n / 64] &= ~(UINT64_C(1) << (n % 64));
	range->n_used--;
	if (--range->n_live == 0)
		release_range(layout, range);
}

void pf_layout_free(PfLayout *layout, uint32_t frame)
{
	Range *range = find_range(layout, frame);

	if (range && --range->n_live == 0)
		release_range(layout, range);
}
