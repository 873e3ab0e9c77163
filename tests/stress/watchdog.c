/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A thread of a VMM that does not get on for HANG_US hangs, and a VMM that has ended by itself has crashed. */
#include "tests/stress/stress.h"
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#define HANG_US (10 * G_USEC_PER_SEC)

static void tell_file(pid_t pid, const char *thread, const char *name)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/task/%s/%s", pid, thread, name);
	g_autofree char *text = NULL;

	if (g_file_get_contents(path, &text, NULL, NULL))
		fprintf(stderr, "    %s %s: %s\n", thread, name, g_strchomp(text));
}

void watchdog_tell(const Stress *stress, unsigned i)
{
	pid_t pid = stress->vms[i].pid;
	g_autofree char *path = g_strdup_printf("/proc/%d/task", pid);
	g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
	const char *thread;

	while (dir && (thread = g_dir_read_name(dir))) {
		tell_file(pid, thread, "comm");
		tell_file(pid, thread, "wchan");
		tell_file(pid, thread, "stack");
	}
}

static void look_at_thread(Stress *stress, unsigned i, unsigned k, gint64 now)
{
	const StressThread *thread = &stress->shared->vms[i].threads[k];
	uint64_t beats = thread->beats;
	Vm *vm = &stress->vms[i];

	if (thread->tid == 0 || beats != vm->beats[k] || vm->beats_us[k] == 0) {
		vm->beats[k] = beats;
		vm->beats_us[k] = now;
		return;
	}
	if (now - vm->beats_us[k] < HANG_US || vm->hangs[k])
		return;
	vm->hangs[k] = true;
	stress->hangs++;
	fprintf(stderr, "VM %u: thread %s (%d) hangs; all threads of the process:\n", i,
		thread->name, (int)thread->tid);
	watchdog_tell(stress, i);
}

void watchdog_look(Stress *stress)
{
	gint64 now = g_get_monotonic_time();

	for (unsigned i = 0; i < STRESS_VMS; i++) {
		Vm *vm = &stress->vms[i];
		int status;

		if (vm->pid == 0)
			continue;
		if (waitpid(vm->pid, &status, WNOHANG) == vm->pid) {
			fprintf(stderr, "VM %u has ended by itself, with status %#x\n", i,
				(unsigned)status);
			stress->vmm_crashes++;
			vm->pid = 0;
			continue;
		}
		for (unsigned k = 0; k < STRESS_MAX_THREADS; k++)
			look_at_thread(stress, i, k, now);
	}
}
