/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a QEMU sends that it should not: descriptors of every kind in place of its store, with messages that carry none, and
 * on the guest's channel; and messages that make no sense. Each is refused in the way that the protocol names, nothing
 * that came with it stays open, and others are fused all the same.
 */
#include "tests/security/honest.h"
#include "tests/security/hostile.h"
#include "tests/unit/host-service/store_forgery.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/socket.h>

#define A_VM_TAKES 8u /* connections at once, and has not to wait for the next one */
#define MANY_FDS   253u

static int set_up(void **state)
{
	*state = lab_new(false);
	return 0;
}

static int tear_down(void **state)
{
	lab_free(*state);
	return 0;
}

/* A store that is none */

static int staging = -1; /* that the service has sent */

static int open_null(void)
{
	return open("/dev/null", O_RDWR | O_CLOEXEC);
}

static int open_directory(void)
{
	return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static int open_file(void)
{
	return open("/proc/self/status", O_RDONLY | O_CLOEXEC);
}

static int open_path(void)
{
	return open("/", O_PATH | O_CLOEXEC);
}

static int open_pipe(void)
{
	int ends[2];

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	close(ends[1]);
	return ends[0];
}

static int open_socket(void)
{
	return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static int open_epoll(void)
{
	return epoll_create1(EPOLL_CLOEXEC);
}

static int open_process(void)
{
	return pidfd_open(getpid(), 0);
}

static int open_device(void)
{
	return open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
}

static int open_staging(void)
{
	return dup(staging);
}

/* A store of the VMs' group, as the service would make it. */
static Forgery of_their_group(void)
{
	Forgery plan = forgery();

	g_strlcpy(plan.label.group, "default", sizeof(plan.label.group));
	return plan;
}

static int open_unsealed(void)
{
	Forgery plan = of_their_group();

	plan.seals = 0;
	return forge(&plan);
}

/* The user of the VMs could make it: with everything that a store has, but for who made it. */
static int open_copied_label(void)
{
	Forgery plan = of_their_group();

	plan.owner = LAB_VM_UID;
	return forge(&plan);
}

static int open_read_only_copy(void)
{
	int fd = open_copied_label(), copy;
	g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);

	copy = open(path, O_RDONLY | O_CLOEXEC);
	close(fd);
	return copy;
}

static int open_other_seals(void)
{
	Forgery plan = of_their_group();

	plan.seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	return forge(&plan);
}

static int open_to_everybody(void)
{
	Forgery plan = of_their_group();

	plan.mode = 0666;
	return forge(&plan);
}

static int open_without_label(void)
{
	Forgery plan = of_their_group();

	plan.label.magic[0]++;
	return forge(&plan);
}

/* A store of the service's user, of a group that this VM is not of. */
static int open_other_group(void)
{
	Forgery plan = forgery();

	return forge(&plan);
}

typedef struct Kind {
	const char *what;
	int (*open)(void);
} Kind;

static const Kind kinds[] = {
	{"/dev/null", open_null},
	{"a directory", open_directory},
	{"a file", open_file},
	{"a path", open_path},
	{"a pipe", open_pipe},
	{"a socket", open_socket},
	{"an epoll", open_epoll},
	{"a process", open_process},
	{"/dev/userfaultfd", open_device},
	{"the staging memory", open_staging},
	{"memory without seals", open_unsealed},
	{"memory with a copied label", open_copied_label},
	{"the same, read-only", open_read_only_copy},
	{"memory with other seals", open_other_seals},
	{"memory that is open to everybody", open_to_everybody},
	{"memory with another label", open_without_label},
	{"another group's store", open_other_group},
};

/* The VM has a copy of the connection, so to close it is not enough. */
static void hang_up(int fd)
{
	shutdown(fd, SHUT_RDWR);
	close(fd);
}

static void expect_not_taken(LabVm *vm, const Kind *kind)
{
	const PfShimStore store = {0};
	static HostileMessage message;
	unsigned n_fds = hostile_count_fds();
	int fd = hostile_connect(vm), returned = kind->open();

	assert_true(returned >= 0);
	hostile_hello(fd, PF_SHIM_HAS_STORE, 1);
	assert_true(hostile_say(fd, PF_SHIM_STORE_RETURN, 0, &store, sizeof(store), returned, 1));
	close(returned);
	if (!hostile_hear(vm->lab, fd, &message))
		fail_msg("%s: the service closes the connection", kind->what);
	/* All that it has, and not a word about what there is. */
	if (message.header.type != PF_SHIM_RELEASE || message.size != 0 || message.fd >= 0)
		fail_msg("%s: the service says %u", kind->what, message.header.type);
	hang_up(fd);
	hostile_expect_fds(vm->lab, n_fds, kind->what);
}

static void return_all_kinds(Lab *lab)
{
	LabVm *vm = NULL;

	for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
		g_autofree char *name = g_strdup_printf("vm%zu", i);

		if (i % A_VM_TAKES == 0)
			vm = hostile_start(lab, name, "default");
		/* What it has taken for one VM it would have for the next. */
		expect_not_taken(vm, &kinds[i]);
	}
}

/* The service makes staging memory when it sends the first store, so this one is of another lab. */
static void take_staging(void)
{
	Lab *lab = lab_new(false);
	HostileShim shim;

	hostile_get_ready(hostile_start(lab, "donor", "default"), -1, &shim);
	staging = dup(shim.staging);
	hostile_close(&shim);
	lab_free(lab);
}

static void test_returned_to_a_group_without_store(void **state)
{
	take_staging();
	return_all_kinds(*state);
	close(staging);
}

static void test_returned_to_a_group_with_store(void **state)
{
	HostileShim shim;

	hostile_get_ready(hostile_start(*state, "first", "default"), -1, &shim);
	staging = shim.staging;
	return_all_kinds(*state);
	hostile_close(&shim);
}

typedef struct Packet {
	const char *what;
	PfShimType type;
	unsigned n_fds;
	size_t size; /* of data */
	uint64_t data[4];
	uint32_t magic; /* 0: the right one */
	int more;       /* added to the length in the header */
} Packet;

/* A connection that is ready says this, and is closed; nothing that came with it is kept. */
static void expect_packet_ends(LabVm *vm, const Packet *packet)
{
	unsigned n_fds = hostile_count_fds();
	int null = open_null();
	struct {
		PfShimHeader header;
		uint8_t data[sizeof(PfShimState)];
	} message = {{packet->magic ? packet->magic : PF_SHIM_MAGIC, (uint16_t)packet->type,
			     (uint16_t)packet->n_fds, 0, 0, 0},
		{0}};
	HostileShim shim;

	message.header.length =
		(uint32_t)((int)(sizeof(message.header) + packet->size) + packet->more);
	memcpy(message.data, packet->data, MIN(packet->size, sizeof(packet->data)));
	hostile_get_ready(vm, -1, &shim);
	assert_true(hostile_send(
		shim.fd, &message, sizeof(message.header) + packet->size, null, packet->n_fds));
	hostile_expect_end(vm->lab, shim.fd, packet->what);
	hostile_close(&shim);
	close(null);
	hostile_expect_fds(vm->lab, n_fds, packet->what);
}

static const Packet packets[] = {
	{"another magic", PF_SHIM_RELEASED, 0, 0, {0}, 1, 0},
	{"a length that is not the packet's", PF_SHIM_STATE, 0, sizeof(PfShimState), {0}, 0, 8},
	{"a type that there is not", 99, 0, 0, {0}, 0, 0},
	{"a type of the service's", PF_SHIM_FUSE, 0, 24, {0}, 0, 0},
	{"half a STATE", PF_SHIM_STATE, 0, 8, {0}, 0, 0},
	{"half a LOST", PF_SHIM_LOST, 0, 12, {0}, 0, 0},
	{"LOST of no pages", PF_SHIM_LOST, 0, 24, {0x1000, 512, 0}, 0, 0},
	{"LOST at address 0", PF_SHIM_LOST, 0, 24, {0, 512, 1}, 0, 0},
	{"LOST at an odd address", PF_SHIM_LOST, 0, 24, {0x1001, 512, 1}, 0, 0},
	{"LOST at no address", PF_SHIM_LOST, 0, 24, {0x8000000000000000, 512, 1}, 0, 0},
	{"LOST beyond the last address", PF_SHIM_LOST, 0, 24, {0xfffffffffffff000, 512, 9}, 0, 0},
	{"LOST beyond the last frame", PF_SHIM_LOST, 0, 24, {0x1000, UINT64_MAX, 2}, 0, 0},
	{"LOST of all pages that there can be", PF_SHIM_LOST, 0, 24, {0x1000, 512, UINT32_MAX}, 0,
		0},
	{"CAPTURED that nobody has ordered", PF_SHIM_CAPTURED, 0, 8, {0}, 0, 0},
	{"FUSED that nobody has ordered", PF_SHIM_FUSED, 0, 8, {0}, 0, 0},
	{"RELEASED that nobody has ordered", PF_SHIM_RELEASED, 0, 0, {0}, 0, 0},
	{"LISTED that nobody has asked for", PF_SHIM_LISTED, 0, 8, {0}, 0, 0},
	{"LISTED with a count that overflows", PF_SHIM_LISTED, 0, 8, {0xaaaaaaab00000000}, 0, 0},
	{"READY twice", PF_SHIM_READY, 0, sizeof(PfShimReady), {0}, 0, 0},
	{"HELLO once more", PF_SHIM_HELLO, 0, sizeof(PfShimHello), {0}, 0, 0},
	{"a store that nobody has asked for", PF_SHIM_STORE_RETURN, 1, 24, {0}, 0, 0},
	{"STORE_RETURN without one", PF_SHIM_STORE_RETURN, 0, 24, {0}, 0, 0},
	{"a descriptor with STATE", PF_SHIM_STATE, 1, sizeof(PfShimState), {0}, 0, 0},
	{"descriptors with LOST", PF_SHIM_LOST, MANY_FDS, 0, {0}, 0, 0},
};

static void test_packets(void **state)
{
	HostileShim first;
	LabVm *vm = NULL;

	/* It makes the store. */
	hostile_get_ready(hostile_start(*state, "first", "default"), -1, &first);
	for (size_t i = 0; i < G_N_ELEMENTS(packets); i++) {
		g_autofree char *name = g_strdup_printf("vm%zu", i);

		if (i % A_VM_TAKES == 0)
			vm = hostile_start(*state, name, "default");
		expect_packet_ends(vm, &packets[i]);
	}
	hostile_close(&first);
	honest_expect_two_share(*state);
}

/* Only one is a store, whatever the header says. */
static void test_many_descriptors(void **state)
{
	LabVm *vm = hostile_start(*state, "generous", "default");
	const PfShimStore store = {0};
	unsigned n_fds = hostile_count_fds();
	int fd = hostile_connect(vm), null = open_null();

	hostile_hello(fd, PF_SHIM_HAS_STORE, 0);
	assert_true(
		hostile_say(fd, PF_SHIM_STORE_RETURN, 0, &store, sizeof(store), null, MANY_FDS));
	hostile_expect_end(*state, fd, "253 stores");
	close(null);
	close(fd);
	hostile_expect_fds(*state, n_fds, "253 stores");
}

static bool has_no_session(void *userdata)
{
	return strcmp(lab_command(userdata, "session"), "no") == 0;
}

/* The guest's channel carries bytes; what else QEMU puts into it is closed, and the guest is heard a while later. */
static void test_descriptors_on_the_channel(void **state)
{
	Lab *lab = *state;
	LabVm *vms[] = {honest_start(lab, "a", "default"), honest_start(lab, "b", "default")};
	int channel, null = open_null();
	unsigned n_fds;

	honest_report(vms[0]);
	honest_report(vms[1]);
	honest_wait_for_shared(lab, HONEST_PAGES);
	n_fds = hostile_count_fds();
	channel = hostile_take_fd(vms[0]->pid, atoi(lab_command(vms[0], "channel")));
	for (int i = 0; i < 50; i++)
		assert_true(hostile_send(channel, "x", 1, null, MANY_FDS));
	close(channel);
	assert_true(lab_wait(lab, has_no_session, vms[0]));
	lab_wait_for_session(vms[0]);
	honest_report(vms[0]);
	for (size_t i = 0; i < G_N_ELEMENTS(vms); i++) {
		lab_ok(vms[i], "fill 600 16 42");
		lab_ok(vms[i], "module 2 libmore.so 16");
		lab_ok(vms[i], "hint 2 0 600 16");
	}
	honest_wait_for_shared(lab, HONEST_PAGES + 16);
	hostile_expect_fds(lab, n_fds, "descriptors on the channel");
	close(null);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_returned_to_a_group_without_store),
		TEST(test_returned_to_a_group_with_store),
		TEST(test_packets),
		TEST(test_many_descriptors),
		TEST(test_descriptors_on_the_channel),
	};
#undef TEST

	if (access("/dev/userfaultfd", F_OK) < 0) {
		fprintf(stderr, "skipped: this kernel has no /dev/userfaultfd\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
