/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What the driver and the toy VMMs share: memory, so that the driver sees the figures of a VMM that hangs. Each figure
 * has one writer, the VMM, but for what is marked.
 */
#include "common/page.h"
#include "tests/stress/content.h"
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define STRESS_VMS         4u
#define STRESS_MAX_THREADS 8u

/* RAM, by number of the page: a low block from gfn 0 on, and a high one that can be unplugged. */
#define STRESS_LOW_PAGES    1024u
#define STRESS_HIGH         STRESS_LOW_PAGES /* number of the high block's first page */
#define STRESS_HIGH_PAGES   256u
#define STRESS_HIGH_GFN     0x100000ull
#define STRESS_PAGES        (STRESS_LOW_PAGES + STRESS_HIGH_PAGES)
#define STRESS_RING         16u /* what lies before is the vCPU's code and data, and never hinted */
#define STRESS_VCPU_END     512u /* from STRESS_RING on the vCPU's, where there is one */
#define STRESS_RUN          STRESS_VCPU_END
#define STRESS_DIRECT       768u
#define STRESS_DIRECT_PAGES (STRESS_LOW_PAGES - STRESS_DIRECT)

typedef enum StressRole {
	STRESS_ROLE_WRITERS,
	STRESS_ROLE_VCPU,
	STRESS_ROLE_LIAR,
	STRESS_N_ROLES
} StressRole;

typedef enum StressDefect {
	STRESS_NO_DEFECT,
	STRESS_NO_SECOND_COMPARISON,
	STRESS_DISCARD_NOT_INTERCEPTED,
	STRESS_MUNMAP_NOT_INTERCEPTED,
	STRESS_PIN_CHECK_BYPASSED,
	STRESS_OFFSET_USED_AGAIN, /* of the service */
	STRESS_NO_WAY_OUT,
	STRESS_N_DEFECTS
} StressDefect;

/*
 * Times of visits that met a fault, by quarters of a power of two of nanoseconds: bucket 4 n + k begins at
 * 2^n (1 + k/4).
 */
#define STRESS_BUCKETS       160u
#define STRESS_STALL_FROM_NS 5000u

static inline unsigned stress_bucket(uint64_t ns)
{
	unsigned power = 63 - (unsigned)__builtin_clzll(ns | 4);
	unsigned bucket = power * 4 + (unsigned)(ns >> (power - 2) & 3);

	return bucket < STRESS_BUCKETS ? bucket : STRESS_BUCKETS - 1;
}

typedef struct StressThread {
	_Atomic pid_t tid; /* 0: not started, or ended */
	char name[12];
	atomic_ullong beats; /* goes on as long as it does */
} StressThread;

typedef struct StressVm {
	StressThread threads[STRESS_MAX_THREADS];
	/*
	 * Above 0: its memory cgroup is at its limit (the driver's), or maps are made or given back by the thousand.
	 * Stalls are not the shim's then, and counted apart.
	 */
	atomic_uint disturbed;
	atomic_uint children; /* that run or are about to */

	/* Of the shim's state. */
	atomic_ullong fused, revoked, discarded, written, ways_out, maps;
	atomic_uint stopped;       /* errno */
	atomic_ullong vcpu_cycles; /* of revoked: the vCPU wrote */
	atomic_ullong fuse_results[16];

	atomic_ullong visits, lost_writes, wrong_bytes;
	atomic_ullong stalls[STRESS_BUCKETS], stall_max_ns, stall_disturbed_max_ns;
	atomic_ullong direct_reads, direct_failed, registered, discards, releases, asides, plugs,
		forks, lies, hints, sessions;
	atomic_ullong
		places; /* pages that were ever fused: no more pieces can there have been at different places */
	atomic_ullong longest_run;
	atomic_ullong frames,
		frames_reused; /* frames that it was the first to see; that were others before */
	atomic_ullong defect_fired;

	/* Set once. */
	atomic_ullong maps_before, maps_after;
	_Atomic uint64_t blocks[2]; /* addresses */
} StressVm;

/* What a frame of a store holds, see frames.c. */
typedef struct StressFrame {
	atomic_ullong key; /* 0: an empty slot */
	atomic_ullong signature;
} StressFrame;
#define STRESS_FRAMES (1u << 22) /* many more than a run uses; sparse */

typedef struct StressShared {
	uint64_t seed;
	StressDefect defect;
	PfDigest digests[STRESS_SALTS][STRESS_STATES];
	StressVm vms[STRESS_VMS];
	StressFrame frames[STRESS_FRAMES];
} StressShared;
