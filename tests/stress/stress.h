/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The driver's parts. */
#include "tests/stress/shared.h"
#include "tests/vmm/toy_broker.h"

#define STRESS_KIB_LEFT 64 /* that a store may take when nobody maps anything */
#define STRESS_SKIP     77 /* what CTest takes as "skipped" */

typedef struct Options {
	unsigned seconds, floor_percent;
	uint64_t seed;
	const char *json; /* NULL: none */
	const char
		*work_dir; /* on a file system with direct reads; of a path that everybody may go */
	StressDefect defect;
} Options;

typedef struct Vm {
	StressRole role;
	pid_t pid;
	int to, from; /* its standard input and output */
	char channel[108];
	PfDomain domain;
	uint64_t beats[STRESS_MAX_THREADS];
	gint64 beats_us[STRESS_MAX_THREADS]; /* when they changed last */
	bool hangs[STRESS_MAX_THREADS];
} Vm;

typedef struct Stress {
	Options options;
	StressShared *shared;
	int shared_fd, kvm_fd, vmm_fd;
	char dir[64];
	StressRandom random;
	Vm vms[STRESS_VMS];

	ToyBroker *broker;
	pid_t service; /* 0: none runs */
	gint64 started_us;
	unsigned service_kills, service_crashes, vmm_crashes, hangs;
	unsigned maps_phases, memory_phases;
	uint64_t store_kib, store_kib_max,
		store_kib_left; /* now, at most, and when nothing was fused any more */
	gint64 long_life_us; /* since the start: the service that is started then may live longer */
	uint64_t late[STRESS_BUCKETS], late_max_ns; /* the canary's */
	double seconds,
		caught_after; /* how long the threads ran; when the first wrong thing was seen, or 0 */
} Stress;

extern const char *const stress_defect_names[STRESS_N_DEFECTS];

/* service.c */
void service_start(Stress *stress);
void service_kill(Stress *stress);
/* Looks whether it has ended by itself, and what its stores take. */
void service_look(Stress *stress);

/* vms.c: false: it cannot be done, and it was said why. */
bool vms_start(Stress *stress);
/* One line to the VM, its answer, or both. false: "failed", or none in time. */
void vms_send(Stress *stress, unsigned vm, const char *line);
bool vms_answer(Stress *stress, unsigned vm, gint64 deadline);
bool vms_command(Stress *stress, unsigned vm, const char *line, unsigned wait_s);
void vms_announce(Stress *stress);
void vms_end(Stress *stress);

/* trouble.c: a lowered vm.max_map_count, and a memory cgroup at its limit. */
void trouble_init(void);
/* Before exec: this process goes into the cgroup. */
void trouble_join_cgroup(void);
/* Begins or ends a phase, when it is time for that. */
void trouble_look(Stress *stress);
/* Ends the phase. */
void trouble_end(Stress *stress);
/* Puts everything back; when no process of ours is in the cgroup any more. */
void trouble_exit(void);

/* canary.c */
void canary_start(Stress *stress);
void canary_stop(void);

/* watchdog.c */
void watchdog_look(Stress *stress);
/* What the VM's threads wait for. */
void watchdog_tell(const Stress *stress, unsigned vm);

/* result.c */
void result_progress(const Stress *stress);
/* Whether everything that must be shown was shown. */
bool result_tell(const Stress *stress);
bool result_anything_wrong(const Stress *stress);
