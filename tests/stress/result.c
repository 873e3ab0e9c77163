/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What came of it. The floors are what a minute on two processors must show; they shrink with the seconds and the
 * percentage that were asked for.
 */
#include "tests/stress/stress.h"
#include "proto/shim_protocol.h"
#include <errno.h>
#include <stdio.h>

typedef struct Figures {
	uint64_t cycles, kvm_cycles, pinned_refused, discards, service_kills, enomem_ways_out;
	uint64_t lost_writes, wrong_bytes, hangs, crashes, stopped;
	uint64_t maps_before, maps_after_release, maps_limit;
	uint64_t visits, written, different, direct_reads, direct_failed, registered, releases,
		asides, plugs, forks, lies;
	uint64_t hints, sessions, longest_run, frames, frames_reused, defect_fired;
	double stall_us_p50, stall_us_p999, stall_us_max, stall_disturbed_us_max, late_us_p999,
		late_us_max;
	uint64_t stalls;
} Figures;

#define SUM(stress, field) sum(stress, offsetof(StressVm, field))

static uint64_t sum(const Stress *stress, size_t offset)
{
	uint64_t total = 0;

	for (unsigned i = 0; i < STRESS_VMS; i++)
		total += *(const atomic_ullong *)((const char *)&stress->shared->vms[i] + offset);
	return total;
}

static uint64_t most(const Stress *stress, size_t offset)
{
	uint64_t found = 0;

	for (unsigned i = 0; i < STRESS_VMS; i++) {
		uint64_t value =
			*(const atomic_ullong *)((const char *)&stress->shared->vms[i] + offset);

		found = MAX(found, value);
	}
	return found;
}

/* Where a bucket ends. */
static double bucket_us(unsigned bucket)
{
	return (double)(1ull << bucket / 4) * (1.25 + bucket % 4 * 0.25) / 1000;
}

static double quantile_us(const uint64_t counts[STRESS_BUCKETS], double quantile)
{
	uint64_t total = 0, seen = 0;
	unsigned i = 0;

	for (unsigned k = 0; k < STRESS_BUCKETS; k++)
		total += counts[k];
	while (i + 1 < STRESS_BUCKETS && (double)(seen += counts[i]) < (double)total * quantile)
		i++;
	return total > 0 ? bucket_us(i) : 0;
}

static void collect_stalls(const Stress *stress, Figures *f)
{
	uint64_t counts[STRESS_BUCKETS];

	for (unsigned i = 0; i < STRESS_BUCKETS; i++)
		f->stalls += counts[i] = SUM(stress, stalls[i]);
	f->stall_us_p50 = quantile_us(counts, 0.5);
	f->stall_us_p999 = quantile_us(counts, 0.999);
	f->stall_us_max = (double)most(stress, offsetof(StressVm, stall_max_ns)) / 1000;
	f->stall_disturbed_us_max =
		(double)most(stress, offsetof(StressVm, stall_disturbed_max_ns)) / 1000;
	f->late_us_p999 = quantile_us(stress->late, 0.999);
	f->late_us_max = (double)stress->late_max_ns / 1000;
}

/* The formula of host-service/shim/maps.c, of the VM that is nearest to it. */
static void collect_maps(const Stress *stress, Figures *f)
{
	double nearest = -1;

	for (unsigned i = 0; i < STRESS_VMS; i++) {
		const StressVm *vm = &stress->shared->vms[i];
		uint64_t limit = vm->maps_before + 2 * vm->places;
		double part = limit > 0 ? (double)vm->maps_after / (double)limit : 0;

		if (part <= nearest)
			continue;
		nearest = part;
		f->maps_before = vm->maps_before;
		f->maps_after_release = vm->maps_after;
		f->maps_limit = limit;
	}
}

static void collect(const Stress *stress, Figures *f)
{
	*f = (Figures){
		.cycles = SUM(stress, revoked),
		.kvm_cycles = SUM(stress, vcpu_cycles),
		.pinned_refused = SUM(stress, fuse_results[PF_SHIM_BUSY]),
		.discards = SUM(stress, discards),
		.service_kills = stress->service_kills,
		.enomem_ways_out = SUM(stress, ways_out),
		.lost_writes = SUM(stress, lost_writes),
		.wrong_bytes = SUM(stress, wrong_bytes),
		.hangs = stress->hangs,
		.crashes = stress->service_crashes + stress->vmm_crashes,
		.visits = SUM(stress, visits),
		.written = SUM(stress, fuse_results[PF_SHIM_WRITTEN]),
		.different = SUM(stress, fuse_results[PF_SHIM_DIFFERENT]),
		.direct_reads = SUM(stress, direct_reads),
		.direct_failed = SUM(stress, direct_failed),
		.registered = SUM(stress, registered),
		.releases = SUM(stress, releases),
		.asides = SUM(stress, asides),
		.plugs = SUM(stress, plugs),
		.forks = SUM(stress, forks),
		.lies = SUM(stress, lies),
		.hints = SUM(stress, hints),
		.sessions = SUM(stress, sessions),
		.longest_run = most(stress, offsetof(StressVm, longest_run)),
		.frames = SUM(stress, frames),
		.frames_reused = SUM(stress, frames_reused),
		.defect_fired = SUM(stress, defect_fired),
	};
	for (unsigned i = 0; i < STRESS_VMS; i++)
		f->stopped += stress->shared->vms[i].stopped != 0;
	collect_stalls(stress, f);
	collect_maps(stress, f);
}

bool result_anything_wrong(const Stress *stress)
{
	bool stopped = false;

	for (unsigned i = 0; i < STRESS_VMS; i++)
		stopped |= stress->shared->vms[i].stopped != 0;
	return stopped || stress->hangs > 0 || stress->service_crashes > 0 ||
	       stress->vmm_crashes > 0 || SUM(stress, lost_writes) > 0 ||
	       SUM(stress, wrong_bytes) > 0 || SUM(stress, frames_reused) > 0;
}

void result_progress(const Stress *stress)
{
	Figures f;

	collect(stress, &f);
	printf("%4.0f s: %" G_GUINT64_FORMAT " cycles, %" G_GUINT64_FORMAT
	       " of them under KVM, %" G_GUINT64_FORMAT " kills, fused now %" G_GUINT64_FORMAT
	       ", busy %" G_GUINT64_FORMAT ", ways out %" G_GUINT64_FORMAT
	       ", stall p999 %.0f us, lost %" G_GUINT64_FORMAT ", wrong %" G_GUINT64_FORMAT "\n",
		(double)(g_get_monotonic_time() - stress->started_us) / G_USEC_PER_SEC, f.cycles,
		f.kvm_cycles, f.service_kills, SUM(stress, fused), f.pinned_refused,
		f.enomem_ways_out, f.stall_us_p999, f.lost_writes, f.wrong_bytes);
}

typedef struct Row {
	const char *name;
	double value, least, limit; /* limit < 0: none */
} Row;

/* Says whether a row is as it must be. */
static bool tell_row(const Row *row, FILE *json)
{
	bool good = row->value >= row->least && (row->limit < 0 || row->value <= row->limit);
	char wanted[48] = "";

	if (row->limit >= 0)
		snprintf(wanted, sizeof wanted, "at most %.0f", row->limit);
	else if (row->least > 0)
		snprintf(wanted, sizeof wanted, "at least %.0f", row->least);
	printf("%-22s %12.0f  %s%s\n", row->name, row->value, wanted, good ? "" : "  MISSED");
	if (json)
		fprintf(json, "  \"%s\": %.0f,\n", row->name, row->value);
	return good;
}

static bool tell_rows(const Stress *stress, const Figures *f, FILE *json)
{
	double patience = stress->options.floor_percent / 100.0;
	double part = stress->options.seconds / 60.0 * patience;
	const Row rows[] = {
		{"cycles", (double)f->cycles, 300000 * part, -1},
		{"kvm_cycles", (double)f->kvm_cycles, 150000 * part, -1},
		{"pinned_refused", (double)f->pinned_refused, 1, -1},
		{"discards", (double)f->discards, 1, -1},
		{"service_kills", (double)f->service_kills, MAX(20 * part, 1), -1},
		{"enomem_ways_out", (double)f->enomem_ways_out, 1, -1},
		{"lost_writes", (double)f->lost_writes, 0, 0},
		{"wrong_bytes", (double)f->wrong_bytes, 0, 0},
		{"frames_reused", (double)f->frames_reused, 0, 0},
		{"hangs", (double)f->hangs, 0, 0},
		{"crashes", (double)f->crashes, 0, 0},
		{"stopped", (double)f->stopped, 0, 0},
		{"maps_after_release", (double)f->maps_after_release, 0, (double)f->maps_limit},
		{"maps_before", (double)f->maps_before, 0, -1},
		{"stall_us_p50", f->stall_us_p50, 0, -1},
		{"stall_us_p999", f->stall_us_p999, 0, patience < 1 ? -1 : 5000},
		{"stall_us_max", f->stall_us_max, 0, -1},
		{"stall_disturbed_us_max", f->stall_disturbed_us_max, 0, -1},
		{"stalls", (double)f->stalls, 1, -1},
		{"late_us_p999", f->late_us_p999, 0, -1},
		{"late_us_max", f->late_us_max, 0, -1},
		{"visits", (double)f->visits, 1, -1},
		{"written", (double)f->written, 0, -1},
		{"different", (double)f->different, 0, -1},
		{"frames", (double)f->frames, 1, -1},
		{"longest_run", (double)f->longest_run, 2, -1},
		{"direct_reads", (double)f->direct_reads, 1, -1},
		{"direct_failed", (double)f->direct_failed, 0, -1},
		{"registered", (double)f->registered, 1, -1},
		{"releases", (double)f->releases, 1, -1},
		{"asides", (double)f->asides, 0, -1},
		{"plugs", (double)f->plugs, 1, -1},
		{"forks", (double)f->forks, 1, -1},
		{"lies", (double)f->lies, 1, -1},
		{"hints", (double)f->hints, 1, -1},
		{"sessions", (double)f->sessions, 1, -1},
		{"maps_phases", stress->maps_phases, 1, -1},
		{"memory_phases", stress->memory_phases, 0, -1},
		{"store_kib_max", (double)stress->store_kib_max, 1, -1},
		{"store_kib_left", (double)stress->store_kib_left, 1, STRESS_KIB_LEFT},
	};
	bool good = true;

	for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++)
		good &= tell_row(&rows[i], json);
	return good;
}

static void explain(void)
{
	puts("cycles: pages that were fused and then written to. stall: a writer's visit to a page, a check of it "
	     "and one write,\nthat took 5 us or more: it met a fuse or a revoke, or had to wait for a processor; "
	     "disturbed: while its VM had no\nmemory, or made maps by the thousand. late: how much too late a "
	     "thread got on that only slept for 1 ms at a time,\nwhich is what the machine itself costs.");
}

bool result_tell(const Stress *stress)
{
	const char *path = stress->options.json;
	FILE *json = path ? fopen(path, "we") : NULL;
	Figures f;
	bool good;

	collect(stress, &f);
	if (json)
		fprintf(json, "{\n");
	good = tell_rows(stress, &f, json);
	if (json)
		fprintf(json,
			"  \"seconds\": %.1f,\n  \"seed\": \"%#" G_GINT64_MODIFIER
			"x\",\n  \"passed\": %s\n}\n",
			stress->seconds, stress->options.seed, good ? "true" : "false");
	if (path && (!json || fclose(json) != 0)) {
		fprintf(stderr, "%s: %s\n", path, g_strerror(errno));
		good = false;
	}
	explain();
	if (stress->options.defect == STRESS_NO_DEFECT)
		return good;
	printf("defect %s: %s after %.1f s, met %" G_GUINT64_FORMAT " times in the VMMs\n",
		stress_defect_names[stress->options.defect],
		stress->caught_after > 0 ? "caught" : "NOT caught", stress->caught_after,
		f.defect_fired);
	return stress->caught_after > 0;
}
