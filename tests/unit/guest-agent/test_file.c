// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/file.h"
#include <errno.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define N_PAGES 48 /* of the file that the model knows */

static PfFile *file;

static PfFile *new_file(PfSource source, int64_t n_pages)
{
	PfFileKey key = {.source = source, .device = 7, .inode = 1};
	PfFileStamp stamp = {.size = n_pages * 4096};
	PfFile *new = pf_file_new(&key);

	assert_non_null(new);
	assert_int_equal(pf_file_renew(new, &stamp, "file"), 0);
	pf_file_join(new, source == PF_SOURCE_FILE ? PF_CLASS_CACHE : PF_CLASS_BUFFERS, 1);
	return new;
}

static int setup(void **state)
{
	file = new_file(PF_SOURCE_FILE, N_PAGES);
	return 0;
}

static int setup_volatile(void **state)
{
	file = new_file(PF_SOURCE_BLOCK_DEVICE, N_PAGES);
	return 0;
}

static int teardown(void **state)
{
	pf_file_free(file);
	return 0;
}

static void next_pass(void)
{
	PfPageClass class = pf_file_class(file);

	pf_file_join(file, class, file->seen[class] + 1);
}

/* A window of one page: there with these contents, or, with gfn 0, not resident. */
static void look(uint32_t page, uint64_t gfn, uint8_t contents)
{
	PfObserved observed = {.file_page = page, .gfn = {gfn}, .digest = {{contents}}};

	assert_int_equal(pf_file_commit(file, page, 1, &observed, gfn != 0), 0);
}

static bool reportable(uint32_t page)
{
	const PfFilePage *found = pf_file_find(file, page);

	return found && pf_file_page_reportable(found);
}

/* As the report does. */
static void tell(void)
{
	for (uint32_t i = 0; i < file->n; i++)
		file->pages[i].told =
			pf_file_page_reportable(&file->pages[i]) ? PF_TOLD_HERE : PF_TOLD_NOTHING;
	file->declared = file->n_reportable > 0;
	file->outdated = false;
	file->dirty = false;
}

static void test_renew(void **state)
{
	const PfFileStamp stamp = {.size = 4097};
	char name[2 * PF_SESSION_MAX_NAME];

	look(0, 100, 1);
	tell();
	assert_int_equal(pf_file_set_build_id(file, (const uint8_t *)"abc", 3), 0);
	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	name[1] = '\n';
	assert_int_equal(pf_file_renew(file, &stamp, name), 0);
	assert_int_equal(file->n_pages, 2);
	assert_int_equal(file->n + file->n_reportable + file->build_id_size, 0);
	assert_null(file->build_id);
	assert_int_equal(strlen(file->name), PF_SESSION_MAX_NAME);
	assert_memory_equal(file->name, "x\xef\xbf\xbdx", 5);
	assert_true(file->outdated && file->dirty);
}

/* One look at a page of which the host was told. */
static void test_told(void **state)
{
	look(3, 100, 1);
	assert_true(file->dirty && reportable(3));
	tell();
	look(3, 100, 1);
	assert_false(file->dirty);

	look(3, 200, 1);
	assert_true(file->dirty && pf_file_page_untold(pf_file_find(file, 3)));
	/* The host does not know where it is until it was told, even when it comes back. */
	look(3, 100, 1);
	assert_true(pf_file_page_untold(pf_file_find(file, 3)));
	tell();

	look(3, 0, 0);
	assert_true(file->dirty && pf_file_page_untold(pf_file_find(file, 3)));
	assert_int_equal(file->n_reportable, 0);
	assert_int_equal(file->n_idle, 1);
	assert_int_equal(pf_file_find(file, 3)->digest.bytes[0], 1);
}

static void test_told_anew(void **state)
{
	look(3, 100, 1);
	look(4, 0, 0);
	tell();
	pf_file_forget_told(file);
	assert_true(file->dirty && !file->declared && pf_file_page_untold(pf_file_find(file, 3)));
	look(3, 0, 0);
	tell();
	pf_file_forget_told(file);
	assert_false(file->dirty);
}

/* Told pages stay until the host has heard that they are gone. */
static void test_forget_idle(void **state)
{
	for (uint32_t i = 0; i < 4; i++)
		look(i, 100 + i, (uint8_t)i);
	tell();
	look(4, 104, 4);
	look(1, 0, 0);
	look(4, 0, 0);
	pf_file_forget_idle(file);
	assert_int_equal(file->n, 4);
	assert_int_equal(file->n_idle, 1);
	assert_null(pf_file_find(file, 4));
	tell();
	pf_file_forget_idle(file);
	assert_int_equal(file->n, 3);
	assert_int_equal(file->n_idle, 0);
	assert_int_equal(pf_file_find(file, 2)->gfn, 102);
}

static void map(uint64_t first, uint64_t n_pages)
{
	assert_int_equal(pf_page_ranges_add(&file->mapped, first, n_pages), 0);
}

static void test_cover(void **state)
{
	const PfPageRange *cover;
	size_t n;

	cover = pf_file_cover(file, &n);
	assert_true(n == 1 && cover[0].first == 0 && cover[0].n_pages == N_PAGES);
	map(40, 20);
	map(2, 3);
	pf_file_join(file, PF_CLASS_MAPPED, 1);
	pf_file_cover(file, &n);
	assert_int_equal(n, 1);
	assert_int_equal(pf_file_class(file), PF_CLASS_MAPPED);

	pf_file_leave(file, PF_CLASS_CACHE);
	cover = pf_file_cover(file, &n);
	assert_int_equal(n, 2);
	assert_true(cover[0].first == 2 && cover[0].n_pages == 3);
	assert_true(cover[1].first == 40 && cover[1].n_pages == N_PAGES - 40);

	pf_file_leave(file, PF_CLASS_MAPPED);
	pf_file_cover(file, &n);
	assert_int_equal(n, 0);
	assert_int_equal(pf_file_class(file), PF_N_CLASSES);
}

static void test_trim(void **state)
{
	for (uint32_t i = 0; i < 10; i++)
		look(i, 100 + i, (uint8_t)i);
	tell();
	map(2, 3);
	map(7, 1);
	pf_file_join(file, PF_CLASS_MAPPED, 1);
	pf_file_trim(file);
	assert_int_equal(file->n_reportable, 10);

	/* Not on the word of a pass that was given up. */
	pf_file_leave(file, PF_CLASS_CACHE);
	file->mapped_cut = true;
	pf_file_trim(file);
	assert_int_equal(file->n_reportable, 10);
	assert_false(file->dirty);

	file->mapped_cut = false;
	pf_file_trim(file);
	for (uint32_t i = 0; i < 10; i++)
		assert_int_equal(reportable(i), (i >= 2 && i < 5) || i == 7);
	assert_int_equal(file->n_reportable, 4);
	assert_int_equal(file->n_idle, 6);
	assert_true(file->dirty);
	assert_int_equal(pf_file_find(file, 9)->digest.bytes[0], 9);

	pf_file_leave(file, PF_CLASS_MAPPED);
	pf_file_trim(file);
	assert_int_equal(file->n_reportable, 0);
}

static void test_steady(void **state)
{
	look(3, 100, 1);
	look(3, 100, 1); /* in the same pass: proves nothing */
	assert_false(reportable(3) || file->dirty);
	next_pass();
	look(3, 100, 1);
	assert_true(reportable(3) && file->dirty);
	tell();

	/* It changes: withdrawn, and told again with what it holds once it held still. */
	next_pass();
	look(3, 100, 2);
	assert_true(!reportable(3) && pf_file_page_untold(pf_file_find(file, 3)) && file->dirty);
	assert_int_equal(pf_file_find(file, 3)->told, PF_TOLD_ELSEWHERE);
	assert_int_equal(file->n_reportable + file->n_idle, 0);
	next_pass();
	look(3, 100, 1);
	assert_false(reportable(3));
	look(3, 100, 1);
	assert_false(reportable(3));
	next_pass();
	look(3, 100, 1);
	assert_true(reportable(3));
	assert_true(pf_file_page_untold(pf_file_find(file, 3)));
}

/* Two looks in one pass with a change between them. */
static void test_steady_within_pass(void **state)
{
	look(3, 100, 1);
	next_pass();
	look(3, 100, 1);
	look(3, 100, 2);
	assert_false(reportable(3));
	look(3, 100, 2);
	assert_false(reportable(3));
	look(3, 100, 1);
	next_pass();
	look(3, 100, 1);
	assert_true(reportable(3));
}

static void test_steady_away(void **state)
{
	look(3, 100, 1);
	next_pass();
	look(3, 0, 0);
	next_pass();
	look(3, 100, 1); /* who knows what it held meanwhile */
	assert_false(reportable(3));
	next_pass();
	look(3, 200, 1); /* only moved */
	assert_true(reportable(3));
}

static bool no_memory;

void *__real_reallocarray(void *memory, size_t n, size_t size);
void *__wrap_reallocarray(void *memory, size_t n, size_t size);

void *__wrap_reallocarray(void *memory, size_t n, size_t size)
{
	return no_memory ? NULL : __real_reallocarray(memory, n, size);
}

static void test_no_memory(void **state)
{
	const PfObserved observed[] = {
		{.file_page = 3, .gfn = {200}}, {.file_page = 4, .gfn = {201}}};

	look(3, 100, 1);
	tell();
	no_memory = true;
	assert_int_equal(pf_file_commit(file, 0, N_PAGES, observed, 2), -ENOMEM);
	assert_int_equal(file->n, 1);
	assert_false(file->dirty);
	assert_int_equal(pf_file_find(file, 3)->gfn, 100);
	/* What needs none goes on. */
	look(3, 101, 1);
	no_memory = false;
	assert_int_equal(pf_file_find(file, 3)->gfn, 101);
	assert_int_equal(pf_file_commit(file, 0, N_PAGES, observed, 2), 0);
	assert_int_equal(file->n_reportable, 2);
}

/* What the model says of a page. */
typedef struct ModelPage {
	uint64_t gfn; /* 0: not resident */
	bool known;
	bool told, told_right; /* right: what was told has been true ever since */
	uint8_t contents;
	unsigned since; /* pass from which on it held these, without a gap */
} ModelPage;

static ModelPage model[N_PAGES];
static unsigned model_pass;

static bool model_reportable(const ModelPage *page)
{
	return page->gfn && (!pf_file_is_volatile(file) || page->since < model_pass);
}

static void model_look(ModelPage *page, bool resident, uint64_t gfn, uint8_t contents)
{
	if (resident && (!page->gfn || page->contents != contents))
		page->since = model_pass;
	if (!resident || page->gfn != gfn || page->contents != contents)
		page->told_right = false;
	page->gfn = resident ? gfn : 0;
	if (!resident)
		return;
	page->known = true;
	page->contents = contents;
}

/* A window of the file with random pages in it. */
static void random_window(unsigned *seed)
{
	uint32_t first = (uint32_t)rand_r(seed) % N_PAGES;
	uint32_t n_pages = (uint32_t)rand_r(seed) % (N_PAGES - first + 1);
	int density = rand_r(seed) % 5;
	PfObserved observed[N_PAGES] = {0};
	size_t n = 0;

	for (uint32_t i = first; i < first + n_pages; i++) {
		bool resident = rand_r(seed) % 4 < density;
		uint64_t gfn = 1 + (uint64_t)rand_r(seed) % 3;
		uint8_t contents =
			pf_file_is_volatile(file) ? (uint8_t)(rand_r(seed) % 4 == 0) : (uint8_t)i;

		model_look(&model[i], resident, gfn, contents);
		observed[n] = (PfObserved){
			.file_page = i, .gfn = {gfn}, .digest = {{contents, (uint8_t)i}}};
		n += resident;
	}
	assert_int_equal(pf_file_commit(file, first, n_pages, observed, n), 0);
}

/* Each page as the model says, the counts what they count, and dirty if anything is to be told. */
static void compare(void)
{
	uint32_t n = 0, n_idle = 0, n_reportable = 0;

	for (uint32_t i = 0; i < N_PAGES; i++) {
		const ModelPage *wanted = &model[i];
		const PfFilePage *page = pf_file_find(file, i);

		assert_int_equal(page != NULL, wanted->known);
		if (!page)
			continue;
		assert_ptr_equal(page, &file->pages[n]);
		n++;
		n_idle += !wanted->gfn;
		n_reportable += model_reportable(wanted);
		assert_int_equal(page->gfn, wanted->gfn);
		assert_int_equal(page->digest.bytes[0], wanted->contents);
		assert_int_equal(page->digest.bytes[1], i);
		assert_int_equal(pf_file_page_reportable(page), model_reportable(wanted));
		assert_int_equal(page->told != PF_TOLD_NOTHING, wanted->told);
		assert_int_equal(page->told == PF_TOLD_HERE, wanted->told && wanted->told_right);
		if (pf_file_page_untold(page))
			assert_true(file->dirty);
	}
	assert_int_equal(file->n, n);
	assert_int_equal(file->n_idle, n_idle);
	assert_int_equal(file->n_reportable, n_reportable);
	assert_true(file->capacity >= n);
}

static void model_tell(void)
{
	for (size_t i = 0; i < N_PAGES; i++) {
		model[i].told = model_reportable(&model[i]);
		model[i].told_right = true;
	}
	tell();
}

static void test_windows(void **state)
{
	for (unsigned round = 1; round <= 200; round++) {
		unsigned seed = round;

		teardown(NULL);
		file = new_file(round % 2 ? PF_SOURCE_FILE : PF_SOURCE_KERNEL, N_PAGES);
		memset(model, 0, sizeof(model));
		model_pass = 1;
		for (int step = 0; step < 60; step++) {
			int choice = rand_r(&seed) % 8;

			if (choice == 0)
				model_tell();
			/* A page that no pass looked at is as steady as it was. */
			if (choice == 1 && !pf_file_is_volatile(file)) {
				next_pass();
				model_pass++;
			} else {
				random_window(&seed);
			}
			compare();
		}
	}
}

/* The same with passes that look at everything, each window up to twice. */
static void test_volatile_passes(void **state)
{
	unsigned seed = 1;

	memset(model, 0, sizeof(model));
	for (model_pass = 1; model_pass <= 200; model_pass++) {
		PfObserved observed[N_PAGES] = {0};

		for (int twice = 0; twice < 2; twice++) {
			for (uint32_t i = 0; i < N_PAGES; i++) {
				uint8_t contents = rand_r(&seed) % 8 == 0;

				observed[i] = (PfObserved){.file_page = i,
					.gfn = {1 + i},
					.digest = {{contents, (uint8_t)i}}};
				model_look(&model[i], true, 1 + i, contents);
			}
			for (uint32_t i = 0; i < N_PAGES; i += 16)
				assert_int_equal(pf_file_commit(file, i, 16, &observed[i], 16), 0);
			compare();
		}
		if (model_pass % 3 == 0)
			model_tell();
		next_pass();
	}
}

/* A big file grows by windows of 2048 pages: never is much allocated that is not used. */
static void test_growth(void **state)
{
	static PfObserved observed[2048];
	uint32_t n = 100000;

	pf_file_free(file);
	file = new_file(PF_SOURCE_FILE, n);
	for (uint32_t first = 0; first < n; first += 2048) {
		uint32_t n_pages = n - first < 2048 ? n - first : 2048;

		for (uint32_t i = 0; i < n_pages; i++)
			observed[i] = (PfObserved){.file_page = first + i, .gfn = {1 + first + i}};
		assert_int_equal(pf_file_commit(file, first, n_pages, observed, n_pages), 0);
		assert_true(file->capacity <= file->n + file->n / 4 + 2048);
	}
	pf_file_shrink(file);
	assert_true(malloc_usable_size(file->pages) <= n * 50ul);
	assert_int_equal(file->n, n);

	/* Nearly all goes, and with it the memory. */
	assert_int_equal(pf_file_commit(file, 10, n - 10, NULL, 0), 0);
	pf_file_forget_idle(file);
	pf_file_shrink(file);
	assert_int_equal(file->n, 10);
	assert_true(malloc_usable_size(file->pages) <= 4096);
	assert_int_equal(pf_file_find(file, 9)->gfn, 10);
	assert_int_equal(pf_file_commit(file, 0, 10, NULL, 0), 0);
	pf_file_forget_idle(file);
	pf_file_shrink(file);
	assert_null(file->pages);
	look(5, 1, 1);
	assert_true(reportable(5));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_renew, setup, teardown),
		cmocka_unit_test_setup_teardown(test_told, setup, teardown),
		cmocka_unit_test_setup_teardown(test_told_anew, setup, teardown),
		cmocka_unit_test_setup_teardown(test_forget_idle, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cover, setup, teardown),
		cmocka_unit_test_setup_teardown(test_trim, setup, teardown),
		cmocka_unit_test_setup_teardown(test_steady, setup_volatile, teardown),
		cmocka_unit_test_setup_teardown(test_steady_within_pass, setup_volatile, teardown),
		cmocka_unit_test_setup_teardown(test_steady_away, setup_volatile, teardown),
		cmocka_unit_test_setup_teardown(test_no_memory, setup, teardown),
		cmocka_unit_test_setup_teardown(test_windows, setup, teardown),
		cmocka_unit_test_setup_teardown(test_volatile_passes, setup_volatile, teardown),
		cmocka_unit_test_setup_teardown(test_growth, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
