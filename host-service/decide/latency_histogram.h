/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Counts durations in log-linear buckets, 16 an octave, so that a percentile is right to 1/16 of
 * its value. */
#include <stdint.h>

#define PF_LATENCY_STEPS   16u
#define PF_LATENCY_MAX_US  ((INT64_C(1) << 47) - 1) /* longer ones count as this */
#define PF_LATENCY_BUCKETS (44u * PF_LATENCY_STEPS)

/* All zeros is an empty histogram. */
typedef struct PfLatencyHistogram {
	uint64_t counts[PF_LATENCY_BUCKETS];
	uint64_t total;
} PfLatencyHistogram;

/* Counts one duration; a negative one counts as 0. */
void pf_latency_add(PfLatencyHistogram *histogram, int64_t us);

/*
 * The longest duration that falls in the bucket of the given percentile (1 to 100, nearest rank);
 * -1 when nothing was counted yet.
 */
int64_t pf_latency_percentile(const PfLatencyHistogram *histogram, unsigned percent);
