/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The program pagefusiond: what each of its processes has given up, and what it has open. Once beside a libvirt (that
 * takes connections and says nothing) and a bus of its own, so that there is something that the service must not have;
 * and once with VMs that share memory through it.
 */
#include "host-service/daemon/sandbox.h"
#include "tests/security/inspect.h"
#include "tests/vmm/lab.h"
#include <fcntl.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <linux/capability.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define UID     64321u /* of the labs, too */
#define UID_ARG "64321"
#define WAIT_US (20 * G_USEC_PER_SEC)
#define BROKERS (UINT64_C(1) << CAP_DAC_OVERRIDE | UINT64_C(1) << CAP_DAC_READ_SEARCH)
#define N       32

/* The child of this name; it must come in time. */
static pid_t wait_for_child(pid_t parent, const char *name)
{
	g_autofree char *children = g_strdup_printf("task/%d/children", parent);
	gint64 deadline = g_get_monotonic_time() + WAIT_US;

	while (g_get_monotonic_time() < deadline) {
		g_autofree char *text = inspect_read(parent, children);
		g_auto(GStrv) pids = g_strsplit(text, " ", -1);

		for (char **p = pids; *p; p++) {
			pid_t pid = (pid_t)g_ascii_strtoll(*p, NULL, 10);
			g_autofree char *comm = pid > 0 ? inspect_read(pid, "comm") : NULL;

			if (comm && strcmp(g_strchomp(comm), name) == 0)
				return pid;
		}
		g_usleep(1000);
	}
	fail_msg("there is no process %s", name);
	return 0;
}

/* Until it has given up what it gives up: that comes last. */
static void wait_for_status(pid_t pid, const char *field, const char *value)
{
	gint64 deadline = g_get_monotonic_time() + WAIT_US;

	while (g_get_monotonic_time() < deadline) {
		g_autofree char *now = inspect_status(pid, field);

		if (strcmp(now, value) == 0)
			return;
		g_usleep(1000);
	}
	fail_msg("%s does not become %s", field, value);
}

/* Descriptors */

typedef struct Open {
	unsigned packet_sockets, stream_sockets, others;
	GString *strange; /* what nobody is to have in the service */
} Open;

static void open_clear(Open *open)
{
	g_string_free(open->strange, TRUE);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Open, open_clear)

/* The type of a socket of this namespace, or 0: SOCK_STREAM, SOCK_SEQPACKET... of unix sockets. */
static int socket_type(guint64 inode)
{
	g_autofree char *table = inspect_read(getpid(), "net/unix");
	g_auto(GStrv) lines = g_strsplit(table, "\n", -1);

	for (char **line = lines + 1; *line && **line; line++) {
		unsigned type;
		unsigned long long its_inode;

		if (sscanf(*line, "%*s %*s %*s %*s %x %*s %llu", &type, &its_inode) == 2 &&
			its_inode == inode)
			return (int)type;
	}
	return 0;
}

static bool is_the_services(const char *target)
{
	static const char *const known[] = {"/dev/null", "anon_inode:[eventfd]",
		"anon_inode:[pidfd]", "/proc/pressure/memory", "/proc/meminfo", "pidfd:", "pipe:"};

	for (size_t i = 0; i < G_N_ELEMENTS(known); i++)
		if (g_str_has_prefix(target, known[i]))
			return true;
	return g_str_has_prefix(target, "/memfd:pagefusion-");
}

static void count_one(Open *open, const char *target)
{
	int type;

	if (!g_str_has_prefix(target, "socket:[")) {
		open->others++;
		if (!is_the_services(target))
			g_string_append_printf(open->strange, " %s", target);
		return;
	}
	type = socket_type(g_ascii_strtoull(target + strlen("socket:["), NULL, 10));
	open->packet_sockets += type == SOCK_SEQPACKET;
	open->stream_sockets += type == SOCK_STREAM;
	if (type == 0)
		g_string_append(open->strange, " a socket that is no unix socket");
}

/* What it has open beside standard input, output and error. */
static Open look_at_descriptors(pid_t pid)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/fd", pid);
	g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
	Open open = {.strange = g_string_new("")};
	const char *name;

	assert_non_null(dir);
	while ((name = g_dir_read_name(dir))) {
		g_autofree char *link = g_build_filename(path, name, NULL);
		g_autofree char *target = g_file_read_link(link, NULL);

		if (target && g_ascii_strtoull(name, NULL, 10) > STDERR_FILENO)
			count_one(&open, target);
	}
	return open;
}

static void wait_for_stream(pid_t pid)
{
	gint64 deadline = g_get_monotonic_time() + WAIT_US;

	while (g_get_monotonic_time() < deadline) {
		g_auto(Open) open = look_at_descriptors(pid);

		if (open.stream_sockets > 0)
			return;
		g_usleep(1000);
	}
	fail_msg("process %d has not connected", pid);
}

/* Of libvirt and of the bus are stream sockets; the front's, the broker's and the shims' are not. */
static void expect_no_strange_descriptors(pid_t service)
{
	g_auto(Open) open = look_at_descriptors(service);

	assert_string_equal(open.strange->str, "");
	assert_int_equal(open.stream_sockets, 0);
	assert_int_equal(open.packet_sockets, 3);
	assert_true(open.others > 0);
}

/* Beside libvirt and a bus */

typedef struct Rig {
	char dir[32], libvirt[64];
	GTestDBus *bus;
	int listening, broker; /* libvirt's ends */
	pid_t front;
} Rig;

static int listen_at(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	g_strlcpy(address.sun_path, path, sizeof address.sun_path);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
	assert_int_equal(listen(fd, 1), 0);
	return fd;
}

static void start_program(Rig *rig)
{
	g_autofree char *uri = g_strdup_printf("qemu+unix:///system?socket=%s", rig->libvirt);

	rig->front = fork();
	assert_true(rig->front >= 0);
	if (rig->front == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		setenv("DBUS_SYSTEM_BUS_ADDRESS", g_test_dbus_get_bus_address(rig->bus), 1);
		setenv("JOURNAL_STREAM", "1:1", 1);
		execl(PF_TEST_PAGEFUSIOND, "pagefusiond", "--user", UID_ARG, "--connect", uri,
			"--run-dir", rig->dir, NULL);
		_exit(127);
	}
}

static int set_up(void **state)
{
	Rig *rig = g_new0(Rig, 1);

	strcpy(rig->dir, "/tmp/pf-processes-XXXXXX");
	assert_non_null(g_mkdtemp(rig->dir));
	snprintf(rig->libvirt, sizeof rig->libvirt, "%s/libvirt", rig->dir);
	rig->listening = listen_at(rig->libvirt);
	rig->bus = g_test_dbus_new(G_TEST_DBUS_NONE);
	g_test_dbus_up(rig->bus);
	start_program(rig);
	rig->broker = accept4(rig->listening, NULL, NULL, SOCK_CLOEXEC);
	assert_true(rig->broker >= 0);
	*state = rig;
	return 0;
}

static int tear_down(void **state)
{
	static const char *const names[] = {"shim.sock", "shim.sock.lock", "libvirt"};
	Rig *rig = *state;

	kill(rig->front, SIGKILL);
	waitpid(rig->front, NULL, 0);
	close(rig->broker);
	close(rig->listening);
	g_test_dbus_down(rig->bus);
	g_object_unref(rig->bus);
	for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
		g_autofree char *path = g_build_filename(rig->dir, names[i], NULL);

		g_unlink(path);
	}
	assert_int_equal(g_rmdir(rig->dir), 0);
	g_free(rig);
	return 0;
}

static void test_service(void **state)
{
	Rig *rig = *state;
	pid_t service = wait_for_child(rig->front, "pf-service");

	wait_for_status(service, "Seccomp", "2");
	inspect_is_sandboxed(service, UID, UID, pf_sandbox_default_memory());
	/* Others have what it must not have: so we would see it. */
	wait_for_stream(rig->front);
	wait_for_stream(wait_for_child(rig->front, "pf-broker"));
	expect_no_strange_descriptors(service);
}

static void test_broker(void **state)
{
	Rig *rig = *state;
	pid_t broker = wait_for_child(rig->front, "pf-broker");

	wait_for_status(broker, "NoNewPrivs", "1");
	inspect_has_only(broker, BROKERS);
}

static void test_front(void **state)
{
	Rig *rig = *state;

	wait_for_status(rig->front, "NoNewPrivs", "1");
	inspect_has_only(rig->front, 0);
}

/* Whether addresses are drawn at all: of this process, whose children they are. */
static bool is_randomized(void)
{
	g_autofree char *how = NULL;

	assert_true(g_file_get_contents("/proc/sys/kernel/randomize_va_space", &how, NULL, NULL));
	return how[0] == '2' && !(personality(0xffffffff) & ADDR_NO_RANDOMIZE);
}

/* The broker, a fork, shows that what is looked at would be the same. */
static void test_memory_has_nothing_in_common(void **state)
{
	static const char *const places[] = {
		"/pagefusiond", "/libc.so.6", "[heap]", "[stack]", "[vdso]"};
	Rig *rig = *state;
	pid_t service = wait_for_child(rig->front, "pf-service"),
	      broker = wait_for_child(rig->front, "pf-broker");
	uint8_t fronts[INSPECT_RANDOM], brokers[INSPECT_RANDOM], services[INSPECT_RANDOM];

	wait_for_status(service, "Seccomp", "2");
	inspect_random(rig->front, fronts);
	inspect_random(broker, brokers);
	inspect_random(service, services);
	assert_memory_equal(fronts, brokers, INSPECT_RANDOM);
	assert_memory_not_equal(fronts, services, INSPECT_RANDOM);
	if (!is_randomized())
		print_message("no address is drawn here: addresses are not compared\n");
	for (size_t i = 0; is_randomized() && i < G_N_ELEMENTS(places); i++) {
		uint64_t address = inspect_address(rig->front, places[i]);

		assert_true(inspect_address(broker, places[i]) == address);
		assert_true(inspect_address(service, places[i]) != address);
	}
}

/* Of what somebody has set for the program the service gets this alone. */
static void test_environment(void **state)
{
	static const char expected[] = "JOURNAL_STREAM=1:1";
	Rig *rig = *state;
	pid_t service = wait_for_child(rig->front, "pf-service");
	g_autofree char *path = g_strdup_printf("/proc/%d/environ", service);
	g_autofree char *environment = NULL;
	gsize size;

	wait_for_status(service, "Seccomp", "2");
	assert_true(g_file_get_contents(path, &environment, &size, NULL));
	assert_int_equal(size, sizeof expected);
	assert_memory_equal(environment, expected, sizeof expected);
}

/* With VMs */

static bool are_fused(void *userdata)
{
	LabVm **vms = userdata;

	return lab_count_file_pages(vms[0]) == N && lab_count_file_pages(vms[1]) == N;
}

static LabVm *start_vm(Lab *lab, const char *name)
{
	LabVm *vm = lab_start_vm(lab, name, "default");

	lab_announce(vm);
	lab_wait_for_session(vm);
	lab_ok(vm, "fill 64 %u 5", N);
	lab_ok(vm, "module 1 libtoy.so %u", N);
	lab_ok(vm, "hint 1 0 64 %u", N);
	return vm;
}

static pid_t find_service(void)
{
	return wait_for_child(wait_for_child(getpid(), "pagefusiond"), "pf-service");
}

/* Serving VMs, it has a channel and a shim's socket of each, and nothing of another kind. */
static void test_with_vms(void **state)
{
	Lab *lab = lab_new(true);
	pid_t service = find_service();
	LabVm *vms[2] = {start_vm(lab, "a"), start_vm(lab, "b")};
	g_auto(Open) open = {0};

	assert_true(lab_wait(lab, are_fused, vms));
	inspect_is_sandboxed(service, UID, UID, pf_sandbox_default_memory());
	open = look_at_descriptors(service);
	assert_string_equal(open.strange->str, "");
	assert_int_equal(open.packet_sockets, 3 + 2);
	assert_int_equal(open.stream_sockets, 2);
	lab_free(lab);
}

/* 512-byte blocks of the memory that the frames of group "default" take. */
static guint64 store_blocks(pid_t service)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/fd", service);
	g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
	const char *name;

	while (dir && (name = g_dir_read_name(dir))) {
		g_autofree char *link = g_build_filename(path, name, NULL);
		g_autofree char *target = g_file_read_link(link, NULL);
		GStatBuf status;

		if (target && g_str_has_prefix(target, "/memfd:pagefusion-default") &&
			g_stat(link, &status) == 0)
			return (guint64)status.st_blocks;
	}
	return 0;
}

typedef struct Shrinking {
	pid_t service;
	guint64 before; /* blocks, with all frames */
} Shrinking;

static bool has_store(void *userdata)
{
	return store_blocks(((const Shrinking *)userdata)->service) > 0;
}

static bool has_one_frame_less(void *userdata)
{
	const Shrinking *store = userdata;
	guint64 blocks = store_blocks(store->service);

	return blocks > 0 && blocks + PF_PAGE_SIZE / 512 <= store->before;
}

/*
 * In the sandbox too a service can tell processes apart for good, and so knows whom an earlier one has given its store: a
 * shim that nobody knows keeps none of its frames.
 */
static void test_members_are_sure(void **state)
{
	Lab *lab = lab_new(true);
	LabVm *vms[2] = {start_vm(lab, "a"), start_vm(lab, "b")};
	Shrinking store = {0};

	assert_true(lab_wait(lab, are_fused, vms));
	store.before = store_blocks(find_service());
	assert_true(store.before > 0);
	lab_kill_service(lab);
	lab_restart_service(lab);
	store.service = find_service();
	lab_start_vm(lab, "stranger", "default");
	assert_true(lab_wait(lab, has_store, &store));
	lab_ok(vms[0], "write 64 0 1");
	lab_ok(vms[1], "write 64 0 1");
	assert_true(lab_wait(lab, has_one_frame_less, &store));
	lab_ok(vms[0], "check 65 %u 6", N - 1);
	lab_free(lab);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_service),
		TEST(test_broker),
		TEST(test_front),
		TEST(test_memory_has_nothing_in_common),
		TEST(test_environment),
		cmocka_unit_test(test_with_vms),
		cmocka_unit_test(test_members_are_sure),
	};
#undef TEST

	return cmocka_run_group_tests(tests, NULL, NULL);
}
