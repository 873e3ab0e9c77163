/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * Fuse and revoke cycles under writers that never stop. What a writer does with a page is a visit:
 * it checks the eight words that it rotates over, all of them, and writes the next one. The counter
 * of visits is 16 bits wide, for a guest in real mode; the word with the number of a visit in its
 * low three bits holds that visit's counter.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STRESS_PAGES    96u
#define STRESS_WORDS    8u
#define STRESS_DISTANCE 512u /* bytes between two words */
#define STRESS_OFFSET   8u   /* of the first */
#define STRESS_N_FIRST  8u   /* visits that stress_prepare() stands for */

typedef struct StressWriters {
	/* Starts the writers on STRESS_PAGES pages, prepared by stress_prepare(). */
	void (*start)(uint8_t *pages);
	/* Returns when no writer touches a page until resume(). */
	void (*pause)(void);
	void (*resume)(void);
	/* Ends them. */
	void (*stop)(void);
	/* How many words were not what had been written, so far, and visits. */
	uint64_t (*n_lost)(void);
	uint64_t (*n_visits)(void);
	/* The counter of a page's visits; called when they are paused or stopped. */
	uint16_t (*counter)(size_t page);
} StressWriters;

/* Fills the words with what STRESS_N_FIRST visits leave there, and the rest with a pattern. */
void stress_prepare(uint8_t *page, size_t number);

static inline volatile uint16_t *stress_word(uint8_t *page, uint16_t visit)
{
	return (volatile uint16_t *)(page + STRESS_OFFSET + visit % STRESS_WORDS * STRESS_DISTANCE);
}

/* Checks all words of a page after that many visits, and puts them right. Returns how many were
 * wrong. */
unsigned stress_check(uint8_t *page, uint16_t visits);

/*
 * The program: `pages` is where STRESS_PAGES pages lie in a RAM block that mech_block() made. With
 * --expect-loss it succeeds when a write was lost, and fails when none was; without, the other way
 * round.
 */
int stress_main(int argc, char **argv, const StressWriters *writers, uint8_t *pages);
