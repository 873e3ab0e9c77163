// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The kernel's process connector multicasts a message for each fork, exec, exit and more
 * (linux/cn_proc.h). On a busy guest these are thousands a second, of which only programs that
 * start and processes that end are wanted: a filter on the socket drops the others before they
 * take room or wake anybody. Who reads rarely needs no thread for it; when the socket is full the
 * kernel says so once (ENOBUFS), and that is all a reader has to know.
 *
 * The connector serves the initial network, user and process namespace only, and does not say so:
 * it just does not answer. Its answer to the subscription is sent before sendmsg() returns, so
 * when there is none in the socket by then there will be no events either.
 *
 * Any process with CAP_NET_ADMIN can send to the same group; the kernel's own messages come from
 * port 0. Older kernels count listeners by what is said to them and not by sockets, hence the
 * farewell.
 */
#include "guest-agent/find/process_events.h"
#include <arpa/inet.h>
#include <errno.h>
#include <linux/connector.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define RECEIVE_BUFFER (1 << 20) /* bytes: a second of some thousand events */
#define BATCH          32        /* messages a system call */
#define MAX_BATCHES    512       /* in a row: who sends faster than we read must not hold us */

/* What the kernel's headers call these changed with Linux 6.6; the numbers did not. */
#define WHAT_ANSWER 0u /* to the subscription */
#define WHAT_EXEC   0x00000002u
#define WHAT_EXIT   0x80000000u
#define LISTEN      1u
#define IGNORE      2u

/* struct cn_msg, which ends with an array and so cannot be part of another. */
typedef struct Connector {
	struct cb_id id;
	uint32_t seq, ack;
	uint16_t len, flags;
} Connector;

_Static_assert(sizeof(Connector) == sizeof(struct cn_msg), "the kernel's own");

/* As it lies in a datagram. */
typedef struct Message {
	struct nlmsghdr netlink;
	Connector connector;
	struct {
		uint32_t what, cpu;
		uint64_t timestamp_ns;
		uint32_t pid, tgid;
	} __attribute__((packed)) event;
} __attribute__((packed)) Message;

_Static_assert(offsetof(Message, event) == 36, "the connector's message follows netlink's");

struct PfProcessEvents {
	int fd; /* owned */
};

/* The filter reads in network byte order, the kernel writes in its own. */
static int set_filter(int fd)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(Message, event.what)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htonl(WHAT_EXEC), 7, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htonl(WHAT_ANSWER), 6, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htonl(WHAT_EXIT), 0, 4),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(Message, event.pid)),
		BPF_STMT(BPF_MISC | BPF_TAX, 0),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(Message, event.tgid)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_X, 0, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, 0),
		BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
	};
	const struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
	int r = setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program));

	return r < 0 ? -errno : 0;
}

static int open_socket(void)
{
	const struct sockaddr_nl group = {.nl_family = AF_NETLINK, .nl_groups = CN_IDX_PROC};
	const int size = RECEIVE_BUFFER;
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_CONNECTOR);
	int r;

	if (fd < 0)
		return errno == EPROTONOSUPPORT || errno == EAFNOSUPPORT ? -ENOTSUP : -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) < 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	r = set_filter(fd);
	if (r == 0 && bind(fd, (const struct sockaddr *)&group, sizeof(group)) < 0)
		r = errno == EACCES ? -EPERM : -errno;
	if (r < 0) {
		close(fd);
		return r;
	}
	return fd;
}

static int subscribe(int fd, uint32_t operation)
{
	const struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	struct __attribute__((packed)) {
		struct nlmsghdr netlink;
		Connector connector;
		uint32_t operation;
	} request = {
		.netlink = {.nlmsg_len = sizeof(request), .nlmsg_type = NLMSG_DONE},
		.connector = {.id = {CN_IDX_PROC, CN_VAL_PROC}, .len = sizeof(operation)},
		.operation = operation,
	};
	ssize_t n = sendto(
		fd, &request, sizeof(request), 0, (const struct sockaddr *)&kernel, sizeof(kernel));

	if (n < 0)
		/* Refused: there is no connector in this network namespace. */
		return errno == ECONNREFUSED ? -EPERM : -errno;
	return 0;
}

/* Whether a datagram is a whole message that the kernel's connector sent. */
static bool genuine(const Message *message, const struct sockaddr_nl *from, size_t size)
{
	return size >= sizeof(*message) && from->nl_pid == 0 &&
	       message->netlink.nlmsg_len >= sizeof(*message) &&
	       message->netlink.nlmsg_len <= size && message->netlink.nlmsg_type == NLMSG_DONE &&
	       message->connector.id.idx == CN_IDX_PROC && message->connector.id.val == CN_VAL_PROC;
}

/* The next messages: their number, 0 when there are none, or -errno. What is not genuine has 0
 * for all that it says. */
static int receive(int fd, Message messages[BATCH])
{
	struct sockaddr_nl from[BATCH];
	struct mmsghdr headers[BATCH];
	struct iovec parts[BATCH];
	int n;

	memset(messages, 0, BATCH * sizeof(*messages));
	for (size_t i = 0; i < BATCH; i++) {
		from[i] = (struct sockaddr_nl){.nl_pid = UINT32_MAX};
		parts[i] = (struct iovec){&messages[i], sizeof(messages[i])};
		headers[i] = (struct mmsghdr){.msg_hdr = {.msg_name = &from[i],
						      .msg_namelen = sizeof(from[i]),
						      .msg_iov = &parts[i],
						      .msg_iovlen = 1}};
	}
	n = recvmmsg(fd, headers, BATCH, MSG_TRUNC, NULL);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	for (int i = 0; i < n; i++) {
		if (!genuine(&messages[i], &from[i], headers[i].msg_len))
			messages[i] = (Message){0};
	}
	return n;
}

/* 0 when the kernel has confirmed the subscription. */
static int wait_for_answer(int fd)
{
	Message messages[BATCH];
	int n;

	while ((n = receive(fd, messages)) > 0) {
		for (int i = 0; i < n; i++) {
			const Message *message = &messages[i];

			/* Its error stands where events have a process. */
			if (message->netlink.nlmsg_len > 0 && message->event.what == WHAT_ANSWER)
				return message->event.pid == 0 ? 0 : -EPERM;
		}
	}
	return n == -ENOBUFS || n == 0 ? -ENOTSUP : n;
}

int pf_process_events_new(PfProcessEvents **events)
{
	PfProcessEvents *e = malloc(sizeof(*e));
	int r;

	if (!e)
		return -ENOMEM;
	e->fd = open_socket();
	r = e->fd < 0 ? e->fd : subscribe(e->fd, LISTEN);
	if (r == 0)
		r = wait_for_answer(e->fd);
	if (r < 0) {
		pf_process_events_free(e);
		return r;
	}
	*events = e;
	return 0;
}

void pf_process_events_free(PfProcessEvents *events)
{
	if (!events)
		return;
	if (events->fd >= 0) {
		(void)subscribe(events->fd, IGNORE);
		close(events->fd);
	}
	free(events);
}

int pf_process_events_fd(const PfProcessEvents *events)
{
	return events->fd;
}

typedef struct Taken {
	pid_t *pids;
	size_t n, capacity;
	uint64_t ended;
	bool lost;
} Taken;

static size_t find_pid(const Taken *taken, pid_t pid)
{
	size_t i = 0;

	while (i < taken->n && taken->pids[i] != pid)
		i++;
	return i;
}

static void take_message(Taken *taken, const Message *message)
{
	pid_t pid = (pid_t)message->event.tgid;
	size_t at;

	if (pid <= 0)
		return;
	at = find_pid(taken, pid);
	if (message->event.what == WHAT_EXIT && message->event.pid == message->event.tgid) {
		taken->ended++;
		/* Nobody needs to look at what is over already. */
		if (at < taken->n)
			taken->pids[at] = taken->pids[--taken->n];
	} else if (message->event.what == WHAT_EXEC && at == taken->n) {
		if (taken->n < taken->capacity)
			taken->pids[taken->n++] = pid;
		else
			taken->lost = true;
	}
}

int pf_process_events_take(
	PfProcessEvents *events, pid_t *pids, size_t capacity, uint64_t *ended, bool *lost)
{
	Taken taken = {.pids = pids, .capacity = capacity};
	Message messages[BATCH];
	int n = BATCH;

	for (int batch = 0; (n == BATCH || n == -ENOBUFS) && batch < MAX_BATCHES; batch++) {
		n = receive(events->fd, messages);
		taken.lost |= n == -ENOBUFS || batch == MAX_BATCHES - 1;
		if (n < 0 && n != -ENOBUFS)
			return n;
		for (int i = 0; i < n; i++)
			take_message(&taken, &messages[i]);
	}
	*ended = taken.ended;
	*lost = taken.lost;
	return (int)taken.n;
}
