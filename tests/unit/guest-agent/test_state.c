// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/state.h"
#include <fcntl.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

static PfState files;

static int setup(void **state)
{
	pf_state_init(&files);
	return 0;
}

static int teardown(void **state)
{
	pf_state_deinit(&files);
	return 0;
}

static void begin(PfPageClass class)
{
	pf_state_begin(&files, class, true);
}

static void end(void)
{
	pf_state_end(&files);
}

static PfFile *see_source(PfSource source, ino_t inode, int64_t pages, time_t mtime, bool fresh)
{
	PfFileKey key = {.source = source, .device = 7, .inode = inode};
	PfFileStamp stamp = {.size = pages * 4096, .mtime = {.tv_sec = mtime}};
	PfFile *file;
	bool is_fresh;

	assert_int_equal(pf_state_see(&files, &key, &stamp, 0, "file", &file, &is_fresh), 0);
	assert_int_equal(is_fresh, fresh);
	return file;
}

static PfFile *see(ino_t inode, int64_t pages, time_t mtime, bool fresh)
{
	return see_source(PF_SOURCE_FILE, inode, pages, mtime, fresh);
}

/* A process maps these pages of it. */
static PfFile *see_mapped(ino_t inode, int64_t pages, bool fresh, uint64_t first, uint64_t n_pages)
{
	PfFile *file = see(inode, pages, 1, fresh);

	assert_int_equal(pf_page_ranges_add(&file->mapped, first, n_pages), 0);
	return file;
}

/* All that is resident: n pages from first on, at gfn and following; a page's digest is its number
 * and version. */
static void commit(PfFile *file, uint32_t first, uint64_t gfn, uint32_t n, uint8_t version)
{
	PfObserved observed[16] = {0};

	for (uint32_t i = 0; i < n; i++) {
		observed[i].file_page = first + i;
		observed[i].gfn.v = gfn + i;
		observed[i].digest.bytes[0] = (uint8_t)(first + i);
		observed[i].digest.bytes[1] = version;
	}
	assert_int_equal(pf_file_commit(file, 0, file->n_pages, observed, n), 0);
}

/* n pages from page 0 on. */
static void commit_many(PfFile *file, uint32_t n)
{
	PfObserved *observed = calloc(n, sizeof(*observed));

	assert_non_null(observed);
	for (uint32_t i = 0; i < n; i++)
		observed[i] = (PfObserved){.file_page = i, .gfn = {i + 1}};
	assert_int_equal(pf_file_commit(file, 0, n, observed, n), 0);
	free(observed);
}

/* As if the report had told everything. */
static void tell(PfFile *file)
{
	for (uint32_t i = 0; i < file->n; i++)
		file->pages[i].told =
			pf_file_page_reportable(&file->pages[i]) ? PF_TOLD_HERE : PF_TOLD_NOTHING;
	file->declared = file->n_reportable > 0;
	file->outdated = false;
	file->dirty = false;
}

static PfStateCount count(void)
{
	PfStateCount now;

	pf_state_count(&files, &now);
	return now;
}

static void test_new_file(void **state)
{
	PfFile *file;

	begin(PF_CLASS_MAPPED);
	file = see_mapped(1, 10, true, 0, 10);
	assert_int_equal(file->n_pages, 10);
	assert_string_equal(file->name, "file");
	assert_null(pf_file_find(file, 2));
	commit(file, 2, 100, 3, 0);
	end();
	assert_true(file->dirty && files.scanned && files.complete);
	assert_int_equal(pf_file_find(file, 4)->gfn, 102);
	assert_null(pf_file_find(file, 5));
	assert_int_equal(count().classes[PF_CLASS_MAPPED].n_files, 1);
	assert_int_equal(count().classes[PF_CLASS_MAPPED].n_pages, 3);
}

/* Device, inode and source together make a file. */
static void test_keys(void **state)
{
	const PfFileStamp stamp = {.size = 4096};
	PfFile *seen[8], *again;
	bool fresh;

	begin(PF_CLASS_CACHE);
	for (unsigned i = 0; i < 16; i++) {
		PfFileKey key = {.source = i & 1 ? PF_SOURCE_BLOCK_DEVICE : PF_SOURCE_FILE,
			.device = i & 2,
			.inode = i & 4};

		assert_int_equal(pf_state_see(&files, &key, &stamp, 0, "x", &again, &fresh), 0);
		assert_int_equal(fresh, i < 8);
		if (i < 8)
			seen[i] = again;
		assert_ptr_equal(again, seen[i % 8]);
	}
	assert_int_equal(files.n, 8);
}

static void test_page_moved_and_gone(void **state)
{
	PfFile *file;

	begin(PF_CLASS_MAPPED);
	file = see_mapped(1, 10, true, 0, 10);
	commit(file, 0, 100, 4, 0);
	end();
	tell(file);

	begin(PF_CLASS_MAPPED);
	assert_ptr_equal(see_mapped(1, 10, false, 0, 10), file);
	commit(file, 0, 100, 4, 0);
	end();
	assert_false(file->dirty);

	begin(PF_CLASS_MAPPED);
	see_mapped(1, 10, false, 0, 10);
	commit(file, 1, 200, 2, 0);
	end();
	assert_true(file->dirty);
	assert_int_equal(file->n_reportable, 2);
	assert_int_equal(pf_file_find(file, 1)->gfn, 200);
	/* Evicted pages keep their digests: they are not hashed again when they come back. */
	assert_int_equal(pf_file_find(file, 0)->gfn, 0);
	assert_int_equal(pf_file_find(file, 3)->digest.bytes[0], 3);
	assert_int_equal(file->n_idle, 2);
}

static void test_file_changed(void **state)
{
	PfFile *file;

	begin(PF_CLASS_CACHE);
	file = see(1, 10, 1, true);
	commit(file, 0, 100, 4, 0);
	end();
	tell(file);

	begin(PF_CLASS_CACHE);
	assert_ptr_equal(see(1, 10, 2, true), file);
	assert_null(pf_file_find(file, 0));
	commit(file, 0, 100, 4, 1);
	end();
	assert_true(file->dirty && file->outdated);
	/* To be told again although nothing moved: the host dropped what was written. */
	assert_true(pf_file_page_untold(pf_file_find(file, 0)));
	assert_int_equal(pf_file_find(file, 0)->digest.bytes[1], 1);

	begin(PF_CLASS_CACHE);
	/* Changed again at once: its build-id is to be read when it has come to rest. */
	see(1, 11, 2, false);
	assert_int_equal(file->n_pages, 11);
	assert_null(pf_file_find(file, 0));
}

static void test_file_vanished(void **state)
{
	PfFile *kept, *gone;

	begin(PF_CLASS_CACHE);
	kept = see(1, 10, 1, true);
	gone = see(2, 10, 1, true);
	commit(kept, 0, 100, 4, 0);
	commit(gone, 0, 200, 4, 0);
	end();
	tell(kept);
	tell(gone);

	begin(PF_CLASS_CACHE);
	see(1, 10, 1, false);
	commit(kept, 0, 100, 4, 0);
	end();
	assert_false(kept->dirty);
	assert_true(gone->dirty);
	assert_int_equal(gone->n_reportable, 0);
	tell(gone);

	/* It comes back unchanged: its digests are still known. */
	begin(PF_CLASS_CACHE);
	assert_ptr_equal(see(2, 10, 1, false), gone);
	assert_non_null(pf_file_find(gone, 3));
}

/* A file without pages goes with its last class, when the host knows that. */
static void test_empty_file(void **state)
{
	PfFile *file;

	begin(PF_CLASS_CACHE);
	file = see(1, 10, 1, true);
	end();
	assert_int_equal(files.n, 1);
	file->declared = true;
	begin(PF_CLASS_CACHE);
	end();
	assert_int_equal(files.n, 1);
	file->declared = false;
	begin(PF_CLASS_MAPPED);
	end();
	assert_int_equal(files.n, 0);
	begin(PF_CLASS_CACHE);
	see(1, 10, 1, true);
}

/* A file that is mapped in part, and all of it in the cache of system files. */
static void test_two_classes(void **state)
{
	PfFile *file;

	begin(PF_CLASS_MAPPED);
	file = see_mapped(1, 10, true, 2, 3);
	commit(file, 2, 100, 3, 0);
	end();
	begin(PF_CLASS_CACHE);
	see(1, 10, 1, false);
	commit(file, 0, 100, 8, 0);
	end();
	assert_int_equal(file->n_reportable, 8);
	assert_int_equal(count().classes[PF_CLASS_MAPPED].n_pages, 8);
	assert_int_equal(count().classes[PF_CLASS_CACHE].n_files, 0);
	tell(file);

	/* Nobody maps it any more: nothing happens to its pages. */
	begin(PF_CLASS_MAPPED);
	end();
	assert_int_equal(file->n_reportable, 8);
	assert_false(file->dirty);
	assert_int_equal(count().classes[PF_CLASS_CACHE].n_pages, 8);

	/* It is mapped again, then the other walk misses it: only what is mapped stays. */
	begin(PF_CLASS_MAPPED);
	see_mapped(1, 10, false, 6, 9);
	end();
	begin(PF_CLASS_CACHE);
	end();
	assert_int_equal(file->n_reportable, 2);
	assert_true(pf_file_page_reportable(pf_file_find(file, 6)));
	assert_false(pf_file_page_reportable(pf_file_find(file, 5)));
	assert_true(file->dirty);
}

/* What a process unmapped goes, though others still map other parts. */
static void test_unmapped_part(void **state)
{
	PfFile *file;

	begin(PF_CLASS_MAPPED);
	file = see_mapped(1, 10, true, 0, 8);
	commit(file, 0, 100, 8, 0);
	end();
	begin(PF_CLASS_MAPPED);
	see_mapped(1, 10, false, 0, 2);
	see_mapped(1, 10, false, 6, 1);
	assert_int_equal(file->mapped.n, 2);
	end();
	assert_int_equal(file->n_reportable, 3);
}

/* A look at some processes that shows nothing new is nothing to tell; a complete pass is. */
static void test_nothing_new(void **state)
{
	PfFile *file;

	begin(PF_CLASS_MAPPED);
	file = see_mapped(1, 10, true, 0, 4);
	commit(file, 0, 100, 4, 0);
	end();
	tell(file);
	files.scanned = false;
	pf_state_begin(&files, PF_CLASS_MAPPED, false);
	commit(see_mapped(1, 10, false, 0, 4), 0, 100, 4, 0);
	end();
	assert_false(files.scanned);
	pf_state_begin(&files, PF_CLASS_MAPPED, false);
	commit(see_mapped(1, 10, false, 0, 4), 0, 200, 4, 0);
	end();
	assert_true(files.scanned);
	tell(file);
	files.scanned = false;
	begin(PF_CLASS_MAPPED);
	commit(see_mapped(1, 10, false, 0, 4), 0, 200, 4, 0);
	end();
	assert_true(files.scanned);
	/* It is still to be told when another look follows. */
	pf_state_begin(&files, PF_CLASS_MAPPED, false);
	end();
	assert_true(files.scanned);
}

/* A pass over some processes only adds. */
static void test_partial(void **state)
{
	PfFile *other, *more, *new;

	begin(PF_CLASS_MAPPED);
	other = see_mapped(1, 10, true, 0, 4);
	commit(other, 0, 100, 4, 0);
	more = see_mapped(2, 10, true, 0, 4);
	commit(more, 0, 200, 4, 0);
	end();
	files.scanned = false;
	pf_state_begin(&files, PF_CLASS_MAPPED, false);
	see_mapped(2, 10, false, 6, 2);
	new = see_mapped(3, 10, true, 0, 4);
	commit(new, 0, 300, 4, 0);
	end();
	assert_true(files.scanned);
	assert_int_equal(more->mapped.n, 2);
	assert_int_equal(count().classes[PF_CLASS_MAPPED].n_pages, 12);

	begin(PF_CLASS_MAPPED);
	see_mapped(3, 10, false, 0, 4);
	end();
	assert_int_equal(other->n_reportable + more->n_reportable, 0);
	assert_int_equal(new->n_reportable, 4);
}

static void test_cancelled(void **state)
{
	PfFile *file, *other;

	begin(PF_CLASS_MAPPED);
	file = see_mapped(1, 10, true, 0, 4);
	other = see_mapped(2, 10, true, 0, 4);
	commit(file, 0, 100, 4, 0);
	commit(other, 0, 200, 4, 0);
	end();
	begin(PF_CLASS_CACHE);
	see(1, 10, 1, false);
	end();
	tell(file);
	tell(other);

	/* One process of several was looked at, and it maps less than all do. */
	begin(PF_CLASS_MAPPED);
	see_mapped(1, 10, false, 0, 1);
	file->fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	pf_state_cancel(&files);
	assert_int_equal(file->fd, -1);
	/* And now its other class goes: what is known of its mappings does not count. */
	begin(PF_CLASS_CACHE);
	end();
	assert_false(file->dirty || other->dirty);
	assert_int_equal(file->n_reportable + other->n_reportable, 8);

	begin(PF_CLASS_MAPPED);
	see_mapped(1, 10, false, 0, 1);
	see_mapped(2, 10, false, 0, 4);
	end();
	assert_int_equal(file->n_reportable, 1);
	assert_int_equal(other->n_reportable, 4);
}

static void test_drop_class(void **state)
{
	PfFile *both, *cached, *mapped;

	begin(PF_CLASS_MAPPED);
	both = see_mapped(1, 10, true, 0, 2);
	mapped = see_mapped(2, 10, true, 0, 4);
	commit(mapped, 0, 200, 4, 0);
	end();
	begin(PF_CLASS_CACHE);
	see(1, 10, 1, false);
	commit(both, 0, 100, 4, 0);
	cached = see(3, 10, 1, true);
	commit(cached, 0, 300, 4, 0);
	end();
	tell(both);
	tell(cached);
	tell(mapped);
	files.scanned = false;

	pf_state_drop_class(&files, PF_CLASS_CACHE);
	assert_int_equal(both->n_reportable, 2);
	assert_int_equal(cached->n_reportable, 0);
	assert_int_equal(mapped->n_reportable, 4);
	assert_true(both->dirty && cached->dirty && !mapped->dirty);
	assert_true(files.scanned);
	assert_int_equal(count().classes[PF_CLASS_CACHE].n_files, 0);

	pf_state_drop_class(&files, PF_CLASS_MAPPED);
	assert_int_equal(both->n_reportable + mapped->n_reportable, 0);
	assert_true(mapped->dirty);
}

/* Two passes make a page of a block device worth telling; what is gone is forgotten. */
static void test_volatile(void **state)
{
	PfFile *file;

	for (int pass = 0; pass < 2; pass++) {
		begin(PF_CLASS_BUFFERS);
		file = see_source(PF_SOURCE_BLOCK_DEVICE, 0, 10, 0, pass == 0);
		commit(file, 0, 100, 4, 0);
		assert_int_equal(file->n_reportable, pass == 0 ? 0 : 4);
		end();
		assert_int_equal(count().n_unsteady_pages, pass == 0 ? 4 : 0);
	}
	assert_int_equal(count().classes[PF_CLASS_BUFFERS].n_pages, 4);
	/* Passes of other classes do not make anything steady. */
	begin(PF_CLASS_BUFFERS);
	see_source(PF_SOURCE_BLOCK_DEVICE, 0, 10, 0, false);
	commit(file, 0, 100, 3, 1);
	end();
	assert_int_equal(file->n, 3);
	for (int pass = 0; pass < 3; pass++) {
		begin(PF_CLASS_CACHE);
		end();
	}
	assert_int_equal(file->n_reportable, 0);
	begin(PF_CLASS_BUFFERS);
	end();
	assert_int_equal(files.n, 0);
}

static void test_idle_limit(void **state)
{
	PfFile *big, *small;

	begin(PF_CLASS_CACHE);
	big = see(1, PF_STATE_MAX_IDLE_PAGES + 1, 1, true);
	commit_many(big, PF_STATE_MAX_IDLE_PAGES + 1);
	small = see(2, 10, 1, true);
	commit(small, 0, 500000, 4, 0);
	end();
	assert_int_equal(big->n, PF_STATE_MAX_IDLE_PAGES + 1);

	/* The big one is gone: so are its digests, and it; those of the small one stay. */
	begin(PF_CLASS_CACHE);
	see(2, 10, 1, false);
	commit(small, 0, 500000, 1, 0);
	end();
	assert_int_equal(files.n, 1);
	assert_int_equal(small->n, 4);
	see(1, PF_STATE_MAX_IDLE_PAGES + 1, 1, true);
}

static void test_idle_limit_seen(void **state)
{
	PfFile *file;

	begin(PF_CLASS_CACHE);
	file = see(1, PF_STATE_MAX_IDLE_PAGES + 2, 1, true);
	commit_many(file, PF_STATE_MAX_IDLE_PAGES + 2);
	end();
	tell(file);
	file->pages[5].told = PF_TOLD_NOTHING;

	begin(PF_CLASS_CACHE);
	see(1, PF_STATE_MAX_IDLE_PAGES + 2, 1, false);
	commit(file, 0, 1, 1, 0);
	end();
	/* Only the one the host has not heard of could be forgotten yet. */
	assert_int_equal(file->n, PF_STATE_MAX_IDLE_PAGES + 1);
	assert_null(pf_file_find(file, 5));
	assert_non_null(pf_file_find(file, 6));
}

/* Many little files that are of no class must not pile up either. */
static void test_idle_limit_files(void **state)
{
	for (ino_t inode = 1; inode <= PF_STATE_MAX_IDLE_PAGES; inode += 500) {
		begin(PF_CLASS_CACHE);
		for (ino_t i = 0; i < 500; i++)
			commit(see(inode + i, 1, 1, true), 0, 100, 1, 0);
		end();
		assert_true(files.n <= PF_STATE_MAX_IDLE_PAGES / 8 + 500);
	}
}

static void test_forget_told(void **state)
{
	PfFile *file;

	begin(PF_CLASS_CACHE);
	file = see(1, 10, 1, true);
	commit(file, 0, 100, 4, 0);
	end();
	tell(file);
	files.scanned = false;
	pf_state_forget_told(&files);
	assert_true(file->dirty && !file->declared && files.scanned);
	assert_true(pf_file_page_untold(pf_file_find(file, 0)));
	assert_int_equal(pf_file_find(file, 0)->gfn, 100);
}

static void test_ids(void **state)
{
	uint32_t id, last = 0;

	for (uint32_t i = 0; i < PF_SESSION_MAX_MODULES; i++) {
		assert_true(pf_state_take_id(&files, &id));
		assert_true(id < PF_SESSION_MAX_MODULES && (i == 0 || id == last + 1));
		last = id;
	}
	assert_false(pf_state_take_id(&files, &id));
	pf_state_release_id(&files, 4711);
	assert_true(pf_state_take_id(&files, &id));
	assert_int_equal(id, 4711);
}

/* What the allocator really gave, with its own share of 8 bytes an allocation. */
static size_t allocated(const void *memory)
{
	return memory ? malloc_usable_size((void *)memory) + 8 : 0;
}

static size_t memory(void)
{
	size_t sum = allocated(files.files);

	for (size_t i = 0; i < files.n; i++) {
		const PfFile *file = files.files[i];

		sum += allocated(file) + allocated(file->name) + allocated(file->build_id) +
		       allocated(file->pages) + allocated(file->mapped.items);
		sum += 32; /* its node in the tree */
	}
	return sum;
}

static void see_many(ino_t n_files, uint32_t n_pages)
{
	const uint8_t build_id[20] = {1};

	begin(PF_CLASS_MAPPED);
	for (ino_t i = 1; i <= n_files; i++) {
		PfFile *file = see_mapped(i, n_pages, true, 0, n_pages / 2);

		see_mapped(i, n_pages, false, n_pages / 2, n_pages - n_pages / 2);
		assert_int_equal(pf_file_set_build_id(file, build_id, sizeof(build_id)), 0);
		commit_many(file, n_pages);
	}
	end();
	assert_int_equal(count().classes[PF_CLASS_MAPPED].n_pages, n_files * n_pages);
	print_message("%ju files: %zu KiB\n", (uintmax_t)n_files, memory() / 1024);
}

static void test_memory(void **state)
{
	see_many(1, 100000);
	assert_true(memory() <= 5u << 20);
	teardown(NULL);
	see_many(5000, 20);
	assert_true(memory() <= 6u << 20);
	teardown(NULL);
	see_many(1000, 100);
	assert_true(memory() <= 5u << 20);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_new_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_keys, setup, teardown),
		cmocka_unit_test_setup_teardown(test_page_moved_and_gone, setup, teardown),
		cmocka_unit_test_setup_teardown(test_file_changed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_file_vanished, setup, teardown),
		cmocka_unit_test_setup_teardown(test_empty_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_two_classes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unmapped_part, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nothing_new, setup, teardown),
		cmocka_unit_test_setup_teardown(test_partial, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cancelled, setup, teardown),
		cmocka_unit_test_setup_teardown(test_drop_class, setup, teardown),
		cmocka_unit_test_setup_teardown(test_volatile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_idle_limit, setup, teardown),
		cmocka_unit_test_setup_teardown(test_idle_limit_seen, setup, teardown),
		cmocka_unit_test_setup_teardown(test_idle_limit_files, setup, teardown),
		cmocka_unit_test_setup_teardown(test_forget_told, setup, teardown),
		cmocka_unit_test_setup_teardown(test_ids, setup, teardown),
		cmocka_unit_test_setup_teardown(test_memory, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
