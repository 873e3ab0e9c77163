/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Levels are kept in millionths of a unit, so that a microsecond fills a bucket by exactly its rate. A rate beyond
 * MAX_RATE is as good as none, and keeps all products in 64 bits.
 */
#include "host-service/decide/quota.h"

#define MILLION          1000000
#define MAX_RATE         (1ull << 36)
#define MAX_CPU_US       1000000u /* of burst */
#define CPU_US_A_PERCENT 10000u   /* of a processor, in a second */

/* An overdraft that takes longer than this to fill is cut: a VM is slowed, never given up. */
#define MAX_PAUSE_S 60

/* For so long after a pause the VM counts as held back: pauses are short and many. */
#define EXCEEDED_US (5 * MILLION)

static void fill(PfBucket *bucket, int64_t now_us)
{
	int64_t full = (int64_t)bucket->depth * MILLION;
	int64_t passed = now_us - bucket->filled_us;

	if (passed <= 0)
		return;
	bucket->filled_us = now_us;
	if (passed >= (full - bucket->level) / (int64_t)bucket->rate + 1)
		bucket->level = full;
	else
		bucket->level += passed * (int64_t)bucket->rate;
}

static void set_rate(PfBucket *bucket, uint64_t rate, uint64_t max_depth)
{
	bucket->rate = CLAMP(rate, 1, MAX_RATE);
	bucket->depth = MIN(bucket->rate * PF_POLICY_BURST_S, max_depth);
	bucket->level = MIN(bucket->level, (int64_t)bucket->depth * MILLION);
}

static void set_rates(PfQuota *quota, const PfPolicy *policy)
{
	set_rate(&quota->bytes, policy->bytes_per_s, UINT64_MAX);
	set_rate(&quota->hints, policy->hints_per_s, UINT64_MAX);
	set_rate(&quota->cpu, (uint64_t)policy->cpu_percent * CPU_US_A_PERCENT, MAX_CPU_US);
}

void pf_quota_init(PfQuota *quota, const PfPolicy *policy, int64_t now_us)
{
	const PfBucket full = {.level = INT64_MAX, .filled_us = now_us};

	*quota = (PfQuota){.bytes = full, .hints = full, .cpu = full, .paused_until_us = INT64_MIN};
	set_rates(quota, policy);
}

void pf_quota_set_policy(PfQuota *quota, const PfPolicy *policy, int64_t now_us)
{
	fill(&quota->bytes, now_us);
	fill(&quota->hints, now_us);
	fill(&quota->cpu, now_us);
	set_rates(quota, policy);
}

/* Microseconds until there is something in it. */
static int64_t take(PfBucket *bucket, uint64_t n, int64_t now_us)
{
	int64_t lowest = -(int64_t)bucket->rate * MAX_PAUSE_S * MILLION;

	if (n == 0)
		return 0;
	fill(bucket, now_us);
	if (n > (uint64_t)(bucket->level - lowest) / MILLION)
		bucket->level = lowest;
	else
		bucket->level -= (int64_t)n * MILLION;
	if (bucket->level >= 0)
		return 0;
	return (-bucket->level + (int64_t)bucket->rate - 1) / (int64_t)bucket->rate;
}

static void note_pause(PfQuota *quota, int64_t wait, int64_t now_us)
{
	int64_t end = now_us + wait, begin = MAX(now_us, quota->paused_until_us);

	if (end <= begin)
		return;
	quota->paused_us += (uint64_t)(end - begin);
	quota->paused_until_us = end;
}

int64_t pf_quota_spend(
	PfQuota *quota, uint64_t bytes, uint64_t hints, uint64_t cpu_us, int64_t now_us)
{
	const struct {
		int64_t wait;
		const char *name;
	} asked[] = {
		{take(&quota->bytes, bytes, now_us), "bytes of its guest channel a second"},
		{take(&quota->hints, hints, now_us), "hints a second"},
		{take(&quota->cpu, cpu_us, now_us), "processor time of the service"},
	};
	int64_t wait = 0;

	for (gsize i = 0; i < G_N_ELEMENTS(asked); i++) {
		if (asked[i].wait <= wait)
			continue;
		wait = asked[i].wait;
		quota->paused_for = asked[i].name;
	}
	note_pause(quota, wait, now_us);
	return wait;
}

uint64_t pf_quota_session_hints(const PfQuota *quota)
{
	return quota->hints.rate;
}

const char *pf_quota_exceeded(const PfQuota *quota, int64_t now_us)
{
	if (quota->paused_until_us == INT64_MIN || now_us - quota->paused_until_us > EXCEEDED_US)
		return NULL;
	return quota->paused_for;
}
