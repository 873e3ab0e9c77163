/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * QEMU changes its memory while orders for the same pages are carried out. One thread gives orders without a pause
 * (fuse, release, capture, list), to frames that may or may not hold what the pages hold. Two others are QEMU and the
 * guest at once: each has half of a memory backend to itself, writes there, discards, puts other memory over pages and
 * takes pages away, and knows what each page must hold. Between rounds the backend is unplugged, something that is no
 * RAM lies at its addresses for a moment, and it is plugged again: orders go on all the time.
 */
#include "tests/mechanism/mech.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
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
#define N_QEMU     2u /* threads that change memory */
#define N_OWN      (N / N_QEMU)
#define ROUNDS     300u
#define MIN_ROUNDS 30u /* where it takes longer than that: */
#define MAX_S      6.0
#define CHANGES    24u         /* of each thread in a round */
#define NEW_SEED   1000000ull  /* from here on: contents that no frame has */
#define FOREIGN    77000000ull /* of memory that is no RAM */
#define TEXT       160
#define ROOM       (1ul << 30)

typedef struct Race {
	uint8_t *block;
	PfFrame frame; /* of page 0; the others follow: contents with seeds 1.. */
	atomic_bool stop;
	atomic_uint n_orders, n_done, n_different, n_not_ram, n_captured;
	int staging;
	pthread_barrier_t changed, plugged;
	uint64_t seeds[N]; /* what a page must hold; 0: zeros */
	bool foreign
		[N]; /* it is no RAM since something else was mapped there: nobody may fuse it */
	uint64_t n_wrong, n_changes[8];
	char first_wrong[TEXT];
	unsigned rounds;
	bool over; /* the last round was it */
	double start;
} Race;

typedef struct Qemu {
	Race *race;
	size_t first;
	uint64_t random;
} Qemu;

static pthread_mutex_t wrong_lock = PTHREAD_MUTEX_INITIALIZER;

/*
 * For ThreadSanitizer. A page is captured while its guest writes to it: then any mixture is right, it is compared when
 * it is fused.
 */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
	return "race_top:pwrite64\n";
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static uint8_t *page_of(const Race *race, size_t i)
{
	return race->block + i * PF_PAGE_SIZE;
}

/* Assertions belong to the main thread. */
static void wrong(Race *race, const char *what, size_t page)
{
	pthread_mutex_lock(&wrong_lock);
	if (race->n_wrong++ == 0)
		snprintf(race->first_wrong, TEXT, "round %u, page %zu: %s (errno %d)", race->rounds,
			page, what, errno);
	pthread_mutex_unlock(&wrong_lock);
}

/* The orders */

static void fuse_some(Race *race, uint64_t random)
{
	size_t first = random % N, n = 1 + (random >> 8) % PF_SHIM_RUN_PAGES;
	uint8_t results[PF_SHIM_RUN_PAGES];

	n = n < N - first ? n : N - first;
	/* Now and then the frames of other pages. */
	mech_fuse(page_of(race, first), (PfFrame){race->frame.v + first + (random >> 32) % 16 / 15},
		(uint32_t)n, results);
	for (size_t i = 0; i < n; i++) {
		race->n_done += results[i] == PF_SHIM_DONE;
		race->n_different += results[i] == PF_SHIM_DIFFERENT;
		race->n_not_ram += results[i] == PF_SHIM_NOT_RAM;
		if (results[i] >= PF_SHIM_N_RESULTS)
			wrong(race, "no result", first + i);
	}
}

static void *give_orders(void *argument)
{
	PfShimRun runs[N];
	PfShimLost lost[N];
	Race *race = argument;
	uint64_t random = 0x9e3779b97f4a7c15ull, cursor;
	bool overflow;

	while (!atomic_load(&race->stop)) {
		uint64_t r = next_random(&random);
		PfHva hva = {(uintptr_t)page_of(race, r / 16 % N)};

		switch (r % 16) {
		case 0:
			pf_core_release(hva, 1 + r / 4096 % 8);
			break;
		case 1:
			race->n_captured += pf_core_capture(hva, race->staging, 0) == PF_SHIM_DONE;
			break;
		case 2:
			cursor = 0;
			pf_core_list(&cursor, runs, N);
			break;
		default:
			fuse_some(race, r / 16);
		}
		while (pf_core_take_lost(lost, N, &overflow) > 0)
			;
		race->n_orders++;
	}
	return NULL;
}

/* What QEMU and the guest do */

static void check_page(Race *race, size_t i)
{
	uint64_t seed = race->seeds[i];

	if (seed == 0 ? !mech_is_zero(page_of(race, i)) : !mech_holds(page_of(race, i), seed))
		wrong(race, "other bytes", i);
	if (race->foreign[i] && mech_is_file_page(page_of(race, i)))
		wrong(race, "fused what is no RAM", i);
}

static void set_pages(Race *race, size_t i, size_t n, uint64_t seed, bool foreign)
{
	for (size_t k = i; k < i + n; k++) {
		race->seeds[k] = seed;
		race->foreign[k] |= foreign;
	}
}

static void write_page(Race *race, size_t i, uint64_t seed)
{
	mech_fill(page_of(race, i), seed);
	race->seeds[i] = seed;
}

static void discard_pages(Race *race, size_t i, size_t n, int advice)
{
	if (pf_core_madvise(page_of(race, i), n * PF_PAGE_SIZE, advice) != 0)
		wrong(race, "madvise", i);
	set_pages(race, i, n, 0, false);
}

/* New memory lies there now. */
static void begin_foreign(Race *race, size_t i)
{
	set_pages(race, i, 1, 0, true);
	check_page(race, i);
	/* QEMU does that too; the block then is in pieces, and runs over their borders are refused. */
	if (i % 16 == 0 && pf_core_madvise(page_of(race, i), PF_PAGE_SIZE, MADV_DONTDUMP) != 0)
		wrong(race, "madvise of what is no RAM", i);
	/* Often what the frame has: nothing but its being no RAM keeps it from being fused. */
	write_page(race, i, i % 2 ? FOREIGN + i : i + 1);
}

/* As QEMU replaces a page with a memory error. */
static void map_over(Race *race, size_t i)
{
	if (pf_core_mmap(page_of(race, i), PF_PAGE_SIZE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
		    0) != page_of(race, i))
		wrong(race, "mmap", i);
	begin_foreign(race, i);
}

static void unmap_and_map(Race *race, size_t i)
{
	if (pf_core_munmap(page_of(race, i), PF_PAGE_SIZE) != 0 ||
		!mech_map_into_hole(page_of(race, i), PF_PAGE_SIZE))
		wrong(race, "munmap", i);
	begin_foreign(race, i);
}

/* Away from RAM, with what it holds, and other memory in its place. */
static void move_away(Race *race, size_t i)
{
	void *target =
		pf_core_mmap(NULL, PF_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *moved = pf_core_mremap(page_of(race, i), PF_PAGE_SIZE, PF_PAGE_SIZE,
		MREMAP_MAYMOVE | MREMAP_FIXED, target);

	if (moved != target)
		wrong(race, "mremap", i);
	else if (race->seeds[i] == 0 ? !mech_is_zero(moved) : !mech_holds(moved, race->seeds[i]))
		wrong(race, "other bytes after mremap", i);
	if (!mech_map_into_hole(page_of(race, i), PF_PAGE_SIZE))
		wrong(race, "the hole", i);
	begin_foreign(race, i);
	pf_core_munmap(target, PF_PAGE_SIZE);
}

static void change_something(Qemu *qemu)
{
	Race *race = qemu->race;
	uint64_t r = next_random(&qemu->random);
	size_t i = qemu->first + r / 64 % N_OWN, n = 1 + r / 4096 % 8, kind;

	n = n < qemu->first + N_OWN - i ? n : qemu->first + N_OWN - i;
	check_page(race, i);
	switch (r % 64) {
	case 0:
		kind = 0;
		map_over(race, i);
		break;
	case 1:
		kind = 1;
		unmap_and_map(race, i);
		break;
	case 2:
		kind = 2;
		move_away(race, i);
		break;
	case 3 ... 9:
		kind = 3;
		discard_pages(race, i, n, r & 0x100000 ? MADV_DONTNEED : MADV_FREE);
		break;
	case 10 ... 19:
		kind = 4;
		write_page(race, i, NEW_SEED + r % 1000);
		break;
	default:
		/* What the frame has: the page can be fused again. */
		kind = 5;
		if (!race->foreign[i])
			write_page(race, i, i + 1);
	}
	__atomic_fetch_add(&race->n_changes[kind], 1, __ATOMIC_RELAXED);
}

static void plug(Race *race)
{
	size_t size = N * PF_PAGE_SIZE;

	if (!mech_map_into_hole(race->block, size)) {
		wrong(race, "plugging", 0);
		return;
	}
	if (pf_core_madvise(race->block, size, MADV_DONTFORK) != 0 ||
		pf_core_add_block(race->block, size) != 0)
		wrong(race, "the block", 0);
	memset(race->foreign, 0, sizeof(race->foreign));
	for (size_t i = 0; i < N; i++) {
		if (!mech_is_zero(page_of(race, i)))
			wrong(race, "not zeros after plugging", i);
		write_page(race, i, i + 1);
	}
}

/* Memory of somebody else where the block was: whatever is ordered, it stays as it is. */
static void use_addresses(Race *race)
{
	size_t size = N * PF_PAGE_SIZE;

	if (!mech_map_into_hole(race->block, size)) {
		wrong(race, "mapping", 0);
		return;
	}
	/* The frames' bytes, so that nothing but its not being RAM keeps it from being fused. */
	for (size_t i = 0; i < N; i++)
		mech_fill(page_of(race, i), i + 1);
	usleep(200);
	for (size_t i = 0; i < N; i++)
		if (mech_is_file_page(page_of(race, i)) || !mech_holds(page_of(race, i), i + 1))
			wrong(race, "not RAM, and changed", i);
	pf_core_munmap(race->block, size);
}

static void unplug(Race *race)
{
	for (size_t i = 0; i < N; i++)
		check_page(race, i);
	if (pf_core_munmap(race->block, N * PF_PAGE_SIZE) != 0)
		wrong(race, "unplugging", 0);
	if (race->rounds % 3 == 0)
		use_addresses(race);
}

/* So that no round goes by without them, however busy the machine is. */
static void wait_for_orders(const Race *race)
{
	unsigned before = race->n_orders;

	while (race->n_orders - before < 4)
		sched_yield();
}

static void *be_qemu(void *argument)
{
	Qemu *qemu = argument;
	Race *race = qemu->race;

	while (!race->over) {
		for (unsigned i = 0; i < CHANGES; i++)
			change_something(qemu);
		for (size_t i = qemu->first; i < qemu->first + N_OWN; i++)
			check_page(race, i);
		pthread_barrier_wait(&race->changed);
		if (qemu->first == 0) {
			race->rounds++;
			unplug(race);
			plug(race);
			wait_for_orders(race);
			race->over =
				race->rounds == ROUNDS ||
				(race->rounds >= MIN_ROUNDS && mech_now() > race->start + MAX_S);
		}
		pthread_barrier_wait(&race->plugged);
	}
	return NULL;
}

static void start_race(Race *race)
{
	*race = (Race){.staging = memfd_create("staging", MFD_CLOEXEC)};
	assert_int_equal(ftruncate(race->staging, PF_PAGE_SIZE), 0);
	race->frame = mech_publish_seed(1);
	for (size_t i = 1; i < N + 1; i++)
		mech_publish_seed(i + 1);
	/* At the low end of a large hole: what others need meanwhile the kernel puts at the high end. */
	race->block =
		mmap(NULL, ROOM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_true(race->block != MAP_FAILED);
	assert_int_equal(munmap(race->block, ROOM), 0);
	plug(race);
	race->start = mech_now();
	pthread_barrier_init(&race->changed, NULL, N_QEMU);
	pthread_barrier_init(&race->plugged, NULL, N_QEMU);
}

static void test_qemu_changes_memory_under_orders(void **state)
{
	static Race race;
	Qemu qemus[N_QEMU];
	pthread_t orders, threads[N_QEMU];
	PfShimState before, after;

	start_race(&race);
	pf_core_state(&before, false);
	assert_int_equal(pthread_create(&orders, NULL, give_orders, &race), 0);
	for (size_t i = 0; i < N_QEMU; i++) {
		qemus[i] = (Qemu){&race, i * N_OWN, 0x1234567 + i};
		assert_int_equal(pthread_create(&threads[i], NULL, be_qemu, &qemus[i]), 0);
	}
	for (size_t i = 0; i < N_QEMU; i++)
		pthread_join(threads[i], NULL);
	atomic_store(&race.stop, true);
	pthread_join(orders, NULL);
	pf_core_state(&after, true);
	print_message("%u rounds: %u pages fused, %u different, %u not RAM, %u captured; "
		      "%lu revoked, %lu discarded; changes %lu %lu %lu %lu %lu %lu\n",
		race.rounds, race.n_done, race.n_different, race.n_not_ram, race.n_captured,
		after.revoked_pages - before.revoked_pages,
		after.discarded_pages - before.discarded_pages, race.n_changes[0],
		race.n_changes[1], race.n_changes[2], race.n_changes[3], race.n_changes[4],
		race.n_changes[5]);
	if (race.n_wrong > 0)
		fail_msg(
			"%lu times something was wrong, first: %s", race.n_wrong, race.first_wrong);
	/* Or it was no race. */
	assert_true(race.n_done > race.rounds && race.n_different > 0);
	assert_true(race.n_not_ram > 0 && race.n_captured > 0);
	assert_true(after.revoked_pages > before.revoked_pages);
	assert_true(after.discarded_pages > before.discarded_pages);
	for (size_t i = 0; i < 6; i++)
		assert_true(race.n_changes[i] > 0);
	assert_int_equal(after.stopped, 0);
	assert_int_equal(pf_core_munmap(race.block, N * PF_PAGE_SIZE), 0);
	pf_core_state(&after, false);
	assert_int_equal(after.fused_pages, 0);
	assert_int_equal(after.runs, 0);
	close(race.staging);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_qemu_changes_memory_under_orders),
	};

	mech_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
