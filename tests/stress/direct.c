/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * DMA: direct reads (O_DIRECT) from a file into guest pages, by Linux AIO in one thread and by io_uring in another. The
 * kernel pins such a page while the device writes to it, and a fuse that took it away then would lose what was read.
 * Each page of the file is known, so every byte is checked when a read has ended. The pages are hinted all the time,
 * also while they are being read to; buffers registered with io_uring stay pinned, and hinted, for a while.
 */
#include "tests/stress/vmm.h"
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/aio_abi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BATCH          6u
#define REGISTER_PAGES 16u

typedef struct Read {
	unsigned page, source; /* of RAM, of the file */
	int64_t result;
} Read;

static int file = -1;

/* Takes pages and chooses what is read there. */
static unsigned choose(StressRandom *random, Read *reads)
{
	unsigned n = 0;

	for (unsigned tries = 0; tries < 2 * BATCH && n < BATCH; tries++) {
		unsigned i = STRESS_DIRECT + stress_below(random, STRESS_DIRECT_PAGES);

		if (!page_take(i))
			continue;
		page_check(i);
		/* What is there now is hinted once more: it may be fused in mid-air. */
		pages[i].dirty = true;
		reads[n++] = (Read){i, stress_below(random, STRESS_DIRECT_SALTS), -EIO};
	}
	return n;
}

/* The read has ended. */
static void settle(const Read *read)
{
	unsigned i = read->page, salt = STRESS_DIRECT_SALT + read->source;

	if (read->result == (int64_t)PF_PAGE_SIZE) {
		atomic_fetch_add(&me->direct_reads, 1);
		pages[i].salt = (uint16_t)salt;
		pages[i].state = 0;
		page_check(i);
		pages[i].dirty = true;
	} else {
		/* Without memory or maps the kernel may refuse. What is there now nobody knows. */
		atomic_fetch_add(&me->direct_failed, 1);
		page_fill(i, salt, 0);
	}
	page_give(i);
}

static void read_by_aio(aio_context_t context, Read *reads, unsigned n)
{
	struct iocb blocks[BATCH], *list[BATCH];
	struct io_event events[BATCH];
	long submitted = 0, ended = 0;

	for (unsigned k = 0; k < n; k++) {
		blocks[k] = (struct iocb){.aio_data = k,
			.aio_lio_opcode = IOCB_CMD_PREAD,
			.aio_fildes = (uint32_t)file,
			.aio_buf = (uintptr_t)page_address(reads[k].page),
			.aio_nbytes = PF_PAGE_SIZE,
			.aio_offset = (int64_t)(reads[k].source * PF_PAGE_SIZE)};
		list[k] = &blocks[k];
	}
	submitted = syscall(SYS_io_submit, context, (long)n, list);
	while (ended < submitted) {
		long got = syscall(SYS_io_getevents, context, 1L, submitted - ended, events, NULL);

		for (long k = 0; k < got; k++)
			reads[events[k].data].result = events[k].res;
		ended += got > 0 ? got : 0;
	}
	for (unsigned k = 0; k < n; k++)
		settle(&reads[k]);
}

static void aio(StressThread *thread, StressRandom *random)
{
	aio_context_t context = 0;

	if (syscall(SYS_io_setup, BATCH, &context) < 0) {
		perror("io_setup");
		exit(1);
	}
	while (!stopping) {
		Read reads[BATCH];
		unsigned n = choose(random, reads);

		read_by_aio(context, reads, n);
		beat(thread);
		sleep_us(stress_below(random, 120000));
	}
	syscall(SYS_io_destroy, context);
}

/* fixed: the first page of the registered buffer, or NULL. */
static void read_by_uring(struct io_uring *ring, Read *reads, unsigned n, const uint8_t *fixed)
{
	struct io_uring_cqe *cqe;
	unsigned submitted = 0;

	for (unsigned k = 0; k < n; k++) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
		uint8_t *page = page_address(reads[k].page);
		uint64_t offset = reads[k].source * PF_PAGE_SIZE;

		if (fixed && page >= fixed && page < fixed + REGISTER_PAGES * PF_PAGE_SIZE)
			io_uring_prep_read_fixed(sqe, file, page, PF_PAGE_SIZE, offset, 0);
		else
			io_uring_prep_read(sqe, file, page, PF_PAGE_SIZE, offset);
		sqe->user_data = k;
	}
	/* What the kernel does not take now stays in the queue. */
	while (submitted < n) {
		int taken = io_uring_submit(ring);

		if (taken > 0)
			submitted += (unsigned)taken;
		else
			sleep_us(500);
	}
	for (unsigned ended = 0; ended < n;) {
		if (io_uring_wait_cqe(ring, &cqe) < 0)
			continue;
		reads[cqe->user_data].result = cqe->res;
		io_uring_cqe_seen(ring, cqe);
		ended++;
	}
	for (unsigned k = 0; k < n; k++)
		settle(&reads[k]);
}

static void set_pinned(unsigned first, bool pinned)
{
	for (unsigned i = first; i < first + REGISTER_PAGES; i++) {
		page_take_wait(i);
		pages[i].pinned = pinned;
		page_give(i);
	}
}

/* Registers other pages, or none. false: none are. */
static bool change_buffer(
	struct io_uring *ring, unsigned *first, bool registered, StressRandom *random)
{
	struct iovec buffer = {.iov_len = REGISTER_PAGES * PF_PAGE_SIZE};

	if (registered) {
		io_uring_unregister_buffers(ring);
		set_pinned(*first, false);
		return false;
	}
	*first = STRESS_DIRECT + stress_below(random, STRESS_DIRECT_PAGES - REGISTER_PAGES);
	buffer.iov_base = page_address(*first);
	set_pinned(*first, true);
	if (io_uring_register_buffers(ring, &buffer, 1) == 0) {
		atomic_fetch_add(&me->registered, 1);
		return true;
	}
	set_pinned(*first, false);
	return false;
}

/* What is pinned is hinted again and again, and true. */
static void hint_registered(unsigned first)
{
	for (unsigned i = first; i < first + REGISTER_PAGES; i++)
		pages[i].dirty = true;
}

static void uring(StressThread *thread, StressRandom *random)
{
	unsigned first = STRESS_DIRECT, rounds = 0;
	struct io_uring ring;
	bool registered = false;

	if (io_uring_queue_init(BATCH, &ring, 0) < 0) {
		fprintf(stderr, "VM %u: no io_uring\n", vm_index);
		exit(1);
	}
	while (!stopping) {
		Read reads[BATCH];
		unsigned n = choose(random, reads);

		read_by_uring(&ring, reads, n, registered ? page_address(first) : NULL);
		if (registered)
			hint_registered(first);
		if (rounds-- == 0) {
			registered = change_buffer(&ring, &first, registered, random);
			rounds = 10 + stress_below(random, 40);
		}
		beat(thread);
		sleep_us(stress_below(random, 120000));
	}
	io_uring_queue_exit(&ring);
}

void direct_start(const char *path)
{
	file = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (file < 0) {
		perror(path);
		exit(1);
	}
	thread_start("aio", aio);
	thread_start("uring", uring);
}
