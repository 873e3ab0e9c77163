/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The loop that fuses. It takes a run of one to four pages, makes whatever they hold right now a
 * new run of frames (at a place in the store that was never used), and fuses them; the writers
 * revoke them by going on. So every cycle races with writers from the copy to the second
 * comparison. A frame's memory is given back as soon as the core says that the page is lost: if it
 * said so too early, the page would turn into zeros and the writers would see it.
 *
 * Pages that were written while they were being fused are never fused again. When there are too
 * many of them, the writers pause, and those pages are discarded and filled again with what they
 * held: ordinary memory.
 *
 * It ends after MAX_CYCLES fused pages or MAX_SECONDS; fewer than MIN_CYCLES fail, because they
 * prove nothing.
 */
#include "tests/mechanism/stress.h"
#include "tests/mechanism/mech.h"
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_CYCLES             20000u
#define MIN_CYCLES             2000u
#define MAX_SECONDS            15.0
#define MAX_SECONDS_FOR_A_LOSS 45.0
#define MAX_RUN                4u
#define MAX_FUSED              24u /* a writer that only waits for revokes races with nothing */

typedef enum PageState {
	PAGE_PRIVATE,
	PAGE_FUSED,
	PAGE_WRITTEN,
} PageState;

typedef struct Stress {
	const StressWriters *writers;
	uint8_t *pages;
	PageState state[STRESS_PAGES];
	unsigned n_written, n_fused; /* pages in that state */
	uint64_t results[PF_SHIM_N_RESULTS], n_revoked;
	uint32_t random;
	bool wrong; /* the core said something that cannot be */
} Stress;

static uint8_t *page_of(const Stress *stress, size_t i)
{
	return stress->pages + i * PF_PAGE_SIZE;
}

void stress_prepare(uint8_t *page, size_t number)
{
	mech_fill(page, number);
	for (uint16_t visit = 1; visit <= STRESS_N_FIRST; visit++)
		*stress_word(page, visit) = visit;
}

unsigned stress_check(uint8_t *page, uint16_t visits)
{
	unsigned wrong = 0;

	for (unsigned back = 0; back < STRESS_WORDS; back++) {
		uint16_t visit = (uint16_t)(visits - back);

		if (*stress_word(page, visit) == visit)
			continue;
		wrong++;
		*stress_word(page, visit) = visit;
	}
	return wrong;
}

static void wait_for_losses(void)
{
	struct pollfd event = {.fd = pf_core_event_fd(), .events = POLLIN};
	uint64_t count;

	if (poll(&event, 1, 1) > 0 && read(event.fd, &count, sizeof(count)) < 0)
		return; /* the core made it nonblocking: nothing there is fine */
}

/* What the core says is no longer fused. */
static void take_lost(Stress *stress)
{
	PfShimLost lost[64];
	bool overflow = false;
	size_t n;

	do {
		n = pf_core_take_lost(lost, 64, &overflow);
		for (size_t i = 0; i < n; i++)
			for (uint32_t j = 0; j < lost[i].n_pages; j++) {
				uint64_t offset = lost[i].hva - (uintptr_t)stress->pages;
				size_t page = (size_t)(offset / PF_PAGE_SIZE) + j;

				if (page >= STRESS_PAGES || stress->state[page] != PAGE_FUSED) {
					stress->wrong = true;
					continue;
				}
				stress->state[page] = PAGE_PRIVATE;
				stress->n_fused--;
				stress->n_revoked++;
				mech_punch((PfFrame){lost[i].frame + j});
			}
		stress->wrong |= overflow;
	} while (n == 64);
}

static void record(Stress *stress, size_t page, PfShimResult result, PfFrame frame)
{
	if (result >= PF_SHIM_N_RESULTS) {
		stress->wrong = true;
		return;
	}
	stress->results[result]++;
	if (result == PF_SHIM_DONE) {
		stress->state[page] = PAGE_FUSED;
		stress->n_fused++;
	} else if (result == PF_SHIM_WRITTEN) {
		stress->state[page] = PAGE_WRITTEN;
		stress->n_written++;
	} else {
		mech_punch(frame);
	}
}

/* The writers go on meanwhile, and that is the point of it: not a race for ThreadSanitizer to tell of. */
__attribute__((no_sanitize("thread"))) static void copy_while_written(
	uint8_t *copy, const uint8_t *page)
{
	for (size_t i = 0; i < PF_PAGE_SIZE; i += sizeof(uint64_t))
		*(uint64_t *)(copy + i) = *(const volatile uint64_t *)(page + i);
}

static void fuse_some(Stress *stress)
{
	_Alignas(uint64_t) uint8_t copy[PF_PAGE_SIZE];
	uint8_t results[MAX_RUN];
	size_t first, n = 0, wanted;
	PfFrame frame = {0};

	stress->random = stress->random * 1664525u + 1013904223u;
	first = (stress->random >> 8) % STRESS_PAGES;
	wanted = 1 + (stress->random >> 24) % MAX_RUN;
	while (n < wanted && first + n < STRESS_PAGES && stress->state[first + n] == PAGE_PRIVATE) {
		PfFrame published;

		copy_while_written(copy, page_of(stress, first + n));
		published = mech_publish(copy);
		if (n++ == 0)
			frame = published;
	}
	if (n == 0)
		return;
	mech_fuse(page_of(stress, first), frame, (uint32_t)n, results);
	for (size_t i = 0; i < n; i++)
		record(stress, first + i, (PfShimResult)results[i], (PfFrame){frame.v + i});
}

static void renew_written(Stress *stress)
{
	uint8_t copy[PF_PAGE_SIZE];

	stress->writers->pause();
	for (size_t i = 0; i < STRESS_PAGES; i++) {
		if (stress->state[i] != PAGE_WRITTEN)
			continue;
		memcpy(copy, page_of(stress, i), sizeof(copy));
		if (pf_core_madvise(page_of(stress, i), PF_PAGE_SIZE, MADV_DONTNEED) < 0 ||
			!mech_is_zero(page_of(stress, i)))
			stress->wrong = true;
		memcpy(page_of(stress, i), copy, sizeof(copy));
		stress->state[i] = PAGE_PRIVATE;
	}
	stress->n_written = 0;
	stress->writers->resume();
}

/* Whether every byte of every page is what its writer left there; called when they have stopped. */
static uint64_t check_all(Stress *stress)
{
	uint64_t wrong = 0;

	for (size_t i = 0; i < STRESS_PAGES; i++) {
		uint16_t visits = stress->writers->counter(i);
		uint8_t expected[PF_PAGE_SIZE];

		wrong += stress_check(page_of(stress, i), visits);
		stress_prepare(expected, i);
		for (unsigned back = 0; back < STRESS_WORDS; back++) {
			uint16_t visit = (uint16_t)(visits - back);

			*stress_word(expected, visit) = visit;
		}
		wrong += memcmp(page_of(stress, i), expected, PF_PAGE_SIZE) != 0;
	}
	return wrong;
}

static void report(const Stress *stress, uint64_t lost)
{
	const StressWriters *writers = stress->writers;

	printf("fused %llu, different %llu, busy %llu, written while being fused %llu, revoked "
	       "%llu, "
	       "visits %llu, lost writes %llu\n",
		(unsigned long long)stress->results[PF_SHIM_DONE],
		(unsigned long long)stress->results[PF_SHIM_DIFFERENT],
		(unsigned long long)stress->results[PF_SHIM_BUSY],
		(unsigned long long)stress->results[PF_SHIM_WRITTEN],
		(unsigned long long)stress->n_revoked, (unsigned long long)writers->n_visits(),
		(unsigned long long)lost);
}

/* Of all results, these four are the ones that a page under writers may get. */
static bool has_other_results(const Stress *stress)
{
	for (int i = 0; i < PF_SHIM_N_RESULTS; i++)
		if (stress->results[i] > 0 && i != PF_SHIM_DONE && i != PF_SHIM_DIFFERENT &&
			i != PF_SHIM_BUSY && i != PF_SHIM_WRITTEN) {
			printf("result %d: %llu times\n", i,
				(unsigned long long)stress->results[i]);
			return true;
		}
	return false;
}

static uint64_t run_cycles(Stress *stress, bool expect_loss)
{
	double end = mech_now() + (expect_loss ? MAX_SECONDS_FOR_A_LOSS : MAX_SECONDS);

	stress->writers->start(stress->pages);
	while (mech_now() < end && (expect_loss ? stress->writers->n_lost() == 0
						: stress->results[PF_SHIM_DONE] < MAX_CYCLES)) {
		if (stress->n_fused < MAX_FUSED)
			fuse_some(stress);
		else
			wait_for_losses();
		take_lost(stress);
		if (stress->n_written > STRESS_PAGES / 2)
			renew_written(stress);
	}
	stress->writers->stop();
	pf_core_release((PfHva){0}, UINT64_MAX);
	take_lost(stress);
	return stress->writers->n_lost() + check_all(stress);
}

int stress_main(int argc, char **argv, const StressWriters *writers, uint8_t *pages)
{
	Stress stress = {.writers = writers, .pages = pages, .random = 1};
	bool expect_loss = argc > 1 && strcmp(argv[1], "--expect-loss") == 0;
	PfShimState state;
	uint64_t lost;

	for (size_t i = 0; i < STRESS_PAGES; i++)
		stress_prepare(page_of(&stress, i), i);
	lost = run_cycles(&stress, expect_loss);
	report(&stress, lost);
	pf_core_state(&state, true);
	if (expect_loss) {
		printf(lost > 0 ? "a write was lost, as it must be\n"
				: "no write was lost: this program would not notice one\n");
		return lost > 0 ? 0 : 1;
	}
	if (lost > 0 || stress.wrong || state.stopped || state.fused_pages != 0 ||
		has_other_results(&stress)) {
		printf("wrong: lost %llu, reports %d, stopped %u (%d), still fused %llu\n",
			(unsigned long long)lost, stress.wrong, state.stopped, state.stopped_error,
			(unsigned long long)state.fused_pages);
		return 1;
	}
	if (stress.results[PF_SHIM_DONE] < MIN_CYCLES || stress.n_revoked < MIN_CYCLES / 2) {
		printf("too few cycles to say anything\n");
		return 1;
	}
	return 0;
}
