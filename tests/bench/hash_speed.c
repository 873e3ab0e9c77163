// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * How fast pages are hashed by what the agent and the service hash with: pages that are all different and lie in
 * more memory than any cache holds. Prints the GiB of a second, the median of some rounds.
 */
#include "common/digest.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SIZE   (256u << 20)
#define ROUNDS 5

static double now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* xorshift64 (Marsaglia 2003): cheap, and no page is like another. */
static void fill(uint64_t *words, size_t n)
{
	uint64_t x = 0x9e3779b97f4a7c15u;

	for (size_t i = 0; i < n; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		words[i] = x;
	}
}

/* Seconds, or -1; *all depends on every digest, so that none is left out. */
static double hash_all(PfHasher *hasher, const uint8_t *memory, PfDigest *all)
{
	double start = now_s();

	for (size_t at = 0; at < SIZE; at += PF_PAGE_SIZE) {
		PfDigest digest;

		if (pf_hasher_page(hasher, memory + at, &digest) < 0)
			return -1;
		for (size_t i = 0; i < sizeof(digest.bytes); i++)
			all->bytes[i] ^= digest.bytes[i];
	}
	return now_s() - start;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(void)
{
	uint8_t *memory = malloc(SIZE);
	PfHasher *hasher = pf_hasher_new();
	double seconds[ROUNDS];
	PfDigest all = {{0}};
	int status = EXIT_FAILURE;

	if (!memory || !hasher) {
		fputs("hash_speed: no memory, or no SHA-256\n", stderr);
		goto out;
	}
	fill((uint64_t *)memory, SIZE / sizeof(uint64_t));
	for (int i = 0; i < ROUNDS; i++) {
		seconds[i] = hash_all(hasher, memory, &all);
		if (seconds[i] < 0)
			goto out;
	}
	qsort(seconds, ROUNDS, sizeof(*seconds), compare);
	printf("%.3f\n", (double)SIZE / (1u << 30) / seconds[ROUNDS / 2]);
	status = EXIT_SUCCESS;
out:
	pf_hasher_free(hasher);
	free(memory);
	return status;
}
