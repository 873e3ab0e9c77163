/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One thread that connects to the service, carries out its orders in the order they come, and tells
 * it what was lost. An answer is sent before the losses that came after it, so that the service
 * never hears of the loss of a page before it heard that the page was fused.
 *
 * While QEMU has userfaultfds of its own the thread also looks whether they are open still.
 *
 * Nothing a guest waits for depends on this thread. When the service goes away, or says something
 * that makes no sense, the connection is closed and tried again with a growing pause; fused pages
 * stay fused, and are revoked as ever.
 */
#include "host-service/shim/link.h"
#include "host-service/shim/aside.h"
#include "host-service/shim/core.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>

#define MAX_FDS           2
#define RETRY_FIRST_MS    100
#define STATE_INTERVAL_MS 500
#define ASIDE_INTERVAL_MS 500
#define SEND_TIMEOUT_S    10
#define CONNECT_TIMEOUT_S 60 /* whoever gives up loses his place, and there may be a crowd */

static struct sockaddr_un service = {.sun_family = AF_UNIX};

typedef struct Link {
	int socket;
	int staging;   /* -1: none */
	bool attached; /* READY was sent */
	bool ready;    /* READY said OK */
	bool state_due;
	uint64_t state_ms; /* when the last STATE was sent */
	bool aside;        /* QEMU has userfaultfds of its own, which are to be looked at */
} Link;

/* Only the link's thread uses these. */
static union {
	PfShimHeader header;
	uint8_t bytes[PF_SHIM_MAX_MESSAGE];
} in, out;

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void *payload(void)
{
	return out.bytes + sizeof out.header;
}

/* Sends what stands in out behind the header. 0 or -errno. fd -1: none goes along. */
static int send_message(Link *link, PfShimType type, uint64_t id, size_t size, int fd)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = {&out, sizeof out.header + size};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	out.header = (PfShimHeader){
		PF_SHIM_MAGIC, (uint16_t)type, fd >= 0, (uint32_t)part.iov_len, 0, id};
	if (fd >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof control;
		*CMSG_FIRSTHDR(&message) = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd),
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &fd, sizeof fd);
	}
	return sendmsg(link->socket, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int send_hello(Link *link)
{
	PfShimStore store = {0};
	PfShimState state;
	int fd = pf_core_get_store(store.group_id), error;

	pf_core_state(&state, false);
	*(PfShimHello *)payload() = (PfShimHello){
		.version = PF_SHIM_VERSION,
		.version_oldest = PF_SHIM_VERSION,
		.flags = (pf_core_started() ? PF_SHIM_HAS_USERFAULTFD : 0) |
			 (fd >= 0 ? PF_SHIM_HAS_STORE : 0),
		.page_size = PF_PAGE_SIZE,
		.fused_pages = state.fused_pages,
	};
	error = send_message(link, PF_SHIM_HELLO, 0, sizeof(PfShimHello), -1);
	if (error || fd < 0)
		return error;
	*(PfShimStore *)payload() = store;
	return send_message(link, PF_SHIM_STORE_RETURN, 0, sizeof store, fd);
}

static int send_ready(Link *link, uint64_t id, int error, uint64_t missing)
{
	PfShimReady ready = {
		.code = PF_SHIM_READY_OK, .error = -error, .missing_features = missing};

	if (missing)
		ready.code = PF_SHIM_READY_NO_FEATURES;
	else if (error)
		ready.code = PF_SHIM_READY_FAILED;
	else if (pf_core_n_blocks() == 0)
		ready.code = PF_SHIM_READY_NO_BLOCKS;
	link->attached = true;
	link->ready = ready.code == PF_SHIM_READY_OK;
	link->state_due = true;
	*(PfShimReady *)payload() = ready;
	return send_message(link, PF_SHIM_READY, id, sizeof ready, -1);
}

static int send_lost(Link *link)
{
	const size_t max = (PF_SHIM_MAX_MESSAGE - sizeof out.header) / sizeof(PfShimLost);
	bool overflow;
	size_t n;

	do {
		n = pf_core_take_lost(payload(), max, &overflow);
		if (overflow)
			/* In the next connection the service asks for the list, and so hears the truth. */
			return -EOVERFLOW;
		if (n > 0) {
			int error = send_message(link, PF_SHIM_LOST, 0, n * sizeof(PfShimLost), -1);

			if (error)
				return error;
			link->state_due = true;
		}
	} while (n == max);
	return 0;
}

static int send_state(Link *link)
{
	PfShimState state;
	struct timespec own;

	pf_core_state(&state, true);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &own);
	state.cpu_ns += (uint64_t)own.tv_sec * 1000000000 + (uint64_t)own.tv_nsec;
	*(PfShimState *)payload() = state;
	link->state_due = false;
	link->state_ms = now_ms();
	return send_message(link, PF_SHIM_STATE, 0, sizeof state, -1);
}

/* The orders. Each gets its payload's size and the descriptors that came with it (-1 where none
 * did). */

static int take_staging(Link *link, int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat status;

	/* Its size is sealed, so that no write of ours can grow it, whoever sent it. */
	if (seals < 0 || !(seals & F_SEAL_GROW) || fstat(fd, &status) < 0 ||
		(size_t)status.st_size < PF_SHIM_MAX_CAPTURE * PF_PAGE_SIZE)
		return -EPROTO;
	if (link->staging >= 0)
		close(link->staging);
	link->staging = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return link->staging < 0 ? -errno : 0;
}

static int do_capture(Link *link, const PfShimCapture *pages, size_t size)
{
	size_t n = size / sizeof *pages;
	uint8_t *results = payload();

	if (n == 0 || n > PF_SHIM_MAX_CAPTURE || size % sizeof *pages || link->staging < 0)
		return -EPROTO;
	for (size_t i = 0; i < n; i++) {
		if (pages[i].slot >= PF_SHIM_MAX_CAPTURE)
			return -EPROTO;
		results[i] = (uint8_t)pf_core_capture(
			(PfHva){pages[i].hva}, link->staging, pages[i].slot * PF_PAGE_SIZE);
	}
	return send_message(link, PF_SHIM_CAPTURED, in.header.id, n, -1);
}

static int do_fuse(Link *link, const PfShimRun *runs, size_t size)
{
	size_t n = size / sizeof *runs, n_pages = 0;
	uint8_t *results = payload();

	if (n == 0 || n > PF_SHIM_MAX_RUNS || size % sizeof *runs)
		return -EPROTO;
	for (size_t i = 0; i < n; i++)
		if (runs[i].n_pages == 0 || runs[i].n_pages > PF_SHIM_RUN_PAGES ||
			(runs[i].flags & ~PF_SHIM_RUN_MAY_BREAK_HUGE))
			return -EPROTO;
	for (size_t i = 0; i < n; i++) {
		pf_core_fuse(&runs[i], results + n_pages);
		n_pages += runs[i].n_pages;
		/* On a busy host a fault would else not even be read before our share of the processor is used up. */
		sched_yield();
	}
	link->state_due = true;
	return send_message(link, PF_SHIM_FUSED, in.header.id, n_pages, -1);
}

static int do_release(Link *link, const PfShimRange *ranges, size_t size)
{
	int error = 0;

	if (size % sizeof *ranges)
		return -EPROTO;
	if (size == 0)
		error = pf_core_release((PfHva){0}, UINT64_MAX);
	for (size_t i = 0; error == 0 && i < size / sizeof *ranges; i++) {
		if (ranges[i].hva % PF_PAGE_SIZE)
			return -EPROTO;
		error = pf_core_release((PfHva){ranges[i].hva}, ranges[i].n_pages);
	}
	/* RELEASED would not be true. */
	if (error)
		return error;
	/*
	 * What was lost by it, and before it, goes first: RELEASED means that all of it was heard. After a release of
	 * everything nothing is left to be told, so there it does not matter if more was lost than we could keep.
	 */
	error = send_lost(link);
	if (error && (size > 0 || error != -EOVERFLOW))
		return error;
	link->state_due = true;
	return send_message(link, PF_SHIM_RELEASED, in.header.id, 0, -1);
}

static int do_list(Link *link)
{
	const size_t max = (PF_SHIM_MAX_MESSAGE - sizeof out.header - sizeof(PfShimListed)) /
			   sizeof(PfShimRun);
	PfShimListed *listed = payload();
	uint64_t cursor = 0;
	int error = send_lost(link);

	while (error == 0 && cursor != UINT64_MAX) {
		size_t n = pf_core_list(&cursor, (PfShimRun *)(listed + 1), max);

		*listed = (PfShimListed){.more = cursor != UINT64_MAX, .n_runs = (uint32_t)n};
		error = send_message(link, PF_SHIM_LISTED, in.header.id,
			sizeof *listed + n * sizeof(PfShimRun), -1);
	}
	return error;
}

static int do_store(const PfShimStore *store, size_t size, int fd)
{
	int error;

	if (size != sizeof *store || fd < 0)
		return -EPROTO;
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	error = pf_core_set_store(fd, store->group_id);
	return error ? -EPROTO : 0;
}

static int do_attach(Link *link, int fd)
{
	uint64_t missing;
	int error;

	if (fd < 0)
		return -EPROTO;
	error = pf_core_start(fd, &missing);
	return send_ready(link, in.header.id, error, missing);
}

/* Descriptors stay the caller's. 0 or -errno: then the connection ends. */
static int handle(Link *link, size_t size, const int *fds)
{
	const void *data = in.bytes + sizeof in.header;
	bool wants_fd = in.header.type == PF_SHIM_ATTACH || in.header.type == PF_SHIM_STORE ||
			in.header.type == PF_SHIM_STAGING;

	if (in.header.n_fds != wants_fd)
		return -EPROTO;
	size -= sizeof in.header;
	switch (in.header.type) {
	case PF_SHIM_ATTACH:
		return do_attach(link, fds[0]);
	case PF_SHIM_STORE:
		return do_store(data, size, fds[0]);
	case PF_SHIM_STAGING:
		return take_staging(link, fds[0]);
	case PF_SHIM_CAPTURE:
		return do_capture(link, data, size);
	case PF_SHIM_FUSE:
		return do_fuse(link, data, size);
	case PF_SHIM_RELEASE:
		return do_release(link, data, size);
	case PF_SHIM_LIST:
		return do_list(link);
	default:
		return -EPROTO;
	}
}

static unsigned take_fds(struct msghdr *message, int fds[MAX_FDS])
{
	unsigned n = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(c), n * sizeof(int));
	}
	return n;
}

static int receive(Link *link)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
	} control;
	struct iovec part = {&in, sizeof in};
	struct msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control};
	ssize_t size = recvmsg(link->socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	int fds[MAX_FDS] = {-1, -1}, error = -EPROTO;
	unsigned n_fds;

	if (size < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	n_fds = take_fds(&message, fds);
	if ((size_t)size >= sizeof in.header && !(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) &&
		in.header.magic == PF_SHIM_MAGIC && in.header.length == (size_t)size &&
		in.header.n_fds == n_fds)
		error = handle(link, (size_t)size, fds);
	for (unsigned i = 0; i < n_fds; i++)
		close(fds[i]);
	return error;
}

static int poll_timeout(const Link *link)
{
	uint64_t age = now_ms() - link->state_ms;

	/* A service of another version never attaches, and hears no STATE. */
	if (!link->state_due || !link->attached)
		return link->aside ? ASIDE_INTERVAL_MS : -1;
	return age >= STATE_INTERVAL_MS ? 0 : (int)(STATE_INTERVAL_MS - age);
}

static int serve_once(Link *link)
{
	struct pollfd p[] = {{link->socket, POLLIN, 0}, {pf_core_event_fd(), POLLIN, 0}};
	uint64_t count;
	int error = 0;

	poll(p, 2, poll_timeout(link));
	if (p[0].revents)
		error = receive(link);
	if (error == 0 && p[1].revents) {
		if (read(p[1].fd, &count, sizeof count) > 0)
			link->state_due = link->attached;
		if (link->attached && !link->ready && pf_core_started() && pf_core_n_blocks() > 0)
			error = send_ready(link, 0, 0, 0);
	}
	if (error == 0 && link->attached)
		error = send_lost(link);
	if (error == 0 && link->attached && poll_timeout(link) == 0)
		error = send_state(link);
	link->aside = pf_aside_look();
	return error;
}

/* For connecting it counts too. */
static void set_send_timeout(int fd, time_t seconds)
{
	struct timeval timeout = {.tv_sec = seconds};

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
}

static int connect_service(void)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	set_send_timeout(fd, CONNECT_TIMEOUT_S);
	if (connect(fd, (struct sockaddr *)&service, sizeof service) < 0) {
		int error = -errno;

		close(fd);
		return error;
	}
	set_send_timeout(fd, SEND_TIMEOUT_S);
	return fd;
}

static void *link_thread(void *unused)
{
	long pause_ms = RETRY_FIRST_MS;

	prctl(PR_SET_NAME, "pf-link");
	for (;;) {
		Link link = {.socket = connect_service(), .staging = -1};
		bool overflow;

		if (link.socket >= 0) {
			/* The service starts with a list of what there is: what was lost before is no news. */
			while (pf_core_take_lost((PfShimLost *)out.bytes,
				       sizeof out / sizeof(PfShimLost), &overflow) > 0)
				;
			if (send_hello(&link) == 0)
				while (serve_once(&link) == 0)
					pause_ms = RETRY_FIRST_MS;
			close(link.socket);
			if (link.staging >= 0)
				close(link.staging);
		}
		pf_aside_look();
		nanosleep(&(struct timespec){pause_ms / 1000, pause_ms % 1000 * 1000000}, NULL);
		pause_ms =
			pause_ms * 2 < PF_SHIM_RETRY_MAX_MS ? pause_ms * 2 : PF_SHIM_RETRY_MAX_MS;
	}
	return NULL;
}

void pf_link_start(const char *path)
{
	static atomic_bool started;
	pthread_t thread;
	sigset_t all, old;

	if (pf_core_is_child() || strlen(path) >= sizeof service.sun_path ||
		pf_core_event_fd() < 0 || atomic_exchange(&started, true))
		return;
	strcpy(service.sun_path, path);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	if (pthread_create(&thread, NULL, link_thread, NULL) == 0)
		pthread_detach(thread);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}
