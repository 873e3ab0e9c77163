/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The real broker process, on libvirt's test driver, and VMs that run with page fusion turned on: what libvirt would say
 * of them and their QEMU stands in this file, which the broker is forked from. The monitors of some never answer.
 */
#include "host-service/broker/device_allowance.h"
#include "host-service/wire/broker_protocol.h"
#include "host-service/wire/packet.h"
#include <fcntl.h>
#include <glib/gstdio.h>
#include <libvirt/libvirt-qemu.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define N_VMS   12
#define THREADS 8 /* that the broker has at most */
#define WAIT_MS 10000
#define BASE    UINT64_C(0x7f0000000000)

/* What the test and the monitors of the broker's process both see. */
static struct Shared {
	gint hangs;                 /* a bit for each VM whose monitor does not answer */
	gint n_inside, most_inside; /* calls at a time */
} * shared;

/* Stand in for libvirt's */

static unsigned number(virDomainPtr handle)
{
	return (unsigned)g_ascii_strtoull(virDomainGetName(handle) + strlen("vm"), NULL, 10);
}

char *virDomainGetXMLDesc(virDomainPtr handle, unsigned int flags)
{
	const char *name = virDomainGetName(handle);
	char uuid[VIR_UUID_STRING_BUFLEN];

	virDomainGetUUIDString(handle, uuid);
	return g_strdup_printf(
		"<domain type='test' id='7' "
		"xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
		"<name>%s</name><uuid>%s</uuid><memory unit='KiB'>65536</memory><os><type>hvm</type></os>"
		"<metadata><pf:pagefusion xmlns:pf='https://pagefusion.org/xmlns/domain/1'/></metadata>"
		"<qemu:commandline>"
		"<qemu:env name='LD_PRELOAD' value='/lib/libpagefusion-vmm.so'/>"
		"<qemu:env name='PAGEFUSION_SOCKET' value='/run/shim.sock'/>"
		"</qemu:commandline></domain>",
		name, uuid);
}

static void hang(unsigned vm)
{
	gint inside = g_atomic_int_add(&shared->n_inside, 1) + 1, most;

	while ((most = g_atomic_int_get(&shared->most_inside)) < inside)
		g_atomic_int_compare_and_exchange(&shared->most_inside, most, inside);
	while (g_atomic_int_get(&shared->hangs) & 1 << vm)
		g_usleep(1000);
	g_atomic_int_add(&shared->n_inside, -1);
}

int virDomainQemuMonitorCommand(
	virDomainPtr handle, const char *command, char **reply, unsigned int flags)
{
	guint64 gpa = g_ascii_strtoull(command + strlen("gpa2hva 0x"), NULL, 16);

	hang(number(handle));
	*reply = g_strdup_printf("Host virtual address for 0x%" G_GINT64_MODIFIER
				 "x (pc.ram) is 0x%" G_GINT64_MODIFIER "x\r\n",
		gpa, BASE + gpa);
	return 0;
}

/* The broker, and its clients */

typedef struct Rig {
	char dir[32];
	pid_t pid;
	PfBrokerSockets sockets;
} Rig;

static void put_uuid(unsigned vm, char *uuid)
{
	snprintf(uuid, PF_UUID_TEXT, "2f6a1c1e-8a0f-4c5f-9d1b-0a5f3a4d7c%02x", vm);
}

static void write_node(const char *path)
{
	g_autoptr(GString) node = g_string_new("<node>");

	for (unsigned i = 0; i < N_VMS; i++) {
		char uuid[PF_UUID_TEXT];

		put_uuid(i, uuid);
		g_string_append_printf(node,
			"<domain type='test'><name>vm%u</name><uuid>%s</uuid>"
			"<memory unit='KiB'>65536</memory><os><type>hvm</type></os></domain>",
			i, uuid);
	}
	g_string_append(node, "</node>");
	assert_true(g_file_set_contents(path, node->str, -1, NULL));
}

static PfBrokerMessage receive(int socket, int *fd)
{
	struct pollfd event = {socket, POLLIN, 0};
	PfBrokerMessage message;
	size_t n_fds;

	if (poll(&event, 1, WAIT_MS) != 1)
		fail_msg("the broker says nothing");
	assert_int_equal(
		pf_packet_receive(socket, &message, sizeof message, fd, &n_fds), sizeof message);
	return message;
}

static int set_up(void **state)
{
	Rig *rig = g_new0(Rig, 1);
	g_autofree char *path = NULL, *uri = NULL;
	PfBrokerConfig config = {.shim_path = "/lib/libpagefusion-vmm.so", .shim_socket = "/s"};
	int fd;

	memset(shared, 0, sizeof *shared);
	strcpy(rig->dir, "/tmp/pf-monitor-XXXXXX");
	assert_non_null(g_mkdtemp(rig->dir));
	path = g_build_filename(rig->dir, "node.xml", NULL);
	write_node(path);
	config.uri = uri = g_strconcat("test://", path, NULL);
	rig->pid = pf_broker_spawn(&config, &rig->sockets, NULL);
	assert_true(rig->pid > 0);
	while (receive(rig->sockets.service, &fd).type != PF_BROKER_CONNECTED)
		;
	*state = rig;
	return 0;
}

/* It ends in time, whatever hangs. */
static int tear_down(void **state)
{
	Rig *rig = *state;
	g_autofree char *path = g_build_filename(rig->dir, "node.xml", NULL);
	struct pollfd process = {pidfd_open(rig->pid, 0), POLLIN, 0};
	int status;

	close(rig->sockets.service);
	assert_int_equal(poll(&process, 1, WAIT_MS), 1);
	close(process.fd);
	assert_int_equal(waitpid(rig->pid, &status, 0), rig->pid);
	assert_int_equal(status, 0);
	close(rig->sockets.front);
	g_unlink(path);
	g_rmdir(rig->dir);
	g_free(rig);
	return 0;
}

static void ask(const Rig *rig, PfBrokerRequestType type, uint64_t id, unsigned vm)
{
	PfBrokerRequest request = {.magic = PF_BROKER_MAGIC, .type = type, .id = id};

	put_uuid(vm, request.vm);
	if (type == PF_BROKER_TRANSLATE) {
		request.n_ranges = 1;
		request.ranges[0] = (PfGuestRange){{0}, 16};
	}
	assert_int_equal(pf_packet_send(rig->sockets.service, &request, sizeof request, -1), 0);
}

static void expect_answer(const Rig *rig, uint64_t id, int error, const char *text)
{
	int fd;
	PfBrokerMessage answer = receive(rig->sockets.service, &fd);

	assert_int_equal(answer.type, PF_BROKER_ANSWER);
	assert_int_equal(answer.id, id);
	assert_int_equal(answer.error, error);
	assert_non_null(strstr(answer.text, text));
	assert_int_equal(fd, -1);
	if (error < 0) {
		assert_int_equal(answer.n_hvas, 1);
		assert_true(answer.body.hvas[0].v == BASE);
	}
}

static void wait_for_calls(int n)
{
	gint64 deadline = g_get_monotonic_time() + WAIT_MS * 1000;

	while (g_atomic_int_get(&shared->n_inside) != n) {
		if (g_get_monotonic_time() > deadline)
			fail_msg("no %d calls of monitors are under way", n);
		g_usleep(1000);
	}
}

static void expect_front_is_served(const Rig *rig)
{
	PfBrokerRequest request = {.magic = PF_BROKER_MAGIC,
		.type = PF_BROKER_MODIFY,
		.id = 9,
		.changes = PF_VM_SET_ENABLED,
		.vm = "vm0"};
	PfBrokerMessage answer;
	int fd;

	assert_int_equal(pf_packet_send(rig->sockets.front, &request, sizeof request, -1), 0);
	answer = receive(rig->sockets.front, &fd);
	assert_int_equal(answer.error, G_IO_ERROR_BUSY);
	assert_non_null(strstr(answer.text, "VM vm0 is running"));
}

static void test_one_that_hangs(void **state)
{
	Rig *rig = *state;

	g_atomic_int_set(&shared->hangs, 1 << 0);
	ask(rig, PF_BROKER_TRANSLATE, 1, 0);
	wait_for_calls(1);
	ask(rig, PF_BROKER_TRANSLATE, 2, 0);
	expect_answer(rig, 2, G_IO_ERROR_BUSY, "not answered yet where the memory lies of VM vm0");
	ask(rig, PF_BROKER_TRANSLATE, 3, 1);
	expect_answer(rig, 3, -1, "");
	expect_front_is_served(rig);
	g_atomic_int_set(&shared->hangs, 0);
	expect_answer(rig, 1, -1, "");
	ask(rig, PF_BROKER_TRANSLATE, 4, 0);
	expect_answer(rig, 4, -1, "");
}

/* Nobody waits for it, see tear_down(). */
static void test_end_while_one_hangs(void **state)
{
	Rig *rig = *state;

	g_atomic_int_set(&shared->hangs, 1 << 3);
	ask(rig, PF_BROKER_TRANSLATE, 1, 3);
	wait_for_calls(1);
}

/* libvirtd has not many threads for everybody: the last few wait until others are done. */
static void test_many_that_hang(void **state)
{
	Rig *rig = *state;
	unsigned answered = 0;
	int fd;

	g_atomic_int_set(&shared->hangs, (1 << N_VMS) - 1);
	for (unsigned i = 0; i < N_VMS; i++)
		ask(rig, PF_BROKER_TRANSLATE, 1 + i, i);
	wait_for_calls(THREADS);
	ask(rig, PF_BROKER_TRANSLATE, 99, N_VMS - 1);
	expect_answer(rig, 99, G_IO_ERROR_BUSY, "not answered yet");
	ask(rig, PF_BROKER_TRANSLATE, 98, N_VMS);
	expect_answer(rig, 98, G_IO_ERROR_NOT_FOUND, "there is no VM");
	expect_front_is_served(rig);
	g_atomic_int_set(&shared->hangs, 0);
	for (unsigned i = 0; i < N_VMS; i++) {
		PfBrokerMessage answer = receive(rig->sockets.service, &fd);

		assert_int_equal(answer.error, -1);
		assert_in_range(answer.id, 1, N_VMS);
		answered |= 1u << (answer.id - 1);
	}
	assert_int_equal(answered, (1u << N_VMS) - 1);
	assert_int_equal(g_atomic_int_get(&shared->most_inside), THREADS);
}

/* The descriptor, or -1 with the answer's error and text checked. */
static int get_device(const Rig *rig, unsigned vm, int error, const char *text)
{
	PfBrokerMessage answer;
	int fd;

	ask(rig, PF_BROKER_OPEN_USERFAULTFD, 5, vm);
	answer = receive(rig->sockets.service, &fd);
	assert_int_equal(answer.id, 5);
	assert_int_equal(answer.error, error);
	assert_non_null(strstr(answer.text, text));
	return fd;
}

static void take_device(const Rig *rig, unsigned vm)
{
	struct stat device, received;
	int fd;

	if (stat("/dev/userfaultfd", &device) < 0) {
		assert_int_equal(
			get_device(rig, vm, G_IO_ERROR_NOT_SUPPORTED, "needs Linux 6.8"), -1);
	} else if (access("/dev/userfaultfd", R_OK | W_OK) < 0) {
		assert_int_equal(get_device(rig, vm, G_IO_ERROR_PERMISSION_DENIED,
					 "run pagefusiond as root"),
			-1);
	} else {
		fd = get_device(rig, vm, -1, "");
		assert_int_equal(fstat(fd, &received), 0);
		assert_true(received.st_rdev == device.st_rdev);
		assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDWR);
		assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
		close(fd);
	}
}

/* For each VM a few, and none for what is no VM. */
static void test_devices(void **state)
{
	Rig *rig = *state;

	for (int i = 0; i < PF_DEVICE_AT_ONCE; i++)
		take_device(rig, 0);
	assert_int_equal(get_device(rig, 0, G_IO_ERROR_BUSY, "VM vm0 has connected too often"), -1);
	take_device(rig, 1);
	assert_int_equal(get_device(rig, N_VMS, G_IO_ERROR_NOT_FOUND, "there is no VM"), -1);
}

static void test_allowance(void **state)
{
	PfDeviceAllowance allowance = {0};
	gint64 now = 1;

	for (int i = 0; i < PF_DEVICE_AT_ONCE; i++)
		assert_true(pf_device_allowance_take(&allowance, 7, now));
	assert_false(pf_device_allowance_take(&allowance, 7, now + PF_DEVICE_AGAIN_US - 1));
	assert_false(pf_device_allowance_take(&allowance, 0, now + PF_DEVICE_AGAIN_US - 1));
	assert_true(pf_device_allowance_take(&allowance, 7, now + PF_DEVICE_AGAIN_US));
	assert_false(pf_device_allowance_take(&allowance, 7, now + 2 * PF_DEVICE_AGAIN_US - 1));
	assert_true(pf_device_allowance_take(&allowance, 0, now + 2 * PF_DEVICE_AGAIN_US));
	/* It never has more than at first. */
	now += 1000 * PF_DEVICE_AGAIN_US;
	for (int i = 0; i < PF_DEVICE_AT_ONCE; i++)
		assert_true(pf_device_allowance_take(&allowance, 7, now));
	assert_false(pf_device_allowance_take(&allowance, 7, now));
	/* Another QEMU. */
	assert_true(pf_device_allowance_take(&allowance, 8, now));
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_one_that_hangs),
		TEST(test_end_while_one_hangs),
		TEST(test_many_that_hang),
		TEST(test_devices),
		cmocka_unit_test(test_allowance),
	};
#undef TEST

	shared = mmap(
		NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
