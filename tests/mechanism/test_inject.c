/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Faults of the kernel: each call that a scenario makes (fuse, write, discard, release, fuse again, write, unmap; or
 * fuse, step aside, come back) is made to fail in turn, once and three times in a row, in a process of its own. Whatever
 * fails, every byte must be right, nobody may hang and no signal may come. A call that replaces a mapping is also made
 * to fail as Linux before 6.12 does, after it has taken away what was there.
 *
 * The calls are wrapped by the linker (--wrap), so this is the code that runs in QEMU.
 */
#include "host-service/shim/kernel.h"
#include "tests/mechanism/mech.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define N              16u
#define N_FUSED        8u
#define DIFFERENT      3u /* the page whose frame has other bytes */
#define HANG_SECONDS   20
#define EXIT_UNTOUCHED 100 /* the scenario makes fewer calls than that: there is no such fault */

enum { CALL_IOCTL, CALL_MAPPING };

typedef struct Fault {
	int call;  /* CALL_* */
	int first; /* the number of the call that fails first */
	int times; /* and how many after it */
	int error;
	unsigned long request; /* not 0: only this ioctl */
	bool destroys; /* what was mapped at the target of MAP_FIXED is gone when it fails */
} Fault;

static Fault fault;
static atomic_bool armed;
static atomic_int n_calls;
static atomic_bool
	populate_fails; /* MADV_POPULATE_WRITE does, as over a frame with a memory error */
static atomic_llong broken_offset = -1; /* of the store: reading there fails with EIO */

static bool fails(int call)
{
	int number;

	if (!atomic_load(&armed) || call != fault.call)
		return false;
	number = atomic_fetch_add(&n_calls, 1);
	return number >= fault.first && number < fault.first + fault.times;
}

int __real_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
	bool ours = request == UFFDIO_REGISTER || request == UFFDIO_UNREGISTER ||
		    request == UFFDIO_MOVE || request == UFFDIO_COPY ||
		    request == UFFDIO_WRITEPROTECT || request == UFFDIO_ZEROPAGE ||
		    request == PAGEMAP_SCAN;

	if (fault.request && request != fault.request)
		ours = false;
	if (!ours || !fails(CALL_IOCTL))
		return __real_ioctl(fd, request, argument);
	if (request == UFFDIO_MOVE)
		((struct uffdio_move *)argument)->move = -fault.error;
	else if (request == UFFDIO_COPY)
		((struct uffdio_copy *)argument)->copy = -fault.error;
	errno = fault.error;
	return -1;
}

long __real_syscall(long number, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	bool ours = number == SYS_mmap || number == SYS_mremap || number == SYS_madvise;

	if (number == SYS_madvise && c == MADV_POPULATE_WRITE && atomic_load(&populate_fails)) {
		errno = EFAULT;
		return -1;
	}
	if (!ours || !fails(CALL_MAPPING))
		return __real_syscall(number, a, b, c, d, e, f);
	if (fault.destroys && number == SYS_mmap && (d & MAP_FIXED))
		munmap((void *)a, (size_t)b);
	if (fault.destroys && number == SYS_mremap && (d & MREMAP_FIXED))
		munmap((void *)e, (size_t)c);
	errno = fault.error;
	return -1;
}

ssize_t __real_pread64(int fd, void *buffer, size_t size, off_t offset);
ssize_t __wrap_pread64(int fd, void *buffer, size_t size, off_t offset);
ssize_t __wrap_pread64(int fd, void *buffer, size_t size, off_t offset)
{
	if (offset == atomic_load(&broken_offset)) {
		errno = EIO;
		return -1;
	}
	return __real_pread64(fd, buffer, size, offset);
}

/* The scenario, in a child. It ends with the number of the step that went wrong, or 0. */

static uint8_t *block;

static uint8_t *page_of(size_t i)
{
	return block + i * PF_PAGE_SIZE;
}

static void expect(bool right, int step)
{
	if (!right)
		_exit(step);
}

static void expect_seeds(size_t from, size_t to, uint64_t offset, int step)
{
	for (size_t i = from; i < to; i++)
		expect(mech_holds(page_of(i), i + offset), step);
}

static PfFrame publish_frames(void)
{
	PfFrame first = mech_publish_seed(0);

	for (size_t i = 1; i < N_FUSED; i++)
		mech_publish_seed(i == DIFFERENT ? 99 : i);
	return first;
}

static PfFrame prepare(void)
{
	mech_start();
	block = mech_block(N);
	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(i), i);
	return publish_frames();
}

/* Frees, as a service may, the frames that are not mapped by the shim's own account: a page that maps one reads zeros. */
static void free_lost_frames(void)
{
	PfShimLost lost[64];
	bool overflow;
	size_t n = pf_core_take_lost(lost, 64, &overflow);

	for (size_t i = 0; i < n; i++)
		for (uint32_t k = 0; k < lost[i].n_pages; k++)
			mech_punch((PfFrame){lost[i].frame + k});
}

static void fuse_all(PfFrame first)
{
	uint8_t results[N_FUSED];

	mech_fuse(page_of(0), first, N_FUSED, results);
	for (size_t i = 0; i < N_FUSED; i++)
		if (results[i] != PF_SHIM_DONE)
			mech_punch((PfFrame){first.v + i});
	free_lost_frames();
}

/* Whether another userfaultfd can have all of the block. */
static bool foreign_registers(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd = pf_uffd_new(device, O_CLOEXEC | O_NONBLOCK);
	bool good =
		ioctl(fd, UFFDIO_API, &api) == 0 &&
		pf_uffd_register(fd, block, N * PF_PAGE_SIZE, UFFDIO_REGISTER_MODE_MISSING) == 0;

	close(fd);
	close(device);
	return good;
}

static void expect_discarded(size_t from, size_t n, int step)
{
	/* A discard may fail, then nothing is promised; when it says that it did, the pages are zeros. */
	if (pf_core_madvise(page_of(from), n * PF_PAGE_SIZE, MADV_DONTNEED) != 0)
		return;
	for (size_t i = from; i < from + n; i++)
		expect(mech_is_zero(page_of(i)), step);
}

static void scenario(void)
{
	PfFrame first = prepare();

	alarm(HANG_SECONDS);
	atomic_store(&armed, true);
	fuse_all(first);
	expect_seeds(0, N, 0, 1);
	*(volatile uint8_t *)page_of(1) ^= 0xff;
	*(volatile uint8_t *)page_of(1) ^= 0xff;
	free_lost_frames();
	expect_seeds(0, N, 0, 2);
	mech_fill(page_of(6), 600);
	expect_discarded(4, 3, 3);
	free_lost_frames();
	pf_core_release((PfHva){(uintptr_t)block}, N);
	free_lost_frames();
	expect_seeds(0, 4, 0, 4);
	expect_seeds(7, N, 0, 5);
	atomic_store(&armed, false);
	for (size_t i = 4; i < 7; i++)
		mech_fill(page_of(i), i);
	fuse_all(publish_frames());
	expect_seeds(0, N, 0, 6);
	expect_discarded(0, N_FUSED, 7);
	pf_core_madvise(block, N * PF_PAGE_SIZE, MADV_POPULATE_WRITE);
	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(i), 700 + i);
	free_lost_frames();
	expect_seeds(0, N, 700, 8);
	expect(pf_core_munmap(block, N * PF_PAGE_SIZE) == 0, 9);
	_exit(atomic_load(&n_calls) > fault.first ? 0 : EXIT_UNTOUCHED);
}

/* Fuses as a service does that leaves huge pages alone; what became of each page. */
static void fuse_small(PfFrame first, uint8_t results[N_FUSED])
{
	PfShimRun run = {.hva = (uintptr_t)block, .frame = first.v, .n_pages = N_FUSED};

	pf_core_fuse(&run, results);
	for (size_t i = 0; i < N_FUSED; i++)
		if (results[i] != PF_SHIM_DONE)
			mech_punch((PfFrame){first.v + i});
	free_lost_frames();
}

static void expect_all(const uint8_t results[N_FUSED], PfShimResult result, int step)
{
	for (size_t i = 0; i < N_FUSED; i++)
		expect(results[i] == result, step);
}

/* QEMU makes a userfaultfd, and closes it. */
static void step_aside(void)
{
	PfFrame first = prepare();
	uint8_t results[N_FUSED];
	PfShimState state;

	alarm(HANG_SECONDS);
	atomic_store(&armed, true);
	fuse_small(first, results);
	*(volatile uint8_t *)page_of(1) ^= 0;
	pf_core_step_aside();
	free_lost_frames();
	expect_seeds(0, N, 0, 21);
	pf_core_state(&state, false);
	/* What cannot be parted from its frame has stopped the core, and says so. */
	expect(state.aside == 1 && (state.fused_pages == 0 || state.stopped), 22);
	fuse_small(publish_frames(), results);
	pf_core_state(&state, false);
	expect_all(results, state.stopped ? PF_SHIM_STOPPED : PF_SHIM_ASIDE, 23);
	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(i), 800 + i);
	pf_core_come_back();
	atomic_store(&armed, false);
	expect_seeds(0, N, 800, 24);
	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(i), i);
	fuse_small(publish_frames(), results);
	expect_seeds(0, N, 0, 25);
	/* Once nothing fails any more QEMU gets its RAM, whatever was left behind before. */
	pf_core_step_aside();
	free_lost_frames();
	expect_seeds(0, N, 0, 26);
	expect(foreign_registers(), 27);
	expect(pf_core_munmap(block, N * PF_PAGE_SIZE) == 0, 28);
	_exit(atomic_load(&n_calls) > fault.first ? 0 : EXIT_UNTOUCHED);
}

static int run(void (*what)(void))
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		what();
		_exit(0);
	}
	assert_true(child > 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	if (WIFSIGNALED(status))
		print_error(
			"call kind %d number %d, %d times, errno %d, destroys %d: signal %d%s\n",
			fault.call, fault.first, fault.times, fault.error, fault.destroys,
			WTERMSIG(status), WTERMSIG(status) == SIGALRM ? " (it hung)" : "");
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == MECH_SKIP)
		exit(MECH_SKIP);
	if (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != EXIT_UNTOUCHED)
		print_error(
			"call kind %d number %d, %d times, errno %d, destroys %d: wrong bytes at step %d\n",
			fault.call, fault.first, fault.times, fault.error, fault.destroys,
			WEXITSTATUS(status));
	return WEXITSTATUS(status);
}

/* Every call of a kind fails in turn, until the scenario has no such call. */
static void fail_each(void (*what)(void), int call, int error, bool destroys, int at_least)
{
	for (int times = 1; times <= 3; times += 2) {
		int n = 0, status;

		for (;; n++) {
			fault = (Fault){call, n, times, error, 0, destroys};
			status = run(what);
			if (status == EXIT_UNTOUCHED)
				break;
			assert_int_equal(status, 0);
		}
		assert_true(n >= at_least);
	}
}

static void test_ioctls(void **unused)
{
	fail_each(scenario, CALL_IOCTL, ENOMEM, false, 20);
	fail_each(scenario, CALL_IOCTL, EAGAIN, false, 20);
	fail_each(scenario, CALL_IOCTL, EBUSY, false, 20);
}

static void test_mappings(void **unused)
{
	fail_each(scenario, CALL_MAPPING, ENOMEM, false, 20);
}

static void test_mappings_that_were_taken_away(void **unused)
{
	fail_each(scenario, CALL_MAPPING, ENOMEM, true, 20);
}

static void test_step_aside(void **unused)
{
	fail_each(step_aside, CALL_IOCTL, ENOMEM, false, 20);
	fail_each(step_aside, CALL_IOCTL, EAGAIN, false, 20);
	fail_each(step_aside, CALL_IOCTL, EBUSY, false, 20);
	fail_each(step_aside, CALL_MAPPING, ENOMEM, false, 10);
	fail_each(step_aside, CALL_MAPPING, ENOMEM, true, 10);
}

/* The kernel asks to try again, and again: the page is busy, and its guest goes on. */
static void never_moved(void)
{
	PfFrame first = prepare();
	uint8_t results[N_FUSED];
	PfShimState state;

	alarm(HANG_SECONDS);
	atomic_store(&armed, true);
	fuse_small(first, results);
	atomic_store(&armed, false);
	expect_all(results, PF_SHIM_BUSY, 31);
	expect_seeds(0, N, 0, 32);
	pf_core_state(&state, false);
	expect(state.busy_pages == N_FUSED && state.stopped == 0, 33);
	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(i), 900 + i);
	expect_seeds(0, N, 900, 34);
}

/* Nor can any registration be taken off: QEMU is refused then, and does not hang either. */
static void never_unregistered(void)
{
	uint8_t results[N_FUSED];

	fuse_small(prepare(), results);
	alarm(HANG_SECONDS);
	atomic_store(&armed, true);
	pf_core_step_aside();
	atomic_store(&armed, false);
	expect_seeds(0, N, 0, 41);
	pf_core_come_back();
	pf_core_step_aside();
	expect(foreign_registers(), 42);
}

static void test_for_ever(void **unused)
{
	fault = (Fault){CALL_IOCTL, 0, INT_MAX, EAGAIN, UFFDIO_MOVE, false};
	assert_int_equal(run(never_moved), 0);
	fault = (Fault){CALL_IOCTL, 0, INT_MAX, ENOMEM, UFFDIO_UNREGISTER, false};
	assert_int_equal(run(never_unregistered), 0);
	fault = (Fault){CALL_IOCTL, 0, INT_MAX, EINVAL, UFFDIO_UNREGISTER, false};
	assert_int_equal(run(never_unregistered), 0);
}

/* A kernel before 6.7 cannot tell which pages are huge: then none is. */
static void cannot_tell_huge(void)
{
	uint8_t results[N_FUSED];

	prepare();
	atomic_store(&armed, true);
	fuse_small(publish_frames(), results);
	for (size_t i = 0; i < N_FUSED; i++)
		expect(results[i] == (i == DIFFERENT ? PF_SHIM_DIFFERENT : PF_SHIM_DONE), 51);
	expect(atomic_load(&n_calls) > 0, 52);
}

static void test_cannot_tell_huge(void **unused)
{
	fault = (Fault){CALL_IOCTL, 0, INT_MAX, ENOTTY, PAGEMAP_SCAN, false};
	assert_int_equal(run(cannot_tell_huge), 0);
}

/* A frame that the service's descriptor does not give any more: the kernel can still copy it where it is mapped. */
static void unreadable_frame(void)
{
	PfFrame first = prepare();
	uint8_t results[2];
	PfShimState state;

	alarm(HANG_SECONDS);
	mech_fuse(page_of(0), first, 2, results);
	expect(results[0] == PF_SHIM_DONE && results[1] == PF_SHIM_DONE, 1);
	atomic_store(&broken_offset, (long long)(first.v * PF_PAGE_SIZE));
	*(volatile uint8_t *)page_of(0) ^= 0;
	*(volatile uint8_t *)page_of(1) ^= 0;
	free_lost_frames();
	expect_seeds(0, 2, 0, 2);
	pf_core_state(&state, false);
	expect(state.fused_pages == 0, 3);
}

/* A memory error in a frame, and nothing can be copied: the page still maps it, and so it is never said to be lost. */
static void broken_frame(void)
{
	PfFrame first = prepare();
	uint8_t results[2];
	PfShimLost lost[8];
	PfShimRun listed[4];
	PfShimState state;
	uint64_t cursor = 0;
	bool overflow;

	alarm(HANG_SECONDS);
	mech_fuse(page_of(0), first, 2, results);
	expect(results[0] == PF_SHIM_DONE && results[1] == PF_SHIM_DONE, 1);
	atomic_store(&broken_offset, (long long)(first.v * PF_PAGE_SIZE));
	atomic_store(&populate_fails, true);
	expect(pf_core_release((PfHva){(uintptr_t)block}, 1) == -EIO, 2);
	expect(pf_core_release((PfHva){(uintptr_t)block}, 0) == 0, 2);
	pf_core_state(&state, false);
	expect(state.stopped == 1 && state.stopped_error == EIO, 2);
	expect(pf_core_take_lost(lost, 8, &overflow) == 0, 3);
	expect(pf_core_list(&cursor, listed, 4) == 2 && listed[0].frame == first.v, 4);
	/* Nobody else waits for it. */
	*(volatile uint8_t *)page_of(1) ^= 0;
	expect(mech_holds(page_of(1), 1), 5);
	/* A discard takes its place, and then it is lost. */
	expect(pf_core_madvise(page_of(0), PF_PAGE_SIZE, MADV_DONTNEED) == 0 &&
			mech_is_zero(page_of(0)),
		6);
	pf_core_state(&state, false);
	expect(state.fused_pages == 0, 7);
}

static void test_broken_frames(void **unused)
{
	fault = (Fault){0};
	assert_int_equal(run(unreadable_frame), 0);
	assert_int_equal(run(broken_frame), 0);
}

/* A call of QEMU's that is refused has changed nothing: what is fused stays known. */
static void refused_mapping(void)
{
	PfFrame first = prepare();
	uint8_t results[N_FUSED];
	PfShimState before, after;

	alarm(HANG_SECONDS);
	mech_fuse(page_of(0), first, N_FUSED, results);
	pf_core_state(&before, false);
	expect(before.fused_pages == N_FUSED - 1, 1);
	expect(pf_core_mmap(page_of(0) + 1, PF_PAGE_SIZE, PROT_READ,
		       MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0) == MAP_FAILED,
		2);
	expect(pf_core_mmap(page_of(0), PF_PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_FIXED, -1, 0) ==
			MAP_FAILED,
		3);
	pf_core_state(&after, false);
	expect(after.fused_pages == before.fused_pages, 4);
	expect(pf_core_madvise(page_of(0), PF_PAGE_SIZE, MADV_DONTNEED) == 0 &&
			mech_is_zero(page_of(0)),
		5);
}

static void test_refused_mapping(void **unused)
{
	fault = (Fault){0};
	assert_int_equal(run(refused_mapping), 0);
}

/* More pieces of advice than there is room for blocks: nothing of a block may be forgotten. */
static void full_of_blocks(void)
{
	uint8_t *other;

	prepare();
	other = mech_block(1024);
	expect(mech_fuse_page(page_of(0), mech_publish_seed(0)) == PF_SHIM_DONE, 1);
	for (size_t i = 0; i < 1024; i += 2)
		pf_core_madvise(other + i * PF_PAGE_SIZE, PF_PAGE_SIZE, MADV_DODUMP);
	expect(pf_core_munmap(page_of(5), PF_PAGE_SIZE) == 0, 2);
	expect(pf_core_madvise(page_of(0), PF_PAGE_SIZE, MADV_DONTNEED) == 0, 3);
	expect(mech_is_zero(page_of(0)), 4);
}

static void test_full_of_blocks(void **unused)
{
	fault = (Fault){0};
	assert_int_equal(run(full_of_blocks), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ioctls),
		cmocka_unit_test(test_mappings),
		cmocka_unit_test(test_mappings_that_were_taken_away),
		cmocka_unit_test(test_step_aside),
		cmocka_unit_test(test_for_ever),
		cmocka_unit_test(test_cannot_tell_huge),
		cmocka_unit_test(test_broken_frames),
		cmocka_unit_test(test_refused_mapping),
		cmocka_unit_test(test_full_of_blocks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
