/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The service's end of the front's socket.
 *
 * One queue holds what the socket did not take: the rest of an answer, and stores to be kept or dropped, in the order in
 * which they were said. While it is not empty no query is read, so it never holds more than one answer, and a front
 * that does not read costs no more than that. A store is kept by descriptors of our own, which wait with it. What has
 * no room there the front would not have taken either: that ends the conversation.
 */
#include "host-service/service/service_front.h"
#include "common/log.h"
#include "host-service/wire/front_protocol.h"
#include "host-service/wire/packet.h"
#include "host-service/wire/packet_queue.h"
#include "host-service/wire/source.h"
#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <string.h>
#include <unistd.h>

/* A whole answer, and more words about stores than the front hears in a minute. */
#define MAX_WAITING (1 + PF_FRONT_MAX_VMS + 1 + 4 * PF_FRONT_MAX_STORES)

struct PfServiceFront {
	int fd;              /* nonblocking; -1 once the front has ended */
	PfService *service;  /* NULL: queries wait */
	PfPacketQueue queue; /* of PfFrontMessage */
	GSource *source;     /* of the socket; NULL once the front has ended */
	void (*closed)(void *userdata);
	void *userdata;
};

static void close_socket(PfServiceFront *front)
{
	pf_source_drop(&front->source);
	pf_packet_queue_clear(&front->queue);
	if (front->fd >= 0)
		close(front->fd);
	front->fd = -1;
}

/* Sending */

/* FALSE: the front has ended. */
static gboolean send_waiting(PfServiceFront *front)
{
	int r = pf_packet_queue_flush(&front->queue, front->fd);

	return r == 0 || r == -EAGAIN;
}

static gboolean on_ready(gint fd, GIOCondition condition, gpointer userdata);

/* What the socket is watched for follows from the queue, and from whether there is a service. The front's end is always seen. */
static void watch(PfServiceFront *front)
{
	GIOCondition condition = G_IO_HUP | G_IO_ERR;

	if (!pf_packet_queue_is_empty(&front->queue))
		condition |= G_IO_OUT;
	else if (front->service)
		condition |= G_IO_IN;
	pf_source_drop(&front->source);
	front->source = pf_source_start(
		g_unix_fd_source_new(front->fd, condition), G_SOURCE_FUNC(on_ready), front);
}

/* fd is consumed. */
static void put(PfServiceFront *front, PfFrontMessage *message, int fd)
{
	message->magic = PF_FRONT_MAGIC;
	pf_packet_queue_put(&front->queue, message, sizeof(*message), fd);
}

/* Answers */

typedef struct Answer {
	PfServiceFront *front;
	uint64_t id;
} Answer;

static void put_vm(const PfVmView *view, void *userdata)
{
	const Answer *answer = userdata;
	PfFrontMessage message = {.type = PF_FRONT_VM, .id = answer->id};
	PfFrontVm *vm = &message.body.vm;

	vm->domain = *view->domain;
	g_strlcpy(vm->reason, view->reason, sizeof(vm->reason));
	g_strlcpy(vm->agent_version, view->agent_version, sizeof(vm->agent_version));
	g_strlcpy(vm->kernel, view->kernel, sizeof(vm->kernel));
	vm->figures = view->figures;
	put(answer->front, &message, -1);
}

static void put_host(const Answer *answer)
{
	PfFrontMessage message = {.type = PF_FRONT_HOST, .id = answer->id};

	pf_service_host_view(answer->front->service, &message.body.host);
	put(answer->front, &message, -1);
}

static void put_end(const Answer *answer, gboolean found)
{
	PfFrontMessage message = {.type = PF_FRONT_END, .id = answer->id};
	PfFrontEnd *end = &message.body.end;
	const char *reason = NULL;

	end->found = found ? 1 : 0;
	end->connected = pf_service_libvirt_connected(answer->front->service, &reason) ? 1 : 0;
	if (!end->connected && reason)
		g_strlcpy(end->reason, reason, sizeof(end->reason));
	put(answer->front, &message, -1);
}

static void answer_query(PfServiceFront *front, const PfFrontQuery *query)
{
	Answer answer = {front, query->id};
	gboolean found = TRUE;

	if (query->want & PF_FRONT_WANT_HOST)
		put_host(&answer);
	if (query->vm[0])
		found = pf_service_visit_vm(front->service, query->vm, put_vm, &answer);
	else if (query->want & PF_FRONT_WANT_VMS)
		pf_service_foreach_vm(front->service, put_vm, &answer);
	put_end(&answer, found);
}

/* FALSE: the front has ended. */
static gboolean read_query(PfServiceFront *front)
{
	PfFrontQuery query;
	size_t n_fds;
	int fd;
	ssize_t n = pf_packet_receive(front->fd, &query, sizeof(query), &fd, &n_fds);

	if (fd >= 0)
		close(fd);
	if (n == -EAGAIN)
		return TRUE;
	if (n <= 0 || !pf_front_check_query(&query, (size_t)n))
		return FALSE;
	answer_query(front, &query);
	return TRUE;
}

static gboolean on_ready(gint fd, GIOCondition condition, gpointer userdata)
{
	PfServiceFront *front = userdata;
	gboolean there = !(condition & (G_IO_HUP | G_IO_ERR));

	if (there && pf_packet_queue_is_empty(&front->queue) && front->service)
		there = read_query(front);
	if (there && send_waiting(front)) {
		watch(front);
		return G_SOURCE_CONTINUE;
	}
	close_socket(front);
	front->closed(front->userdata);
	return G_SOURCE_CONTINUE;
}

/* The stores' keeper */

/* At once if the socket takes it: then systemd has it even if we end now. Whether the front is there shows later. */
static void put_store(PfServiceFront *front, PfFrontMessageType type, const char *name, int fd)
{
	PfFrontMessage message = {.type = type};

	if (front->fd < 0) {
		if (fd >= 0)
			close(fd);
		return;
	}
	g_strlcpy(message.body.store, name, sizeof(message.body.store));
	put(front, &message, fd);
	send_waiting(front);
	watch(front);
}

static void keep(void *userdata, const char *name, int fd)
{
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);

	if (own < 0)
		pf_warning("%s is not kept over a restart: %s", name, g_strerror(errno));
	else
		put_store(userdata, PF_FRONT_KEEP, name, own);
}

static void drop(void *userdata, const char *name)
{
	put_store(userdata, PF_FRONT_DROP, name, -1);
}

PfGroupsKeeper pf_service_front_keeper(PfServiceFront *front)
{
	return (PfGroupsKeeper){keep, drop, front};
}

PfServiceFront *pf_service_front_new(int fd, void (*closed)(void *userdata), void *userdata)
{
	PfServiceFront *front = g_new0(PfServiceFront, 1);

	front->fd = fd;
	front->closed = closed;
	front->userdata = userdata;
	pf_packet_queue_init(&front->queue, MAX_WAITING);
	g_unix_set_fd_nonblocking(fd, TRUE, NULL);
	watch(front);
	return front;
}

void pf_service_front_serve(PfServiceFront *front, PfService *service)
{
	front->service = service;
	if (front->fd >= 0)
		watch(front);
}

void pf_service_front_free(PfServiceFront *front)
{
	if (!front)
		return;
	close_socket(front);
	g_free(front);
}
