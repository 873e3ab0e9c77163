/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Phases without maps and without memory.
 *
 * vm.max_map_count is of the whole machine: it is lowered only to what leaves every other process half as many maps
 * again as it has, a VMM uses up by itself what that leaves it, and after half a second it is put back. Memory: a VMM
 * lives in a memory cgroup, whose limit is brought down to what it uses. With version 1 the OOM killer is kept out of
 * it; with version 2 only memory.high can be used for that.
 */
#include "tests/stress/stress.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_MAP_COUNT "/proc/sys/vm/max_map_count"
#define CGROUP_V1     "/sys/fs/cgroup/memory"
#define CGROUP_V2     "/sys/fs/cgroup"
#define LEAST_MAPS    4096u
#define SHORT_VM      1u /* the one in the cgroup */

typedef enum Phase {
	PHASE_NONE,
	PHASE_MAPS,
	PHASE_MEMORY,
} Phase;

static Phase phase;
static unsigned phase_vm;
static gint64 next_us;
static char *max_map_count; /* as it was; NULL: not lowered */
static char *cgroup;        /* NULL: none */
static bool cgroup_v2;

static bool write_file(const char *dir, const char *name, const char *text)
{
	g_autofree char *path = dir ? g_build_filename(dir, name, NULL) : g_strdup(name);
	FILE *file = fopen(path, "we");
	bool written = file && fputs(text, file) >= 0;

	/* The kernel's answer comes with the flush. */
	return file && fclose(file) == 0 && written;
}

static char *read_file(const char *dir, const char *name)
{
	g_autofree char *path = g_build_filename(dir, name, NULL);
	char *text = NULL;

	return g_file_get_contents(path, &text, NULL, NULL) ? text : NULL;
}

void trouble_init(void)
{
	g_autofree char *enabled = read_file(CGROUP_V2, "cgroup.subtree_control");
	const char *parent = NULL;

	if (g_file_test(CGROUP_V1 "/memory.limit_in_bytes", G_FILE_TEST_EXISTS))
		parent = CGROUP_V1;
	else if (enabled && strstr(enabled, "memory"))
		parent = CGROUP_V2;
	if (!parent)
		return;
	cgroup_v2 = strcmp(parent, CGROUP_V2) == 0;
	cgroup = g_strdup_printf("%s/pagefusion-stress-%d", parent, (int)getpid());
	if (mkdir(cgroup, 0755) < 0)
		g_clear_pointer(&cgroup, g_free);
	else if (!cgroup_v2 && !write_file(cgroup, "memory.oom_control", "1"))
		trouble_exit();
}

void trouble_join_cgroup(void)
{
	if (cgroup)
		write_file(cgroup, "cgroup.procs", "0");
}

static unsigned count_lines(const char *path)
{
	g_autofree char *text = NULL;
	unsigned n = 0;

	if (!g_file_get_contents(path, &text, NULL, NULL))
		return 0;
	for (const char *c = text; *c; c++)
		n += *c == '\n';
	return n;
}

static bool is_ours(const Stress *stress, int pid)
{
	for (unsigned i = 0; i < STRESS_VMS; i++)
		if (stress->vms[i].pid == pid)
			return true;
	return false;
}

/* Of all processes but the VMMs. */
static unsigned most_maps(const Stress *stress)
{
	g_autoptr(GDir) dir = g_dir_open("/proc", 0, NULL);
	const char *name;
	unsigned most = 0;

	while (dir && (name = g_dir_read_name(dir))) {
		g_autofree char *path = g_strdup_printf("/proc/%s/maps", name);
		int pid = atoi(name);

		if (pid > 0 && !is_ours(stress, pid))
			most = MAX(most, count_lines(path));
	}
	return most;
}

static bool lower_max_map_count(const Stress *stress)
{
	unsigned wanted = MAX(most_maps(stress) / 2 * 3, LEAST_MAPS);
	char number[16];

	if (!g_file_get_contents(MAX_MAP_COUNT, &max_map_count, NULL, NULL))
		return false;
	snprintf(number, sizeof number, "%u", wanted);
	if (strtoull(max_map_count, NULL, 10) > wanted && write_file(NULL, MAX_MAP_COUNT, number))
		return true;
	g_clear_pointer(&max_map_count, g_free);
	return false;
}

static void put_max_map_count_back(void)
{
	if (max_map_count && !write_file(NULL, MAX_MAP_COUNT, max_map_count))
		fprintf(stderr, MAX_MAP_COUNT " cannot be put back: it was %s\n", max_map_count);
	g_clear_pointer(&max_map_count, g_free);
}

static void set_memory_limit(bool is_low)
{
	const char *limit = cgroup_v2 ? "memory.high" : "memory.limit_in_bytes";
	g_autofree char *used =
		read_file(cgroup, cgroup_v2 ? "memory.current" : "memory.usage_in_bytes");
	g_autofree char *number = g_strdup_printf("%llu", used ? strtoull(used, NULL, 10) : 0);

	write_file(cgroup, limit, !is_low ? cgroup_v2 ? "max" : "-1" : number);
}

static void begin_memory(Stress *stress)
{
	StressVm *vm = &stress->shared->vms[SHORT_VM];

	/* It makes no more children then. */
	vm->disturbed++;
	for (unsigned tries = 0; vm->children > 0 && tries < 1000; tries++)
		g_usleep(1000);
	if (vm->children == 0)
		set_memory_limit(true);
	stress->memory_phases += vm->children == 0;
}

static void begin(Stress *stress)
{
	static bool memory_next;

	phase = memory_next && cgroup ? PHASE_MEMORY : PHASE_MAPS;
	memory_next = !memory_next;
	phase_vm = SHORT_VM;
	if (phase == PHASE_MEMORY) {
		begin_memory(stress);
		return;
	}
	phase_vm = stress_below(&stress->random, STRESS_VMS);
	if (lower_max_map_count(stress)) {
		vms_command(stress, phase_vm, "fill\n", 10);
		stress->maps_phases++;
	}
}

static void end(Stress *stress)
{
	if (phase == PHASE_MAPS) {
		put_max_map_count_back();
		vms_command(stress, phase_vm, "drop\n", 10);
	} else if (phase == PHASE_MEMORY) {
		set_memory_limit(false);
		stress->shared->vms[SHORT_VM].disturbed--;
	}
	phase = PHASE_NONE;
}

void trouble_look(Stress *stress)
{
	gint64 now = g_get_monotonic_time();

	if (next_us == 0)
		next_us = now + 2 * G_USEC_PER_SEC;
	if (now < next_us)
		return;
	if (phase == PHASE_NONE) {
		begin(stress);
		next_us = g_get_monotonic_time() + 200000 + stress_below(&stress->random, 400000);
	} else {
		end(stress);
		next_us = now + 1000000 + stress_below(&stress->random, 3000000);
	}
}

void trouble_end(Stress *stress)
{
	end(stress);
}

void trouble_exit(void)
{
	put_max_map_count_back();
	if (cgroup && rmdir(cgroup) < 0)
		fprintf(stderr, "%s cannot be removed: %s\n", cgroup, g_strerror(errno));
	g_clear_pointer(&cgroup, g_free);
}
