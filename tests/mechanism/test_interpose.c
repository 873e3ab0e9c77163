/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The library as QEMU has it, preloaded into a process that knows nothing of it. The test is the service; the process,
 * this program again, does what QEMU does: a RAM block, and userfaultfds of its own, made in both ways.
 */
#include "proto/shim_protocol.h"
#include "common/page.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define N            16u
#define N_FUSED      4u
#define SKIPPED      77
#define PATIENCE_MS  10000
#define BLOCK_LENGTH (N * PF_PAGE_SIZE)

/* The process with the library */

static uint8_t *block;
static int own_uffd = -1;

static int make_by_device(void)
{
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);

	close(device);
	return fd;
}

/* 0, or the errno that QEMU would report. */
static int use(int fd)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {{(uintptr_t)block, BLOCK_LENGTH},
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP};

	own_uffd = fd;
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0 || ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
		return errno;
	return 0;
}

/* What libc's functions do they do still. The number of the first check that fails, or 0. */
static int check_calls(void)
{
	char text[64] = "";
	int pipes[2], n = -1, fd = memfd_create("pages", MFD_CLOEXEC);
	long address;

	if (syscall(SYS_getpid) != getpid())
		return 1;
	errno = 0;
	if (syscall(100000) != -1 || errno != ENOSYS)
		return 2;
	errno = 0;
	if (ioctl(-1, FIONREAD, &n) != -1 || errno != EBADF)
		return 3;
	if (pipe(pipes) != 0 || write(pipes[1], "12345", 5) != 5)
		return 4;
	errno = ENOTTY;
	if (ioctl(pipes[0], FIONREAD, &n) != 0 || n != 5 || errno != ENOTTY)
		return 5;
	/* Six arguments. */
	if (ftruncate(fd, 2 * PF_PAGE_SIZE) != 0 || pwrite(fd, "second", 6, PF_PAGE_SIZE) != 6)
		return 6;
	address = syscall(SYS_mmap, NULL, PF_PAGE_SIZE, PROT_READ, MAP_PRIVATE, fd, PF_PAGE_SIZE);
	if (address == -1 || strcmp((char *)address, "second") != 0)
		return 7;
	if (syscall(SYS_readlink, "/proc/self/exe", text, sizeof text - 1) <= 0)
		return 8;
	/* These fail, and leave no trace. */
	errno = 0;
	if (syscall(SYS_userfaultfd, 0x7fffffff) != -1 || errno != EINVAL)
		return 9;
	errno = 0;
	if (ioctl(fd, USERFAULTFD_IOC_NEW, 0) != -1 || errno != ENOTTY)
		return 10;
	return 0;
}

static int obey(const char *line)
{
	if (strcmp(line, "where\n") == 0)
		return 0;
	if (strcmp(line, "syscall\n") == 0)
		return use((int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
	if (strcmp(line, "device\n") == 0)
		return use(make_by_device());
	if (strcmp(line, "close\n") == 0)
		return close(own_uffd);
	if (strcmp(line, "calls\n") == 0)
		return check_calls();
	if (strcmp(line, "write\n") == 0)
		block[PF_PAGE_SIZE] ^= 0xff;
	/* Page i is full of i. */
	for (size_t i = 0; i < BLOCK_LENGTH; i++)
		if (block[i] != (uint8_t)(i / PF_PAGE_SIZE) && i != PF_PAGE_SIZE)
			return 1;
	return 0;
}

static int vm_main(void)
{
	char line[32];

	/* Pages of other protections around it keep it a VMA of its own. */
	block = mmap(NULL, BLOCK_LENGTH + 2 * PF_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		-1, 0);
	if (block == MAP_FAILED)
		return 1;
	block += PF_PAGE_SIZE;
	mprotect(block, BLOCK_LENGTH, PROT_READ | PROT_WRITE);
	for (size_t i = 0; i < BLOCK_LENGTH; i++)
		block[i] = (uint8_t)(i / PF_PAGE_SIZE);
	madvise(block, BLOCK_LENGTH, MADV_DONTFORK);
	while (fgets(line, sizeof line, stdin)) {
		printf("%d %p\n", obey(line), (void *)block);
		fflush(stdout);
	}
	return 0;
}

/* The service */

static int listener = -1, connection = -1, store = -1;
static FILE *to_vm, *from_vm;
static pid_t vm;
static char directory[] = "/tmp/pagefusion-test-XXXXXX", socket_path[64];
static uint64_t hva, next_id = 1;
static PfShimState last_state;
static unsigned pages_lost;

static union {
	PfShimHeader header;
	uint8_t bytes[PF_SHIM_MAX_MESSAGE];
} in;

static void *in_payload(void)
{
	return in.bytes + sizeof in.header;
}

static int tell(const char *command)
{
	char line[64];
	unsigned long address;
	int result;

	fprintf(to_vm, "%s\n", command);
	fflush(to_vm);
	assert_non_null(fgets(line, sizeof line, from_vm));
	assert_int_equal(sscanf(line, "%d 0x%lx", &result, &address), 2);
	hva = address;
	return result;
}

static void send_order(PfShimType type, const void *data, size_t size, int fd)
{
	char bytes[1024], control[CMSG_SPACE(sizeof fd)] = {0};
	PfShimHeader header = {PF_SHIM_MAGIC, (uint16_t)type, fd >= 0,
		(uint32_t)(sizeof header + size), 0, next_id++};
	struct iovec part = {bytes, sizeof header + size};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	assert_true(part.iov_len <= sizeof bytes);
	memcpy(bytes, &header, sizeof header);
	if (size > 0)
		memcpy(bytes + sizeof header, data, size);
	if (fd >= 0) {
		message.msg_control = control;
		message.msg_controllen = sizeof control;
		*CMSG_FIRSTHDR(&message) = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd),
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &fd, sizeof fd);
	}
	assert_int_equal(sendmsg(connection, &message, MSG_NOSIGNAL), part.iov_len);
}

/* Descriptors that come along are dropped. false: the shim has closed the connection. */
static bool receive_one(void)
{
	struct pollfd p = {.fd = connection, .events = POLLIN};
	ssize_t size;

	assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
	size = recv(connection, &in, sizeof in, 0);
	if (size <= 0)
		return false;
	assert_int_equal(size, in.header.length);
	if (in.header.type == PF_SHIM_STATE)
		memcpy(&last_state, in_payload(), sizeof last_state);
	for (PfShimLost *lost = in_payload();
		in.header.type == PF_SHIM_LOST && (uint8_t *)lost < in.bytes + size; lost++)
		pages_lost += lost->n_pages;
	return true;
}

static void expect_message(PfShimType type)
{
	do
		assert_true(receive_one());
	while (in.header.type == PF_SHIM_STATE || in.header.type == PF_SHIM_LOST);
	assert_int_equal(in.header.type, type);
}

static void expect_aside(uint64_t aside)
{
	while (last_state.aside != aside)
		assert_true(receive_one());
}

static void expect_fuse(PfShimResult result)
{
	PfShimRun run = {.hva = hva, .n_pages = N_FUSED};

	send_order(PF_SHIM_FUSE, &run, sizeof run, -1);
	expect_message(PF_SHIM_FUSED);
	for (size_t i = 0; i < N_FUSED; i++)
		assert_int_equal(((uint8_t *)in_payload())[i], result);
}

static void release(uint64_t n_pages)
{
	PfShimRange range = {hva, n_pages};

	send_order(PF_SHIM_RELEASE, &range, sizeof range, -1);
	expect_message(PF_SHIM_RELEASED);
}

static void meet(void)
{
	struct pollfd p = {.fd = listener, .events = POLLIN};

	assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
	connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(connection >= 0);
	assert_true(receive_one());
	assert_int_equal(in.header.type, PF_SHIM_HELLO);
}

static void start_vm(const char *socket)
{
	int commands[2], answers[2];

	assert_int_equal(pipe(commands), 0);
	assert_int_equal(pipe(answers), 0);
	vm = fork();
	assert_true(vm >= 0);
	if (vm == 0) {
		dup2(commands[0], STDIN_FILENO);
		dup2(answers[1], STDOUT_FILENO);
		close(commands[1]);
		setenv("LD_PRELOAD", PF_TEST_SHIM, 1);
		setenv(PF_SHIM_SOCKET_VARIABLE, socket, 1);
		execl("/proc/self/exe", "vm", "vm", NULL);
		_exit(127);
	}
	close(commands[0]);
	close(answers[1]);
	to_vm = fdopen(commands[1], "we");
	from_vm = fdopen(answers[0], "re");
}

static int set_up(void **unused)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char text[64];
	uint8_t page[PF_PAGE_SIZE];
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), readonly;
	PfShimStore message = {.group_id = "a group"};

	assert_non_null(mkdtemp(directory));
	snprintf(socket_path, sizeof socket_path, "%s/shim.sock", directory);
	strcpy(address.sun_path, socket_path);
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
	assert_int_equal(listen(listener, 4), 0);
	store = memfd_create("store", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(store, BLOCK_LENGTH), 0);
	assert_int_equal(fcntl(store, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	for (size_t i = 0; i < N; i++) {
		memset(page, (int)i, sizeof page);
		assert_int_equal(
			pwrite(store, page, sizeof page, (off_t)(i * sizeof page)), sizeof page);
	}
	snprintf(text, sizeof text, "/proc/self/fd/%d", store);
	readonly = open(text, O_RDONLY | O_CLOEXEC);
	start_vm(socket_path);
	assert_int_equal(tell("where"), 0);
	meet();

	send_order(PF_SHIM_ATTACH, NULL, 0, device);
	expect_message(PF_SHIM_READY);
	assert_int_equal(((PfShimReady *)in_payload())->code, PF_SHIM_READY_OK);
	send_order(PF_SHIM_STORE, &message, sizeof message, readonly);
	close(device);
	close(readonly);
	return 0;
}

static int tear_down(void **unused)
{
	int status;

	unlink(socket_path);
	rmdir(directory);

	fclose(to_vm);
	waitpid(vm, &status, 0);
	fclose(from_vm);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

static void check_own_userfaultfd(const char *how)
{
	expect_fuse(PF_SHIM_DONE);
	assert_int_equal(tell(how), 0);
	expect_fuse(PF_SHIM_ASIDE);
	expect_aside(1);
	assert_int_equal(last_state.fused_pages, 0);
	assert_int_equal(tell("close"), 0);
	/* Nobody tells the shim. */
	expect_aside(0);
	expect_fuse(PF_SHIM_DONE);
	assert_int_equal(tell("check"), 0);
	release(UINT64_MAX);
}

static void test_userfaultfd_by_syscall(void **unused)
{
	check_own_userfaultfd("syscall");
}

static void test_userfaultfd_by_device(void **unused)
{
	check_own_userfaultfd("device");
}

static void test_other_calls(void **unused)
{
	assert_int_equal(tell("calls"), 0);
	expect_fuse(PF_SHIM_DONE);
	release(UINT64_MAX);
}

/* A release of nothing: what was lost before it has been told when it is answered. */
static void test_barrier(void **unused)
{
	PfShimListed *listed = in_payload();
	PfShimRun *runs = (PfShimRun *)(listed + 1);

	expect_fuse(PF_SHIM_DONE);
	pages_lost = 0;
	assert_int_equal(tell("write"), 0);
	release(0);
	assert_int_equal(pages_lost, 1);
	send_order(PF_SHIM_LIST, NULL, 0, -1);
	expect_message(PF_SHIM_LISTED);
	assert_int_equal(listed->more, 0);
	assert_int_equal(listed->n_runs, 2);
	assert_int_equal(runs[0].hva, hva);
	assert_int_equal(runs[0].n_pages, 1);
	assert_int_equal(runs[1].hva, hva + 2 * PF_PAGE_SIZE);
	assert_int_equal(runs[1].frame, 2);
	assert_int_equal(runs[1].n_pages, N_FUSED - 2);
	assert_int_equal(tell("write"), 0);
	release(UINT64_MAX);
	assert_int_equal(pages_lost, N_FUSED);
}

/* An order with a flag that nobody knows. The connection ends, the VM goes on. */
static void test_unknown_flag(void **unused)
{
	PfShimRun run = {.hva = hva, .n_pages = 1, .flags = 1u << 31};

	send_order(PF_SHIM_FUSE, &run, sizeof run, -1);
	while (receive_one())
		assert_int_not_equal(in.header.type, PF_SHIM_FUSED);
	assert_int_equal(tell("check"), 0);
}

static double vm_cpu_s(void)
{
	clockid_t clock;
	struct timespec t;

	assert_int_equal(clock_getcpuclockid(vm, &clock), 0);
	assert_int_equal(clock_gettime(clock, &t), 0);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* A service of another version sends a release of everything and nothing else, and the shim waits for more. */
static void test_other_version(void **unused)
{
	struct pollfd p = {.events = POLLIN};
	double before;

	close(connection);
	meet();
	send_order(PF_SHIM_RELEASE, NULL, 0, -1);
	while (in.header.type != PF_SHIM_RELEASED)
		assert_true(receive_one());
	before = vm_cpu_s();
	p.fd = connection;
	/* Longer than it takes until a STATE would be due. */
	assert_int_equal(poll(&p, 1, 1500), 0);
	assert_true(vm_cpu_s() - before < 0.02);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_userfaultfd_by_syscall),
		cmocka_unit_test(test_userfaultfd_by_device),
		cmocka_unit_test(test_other_calls),
		cmocka_unit_test(test_barrier),
		cmocka_unit_test(test_unknown_flag),
		cmocka_unit_test(test_other_version),
	};

	if (argc > 1)
		return vm_main();
	if (access("/dev/userfaultfd", R_OK | W_OK) < 0) {
		fprintf(stderr, "skipped: no /dev/userfaultfd\n");
		return SKIPPED;
	}
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
