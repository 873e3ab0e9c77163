/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A toy VM runs as "nobody", as QEMU does not run as root: the user changes before exec, so that
 * the process may open its own /proc/self/pagemap. It answers each line with a line; while the test
 * waits for that, the main loop turns, because the answer may depend on the service.
 */
#include "tests/vmm/lab.h"
#include "host-service/front/shim_socket.h"
#include "tests/vmm/toy_broker.h"
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <grp.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define SERVICE_USER G_STRINGIFY(LAB_SERVICE_UID)
#define WAIT_US      (20 * G_USEC_PER_SEC)

struct Lab {
	char dir[64], socket[96];
	bool own_process;
	unsigned answer_ms;
	pid_t daemon;
	ToyBroker *broker;
	PfShimSocket *shims; /* these, with the service in this process */
	PfConfig *config;
	PfHasher *hasher;
	PfService *service;
	LabVm vms[LAB_MAX_VMS];
	unsigned n_vms;
};

static void on_closed(void *userdata)
{
}

static void start_process(Lab *lab, int broker_fd)
{
	char fd[16];

	snprintf(fd, sizeof(fd), "%d", broker_fd);
	fcntl(broker_fd, F_SETFD, 0);
	lab->daemon = fork();
	assert_true(lab->daemon >= 0);
	if (lab->daemon == 0) {
		execl(PF_TEST_PAGEFUSIOND, "pagefusiond", "--broker-fd", fd, "--no-bus", "--user",
			SERVICE_USER, "--run-dir", lab->dir, "--thp", "all", NULL);
		_exit(127);
	}
	close(broker_fd);
}

static void start_here(Lab *lab, int broker_fd)
{
	PfServiceConfig config = {
		.fusion = PF_FUSION_DEFAULTS, .pressure = pf_pressure_open_host()};
	g_autoptr(GError) error = NULL;

	lab->shims = pf_shim_socket_new(lab->socket, &error);
	if (!lab->shims)
		fail_msg("pf_shim_socket_new: %s", error->message);
	lab->config = pf_config_new();
	pf_config_set_thp(lab->config, PF_THP_ALL);
	lab->hasher = pf_hasher_new();
	assert_non_null(lab->hasher);
	config.answer_ms = lab->answer_ms;
	config.config = lab->config;
	config.hasher = lab->hasher;
	config.shim_fd = fcntl(pf_shim_socket_fd(lab->shims), F_DUPFD_CLOEXEC, 0);
	lab->service = pf_service_new(&config, broker_fd, on_closed, NULL);
}

static void start_service(Lab *lab)
{
	int fd;

	lab->broker = toy_broker_start(&fd);
	if (lab->own_process)
		start_process(lab, fd);
	else
		start_here(lab, fd);
	toy_broker_set_libvirt(lab->broker, TRUE, "");
}

static Lab *new_lab(bool own_process, unsigned answer_ms)
{
	Lab *lab = g_new0(Lab, 1);

	lab->own_process = own_process;
	lab->answer_ms = answer_ms;
	strcpy(lab->dir, "/tmp/pf-vmm-XXXXXX");
	assert_non_null(g_mkdtemp(lab->dir));
	/* The VMs make their channels' sockets there. */
	assert_int_equal(g_chmod(lab->dir, 01777), 0);
	snprintf(lab->socket, sizeof(lab->socket), "%s/shim.sock", lab->dir);
	start_service(lab);
	return lab;
}

Lab *lab_new(bool own_process)
{
	return new_lab(own_process, 0);
}

Lab *lab_new_impatient(unsigned answer_ms)
{
	return new_lab(false, answer_ms);
}

static void stop_service(Lab *lab)
{
	if (lab->daemon > 0) {
		kill(lab->daemon, SIGKILL);
		waitpid(lab->daemon, NULL, 0);
	}
	lab->daemon = 0;
	g_clear_pointer(&lab->service, pf_service_free);
	g_clear_pointer(&lab->shims, pf_shim_socket_free);
	g_clear_pointer(&lab->config, pf_config_free);
	g_clear_pointer(&lab->hasher, pf_hasher_free);
	g_clear_pointer(&lab->broker, toy_broker_stop);
}

static void end_process(LabVm *vm, bool killed)
{
	if (vm->pid <= 0)
		return;
	if (killed)
		kill(vm->pid, SIGKILL);
	close(vm->to); /* the end of its input ends it */
	close(vm->from);
	close(vm->pagemap);
	waitpid(vm->pid, NULL, 0);
	vm->pid = 0;
}

void lab_free(Lab *lab)
{
	g_autoptr(GDir) dir = NULL;
	const char *name;

	for (unsigned i = 0; i < lab->n_vms; i++)
		end_process(&lab->vms[i], true);
	stop_service(lab);
	dir = g_dir_open(lab->dir, 0, NULL);
	while (dir && (name = g_dir_read_name(dir))) {
		g_autofree char *path = g_build_filename(lab->dir, name, NULL);

		g_unlink(path);
	}
	g_rmdir(lab->dir);
	g_free(lab);
}

PfService *lab_service(Lab *lab)
{
	return lab->service;
}

const char *lab_dir(const Lab *lab)
{
	return lab->dir;
}

const char *lab_shim_socket(const Lab *lab)
{
	return lab->socket;
}

void lab_kill_service(Lab *lab)
{
	stop_service(lab);
}

void lab_restart_service(Lab *lab)
{
	start_service(lab);
	for (unsigned i = 0; i < lab->n_vms; i++)
		if (lab->vms[i].pid > 0)
			lab_announce_changed(&lab->vms[i], lab->vms[i].change);
}

__attribute__((noreturn)) static void become(
	const Lab *lab, const char *const argv[], uid_t uid, bool has_shim, int in, int out)
{
	if (dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 || setgroups(0, NULL) < 0 ||
		setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
		_exit(126);
	if (has_shim)
		setenv("LD_PRELOAD", PF_TEST_SHIM, 1);
	setenv("PAGEFUSION_SOCKET", lab->socket, 1);
#ifdef __SANITIZE_ADDRESS__
	setenv("ASAN_OPTIONS", "verify_asan_link_order=0", 1);
#endif
	execvp(argv[0], (char *const *)argv);
	_exit(127);
}

static pid_t spawn(
	const Lab *lab, const char *const argv[], uid_t uid, bool has_shim, int in, int out)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0)
		become(lab, argv, uid, has_shim, in, out);
	return pid;
}

pid_t lab_spawn(const Lab *lab, const char *const argv[], int in, int out)
{
	return spawn(lab, argv, LAB_VM_UID, true, in, out);
}

static void read_line(LabVm *vm, char *line, size_t size)
{
	gint64 deadline = g_get_monotonic_time() + WAIT_US;
	size_t n = 0;

	while (n == 0 || line[n - 1] != '\n') {
		struct pollfd event = {vm->from, POLLIN, 0};
		bool turned = g_main_context_iteration(NULL, FALSE);

		if (g_get_monotonic_time() > deadline)
			fail_msg("%s does not answer", vm->name);
		if (poll(&event, 1, turned ? 0 : 1) <= 0)
			continue;
		assert_true(n + 1 < size);
		if (read(vm->from, line + n, 1) != 1)
			fail_msg("%s has ended", vm->name);
		n++;
	}
	line[n - 1] = 0;
}

__attribute__((format(printf, 2, 0))) static const char *command(
	LabVm *vm, const char *format, va_list arguments)
{
	static char line[256];
	int n = vsnprintf(line, sizeof(line) - 1, format, arguments);

	assert_true(n > 0 && (size_t)n < sizeof(line) - 1);
	line[n++] = '\n';
	assert_int_equal(write(vm->to, line, (size_t)n), n);
	read_line(vm, line, sizeof(line));
	return line;
}

const char *lab_command(LabVm *vm, const char *format, ...)
{
	const char *answer;
	va_list arguments;

	va_start(arguments, format);
	answer = command(vm, format, arguments);
	va_end(arguments);
	return answer;
}

void lab_ok(LabVm *vm, const char *format, ...)
{
	const char *answer;
	va_list arguments;

	va_start(arguments, format);
	answer = command(vm, format, arguments);
	va_end(arguments);
	if (strcmp(answer, "ok") != 0)
		fail_msg("%s: \"%s\" gave \"%s\"", vm->name, format, answer);
}

static LabVm *add_vm(Lab *lab, const char *name, const char *group)
{
	LabVm *vm = &lab->vms[lab->n_vms++];
	g_autofree char *channel = g_strdup_printf("%s/%s.sock", lab->dir, name);

	assert_true(lab->n_vms <= LAB_MAX_VMS);
	vm->lab = lab;
	g_strlcpy(vm->name, name, sizeof(vm->name));
	g_strlcpy(vm->group, group, sizeof(vm->group));
	snprintf(vm->uuid, sizeof(vm->uuid), "00000000-0000-4000-8000-%012u", lab->n_vms);
	g_strlcpy(vm->channel, channel, sizeof(vm->channel));
	vm->to = vm->from = vm->pagemap = -1;
	return vm;
}

static void open_pagemap(LabVm *vm)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", vm->pid);
	vm->pagemap = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(vm->pagemap >= 0);
}

LabVm *lab_adopt_vm(Lab *lab, const char *name, const char *group, pid_t pid, uint64_t ram)
{
	LabVm *vm = add_vm(lab, name, group);

	vm->pid = pid;
	vm->blocks[0] = ram;
	open_pagemap(vm);
	return vm;
}

static LabVm *start_vm(Lab *lab, const char *name, const char *group, uid_t uid, bool has_shim)
{
	LabVm *vm = add_vm(lab, name, group);
	const char *argv[] = {PF_TEST_TOY_VMM, vm->channel, NULL};
	char line[64];
	int to[2], from[2];

	assert_int_equal(pipe2(to, O_CLOEXEC), 0);
	assert_int_equal(pipe2(from, O_CLOEXEC), 0);
	vm->pid = spawn(lab, argv, uid, has_shim, to[0], from[1]);
	close(to[0]);
	close(from[1]);
	vm->to = to[1];
	vm->from = from[0];
	read_line(vm, line, sizeof(line));
	assert_string_equal(line, "ready");
	assert_int_equal(sscanf(lab_command(vm, "where"), "%" SCNu64 " %" SCNu64, &vm->blocks[0],
				 &vm->blocks[1]),
		2);
	open_pagemap(vm);
	return vm;
}

LabVm *lab_start_vm(Lab *lab, const char *name, const char *group)
{
	return start_vm(lab, name, group, LAB_VM_UID, true);
}

LabVm *lab_start_bare_vm(Lab *lab, const char *name, const char *group)
{
	return start_vm(lab, name, group, LAB_VM_UID, false);
}

LabVm *lab_start_bare_vm_as(Lab *lab, const char *name, const char *group, uid_t uid)
{
	return start_vm(lab, name, group, uid, false);
}

void lab_announce(LabVm *vm)
{
	lab_announce_changed(vm, NULL);
}

void lab_announce_changed(LabVm *vm, void (*change)(PfDomain *domain))
{
	PfDomain domain = {.state = "running",
		.enabled = TRUE,
		.active = TRUE,
		.has_shim = TRUE,
		.pid = vm->pid,
		.memory_pages = LAB_LOW_PAGES + LAB_HIGH_PAGES};
	ToyRange ranges[] = {{{0}, LAB_LOW_PAGES, {vm->blocks[0]}},
		{{LAB_HIGH}, LAB_HIGH_PAGES, {vm->blocks[1]}}};

	g_strlcpy(domain.uuid, vm->uuid, sizeof(domain.uuid));
	g_strlcpy(domain.name, vm->name, sizeof(domain.name));
	g_strlcpy(domain.group, vm->group, sizeof(domain.group));
	g_strlcpy(domain.channel, vm->channel, sizeof(domain.channel));
	if (change)
		change(&domain);
	toy_broker_set_domain(vm->lab->broker, &domain);
	toy_broker_set_memory(vm->lab->broker, vm->uuid, ranges, 2);
}

void lab_end_vm(LabVm *vm, bool killed)
{
	end_process(vm, killed);
	toy_broker_remove_domain(vm->lab->broker, vm->uuid);
}

bool lab_wait(Lab *lab, bool (*condition)(void *userdata), void *userdata)
{
	gint64 deadline = g_get_monotonic_time() + WAIT_US;

	while (!condition(userdata)) {
		if (g_get_monotonic_time() > deadline)
			return false;
		if (!g_main_context_iteration(NULL, FALSE))
			g_usleep(1000);
	}
	return true;
}

void lab_turn(Lab *lab, unsigned ms)
{
	gint64 deadline = g_get_monotonic_time() + ms * 1000;

	while (g_get_monotonic_time() < deadline)
		if (!g_main_context_iteration(NULL, FALSE))
			g_usleep(1000);
}

static bool has_session(void *userdata)
{
	return strcmp(lab_command(userdata, "session"), "yes") == 0;
}

void lab_wait_for_session(LabVm *vm)
{
	if (!lab_wait(vm->lab, has_session, vm))
		fail_msg("%s: no session was opened", vm->name);
}

uint64_t lab_file_pfn(const LabVm *vm, uint64_t gfn)
{
	uint64_t hva = gfn >= LAB_HIGH ? vm->blocks[1] + (gfn - LAB_HIGH) * PF_PAGE_SIZE
				       : vm->blocks[0] + gfn * PF_PAGE_SIZE;
	uint64_t entry;

	assert_int_equal(pread(vm->pagemap, &entry, sizeof(entry),
				 (off_t)(hva / PF_PAGE_SIZE * sizeof(entry))),
		sizeof(entry));
	if (!(entry >> 63 & 1) || !(entry >> 61 & 1))
		return 0;
	return entry & ((1ull << 55) - 1);
}

unsigned lab_count_file_pages(const LabVm *vm)
{
	unsigned n = 0;

	for (uint64_t i = 0; i < LAB_LOW_PAGES; i++)
		n += lab_file_pfn(vm, i) != 0;
	for (uint64_t i = 0; i < LAB_HIGH_PAGES; i++)
		n += lab_file_pfn(vm, LAB_HIGH + i) != 0;
	return n;
}
