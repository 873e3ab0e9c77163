/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * How much of the service one VM may use in a time: buckets that fill at the policy's rates and hold PF_POLICY_BURST_S
 * seconds of them (of processor time: one second at most). What is taken may exceed what is there, because nobody knows
 * before what a message costs; then nothing more is read from this VM before the bucket has something again. Pure: the
 * caller has the clock.
 */
#include "host-service/config/policy.h"
#include <stdint.h>

/* Microseconds of processor time to add for each turn of the main loop: what it does itself for a message. */
#define PF_QUOTA_TURN_US 10u

typedef struct PfBucket {
	uint64_t rate;  /* units a second */
	uint64_t depth; /* units */
	int64_t level;  /* units, times 1000000; below 0: overdrawn */
	int64_t filled_us;
} PfBucket;

typedef struct PfQuota {
	PfBucket bytes, hints, cpu; /* cpu: in microseconds */
	uint64_t paused_us;         /* all pauses so far; those at the same time count once */
	int64_t paused_until_us;    /* the end of the last one; INT64_MIN: there was none */
	const char *paused_for;     /* the bucket that asked for the last one, in words */
} PfQuota;

/* All buckets are full. */
void pf_quota_init(PfQuota *quota, const PfPolicy *policy, int64_t now_us);

/* Another policy, from now on. */
void pf_quota_set_policy(PfQuota *quota, const PfPolicy *policy, int64_t now_us);

/*
 * A message has been dealt with. Microseconds until the next one of its kind may be read; 0: at once. Only those buckets
 * are looked at that something is taken from: what the guest has named too much of does not hold back its QEMU.
 */
int64_t pf_quota_spend(
	PfQuota *quota, uint64_t bytes, uint64_t hints, uint64_t cpu_us, int64_t now_us);

/* What a new session of the guest costs beside its messages, in hints: one a second is what a VM may have. */
uint64_t pf_quota_session_hints(const PfQuota *quota);

/* Of what the VM asks too much, in words, if it was held back not long ago; NULL: it was not. */
const char *pf_quota_exceeded(const PfQuota *quota, int64_t now_us);
