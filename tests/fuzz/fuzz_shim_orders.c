/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a hostile service sends to a shim, that is into QEMU: each record of the input (records.h) is a packet. The link's
 * thread runs here, as a function, with a core that only checks what it is asked to do; what the thread waits for
 * (connect, poll, nanosleep) is the fuzzer's. Its answers must fit the orders, and no descriptor may stay open.
 *
 * Of a record's operation: bits 0 to 2 are the type, 3 and 4 the descriptors that go along, bit 5 makes the core have
 * news, bit 6 changes what it says, and with bit 7 the packet has no header of ours.
 */
#include "host-service/shim/aside.h"
#include "host-service/shim/core.h"
#include "host-service/shim/link.h"
#include "tests/fuzz/records.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STAGING_SIZE (PF_SHIM_MAX_CAPTURE * PF_PAGE_SIZE)

#define MUST(condition)                                                                            \
	do {                                                                                       \
		if (!(condition))                                                                  \
			abort();                                                                   \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int __wrap_connect(int fd, const struct sockaddr *address, socklen_t size);
int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms);
int __wrap_nanosleep(const struct timespec *wait, struct timespec *left);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
	void *(*start)(void *), void *argument);

/* The service. */
static struct {
	const uint8_t *data;
	size_t size;
	int socket;
	uint64_t id; /* of the newest order */
	uint16_t type;
	size_t n_pages; /* that its answer is for */
} service;

/* The core. */
static struct {
	int store, event;
	bool started, has_news;
	uint8_t mood; /* of the newest record: what goes wrong */
	uint64_t listed;
} core;

static void *(*link_thread)(void *);
static jmp_buf end_of_connection;

/* What the core is asked to do */

int pf_core_start(int device, uint64_t *missing_features)
{
	MUST(fcntl(device, F_GETFD) >= 0);
	*missing_features = core.mood & 1 ? 4 : 0;
	core.started = !(core.mood & 3);
	return core.mood & 2 ? -EINVAL : 0;
}

bool pf_core_started(void)
{
	return core.started;
}

unsigned pf_core_n_blocks(void)
{
	return core.mood & 4 ? 0 : 1;
}

int pf_core_set_store(int store, const uint8_t group_id[16])
{
	volatile uint8_t last = group_id[15];

	(void)last;
	MUST(fcntl(store, F_GETFD) >= 0);
	if (core.mood & 1) {
		close(store);
		return -EINVAL;
	}
	if (core.store >= 0)
		close(core.store);
	core.store = store;
	return 0;
}

int pf_core_get_store(uint8_t group_id[16])
{
	memset(group_id, 7, 16);
	return core.store;
}

void pf_core_fuse(const PfShimRun *run, uint8_t *results)
{
	MUST(run->n_pages > 0 && run->n_pages <= PF_SHIM_RUN_PAGES);
	MUST(!(run->flags & ~PF_SHIM_RUN_MAY_BREAK_HUGE));
	memset(results, PF_SHIM_NOT_RAM, run->n_pages);
}

int pf_core_capture(PfHva hva, int fd, uint64_t offset_bytes)
{
	uint8_t page[PF_PAGE_SIZE] = {1};

	MUST(offset_bytes % PF_PAGE_SIZE == 0 && offset_bytes < STAGING_SIZE);
	MUST(fcntl(fd, F_GET_SEALS) & F_SEAL_GROW);
	/* Fails where the descriptor is read-only; never makes it larger. */
	return pwrite(fd, page, sizeof page, (off_t)offset_bytes) < 0 ? PF_SHIM_FAILED
								      : PF_SHIM_DONE;
}

int pf_core_release(PfHva hva, uint64_t n_pages)
{
	MUST(hva.v % PF_PAGE_SIZE == 0);
	return core.mood & 1 ? -EIO : 0;
}

size_t pf_core_take_lost(PfShimLost *lost, size_t max, bool *overflow)
{
	size_t n = core.has_news ? (core.mood & 8 ? max : 1) : 0;

	MUST(max > 0 && max <= PF_SHIM_MAX_MESSAGE / sizeof *lost);
	*overflow = core.has_news && (core.mood & 2);
	core.has_news = false;
	memset(lost, 0, n * sizeof *lost);
	return n;
}

size_t pf_core_list(uint64_t *cursor, PfShimRun *runs, size_t max)
{
	size_t n = core.mood & 8 && *cursor == 0 ? max : 1;

	*cursor = n == max ? 1 : UINT64_MAX;
	memset(runs, 0, n * sizeof *runs);
	return n;
}

void pf_core_state(PfShimState *state, bool recount)
{
	memset(state, 0, sizeof *state);
}

int pf_core_event_fd(void)
{
	return core.event;
}

bool pf_core_is_child(void)
{
	return false;
}

bool pf_aside_look(void)
{
	return core.mood & 16;
}

/* What the service says */

static int make_staging(void)
{
	int fd = memfd_create("staging", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	MUST(fd >= 0 && ftruncate(fd, core.mood & 2 ? PF_PAGE_SIZE : STAGING_SIZE) == 0);
	if (!(core.mood & 1))
		MUST(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	return fd;
}

static void send_packet(struct iovec *parts, size_t n_parts, const int *fds, unsigned n_fds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(3 * sizeof(int))];
	} control;
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = n_parts};

	if (n_fds > 0) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		*CMSG_FIRSTHDR(&message) =
			(struct cmsghdr){.cmsg_len = CMSG_LEN(n_fds * sizeof(int)),
				.cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), fds, n_fds * sizeof(int));
	}
	MUST(sendmsg(service.socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0 ||
		errno == EMSGSIZE);
}

/* For how many pages the answer has to be. */
static size_t count_pages(const Record *record)
{
	size_t n = 0;

	if (service.type == PF_SHIM_CAPTURE)
		return record->size / sizeof(PfShimCapture);
	for (size_t i = 0; i + sizeof(PfShimRun) <= record->size; i += sizeof(PfShimRun)) {
		PfShimRun run;

		memcpy(&run, record->bytes + i, sizeof run);
		n += run.n_pages;
	}
	return n;
}

static void say(const Record *record)
{
	unsigned how = record->operation >> 3 & 3, n_fds;
	int fds[3] = {-1, -1, -1};
	PfShimHeader header = {.magic = PF_SHIM_MAGIC,
		.type = record->operation & 7,
		.length = (uint32_t)(sizeof header + record->size),
		.id = ++service.id};
	struct iovec parts[] = {{&header, sizeof header}, {(void *)record->bytes, record->size}};

	service.type = header.type;
	service.n_pages = count_pages(record);
	n_fds = header.type >= PF_SHIM_ATTACH && header.type <= PF_SHIM_STAGING;
	if (how == 1)
		n_fds = 1 - n_fds;
	else if (how > 1)
		n_fds = how;
	header.n_fds = (uint16_t)n_fds;
	for (unsigned i = 0; i < n_fds; i++)
		fds[i] = header.type == PF_SHIM_STAGING ? make_staging()
							: open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (record->operation & 128)
		send_packet(&parts[1], 1, fds, n_fds);
	else
		send_packet(parts, 2, fds, n_fds);
	for (unsigned i = 0; i < n_fds; i++)
		close(fds[i]);
}

/* What it hears */

static void check_answer(const PfShimHeader *header, const uint8_t *data, size_t size)
{
	switch (header->type) {
	case PF_SHIM_HELLO:
		MUST(size == sizeof(PfShimHello));
		break;
	case PF_SHIM_STORE_RETURN:
		MUST(size == sizeof(PfShimStore) && header->n_fds == 1);
		break;
	case PF_SHIM_CAPTURED:
		MUST(service.type == PF_SHIM_CAPTURE && header->id == service.id);
		MUST(size == service.n_pages);
		break;
	case PF_SHIM_FUSED:
		MUST(service.type == PF_SHIM_FUSE && header->id == service.id);
		MUST(size == service.n_pages);
		break;
	case PF_SHIM_RELEASED:
		MUST(service.type == PF_SHIM_RELEASE && size == 0);
		break;
	case PF_SHIM_LISTED:
		MUST(service.type == PF_SHIM_LIST && size >= sizeof(PfShimListed));
		MUST((size - sizeof(PfShimListed)) % sizeof(PfShimRun) == 0);
		break;
	case PF_SHIM_LOST:
		MUST(size > 0 && size % sizeof(PfShimLost) == 0);
		break;
	case PF_SHIM_READY:
		MUST(size == sizeof(PfShimReady));
		break;
	default:
		MUST(header->type == PF_SHIM_STATE && size == sizeof(PfShimState));
	}
}

static void hear(void)
{
	static union {
		PfShimHeader header;
		uint8_t bytes[PF_SHIM_MAX_MESSAGE];
	} packet;
	ssize_t n;

	/* What comes along is closed by the kernel: there is no room for it. */
	while ((n = recv(service.socket, &packet, sizeof packet, MSG_DONTWAIT)) > 0) {
		MUST((size_t)n >= sizeof packet.header && packet.header.length == (size_t)n);
		MUST(packet.header.magic == PF_SHIM_MAGIC);
		check_answer(&packet.header, packet.bytes + sizeof packet.header,
			(size_t)n - sizeof packet.header);
	}
}

/* What the thread waits for */

int __wrap_connect(int fd, const struct sockaddr *address, socklen_t size)
{
	int fds[2];

	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0);
	MUST(dup2(fds[0], fd) == fd);
	close(fds[0]);
	service.socket = fds[1];
	return 0;
}

int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms)
{
	Record record;

	MUST(n == 2 && fds[0].events == POLLIN && fds[1].fd == core.event);
	hear();
	fds[0].revents = POLLIN;
	fds[1].revents = 0;
	if (!next_record(&service.data, &service.size, &record)) {
		shutdown(service.socket, SHUT_RDWR);
		return 1;
	}
	if (record.operation & 64 && record.size > 0)
		core.mood = record.bytes[0];
	if (record.operation & 32) {
		core.has_news = true;
		fds[1].revents = POLLIN;
		eventfd_write(core.event, 1);
	}
	say(&record);
	return 2;
}

int __wrap_nanosleep(const struct timespec *wait, struct timespec *left)
{
	MUST(wait->tv_sec <= PF_SHIM_RETRY_MAX_MS / 1000);
	longjmp(end_of_connection, 1);
}

int __wrap_pthread_create(
	pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
	link_thread = start;
	return EAGAIN;
}

static unsigned count_fds(void)
{
	DIR *directory = opendir("/proc/self/fd");
	unsigned n = 0;

	MUST(directory);
	while (readdir(directory))
		n++;
	closedir(directory);
	return n;
}

static void connect_once(void)
{
	if (setjmp(end_of_connection) == 0)
		link_thread(NULL);
	close(service.socket);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	unsigned n_open;

	if (!link_thread) {
		core.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		pf_link_start("/service");
	}
	n_open = count_fds();
	service.data = data;
	service.size = size;
	service.id = 0;
	core.store = -1;
	core.started = core.has_news = false;
	core.mood = 0;
	/* Twice: the second time it comes back with what it has. */
	connect_once();
	connect_once();
	if (core.store >= 0)
		close(core.store);
	MUST(count_fds() == n_open);
	return 0;
}
