/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages that a device may be writing to. A buffer registered with io_uring is pinned as a DMA
 * target is; and direct reads from a file run into guest pages while these are being fused.
 */
#include "tests/mechanism/mech.h"
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#define N          64u
#define FILE_PAGES 512u
#define MIN_ROUNDS 400u
#define MAX_ROUNDS 100000u
#define MIN_FUSED  500u

static uint8_t *page_of(uint8_t *block, size_t i)
{
	return block + i * PF_PAGE_SIZE;
}

static void pin(struct io_uring *ring, uint8_t *page, size_t n_pages)
{
	struct iovec buffer = {page, n_pages * PF_PAGE_SIZE};

	assert_int_equal(io_uring_queue_init(4, ring, 0), 0);
	assert_int_equal(io_uring_register_buffers(ring, &buffer, 1), 0);
}

/* fuses only when the kernel has let go of the buffer, which it does some time after the call. */
static PfShimResult fuse_when_unpinned(uint8_t *page, PfFrame frame)
{
	double deadline = mech_now() + 10;
	PfShimResult result;

	do {
		result = mech_fuse_page(page, frame);
	} while (result == PF_SHIM_BUSY && mech_now() < deadline);
	return result;
}

static void test_registered_buffer(void **state)
{
	uint8_t *block = mech_block(N), results[8];
	struct io_uring ring;
	PfFrame frame = mech_publish_seed(0);

	assert_int_equal(pf_core_madvise(block, N * PF_PAGE_SIZE, MADV_NOHUGEPAGE), 0);
	for (size_t i = 1; i < 8; i++)
		mech_publish_seed(i);
	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(block, i), i);
	pin(&ring, page_of(block, 3), 1);
	mech_fuse(block, frame, 8, results);
	for (size_t i = 0; i < 8; i++) {
		assert_int_equal(results[i], i == 3 ? PF_SHIM_BUSY : PF_SHIM_DONE);
		assert_true(mech_holds(page_of(block, i), i));
	}
	assert_false(mech_is_file_page(page_of(block, 3)));
	assert_int_equal(mech_fuse_page(page_of(block, 3), (PfFrame){frame.v + 3}), PF_SHIM_BUSY);
	io_uring_unregister_buffers(&ring);
	io_uring_queue_exit(&ring);
	assert_int_equal(
		fuse_when_unpinned(page_of(block, 3), (PfFrame){frame.v + 3}), PF_SHIM_DONE);
	assert_true(mech_is_file_page(page_of(block, 3)));
	assert_true(mech_holds(page_of(block, 3), 3));
	mech_block_free(block, N);
	mech_drop_lost();
}

typedef struct Reader {
	uint8_t *block;
	int fd;
	atomic_bool enough; /* set by the fusing thread: it may end after MIN_ROUNDS */
	atomic_bool ended;
	atomic_uint wrong;
	atomic_uint n_reads;
	atomic_int error;
} Reader;

/* Reads file pages into guest pages, four at a time in flight, and compares every byte. */
static bool read_batch(Reader *reader, struct io_uring *ring, size_t round)
{
	struct io_uring_cqe *cqe;

	for (size_t i = 0; i < 4; i++) {
		size_t target = (round * 4 + i * 16) % N + i;
		size_t source = (round * 7 + i * 13) % FILE_PAGES;

		io_uring_prep_read(io_uring_get_sqe(ring), reader->fd,
			page_of(reader->block, target % N), PF_PAGE_SIZE, source * PF_PAGE_SIZE);
	}
	io_uring_submit(ring);
	for (size_t i = 0; i < 4; i++) {
		if (io_uring_wait_cqe(ring, &cqe) < 0 || cqe->res != (int)PF_PAGE_SIZE) {
			reader->error = EIO;
			return false;
		}
		io_uring_cqe_seen(ring, cqe);
	}
	for (size_t i = 0; i < 4; i++) {
		size_t target = (round * 4 + i * 16) % N + i;

		reader->n_reads++;
		if (!mech_holds(
			    page_of(reader->block, target % N), (round * 7 + i * 13) % FILE_PAGES))
			reader->wrong++;
	}
	return true;
}

static void *read_pages(void *userdata)
{
	Reader *reader = userdata;
	struct io_uring ring;

	if (io_uring_queue_init(8, &ring, 0) == 0) {
		for (size_t round = 0;
			round < MIN_ROUNDS || (!reader->enough && round < MAX_ROUNDS); round++)
			if (!read_batch(reader, &ring, round))
				break;
		io_uring_queue_exit(&ring);
	} else {
		reader->error = ENOSYS;
	}
	reader->ended = true;
	return NULL;
}

/* A file of pages with seeds 0.., opened for direct reads; -1 where the file system cannot. */
static int make_file(void)
{
	char path[] = "test_pinned.XXXXXX";
	uint64_t page[PF_PAGE_SIZE / sizeof(uint64_t)];
	int fd = mkstemp(path), direct;

	assert_true(fd >= 0);
	for (size_t i = 0; i < FILE_PAGES; i++) {
		mech_fill(page, i);
		assert_int_equal(write(fd, page, sizeof(page)), sizeof(page));
	}
	assert_int_equal(fsync(fd), 0);
	direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	unlink(path);
	close(fd);
	return direct;
}

static void test_direct_reads_while_fusing(void **state)
{
	Reader reader = {.block = mech_block(N), .fd = make_file()};
	pthread_t thread;
	unsigned done = 0, refused = 0;
	uint64_t copy[PF_PAGE_SIZE / sizeof(uint64_t)];

	if (reader.fd < 0) {
		print_message("this file system has no direct reads\n");
		skip();
	}
	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(reader.block, i), i);
	assert_int_equal(pthread_create(&thread, NULL, read_pages, &reader), 0);
	for (size_t i = 0; !reader.ended; i++) {
		PfFrame frame;
		PfShimResult result;

		memcpy(copy, page_of(reader.block, i * 5 % N), sizeof(copy));
		frame = mech_publish(copy);
		result = mech_fuse_page(page_of(reader.block, i * 5 % N), frame);
		done += result == PF_SHIM_DONE;
		reader.enough = done >= MIN_FUSED;
		refused += result == PF_SHIM_BUSY || result == PF_SHIM_DIFFERENT;
		if (result == PF_SHIM_DIFFERENT)
			mech_punch(frame);
		mech_drop_lost();
	}
	pthread_join(thread, NULL);
	close(reader.fd);
	print_message("direct reads %u, fused %u, refused %u\n", reader.n_reads, done, refused);
	assert_int_equal(reader.error, 0);
	assert_int_equal(reader.wrong, 0);
	assert_true(reader.n_reads >= MIN_ROUNDS * 4);
	assert_true(done >= MIN_FUSED);
	mech_block_free(reader.block, N);
	mech_drop_lost();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_registered_buffer),
		cmocka_unit_test(test_direct_reads_while_fusing),
	};

	mech_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
