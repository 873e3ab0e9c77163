/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Durations below 16 us have a bucket each. From there on each octave [2^k, 2^(k+1)) is cut into 16
 * equal steps: the five highest bits of a duration name its step, the number of bits below them
 * names the octave. So the number of a bucket is (shift * 16 + the five bits), and the buckets
 * follow each other without a gap.
 */
#include "host-service/decide/latency_histogram.h"
#include <assert.h>

static unsigned bucket_shift(uint64_t us)
{
	return us < PF_LATENCY_STEPS ? 0 : 59u - (unsigned)__builtin_clzll(us);
}

static unsigned bucket_of(uint64_t us)
{
	unsigned shift = bucket_shift(us);

	return shift * PF_LATENCY_STEPS + (unsigned)(us >> shift);
}

static int64_t bucket_last(unsigned bucket)
{
	unsigned shift = bucket < 2 * PF_LATENCY_STEPS ? 0 : bucket / PF_LATENCY_STEPS - 1;
	uint64_t step = bucket - shift * PF_LATENCY_STEPS;

	return (int64_t)(((step + 1) << shift) - 1);
}

void pf_latency_add(PfLatencyHistogram *histogram, int64_t us)
{
	if (us < 0)
		us = 0;
	if (us > PF_LATENCY_MAX_US)
		us = PF_LATENCY_MAX_US;
	histogram->counts[bucket_of((uint64_t)us)]++;
	histogram->total++;
}

int64_t pf_latency_percentile(const PfLatencyHistogram *histogram, unsigned percent)
{
	uint64_t rank, seen = 0;

	assert(percent >= 1 && percent <= 100);
	if (histogram->total == 0)
		return -1;
	/* ceil(total * percent / 100) without the product, which could overflow */
	rank = histogram->total / 100 * percent + (histogram->total % 100 * percent + 99) / 100;
	for (unsigned i = 0; i < PF_LATENCY_BUCKETS; i++) {
		seen += histogram->counts[i];
		if (seen >= rank)
			return bucket_last(i);
	}
	assert(!"counts add up to total");
	return -1;
}
