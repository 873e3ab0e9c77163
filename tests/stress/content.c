/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/stress/content.h"

void stress_fill(void *page, unsigned salt, unsigned state)
{
	uint64_t *words = page;

	for (size_t i = 0; i < PF_PAGE_SIZE / sizeof *words; i++)
		words[i] = (salt + 1) * 0x9e3779b97f4a7c15ull + i;
	for (unsigned word = 0; word < STRESS_WORDS; word++)
		*stress_word(page, word) = stress_word_value(word, state);
}

/* splitmix64 */
uint64_t stress_next(StressRandom *random)
{
	uint64_t z = (random->state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

StressRandom stress_random(uint64_t seed, unsigned vm, unsigned thread)
{
	StressRandom random = {seed};

	/* Through the generator, or the threads would get each other's numbers, shifted. */
	random.state = stress_next(&random) ^ ((uint64_t)vm << 8 | thread);
	random.state = stress_next(&random);
	return random;
}

unsigned stress_below(StressRandom *random, unsigned limit)
{
	return (unsigned)((stress_next(random) >> 32) * limit >> 32);
}
