// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A page is hashed once while its file is the same: its digest stays when the page is evicted, and even when the
 * file is of no class any more. It is committed by windows of the file, and its array is merged with what was seen
 * in place, from behind, so that nothing is ever there twice. Beside the digest a page holds where it is, and
 * whether the host was told so. That is what is left to report, so a report needs no list of events.
 *
 * Of a volatile file (a block device, the kernel) the bytes change without notice, so each pass hashes all of it.
 * A page is steady, and only then for the host, when the digest is the one that an earlier pass found, and the page
 * was resident all the time as far as we saw. `since` is the number of the pass that saw the digest first: two looks
 * in one pass prove nothing. It holds 21 bits; should they meet the pass's by chance, a page is told a pass later.
 *
 * Hashing a file that is written all the time is work for nothing, and anybody's utime() is as good as a write. The
 * second change lately makes a file restless: then nothing of it is looked at until it was seen unchanged in 1, 2, 4 or
 * 8 passes running, more with each change. Changes are forgotten slowly, one with each CALM passes without one: so
 * whatever the rhythm of the changes is, it is hashed once in nine passes at most.
 *
 * The counts of resident and reportable pages are kept with each change, so that nobody has to go through the pages
 * for them.
 */
#include "guest-agent/file.h"
#include "common/text.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define SINCE_MASK ((1u << 21) - 1)

#define MAX_RESTLESSNESS 5 /* 1 << (5 - 2) passes of rest */
#define CALM             16

static const char *const class_names[] = {"mapped", "cache", "buffers", "kernel"};

_Static_assert(sizeof(class_names) / sizeof(class_names[0]) == PF_N_CLASSES, "a name a class");

const char *pf_page_class_name(PfPageClass class)
{
	return class_names[class];
}

bool pf_page_class_is_volatile(PfPageClass class)
{
	return class == PF_CLASS_BUFFERS || class == PF_CLASS_KERNEL;
}

static int compare_u64(uint64_t a, uint64_t b)
{
	return (a > b) - (a < b);
}

int pf_file_key_compare(const PfFileKey *a, const PfFileKey *b)
{
	int r = compare_u64(a->inode, b->inode);

	if (r == 0)
		r = compare_u64(a->device, b->device);
	return r == 0 ? compare_u64(a->source, b->source) : r;
}

static bool same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

bool pf_file_stamp_equal(const PfFileStamp *a, const PfFileStamp *b)
{
	return a->size == b->size && same_time(a->mtime, b->mtime) && same_time(a->ctime, b->ctime);
}

PfFile *pf_file_new(const PfFileKey *key)
{
	PfFile *file = calloc(1, sizeof(*file));

	if (!file)
		return NULL;
	file->key = *key;
	file->fd = -1;
	return file;
}

void pf_file_free(PfFile *file)
{
	if (!file)
		return;
	if (file->fd >= 0)
		close(file->fd);
	pf_page_ranges_deinit(&file->mapped);
	free(file->pages);
	free(file->build_id);
	free(file->name);
	free(file);
}

static void set_dirty(PfFile *file)
{
	if (file->n_reportable > 0 ? !file->declared || file->outdated : file->declared)
		file->dirty = true;
}

/* The host forgets the hints with the new declaration, so nothing counts as told. */
static void drop_pages(PfFile *file)
{
	free(file->pages);
	file->pages = NULL;
	file->n = file->capacity = file->n_idle = 0;
	file->n_reportable = 0;
	file->outdated = file->declared;
	set_dirty(file);
}

int pf_file_renew(PfFile *file, const PfFileStamp *stamp, const char *name)
{
	char clean[PF_SESSION_MAX_NAME + 1], *copy;

	pf_text_clean(clean, sizeof(clean), name);
	copy = strdup(clean);
	if (!copy)
		return -ENOMEM;
	free(file->name);
	file->name = copy;
	free(file->build_id);
	file->build_id = NULL;
	file->build_id_size = 0;
	file->stamp = *stamp;
	file->n_pages = ((uint64_t)stamp->size + PF_PAGE_SIZE - 1) / PF_PAGE_SIZE;
	file->whole = (PfPageRange){0, file->n_pages};
	drop_pages(file);
	return 0;
}

void pf_file_stir(PfFile *file)
{
	if (file->restlessness < MAX_RESTLESSNESS)
		file->restlessness++;
	file->rest_due = file->restlessness < 2 ? 0 : (uint8_t)(1u << (file->restlessness - 2));
}

bool pf_file_rest(PfFile *file)
{
	if (file->restlessness == 0)
		return false;
	if (++file->rested == CALM) {
		file->rested = 0;
		file->restlessness--;
	}
	return file->rest_due > 0 && --file->rest_due == 0;
}

bool pf_file_is_restless(const PfFile *file)
{
	return file->rest_due > 0;
}

int pf_file_set_build_id(PfFile *file, const uint8_t *id, size_t size)
{
	uint8_t *copy = NULL;

	assert(size <= PF_SESSION_MAX_BUILD_ID);
	if (size > 0) {
		copy = malloc(size);
		if (!copy)
			return -ENOMEM;
		memcpy(copy, id, size);
	}
	free(file->build_id);
	file->build_id = copy;
	file->build_id_size = (uint8_t)size;
	return 0;
}

bool pf_file_is_volatile(const PfFile *file)
{
	return file->key.source != PF_SOURCE_FILE;
}

void pf_file_join(PfFile *file, PfPageClass class, uint32_t pass)
{
	file->classes[class] = true;
	file->seen[class] = pass;
}

void pf_file_leave(PfFile *file, PfPageClass class)
{
	file->classes[class] = false;
	if (class != PF_CLASS_MAPPED)
		return;
	pf_page_ranges_deinit(&file->mapped);
	file->mapped_cut = false;
}

PfPageClass pf_file_class(const PfFile *file)
{
	PfPageClass first = 0;

	while (first < PF_N_CLASSES && !file->classes[first])
		first++;
	return first;
}

/* Whether it is of a class for which all of it counts. */
static bool is_whole(const PfFile *file)
{
	return file->classes[PF_CLASS_CACHE] || file->classes[PF_CLASS_BUFFERS] ||
	       file->classes[PF_CLASS_KERNEL];
}

const PfPageRange *pf_file_cover(PfFile *file, size_t *n)
{
	if (pf_file_is_restless(file) || is_whole(file)) {
		*n = !pf_file_is_restless(file) && file->n_pages > 0;
		return &file->whole;
	}
	pf_page_ranges_normalise(&file->mapped, file->n_pages);
	*n = file->mapped.n;
	return file->mapped.items;
}

/* Index of the first page that is not before file_page. */
static uint32_t lower_bound(const PfFile *file, uint64_t file_page)
{
	uint32_t begin = 0, end = file->n;

	while (begin < end) {
		uint32_t middle = begin + (end - begin) / 2;

		if (file->pages[middle].file_page < file_page)
			begin = middle + 1;
		else
			end = middle;
	}
	return begin;
}

const PfFilePage *pf_file_find(const PfFile *file, uint64_t file_page)
{
	uint32_t i = lower_bound(file, file_page);

	return i < file->n && file->pages[i].file_page == file_page ? &file->pages[i] : NULL;
}

bool pf_file_page_reportable(const PfFilePage *page)
{
	return page->gfn && page->steady;
}

bool pf_file_page_untold(const PfFilePage *page)
{
	return page->told != (pf_file_page_reportable(page) ? PF_TOLD_HERE : PF_TOLD_NOTHING);
}

/* Before pages change they are taken out of the counts, and counted again afterwards. */
static void count_out(PfFile *file, uint32_t begin, uint32_t end)
{
	for (uint32_t i = begin; i < end; i++) {
		file->n_reportable -= pf_file_page_reportable(&file->pages[i]);
		file->n_idle -= file->pages[i].gfn == 0;
	}
}

static void count_in(PfFile *file, uint32_t begin, uint32_t end)
{
	for (uint32_t i = begin; i < end; i++) {
		file->n_reportable += pf_file_page_reportable(&file->pages[i]);
		file->n_idle += file->pages[i].gfn == 0;
		file->dirty = file->dirty || pf_file_page_untold(&file->pages[i]);
	}
	set_dirty(file);
}

/* What the host was told of the page is true no longer. */
static void belie(PfFilePage *page)
{
	if (page->told == PF_TOLD_HERE)
		page->told = PF_TOLD_ELSEWHERE;
}

static void evict(PfFilePage *page)
{
	belie(page);
	page->gfn = 0;
}

/* The pass that is under way is the last that saw the file. */
static uint32_t current_pass(const PfFile *file)
{
	uint32_t pass = 0;

	for (size_t i = 0; i < PF_N_CLASSES; i++)
		pass = file->seen[i] > pass ? file->seen[i] : pass;
	return pass & SINCE_MASK;
}

static PfFilePage new_page(const PfFile *file, const PfObserved *seen)
{
	return (PfFilePage){.gfn = seen->gfn.v,
		.steady = !pf_file_is_volatile(file),
		.since = current_pass(file),
		.file_page = seen->file_page,
		.digest = seen->digest};
}

static void update_page(const PfFile *file, PfFilePage *page, const PfObserved *seen)
{
	bool same = pf_digest_equal(&page->digest, &seen->digest);

	if (!same || page->gfn != seen->gfn.v)
		belie(page);
	if (pf_file_is_volatile(file)) {
		if (!same || !page->gfn) {
			page->since = current_pass(file);
			page->steady = false;
		} else if (page->since != current_pass(file)) {
			page->steady = true;
		}
	}
	page->digest = seen->digest;
	page->gfn = seen->gfn.v;
}

static uint32_t count_new(
	const PfFile *file, uint32_t begin, uint32_t end, const PfObserved *observed, size_t n)
{
	uint32_t n_new = 0;

	for (size_t i = 0; i < n; i++) {
		while (begin < end && file->pages[begin].file_page < observed[i].file_page)
			begin++;
		if (begin == end || file->pages[begin].file_page != observed[i].file_page)
			n_new++;
	}
	return n_new;
}

static int reserve(PfFile *file, uint32_t n_more)
{
	uint32_t wanted = file->n + n_more, grown = file->capacity + file->capacity / 4;
	uint32_t capacity = wanted > grown ? wanted : grown;
	PfFilePage *pages;

	if (wanted <= file->capacity)
		return 0;
	pages = reallocarray(file->pages, capacity, sizeof(*pages));
	if (!pages)
		return -ENOMEM;
	file->pages = pages;
	file->capacity = capacity;
	return 0;
}

/* The pages [begin, end) become those and the observed ones: n_new more, for which there is room.
 * What is written lies never before what is still to be read. */
static void merge(PfFile *file, uint32_t begin, uint32_t end, uint32_t n_new,
	const PfObserved *observed, size_t n)
{
	PfFilePage *pages = file->pages;

	if (n_new > 0)
		memmove(pages + end + n_new, pages + end, (file->n - end) * sizeof(*pages));
	file->n += n_new;
	for (uint32_t to = end + n_new; to > begin; to--) {
		PfFilePage *page = &pages[to - 1];

		if (n > 0 &&
			(begin == end || pages[end - 1].file_page < observed[n - 1].file_page)) {
			*page = new_page(file, &observed[--n]);
			continue;
		}
		*page = pages[--end];
		if (n > 0 && page->file_page == observed[n - 1].file_page)
			update_page(file, page, &observed[--n]);
		else
			evict(page);
	}
}

int pf_file_commit(
	PfFile *file, uint64_t first, uint64_t n_pages, const PfObserved *observed, size_t n)
{
	uint32_t begin = lower_bound(file, first), end = lower_bound(file, first + n_pages);
	uint32_t n_new = count_new(file, begin, end, observed, n);
	int r = reserve(file, n_new);

	if (r < 0)
		return r;
	count_out(file, begin, end);
	merge(file, begin, end, n_new, observed, n);
	count_in(file, begin, end + n_new);
	return 0;
}

void pf_file_trim(PfFile *file)
{
	size_t n, k = 0;
	const PfPageRange *cover = pf_file_cover(file, &n);

	/* Ranges that may lack are no reason to withdraw anything. */
	if (is_whole(file) || file->mapped_cut)
		return;
	count_out(file, 0, file->n);
	for (uint32_t i = 0; i < file->n; i++) {
		PfFilePage *page = &file->pages[i];

		while (k < n && cover[k].first + cover[k].n_pages <= page->file_page)
			k++;
		if (k == n || page->file_page < cover[k].first)
			evict(page);
	}
	count_in(file, 0, file->n);
}

/* The host still has to hear of what it was told, so these pages stay. */
void pf_file_forget_idle(PfFile *file)
{
	uint32_t kept = 0;

	if (file->n_idle == 0)
		return;
	for (uint32_t i = 0; i < file->n; i++) {
		if (file->pages[i].gfn || file->pages[i].told != PF_TOLD_NOTHING)
			file->pages[kept++] = file->pages[i];
	}
	file->n_idle -= file->n - kept;
	file->n = kept;
}

void pf_file_forget_told(PfFile *file)
{
	for (uint32_t i = 0; i < file->n; i++)
		file->pages[i].told = PF_TOLD_NOTHING;
	file->declared = false;
	file->outdated = false;
	file->dirty = file->n_reportable > 0;
}

void pf_file_shrink(PfFile *file)
{
	PfFilePage *pages;

	if (file->n == 0) {
		free(file->pages);
		file->pages = NULL;
		file->capacity = 0;
	}
	if (file->capacity - file->n <= file->n / 8)
		return;
	pages = reallocarray(file->pages, file->n, sizeof(*pages));
	if (!pages)
		return;
	file->pages = pages;
	file->capacity = file->n;
}
