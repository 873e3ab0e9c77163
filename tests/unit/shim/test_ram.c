/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The bookkeeping of blocks and page states: no userfaultfd, no root. */
#include "host-service/shim/ram.h"
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <errno.h>
#include <sys/mman.h>

#define N 64

static char *map_block(void)
{
	/* A page on each side keeps neighbours from merging with it. */
	char *all =
		mmap(NULL, (N + 2) * PF_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *block = all + PF_PAGE_SIZE;

	assert_true(all != MAP_FAILED);
	assert_true(
		mmap(block, N * PF_PAGE_SIZE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == block);
	return block;
}

static void unmap_block(char *block)
{
	/* What maps a frame is dealt with before. */
	for (size_t i = 0; i < N; i++) {
		PfRamBlock *part = pf_ram_find(block + i * PF_PAGE_SIZE, PF_PAGE_SIZE);

		if (part)
			pf_ram_set(part, pf_ram_page(part, block + i * PF_PAGE_SIZE),
				PF_PAGE_PRIVATE, (PfFrame){0});
	}
	pf_ram_remove(block, N * PF_PAGE_SIZE);
	munmap(block - PF_PAGE_SIZE, (N + 2) * PF_PAGE_SIZE);
}

static void fuse(PfRamBlock *block, size_t page, uint64_t frame)
{
	pf_ram_set(block, page, PF_PAGE_FUSED, (PfFrame){frame});
}

static void test_add(void **unused)
{
	char *block = map_block();
	char *shared = mmap(
		NULL, N * PF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_int_equal(pf_ram_add(block + 1, PF_PAGE_SIZE), -EINVAL);
	assert_int_equal(pf_ram_add(block, 0), -EINVAL);
	assert_int_equal(pf_ram_add(block, N * PF_PAGE_SIZE + 1), -EINVAL);
	assert_int_equal(pf_ram_add(shared, N * PF_PAGE_SIZE), -EINVAL);
	assert_int_equal(pf_ram_add(block - PF_PAGE_SIZE, PF_PAGE_SIZE), -EINVAL); /* PROT_NONE */
	assert_int_equal(pf_ram_add(block, N * PF_PAGE_SIZE), 0);
	assert_int_equal(pf_ram_add(block + PF_PAGE_SIZE, PF_PAGE_SIZE), -EEXIST);
	assert_int_equal(pf_ram_n_blocks(), 1);
	munmap(shared, N * PF_PAGE_SIZE);
	unmap_block(block);
	assert_int_equal(pf_ram_n_blocks(), 0);
}

static void test_flags(void **unused)
{
	char *start = map_block();
	PfRamBlock *block;

	assert_int_equal(madvise(start, N * PF_PAGE_SIZE, MADV_DONTFORK), 0);
	assert_int_equal(pf_ram_add(start, N * PF_PAGE_SIZE), 0);
	block = pf_ram_find(start, PF_PAGE_SIZE);
	assert_true(block->flags.dont_fork);
	assert_true(block->flags.no_reserve);
	assert_false(block->flags.dont_dump);
	pf_ram_advised(start, N * PF_PAGE_SIZE, MADV_DONTDUMP);
	assert_int_equal(pf_ram_n_blocks(), 1);
	assert_true(pf_ram_find(start, PF_PAGE_SIZE)->flags.dont_dump);
	/* Advice for a part splits: each block has one set of flags. */
	pf_ram_advised(start + 8 * PF_PAGE_SIZE, 8 * PF_PAGE_SIZE, MADV_NOHUGEPAGE);
	assert_int_equal(pf_ram_n_blocks(), 3);
	assert_false(pf_ram_find(start, PF_PAGE_SIZE)->flags.no_huge);
	assert_true(pf_ram_find(start + 8 * PF_PAGE_SIZE, PF_PAGE_SIZE)->flags.no_huge);
	assert_null(pf_ram_find(start + 7 * PF_PAGE_SIZE, 2 * PF_PAGE_SIZE));
	/* What says nothing of flags changes nothing. */
	pf_ram_advised(start + PF_PAGE_SIZE, PF_PAGE_SIZE, MADV_WILLNEED);
	assert_int_equal(pf_ram_n_blocks(), 3);
	unmap_block(start);
}

static void test_runs(void **unused)
{
	char *start = map_block();
	PfRamBlock *block;

	assert_int_equal(pf_ram_add(start, N * PF_PAGE_SIZE), 0);
	block = pf_ram_find(start, N * PF_PAGE_SIZE);
	fuse(block, 4, 100);
	fuse(block, 6, 102);
	assert_int_equal(pf_ram_n_runs(), 2);
	fuse(block, 5, 101);
	assert_int_equal(pf_ram_n_runs(), 1);
	assert_int_equal(pf_ram_n_fused(), 3);
	assert_int_equal(pf_ram_frame(block, 5).v, 101);
	fuse(block, 7, 200); /* beside it, but another frame */
	assert_int_equal(pf_ram_n_runs(), 2);
	pf_ram_set(block, 5, PF_PAGE_BROKEN, (PfFrame){101});
	assert_int_equal(pf_ram_n_fused(), 4);
	assert_int_equal(pf_ram_n_runs(), 4);
	assert_int_equal(pf_ram_frame(block, 5).v, 101);
	pf_ram_set(block, 5, PF_PAGE_PRIVATE_IN_FILE, (PfFrame){0});
	assert_int_equal(pf_ram_n_runs(), 3);
	assert_int_equal(pf_ram_state(block, 5), PF_PAGE_PRIVATE_IN_FILE);
	assert_int_equal(pf_ram_n_fused(), 3);
	unmap_block(start);
	assert_int_equal(pf_ram_n_fused(), 0);
	assert_int_equal(pf_ram_n_runs(), 0);
}

/* Pages that go away in the middle of a block stay gone, and a run that is cut counts as two. */
static void test_remove_in_the_middle(void **unused)
{
	char *start = map_block();
	PfRamBlock *block;

	assert_int_equal(pf_ram_add(start, N * PF_PAGE_SIZE), 0);
	block = pf_ram_find(start, PF_PAGE_SIZE);
	for (size_t i = 0; i < N; i++)
		fuse(block, i, 500 + i);
	assert_int_equal(pf_ram_n_runs(), 1);
	pf_ram_remove(start + 10 * PF_PAGE_SIZE, 4 * PF_PAGE_SIZE);
	assert_int_equal(pf_ram_n_blocks(), 1);
	assert_int_equal(pf_ram_n_fused(), N - 4);
	assert_int_equal(pf_ram_n_runs(), 2);
	for (size_t i = 0; i < N; i++)
		assert_int_equal(
			pf_ram_state(block, i), i >= 10 && i < 14 ? PF_PAGE_GONE : PF_PAGE_FUSED);
	assert_int_equal(pf_ram_frame(block, 9).v, 509);
	assert_int_equal(pf_ram_frame(block, 14).v, 514);
	unmap_block(start);
	assert_null(pf_ram_next(NULL));
	assert_int_equal(pf_ram_n_fused(), 0);
}

static void test_touches(void **unused)
{
	char *start = map_block();

	assert_int_equal(pf_ram_add(start, N * PF_PAGE_SIZE), 0);
	assert_true(pf_ram_touches(start, 1));
	assert_true(pf_ram_touches(start + N * PF_PAGE_SIZE - 1, 1));
	assert_true(pf_ram_touches(start - 1, 2));
	assert_false(pf_ram_touches(start, 0));
	assert_false(pf_ram_touches(NULL, 4096));
	unmap_block(start);
}

/* More blocks than there is room for: refused, and what is there stays. */
static void test_full(void **unused)
{
	char *start = map_block();
	char *many = mmap(NULL, 2 * PF_RAM_MAX_BLOCKS * PF_PAGE_SIZE, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int error = 0;

	assert_true(many != MAP_FAILED);
	for (size_t i = 0; i <= PF_RAM_MAX_BLOCKS && error == 0; i++)
		error = pf_ram_add(many + 2 * i * PF_PAGE_SIZE, PF_PAGE_SIZE);
	assert_int_equal(error, -ENOSPC);
	assert_int_equal(pf_ram_n_blocks(), PF_RAM_MAX_BLOCKS);
	assert_int_equal(pf_ram_add(start, N * PF_PAGE_SIZE), -ENOSPC);
	pf_ram_remove(many, 2 * PF_RAM_MAX_BLOCKS * PF_PAGE_SIZE);
	assert_int_equal(pf_ram_n_blocks(), 0);
	/* Advice for a part would need another block: the flags stay, and so does every page's state. */
	assert_int_equal(pf_ram_add(start, N * PF_PAGE_SIZE), 0);
	fuse(pf_ram_find(start, PF_PAGE_SIZE), 3, 9);
	for (size_t i = 1; i < PF_RAM_MAX_BLOCKS; i++)
		assert_int_equal(pf_ram_add(many + 2 * i * PF_PAGE_SIZE, PF_PAGE_SIZE), 0);
	pf_ram_advised(start + PF_PAGE_SIZE, PF_PAGE_SIZE, MADV_DONTDUMP);
	assert_non_null(pf_ram_find(start, N * PF_PAGE_SIZE));
	assert_false(pf_ram_find(start, PF_PAGE_SIZE)->flags.dont_dump);
	assert_int_equal(pf_ram_n_fused(), 1);
	pf_ram_remove(many, 2 * PF_RAM_MAX_BLOCKS * PF_PAGE_SIZE);
	munmap(many, 2 * PF_RAM_MAX_BLOCKS * PF_PAGE_SIZE);
	unmap_block(start);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_add),
		cmocka_unit_test(test_flags),
		cmocka_unit_test(test_runs),
		cmocka_unit_test(test_remove_in_the_middle),
		cmocka_unit_test(test_touches),
		cmocka_unit_test(test_full),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
