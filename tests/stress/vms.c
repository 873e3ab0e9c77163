/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The VMMs' processes. They run as "nobody": the service refuses a VM that runs as root. */
#include "tests/stress/stress.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOBODY 65534

/* Two of a kind, one of which may get short of memory. */
static const StressRole roles[STRESS_VMS] = {
	STRESS_ROLE_VCPU, STRESS_ROLE_WRITERS, STRESS_ROLE_VCPU, STRESS_ROLE_LIAR};

void vms_send(Stress *stress, unsigned i, const char *line)
{
	/* Without a reader the answer will be missing. */
	if (stress->vms[i].pid != 0 && write(stress->vms[i].to, line, strlen(line)) < 0)
		fprintf(stderr, "VM %u: %s\n", i, g_strerror(errno));
}

bool vms_answer(Stress *stress, unsigned i, gint64 deadline)
{
	Vm *vm = &stress->vms[i];
	char answer[16] = "";
	size_t n = 0;

	if (vm->pid == 0)
		return false;
	while (n + 1 < sizeof answer && (n == 0 || answer[n - 1] != '\n')) {
		gint64 left = MAX(deadline - g_get_monotonic_time(), 0);
		struct pollfd event = {vm->from, POLLIN, 0};

		if (poll(&event, 1, (int)(left / 1000)) <= 0 || read(vm->from, answer + n, 1) != 1)
			return false;
		n++;
	}
	return strcmp(answer, "ok\n") == 0;
}

bool vms_command(Stress *stress, unsigned i, const char *line, unsigned wait_s)
{
	vms_send(stress, i, line);
	return vms_answer(stress, i, g_get_monotonic_time() + wait_s * G_USEC_PER_SEC);
}

__attribute__((noreturn)) static void become_vm(const Stress *stress, unsigned i, int in, int out)
{
	const Vm *vm = &stress->vms[i];
	char name[] = "stress_vmm", numbers[4][16];
	g_autofree char *file = g_strdup_printf("%s/direct", stress->dir);
	g_autofree char *socket = g_strdup_printf("%s/shim.sock", stress->dir);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (i == 1)
		trouble_join_cgroup();
	if (dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 || setgroups(0, NULL) < 0 ||
		setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
		_exit(126);
	/* The change of user takes it back. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	fcntl(stress->shared_fd, F_SETFD, 0);
	fcntl(stress->kvm_fd, F_SETFD, 0);
	setenv("PAGEFUSION_SOCKET", socket, 1);
	snprintf(numbers[0], sizeof numbers[0], "%u", i);
	snprintf(numbers[1], sizeof numbers[1], "%d", (int)vm->role);
	snprintf(numbers[2], sizeof numbers[2], "%d", stress->shared_fd);
	snprintf(numbers[3], sizeof numbers[3], "%d", stress->kvm_fd);
	fexecve(stress->vmm_fd,
		(char *[]){name, (char *)vm->channel, numbers[0], numbers[1], numbers[2],
			numbers[3], file, NULL},
		environ);
	_exit(127);
}

static void describe(Stress *stress, unsigned i)
{
	Vm *vm = &stress->vms[i];

	vm->domain = (PfDomain){.state = "running",
		.enabled = TRUE,
		.active = TRUE,
		.has_shim = TRUE,
		.pid = vm->pid,
		.memory_pages = STRESS_PAGES};
	snprintf(vm->domain.uuid, sizeof vm->domain.uuid, "00000000-0000-4000-8000-%012u", i + 1);
	snprintf(vm->domain.name, sizeof vm->domain.name, "stress-%u", i);
	g_strlcpy(vm->domain.group, "stress", sizeof vm->domain.group);
	g_strlcpy(vm->domain.channel, vm->channel, sizeof vm->domain.channel);
}

static bool start(Stress *stress, unsigned i)
{
	Vm *vm = &stress->vms[i];
	int to[2], from[2];

	vm->role = roles[i];
	snprintf(vm->channel, sizeof vm->channel, "%s/vm-%u.sock", stress->dir, i);
	if (pipe2(to, O_CLOEXEC) < 0 || pipe2(from, O_CLOEXEC) < 0)
		g_error("pipe: %s", g_strerror(errno));
	vm->pid = fork();
	if (vm->pid < 0)
		g_error("fork: %s", g_strerror(errno));
	if (vm->pid == 0)
		become_vm(stress, i, to[0], from[1]);
	close(to[0]);
	close(from[1]);
	vm->to = to[1];
	vm->from = from[0];
	describe(stress, i);
	return vms_answer(stress, i, g_get_monotonic_time() + 10 * G_USEC_PER_SEC);
}

bool vms_start(Stress *stress)
{
	/* "nobody" may not get to where it lies. */
	stress->vmm_fd = open(PF_TEST_STRESS_VMM, O_PATH | O_CLOEXEC);
	for (unsigned i = 0; i < STRESS_VMS; i++)
		if (!start(stress, i)) {
			fprintf(stderr, "VM %u does not start\n", i);
			return false;
		}
	return true;
}

void vms_announce(Stress *stress)
{
	for (unsigned i = 0; i < STRESS_VMS; i++) {
		const Vm *vm = &stress->vms[i];
		ToyRange memory[] = {{{0}, STRESS_LOW_PAGES, {stress->shared->vms[i].blocks[0]}},
			{{STRESS_HIGH_GFN}, STRESS_HIGH_PAGES, {stress->shared->vms[i].blocks[1]}}};

		toy_broker_set_domain(stress->broker, &vm->domain);
		toy_broker_set_memory(stress->broker, vm->domain.uuid, memory, 2);
	}
}

void vms_end(Stress *stress)
{
	for (unsigned i = 0; i < STRESS_VMS; i++) {
		Vm *vm = &stress->vms[i];

		if (vm->pid == 0)
			continue;
		kill(vm->pid, SIGKILL);
		waitpid(vm->pid, NULL, 0);
		close(vm->to);
		close(vm->from);
		vm->pid = 0;
	}
}
