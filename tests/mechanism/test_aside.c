/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* QEMU uses a userfaultfd of its own: what it registers, and that nothing of ours is in its way. */
#include "host-service/shim/aside.h"
#include "host-service/shim/kernel.h"
#include "tests/mechanism/mech.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#define N       64u
#define IN_FILE 10u /* the first page that is private in a file VMA */

static uint8_t *page_of(uint8_t *block, size_t i)
{
	return block + i * PF_PAGE_SIZE;
}

/* QEMU's. */
static int open_foreign(void)
{
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd;
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};

	assert_true(device >= 0);
	fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	close(device);
	assert_true(fd >= 0);
	assert_int_equal(ioctl(fd, UFFDIO_API, &api), 0);
	return fd;
}

/* 0 or -errno; what was registered stays so until the descriptor is closed. */
static int try_register(int fd, uint8_t *pages, size_t n)
{
	return pf_uffd_register(fd, pages, n * PF_PAGE_SIZE,
		UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
}

static void expect_busy(uint8_t *pages, size_t n)
{
	int fd = open_foreign();

	assert_int_equal(try_register(fd, pages, n), -EBUSY);
	close(fd);
}

static void expect_free(uint8_t *pages, size_t n)
{
	int fd = open_foreign();

	assert_int_equal(try_register(fd, pages, n), 0);
	close(fd);
}

static bool is_aside(void)
{
	PfShimState state;

	pf_core_state(&state, false);
	return state.aside == 1;
}

/* The first half of the block is fused; returns the first page's frame. */
static PfFrame fuse_half(uint8_t *block)
{
	uint8_t results[N / 2];
	PfFrame frame = {0};

	for (size_t i = 0; i < N; i++) {
		PfFrame published = mech_publish_seed(i);

		frame = i == 0 ? published : frame;
		mech_fill(page_of(block, i), i);
	}
	mech_fuse(block, frame, N / 2, results);
	for (size_t i = 0; i < N / 2; i++)
		assert_int_equal(results[i], PF_SHIM_DONE);
	return frame;
}

/* Three pages are written where no map can be had: private in a file VMA then, registered with ours for good. */
static void leave_in_file(uint8_t *pages)
{
	PfShimState before, after;

	pf_core_state(&before, true);
	mech_fill_maps(0);
	for (size_t i = 0; i < 3; i++)
		*(volatile uint8_t *)page_of(pages, i) ^= 0;
	mech_free_maps();
	pf_core_state(&after, true);
	assert_int_equal(after.ways_out, before.ways_out + 3);
	for (size_t i = 0; i < 3; i++) {
		assert_true(mech_in_file_vma(page_of(pages, i)));
		assert_false(mech_is_file_page(page_of(pages, i)));
	}
}

static void expect_block(uint8_t *block)
{
	for (size_t i = 0; i < N; i++)
		assert_true(mech_holds(page_of(block, i), i));
}

static void free_block(uint8_t *block)
{
	mech_block_free(block, N);
	mech_drop_lost();
}

static void test_step_aside(void **unused)
{
	uint8_t *block = mech_block(N);
	PfFrame frame = fuse_half(block);
	PfShimState state;
	PfShimLost lost;

	expect_busy(block, N);
	pf_core_step_aside();
	pf_core_state(&state, false);
	assert_int_equal(state.aside, 1);
	assert_int_equal(state.fused_pages, 0);
	assert_true(mech_wait_lost(block, &lost));
	assert_int_equal(lost.loss, PF_SHIM_LOST_RELEASED);
	expect_free(block, N);
	expect_block(block);
	assert_int_equal(mech_fuse_page(block, frame), PF_SHIM_ASIDE);
	assert_false(mech_is_file_page(block));
	pf_core_come_back();
	assert_false(is_aside());
	assert_int_equal(mech_fuse_page(block, frame), PF_SHIM_DONE);
	assert_true(mech_is_file_page(block));
	expect_block(block);
	free_block(block);
}

static void test_private_in_file(void **unused)
{
	uint8_t *block = mech_block(N);

	fuse_half(block);
	leave_in_file(page_of(block, IN_FILE));
	pf_core_release((PfHva){(uintptr_t)block}, N);
	/* Nothing is fused, and still it is ours. */
	expect_busy(block, N);
	pf_core_step_aside();
	expect_free(block, N);
	expect_block(block);
	pf_core_come_back();
	mech_fill(page_of(block, IN_FILE), 77);
	assert_true(mech_holds(page_of(block, IN_FILE), 77));
	free_block(block);
}

/* In the middle of the block lies something that cannot be registered, nor unregistered. */
static void test_block_with_a_hole(void **unused)
{
	uint8_t *block = mech_block(N);
	int program = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

	assert_true(program >= 0);
	fuse_half(block);
	leave_in_file(page_of(block, IN_FILE));
	assert_true(pf_core_mmap(page_of(block, N / 4), PF_PAGE_SIZE, PROT_READ,
			    MAP_PRIVATE | MAP_FIXED, program, 0) != MAP_FAILED);
	close(program);
	pf_core_step_aside();
	expect_free(block, N / 4);
	expect_free(page_of(block, N / 4 + 1), N - N / 4 - 1);
	pf_core_come_back();
	free_block(block);
}

static void test_nests(void **unused)
{
	uint8_t *block = mech_block(N);
	PfFrame frame = fuse_half(block);
	int fd;

	pf_core_step_aside();
	fd = open_foreign();
	assert_int_equal(try_register(fd, block, N), 0);
	/* The second one does not take away what QEMU has registered with the first. */
	pf_core_step_aside();
	expect_busy(block, N);
	pf_core_come_back();
	assert_true(is_aside());
	assert_int_equal(mech_fuse_page(block, frame), PF_SHIM_ASIDE);
	close(fd);
	pf_core_come_back();
	/* One too many changes nothing. */
	pf_core_come_back();
	assert_int_equal(mech_fuse_page(block, frame), PF_SHIM_DONE);
	pf_core_step_aside();
	assert_int_equal(mech_fuse_page(block, frame), PF_SHIM_ASIDE);
	pf_core_come_back();
	free_block(block);
}

static void *write_pages(void *argument)
{
	uint8_t *block = argument;

	mech_fill(page_of(block, 3), 1003);
	mech_fill(page_of(block, IN_FILE), 1010);
	return NULL;
}

static void answer_fault(int fd, const uint8_t *expected)
{
	struct pollfd event = {.fd = fd, .events = POLLIN};
	struct uffd_msg message;

	assert_int_equal(poll(&event, 1, 10000), 1);
	assert_int_equal(read(fd, &message, sizeof message), sizeof message);
	assert_int_equal(message.event, UFFD_EVENT_PAGEFAULT);
	assert_int_equal(message.arg.pagefault.address & ~(PF_PAGE_SIZE - 1), (uintptr_t)expected);
	assert_int_equal(pf_uffd_protect(fd, (void *)expected, PF_PAGE_SIZE, 0), 0);
}

/* As a background snapshot does it: every first write is QEMU's to see, and nobody else lifts its protection. */
static void test_snapshot(void **unused)
{
	uint8_t *block = mech_block(N);
	pthread_t writer;
	int fd, r;
	PfShimState state;

	fuse_half(block);
	leave_in_file(page_of(block, IN_FILE));
	pf_core_step_aside();
	fd = open_foreign();
	assert_int_equal(pf_uffd_register(fd, block, N * PF_PAGE_SIZE, UFFDIO_REGISTER_MODE_WP), 0);
	assert_int_equal(
		pf_uffd_protect(fd, block, N * PF_PAGE_SIZE, UFFDIO_WRITEPROTECT_MODE_WP), 0);
	/* A discard that gets no map would have to lift it: it is refused. */
	mech_fill_maps(0);
	pf_core_state(&state, true);
	r = pf_core_madvise(page_of(block, IN_FILE + 1), PF_PAGE_SIZE, MADV_DONTNEED);
	assert_int_equal(r, -1);
	assert_int_equal(errno, EIO);
	mech_free_maps();
	pf_core_state(&state, true);
	assert_int_equal(pthread_create(&writer, NULL, write_pages, block), 0);
	answer_fault(fd, page_of(block, 3));
	answer_fault(fd, page_of(block, IN_FILE));
	pthread_join(writer, NULL);
	assert_true(mech_holds(page_of(block, 3), 1003));
	assert_true(mech_holds(page_of(block, IN_FILE), 1010));
	close(fd);
	pf_core_come_back();
	free_block(block);
}

typedef struct Fuser {
	uint8_t *block;
	PfFrame frame;
	atomic_bool stop;
	unsigned done, aside;
} Fuser;

static void *keep_fusing(void *argument)
{
	Fuser *fuser = argument;
	uint8_t results[N / 2];

	while (!atomic_load(&fuser->stop)) {
		mech_fuse(fuser->block, fuser->frame, N / 2, results);
		for (size_t i = 0; i < N / 2; i++) {
			fuser->done += results[i] == PF_SHIM_DONE;
			fuser->aside += results[i] == PF_SHIM_ASIDE;
		}
	}
	return NULL;
}

static void test_while_fusing(void **unused)
{
	uint8_t *block = mech_block(N);
	Fuser fuser = {.block = block, .frame = fuse_half(block)};
	double end = mech_now() + 2;
	PfShimLost lost[256];
	bool overflow;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, keep_fusing, &fuser), 0);
	for (unsigned round = 0; mech_now() < end; round++) {
		PfShimState state;

		/* Something to revoke beside it. */
		*(volatile uint8_t *)page_of(block, round % N) ^= 0;
		pf_core_step_aside();
		pf_core_state(&state, false);
		assert_int_equal(state.fused_pages, 0);
		expect_free(block, N);
		pf_core_come_back();
		pf_core_take_lost(lost, 256, &overflow);
		/* Its turn: there must be something to step aside from. */
		while (pf_core_state(&state, false), state.fused_pages == 0)
			pf_core_take_lost(lost, 256, &overflow);
	}
	atomic_store(&fuser.stop, true);
	pthread_join(thread, NULL);
	assert_true(fuser.done > N && fuser.aside > 0);
	expect_block(block);
	mech_block_free(block, N);
	while (pf_core_take_lost(lost, 256, &overflow) > 0)
		;
}

static void test_closed(void **unused)
{
	struct pollfd event = {.fd = pf_core_event_fd(), .events = POLLIN};
	uint64_t count;
	int first, second;

	assert_false(pf_aside_look());
	pf_core_step_aside();
	first = open_foreign();
	pf_aside_remember(first);
	pf_core_step_aside();
	second = open_foreign();
	pf_aside_remember(second);
	assert_true(pf_aside_look());
	assert_true(is_aside());
	close(first);
	assert_true(pf_aside_look());
	assert_true(is_aside());
	/* The number is taken by another one, which QEMU did not make. */
	close(second);
	assert_int_equal(open_foreign(), first);
	assert_int_equal(open_foreign(), second);
	assert_true(read(pf_core_event_fd(), &count, sizeof count) > 0);
	assert_false(pf_aside_look());
	assert_false(is_aside());
	assert_int_equal(poll(&event, 1, 0), 1);
	close(first);
	close(second);
}

/* Closed and made again before anybody has looked: each step has its way back. */
static void test_closed_and_made_again(void **unused)
{
	int fd = -1;

	for (int i = 0; i < 100; i++) {
		pf_core_step_aside();
		fd = open_foreign();
		pf_aside_remember(fd);
		assert_true(is_aside());
		if (i < 99)
			close(fd);
	}
	assert_true(pf_aside_look());
	close(fd);
	assert_false(pf_aside_look());
	assert_false(is_aside());
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_step_aside),
		cmocka_unit_test(test_private_in_file),
		cmocka_unit_test(test_block_with_a_hole),
		cmocka_unit_test(test_nests),
		cmocka_unit_test(test_snapshot),
		cmocka_unit_test(test_while_fusing),
		cmocka_unit_test(test_closed),
		cmocka_unit_test(test_closed_and_made_again),
	};

	mech_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
