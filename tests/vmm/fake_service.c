/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Everything is synchronous: a packet is sent, its answer is waited for. The VM runs as "nobody", as QEMU does not run
 * as root.
 */
#include "tests/vmm/fake_service.h"
#include "common/page.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define NOBODY       65534
#define WAIT_MS      20000
#define STORE_FRAMES 4096u

static union {
	PfShimHeader header;
	uint8_t bytes[2 * PF_SHIM_MAX_MESSAGE];
} in, out;

static unsigned now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (unsigned)(now.tv_sec * 1000 + now.tv_nsec / 1000000);
}

static bool wait_for(int fd)
{
	struct pollfd event = {fd, POLLIN, 0};

	return poll(&event, 1, WAIT_MS) > 0;
}

/* The VM */

__attribute__((noreturn)) static void become_vm(const FakeService *fake, int in_fd, int out_fd)
{
	if (dup2(in_fd, STDIN_FILENO) < 0 || dup2(out_fd, STDOUT_FILENO) < 0 ||
		setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
		setresuid(NOBODY, NOBODY, NOBODY) < 0)
		_exit(126);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setenv("LD_PRELOAD", PF_TEST_SHIM, 1);
	setenv(PF_SHIM_SOCKET_VARIABLE, fake->socket, 1);
#ifdef __SANITIZE_ADDRESS__
	setenv("ASAN_OPTIONS", "verify_asan_link_order=0", 1);
#endif
	execl(PF_TEST_TOY_VMM, "toy_vmm", fake->channel, NULL);
	_exit(127);
}

static void read_line(FakeService *fake, char *line, size_t size)
{
	size_t n = 0;

	while (n == 0 || line[n - 1] != '\n') {
		if (!wait_for(fake->from))
			fail_msg("the VM does not answer");
		assert_true(n + 1 < size);
		if (read(fake->from, line + n, 1) != 1)
			fail_msg("the VM has ended");
		n++;
	}
	line[n - 1] = 0;
}

__attribute__((format(printf, 2, 0))) static const char *command(
	FakeService *fake, const char *format, va_list arguments)
{
	static char line[256];
	int n = vsnprintf(line, sizeof(line) - 1, format, arguments);

	assert_true(n > 0 && (size_t)n < sizeof(line) - 1);
	line[n++] = '\n';
	assert_int_equal(write(fake->to, line, (size_t)n), n);
	read_line(fake, line, sizeof(line));
	return line;
}

const char *fake_command(FakeService *fake, const char *format, ...)
{
	const char *answer;
	va_list arguments;

	va_start(arguments, format);
	answer = command(fake, format, arguments);
	va_end(arguments);
	return answer;
}

void fake_ok(FakeService *fake, const char *format, ...)
{
	const char *answer;
	va_list arguments;

	va_start(arguments, format);
	answer = command(fake, format, arguments);
	va_end(arguments);
	if (strcmp(answer, "ok") != 0)
		fail_msg("\"%s\" gave \"%s\"", format, answer);
}

static void start_vm(FakeService *fake)
{
	int to[2], from[2];
	char line[64];

	assert_int_equal(pipe2(to, O_CLOEXEC), 0);
	assert_int_equal(pipe2(from, O_CLOEXEC), 0);
	fake->vm = fork();
	assert_true(fake->vm >= 0);
	if (fake->vm == 0)
		become_vm(fake, to[0], from[1]);
	close(to[0]);
	close(from[1]);
	fake->to = to[1];
	fake->from = from[0];
	read_line(fake, line, sizeof(line));
	assert_string_equal(line, "ready");
	assert_int_equal(sscanf(fake_command(fake, "where"), "%" SCNu64 " %" SCNu64,
				 &fake->blocks[0], &fake->blocks[1]),
		2);
}

FakeService *fake_service_new(void)
{
	FakeService *fake = calloc(1, sizeof(*fake));
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	assert_non_null(fake);
	fake->connection = fake->store = -1;
	strcpy(fake->dir, "/tmp/pf-fake-XXXXXX");
	assert_non_null(mkdtemp(fake->dir));
	assert_int_equal(chmod(fake->dir, 01777), 0);
	snprintf(fake->socket, sizeof(fake->socket), "%s/shim.sock", fake->dir);
	snprintf(fake->channel, sizeof(fake->channel), "%s/channel.sock", fake->dir);
	strcpy(address.sun_path, fake->socket);
	fake->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_true(fake->listener >= 0);
	assert_int_equal(bind(fake->listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(chmod(fake->socket, 0666), 0);
	assert_int_equal(listen(fake->listener, 1), 0);
	start_vm(fake);
	fake_accept(fake);
	return fake;
}

void fake_service_free(FakeService *fake)
{
	close(fake->to); /* the end of its input ends it */
	close(fake->from);
	waitpid(fake->vm, NULL, 0);
	if (fake->connection >= 0)
		close(fake->connection);
	if (fake->store >= 0)
		close(fake->store);
	close(fake->listener);
	unlink(fake->socket);
	unlink(fake->channel);
	rmdir(fake->dir);
	free(fake);
}

/* Descriptors */

static int make_memfd(size_t size, int seals)
{
	int fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	if (seals)
		assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

/* Consumes fd. */
static int read_only(int fd)
{
	char path[64];
	int again;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(again >= 0);
	close(fd);
	return again;
}

static int own_store(FakeService *fake)
{
	if (fake->store < 0)
		fake->store = make_memfd(STORE_FRAMES * PF_PAGE_SIZE, F_SEAL_SHRINK);
	return fcntl(fake->store, F_DUPFD_CLOEXEC, 0);
}

int fake_open(FakeService *fake, FakeFd what)
{
	const size_t store_size = STORE_FRAMES * PF_PAGE_SIZE,
		     staging_size = PF_SHIM_MAX_CAPTURE * PF_PAGE_SIZE;
	int ends[2];

	switch (what) {
	case FAKE_NO_FD:
		return -1;
	case FAKE_DEVICE:
		return open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	case FAKE_STORE:
		return read_only(own_store(fake));
	case FAKE_STORE_UNSEALED:
		return read_only(make_memfd(store_size, 0));
	case FAKE_STORE_WRITABLE:
		return make_memfd(store_size, F_SEAL_SHRINK);
	case FAKE_OTHER_STORE:
		return read_only(make_memfd(store_size, F_SEAL_SHRINK));
	case FAKE_STAGING:
		return make_memfd(staging_size, F_SEAL_SHRINK | F_SEAL_GROW);
	case FAKE_STAGING_UNSEALED:
		return make_memfd(staging_size, 0);
	case FAKE_STAGING_SMALL:
		return make_memfd(staging_size - PF_PAGE_SIZE, F_SEAL_SHRINK | F_SEAL_GROW);
	case FAKE_FILE:
		return open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	case FAKE_PIPE:
		assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
		close(ends[1]);
		return ends[0];
	case FAKE_NULL:
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	}
	return -1;
}

uint64_t fake_publish(FakeService *fake, uint64_t seed)
{
	uint64_t page[PF_PAGE_SIZE / sizeof(uint64_t)];
	int store = own_store(fake);

	for (size_t i = 0; i < PF_PAGE_SIZE / sizeof(*page); i++)
		page[i] = seed * 0x9e3779b97f4a7c15ull + i;
	assert_int_equal(pwrite(store, page, sizeof(page), (off_t)(fake->n_frames * PF_PAGE_SIZE)),
		sizeof(page));
	close(store);
	return fake->n_frames++;
}

/* Packets */

static unsigned open_fds(FakeService *fake, const FakePacket *packet, int fds[FAKE_MAX_FDS])
{
	unsigned n = 0;

	for (; n < FAKE_MAX_FDS && packet->fds[n] != FAKE_NO_FD; n++) {
		fds[n] = fake_open(fake, packet->fds[n]);
		assert_true(fds[n] >= 0);
	}
	return n;
}

void fake_send(FakeService *fake, const FakePacket *packet)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(FAKE_MAX_FDS * sizeof(int))];
	} control;
	size_t length = sizeof(out.header) + packet->size + packet->padding;
	struct iovec part = {&out, length - packet->cut};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	static uint64_t id;
	int fds[FAKE_MAX_FDS];
	unsigned n = open_fds(fake, packet, fds);

	assert_true(length <= sizeof(out));
	memset(&out, 0, sizeof(out));
	out.header = (PfShimHeader){packet->magic ? packet->magic : PF_SHIM_MAGIC, packet->type,
		(uint16_t)((int)n + packet->n_fds_off),
		(uint32_t)((int)length + packet->length_off), 0, ++id};
	if (packet->size > 0)
		memcpy(out.bytes + sizeof(out.header), packet->data, packet->size);
	if (n > 0) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(n * sizeof(int));
		*CMSG_FIRSTHDR(&message) = (struct cmsghdr){.cmsg_len = CMSG_LEN(n * sizeof(int)),
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), fds, n * sizeof(int));
	}
	assert_int_equal(sendmsg(fake->connection, &message, MSG_NOSIGNAL), part.iov_len);
	for (unsigned i = 0; i < n; i++)
		close(fds[i]);
}

/* One message into `in`, with at most one descriptor, which is closed. Its size, 0 at the end, -1: none came. */
static ssize_t receive(FakeService *fake)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = {&in, sizeof(in)};
	struct msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control)};
	struct cmsghdr *rights;
	ssize_t size;
	int fd;

	if (!wait_for(fake->connection))
		return -1;
	size = recvmsg(fake->connection, &message, MSG_CMSG_CLOEXEC);
	if (size <= 0)
		return 0;
	rights = CMSG_FIRSTHDR(&message);
	if (rights) {
		memcpy(&fd, CMSG_DATA(rights), sizeof(fd));
		close(fd);
	}
	return size;
}

const void *fake_receive(FakeService *fake, PfShimType type, size_t *size)
{
	ssize_t got;

	do {
		got = receive(fake);
		if (got == 0)
			fail_msg("the shim ended the connection, message %d did not come", type);
		if (got < 0)
			fail_msg("message %d did not come", type);
		assert_int_equal(in.header.magic, PF_SHIM_MAGIC);
		assert_int_equal(in.header.length, got);
	} while (in.header.type != type &&
		 (in.header.type == PF_SHIM_LOST || in.header.type == PF_SHIM_STATE));
	assert_int_equal(in.header.type, type);
	if (size)
		*size = (size_t)got - sizeof(in.header);
	return in.bytes + sizeof(in.header);
}

void fake_expect_results(FakeService *fake, PfShimType type, PfShimResult wanted, size_t n)
{
	size_t size;
	const uint8_t *results = fake_receive(fake, type, &size);

	assert_int_equal(size, n);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(results[i], wanted);
}

bool fake_has_ended(FakeService *fake)
{
	ssize_t size;

	while ((size = receive(fake)) > 0)
		if (in.header.type != PF_SHIM_LOST && in.header.type != PF_SHIM_STATE)
			return false;
	return size == 0;
}

unsigned fake_accept(FakeService *fake)
{
	unsigned start = now_ms();

	if (fake->connection >= 0)
		close(fake->connection);
	if (!wait_for(fake->listener))
		fail_msg("the shim does not connect");
	fake->connection = accept4(fake->listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(fake->connection >= 0);
	fake->hello = *(const PfShimHello *)fake_receive(fake, PF_SHIM_HELLO, NULL);
	if (fake->hello.flags & PF_SHIM_HAS_STORE)
		fake_receive(fake, PF_SHIM_STORE_RETURN, NULL);
	return now_ms() - start;
}

void fake_attach(FakeService *fake)
{
	static const PfShimStore store = {.group_id = "the fake's own"};
	const PfShimReady *ready;

	fake_send(fake, &(FakePacket){.type = PF_SHIM_ATTACH, .fds = {FAKE_DEVICE}});
	ready = fake_receive(fake, PF_SHIM_READY, NULL);
	assert_int_equal(ready->code, PF_SHIM_READY_OK);
	if (!(fake->hello.flags & PF_SHIM_HAS_STORE))
		fake_send(fake, &(FakePacket){.type = PF_SHIM_STORE,
					.data = &store,
					.size = sizeof(store),
					.fds = {FAKE_STORE}});
	fake_send(fake, &(FakePacket){.type = PF_SHIM_STAGING, .fds = {FAKE_STAGING}});
}

void fake_fuse(FakeService *fake, uint64_t hva, uint64_t frame, uint32_t n_pages)
{
	PfShimRun run = {hva, frame, n_pages, PF_SHIM_RUN_MAY_BREAK_HUGE};

	fake_send(fake, &(FakePacket){.type = PF_SHIM_FUSE, .data = &run, .size = sizeof(run)});
}

uint64_t fake_n_listed(FakeService *fake)
{
	const PfShimListed *listed;
	uint64_t n = 0;

	fake_send(fake, &(FakePacket){.type = PF_SHIM_LIST});
	do {
		const PfShimRun *runs;

		listed = fake_receive(fake, PF_SHIM_LISTED, NULL);
		runs = (const PfShimRun *)(listed + 1);
		for (uint32_t i = 0; i < listed->n_runs; i++)
			n += runs[i].n_pages;
	} while (listed->more);
	return n;
}

unsigned fake_n_file_pages(const FakeService *fake, uint64_t gfn, unsigned n)
{
	uint64_t entries[FAKE_BLOCK_PAGES];
	unsigned found = 0;
	char path[64];
	int fd;

	assert_true(n <= FAKE_BLOCK_PAGES);
	snprintf(path, sizeof(path), "/proc/%d/pagemap", fake->vm);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(
		pread(fd, entries, n * sizeof(*entries),
			(off_t)((fake->blocks[0] / PF_PAGE_SIZE + gfn) * sizeof(*entries))),
		n * sizeof(*entries));
	close(fd);
	for (unsigned i = 0; i < n; i++)
		found += (entries[i] >> 63 & 1) && (entries[i] >> 61 & 1);
	return found;
}

unsigned fake_n_fds(const FakeService *fake)
{
	char path[64];
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", fake->vm);
	dir = opendir(path);
	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}
