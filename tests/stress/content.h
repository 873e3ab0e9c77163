/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What a page holds is a function of its salt and its state, so that pages of all VMs meet in the same frames and
 * everybody can say what must be there. A step writes one word of the page and goes on to the next state; the word
 * with the number of a state in its low three bits holds the newest such state. States wrap, so contents come back.
 */
#include "common/page.h"
#include <stdint.h>

#define STRESS_STATES        32u
#define STRESS_WORDS         8u
#define STRESS_WORD_OFFSET   8u
#define STRESS_WORD_DISTANCE 512u

#define STRESS_RING_SALTS   32u  /* of pages that go through all states */
#define STRESS_RUN_SALTS    256u /* of the pages of a "file": consecutive, mostly in state 0 */
#define STRESS_DIRECT_SALTS 32u  /* of the pages of the file that is read directly, in state 0 */
#define STRESS_RUN_SALT     STRESS_RING_SALTS
#define STRESS_DIRECT_SALT  (STRESS_RUN_SALT + STRESS_RUN_SALTS)
#define STRESS_SALTS        (STRESS_DIRECT_SALT + STRESS_DIRECT_SALTS)

/* What a word holds in that state. */
static inline uint16_t stress_word_value(unsigned word, unsigned state)
{
	return (uint16_t)((state - (state - word) % STRESS_WORDS) % STRESS_STATES);
}

static inline volatile uint16_t *stress_word(void *page, unsigned word)
{
	return (volatile uint16_t *)((char *)page + STRESS_WORD_OFFSET +
				     (uintptr_t)word * STRESS_WORD_DISTANCE);
}

void stress_fill(void *page, unsigned salt, unsigned state);

/* Random numbers of one thread: all of them follow from the seed of the run. */
typedef struct StressRandom {
	uint64_t state;
} StressRandom;

StressRandom stress_random(uint64_t seed, unsigned vm, unsigned thread);
uint64_t stress_next(StressRandom *random);
/* Below limit, which is not 0. */
unsigned stress_below(StressRandom *random, unsigned limit);
