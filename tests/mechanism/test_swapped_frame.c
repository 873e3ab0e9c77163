/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Frames that the kernel has swapped out. Each is mapped in many places, by two processes that each have a core of
 * their own; it takes one slot of swap all the same, every reader gets the right bytes back, and who writes gets a page
 * of his own.
 *
 * Only the frames are charged to the test's memory cgroup, so that reclaiming it takes them and nothing else.
 */
#include "tests/mechanism/host.h"
#include "tests/mechanism/mech.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define N_FRAMES 256u
#define N_PLACES 8u
#define N        (N_FRAMES * N_PLACES)
#define WAIT_S   20
/* Linux before 6.15 hands slots out in batches of 64 for each CPU and counts those in hand. */
#define SLOTS_IN_HAND 128u

/* The second process */

typedef enum Order { ORDER_FUSE, ORDER_CHECK, ORDER_WRITE } Order;

typedef struct Request {
	Order order;
	uint64_t seed, frame;
	int store; /* in the first process */
	size_t page;
} Request;

static int second = -1;  /* socket to it */
static uint8_t *block;   /* of this process */
static PfFrame first;    /* of the frames */
static uint64_t swapped; /* slots in use before anything was swapped out */

static uint8_t *page_of(size_t i)
{
	return block + i * PF_PAGE_SIZE;
}

/* Fills the block, a frame's contents in every place, and fuses all of it. Returns the number of fused pages. */
static unsigned fuse_everywhere(PfFrame frame, uint64_t seed)
{
	uint8_t results[PF_SHIM_RUN_PAGES];
	unsigned n = 0;

	block = mech_block(N);
	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(i), seed + i % N_FRAMES);
	for (size_t i = 0; i < N; i += PF_SHIM_RUN_PAGES) {
		mech_fuse(
			page_of(i), (PfFrame){frame.v + i % N_FRAMES}, PF_SHIM_RUN_PAGES, results);
		for (size_t k = 0; k < PF_SHIM_RUN_PAGES; k++)
			n += results[k] == PF_SHIM_DONE;
	}
	return n;
}

/* Pages that hold the frame's bytes and are the frame. */
static unsigned count_right(uint64_t seed)
{
	unsigned n = 0;

	for (size_t i = 0; i < N; i++)
		n += mech_holds(page_of(i), seed + i % N_FRAMES) && mech_is_file_page(page_of(i));
	return n;
}

static unsigned obey(const Request *request)
{
	static const uint8_t id[16] = "the other's";
	volatile uint8_t *byte;
	char path[64];

	switch (request->order) {
	case ORDER_FUSE:
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", getppid(), request->store);
		if (pf_core_set_store(open(path, O_RDONLY | O_CLOEXEC), id) < 0)
			return 0;
		return fuse_everywhere((PfFrame){request->frame}, request->seed);
	case ORDER_CHECK:
		return count_right(request->seed);
	case ORDER_WRITE:
		byte = page_of(request->page);
		*byte ^= 0xff;
		*byte ^= 0xff;
		return !mech_is_file_page(page_of(request->page)) &&
		       mech_holds(page_of(request->page), request->seed + request->page % N_FRAMES);
	}
	return 0;
}

__attribute__((noreturn)) static void be_second(int socket)
{
	Request request;
	unsigned answer;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	mech_start();
	while (read(socket, &request, sizeof(request)) == sizeof(request)) {
		answer = obey(&request);
		if (write(socket, &answer, sizeof(answer)) != sizeof(answer))
			break;
	}
	_exit(0);
}

/* Before this process has a thread or a core. */
static void start_second(void)
{
	int ends[2];
	pid_t child;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0 ||
		(child = fork()) < 0) {
		perror("the second process");
		exit(1);
	}
	if (child == 0) {
		close(ends[0]);
		be_second(ends[1]);
	}
	close(ends[1]);
	second = ends[0];
}

static unsigned ask_second(Order order, uint64_t seed, size_t page)
{
	Request request = {order, seed, first.v, -1, page};
	unsigned answer;

	request.store = order == ORDER_FUSE ? mech_store_fd() : -1;
	assert_int_equal(write(second, &request, sizeof(request)), sizeof(request));
	assert_int_equal(read(second, &answer, sizeof(answer)), sizeof(answer));
	if (request.store >= 0)
		close(request.store);
	return answer;
}

/* How many of the frames the kernel holds in memory. */
static unsigned n_in_memory(void)
{
	unsigned char resident[N_FRAMES];
	int store = mech_store_fd();
	void *map = mmap(NULL, N_FRAMES * PF_PAGE_SIZE, PROT_READ, MAP_SHARED, store,
		(off_t)(first.v * PF_PAGE_SIZE));
	unsigned n = 0;

	assert_true(map != MAP_FAILED);
	assert_int_equal(mincore(map, N_FRAMES * PF_PAGE_SIZE, resident), 0);
	for (size_t i = 0; i < N_FRAMES; i++)
		n += resident[i] & 1;
	munmap(map, N_FRAMES * PF_PAGE_SIZE);
	close(store);
	return n;
}

static void swap_out(void)
{
	double deadline = mech_now() + WAIT_S;

	while (n_in_memory() > 0 && mech_now() < deadline)
		host_cgroup_reclaim();
	assert_int_equal(n_in_memory(), 0);
}

/* Published in the cgroup, fused by both outside of it, and swapped out. */
static int fuse_and_swap_out(void **state)
{
	static uint64_t seed = 1000;

	if (!host_swap_on() || !host_cgroup_enter()) {
		print_message("no swap or no memory cgroup here: %s\n", host_why());
		return 0;
	}
	seed += N_FRAMES;
	*state = &seed;
	swapped = host_swap_used_pages();
	first = mech_publish_seed(seed);
	for (size_t i = 1; i < N_FRAMES; i++)
		mech_publish_seed(seed + i);
	host_cgroup_leave();
	assert_int_equal(fuse_everywhere(first, seed), N);
	swap_out();
	return 0;
}

static int free_block(void **state)
{
	if (block)
		mech_block_free(block, N);
	block = NULL;
	mech_drop_lost();
	return 0;
}

/* The test is skipped where nothing can be swapped out here. */
static uint64_t seed_of(const uint64_t *seed)
{
	if (!seed) {
		skip();
		return 0;
	}
	return *seed;
}

static void test_one_slot_for_all(void **state)
{
	uint64_t seed, slots;

	seed = seed_of(*state);
	assert_int_equal(ask_second(ORDER_FUSE, seed, 0), N);
	swap_out();
	slots = host_swap_used_pages() - swapped;
	print_message(
		"%u frames, each mapped in %u places: %lu slots\n", N_FRAMES, 2 * N_PLACES, slots);
	assert_true(slots >= N_FRAMES);
	assert_true(slots <= N_FRAMES + SLOTS_IN_HAND);
	/* Reading brings them back for everybody, and nothing is revoked by it. */
	assert_int_equal(count_right(seed), N);
	assert_int_equal(n_in_memory(), N_FRAMES);
	assert_int_equal(ask_second(ORDER_CHECK, seed, 0), N);
	/* The other one writes to what is swapped out: here nothing changes. */
	swap_out();
	assert_int_equal(ask_second(ORDER_WRITE, seed, 77), 1);
	assert_int_equal(ask_second(ORDER_CHECK, seed, 0), N - 1);
	assert_int_equal(count_right(seed), N);
}

static void test_write_is_a_revoke(void **state)
{
	const size_t pages[] = {0, 5, N_FRAMES + 5, N - 1};
	PfShimState before, after;
	PfShimLost lost;
	uint64_t seed;

	seed = seed_of(*state);
	pf_core_state(&before, false);
	for (size_t i = 0; i < 4; i++) {
		volatile uint64_t *word = (uint64_t *)page_of(pages[i]) + 100;

		*word ^= UINT64_MAX;
		assert_false(mech_is_file_page(page_of(pages[i])));
		*word ^= UINT64_MAX;
		assert_true(mech_holds(page_of(pages[i]), seed + pages[i] % N_FRAMES));
		assert_true(mech_wait_lost(page_of(pages[i]), &lost));
		assert_int_equal(lost.loss, PF_SHIM_LOST_REVOKED);
	}
	pf_core_state(&after, false);
	assert_int_equal(after.revoked_pages, before.revoked_pages + 4);
	assert_int_equal(after.written_pages, before.written_pages);
	assert_int_equal(count_right(seed), N - 4);
}

static void test_discard_and_release(void **state)
{
	uint64_t seed;

	seed = seed_of(*state);
	assert_int_equal(pf_core_madvise(page_of(10), 4 * PF_PAGE_SIZE, MADV_DONTNEED), 0);
	for (size_t i = 10; i < 14; i++)
		assert_true(mech_is_zero(page_of(i)));
	/* A discard needs no frame, a release brings the frames back. */
	assert_int_equal(n_in_memory(), 0);
	pf_core_release((PfHva){(uintptr_t)page_of(20)}, 4);
	for (size_t i = 20; i < 24; i++) {
		assert_false(mech_is_file_page(page_of(i)));
		assert_true(mech_holds(page_of(i), seed + i));
	}
	assert_int_equal(count_right(seed), N - 8);
}

static void test_fuse_to_a_swapped_frame(void **state)
{
	uint64_t seed;

	seed = seed_of(*state);
	*page_of(30) ^= 1;
	swap_out();
	assert_int_equal(mech_fuse_page(page_of(30), (PfFrame){first.v + 30}), PF_SHIM_DIFFERENT);
	*page_of(30) ^= 1;
	swap_out();
	assert_int_equal(mech_fuse_page(page_of(30), (PfFrame){first.v + 30}), PF_SHIM_DONE);
	assert_int_equal(count_right(seed), N);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, fuse_and_swap_out, free_block)
	const struct CMUnitTest tests[] = {
		TEST(test_one_slot_for_all),
		TEST(test_write_is_a_revoke),
		TEST(test_discard_and_release),
		TEST(test_fuse_to_a_swapped_frame),
	};
#undef TEST

	start_second();
	host_start();
	mech_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
