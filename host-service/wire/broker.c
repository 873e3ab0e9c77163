/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A client's end of its broker's socket. It must never block, because the broker may: it reads
 * nothing while it waits in libvirt's calls. So requests that find the socket full wait in a queue
 * here until it has room. Where the kernel has no memory for one it is writable all the same, so
 * the next try is a timer's. An answer finds its GTask by the request's id; when the broker ends or
 * is freed, every task that is still awaited gets G_IO_ERROR_CLOSED. A task calls back from the
 * main context, so after pf_broker_free() has returned.
 *
 * A request that the broker would refuse is refused here already: a wrong one ends the broker, and
 * its clients with it. Callbacks may free the broker, so whoever calls them holds a reference.
 */
#include "host-service/wire/broker_protocol.h"
#include "host-service/wire/packet.h"
#include "host-service/wire/packet_queue.h"
#include "host-service/wire/source.h"
#include <errno.h>
#include <glib-unix.h>
#include <unistd.h>

#define RETRY_MS 100 /* when the kernel has had no memory for a packet */

struct PfBroker {
	int fd;                       /* nonblocking; -1 once the broker has ended */
	const PfBrokerEvents *events; /* NULL once pf_broker_free() was called */
	void *userdata;
	GSource *readable;
	GSource *writable;   /* while the queue is not empty: its next turn */
	PfPacketQueue queue; /* of PfBrokerRequest */
	GHashTable *tasks;   /* id to GTask, owned */
	uint64_t last_id;
};

static void fail_task(GTask *task)
{
	g_task_return_new_error(
		task, G_IO_ERROR, G_IO_ERROR_CLOSED, "the broker process of pagefusiond has ended");
}

/* Nothing more is sent or received; all tasks fail. */
static void close_socket(PfBroker *broker)
{
	g_autoptr(GHashTable) tasks = g_steal_pointer(&broker->tasks);
	GHashTableIter iter;
	gpointer task;

	pf_source_drop(&broker->readable);
	pf_source_drop(&broker->writable);
	if (broker->fd >= 0)
		close(broker->fd);
	broker->fd = -1;
	pf_packet_queue_clear(&broker->queue);
	broker->tasks = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_object_unref);
	g_hash_table_iter_init(&iter, tasks);
	while (g_hash_table_iter_next(&iter, NULL, &task))
		fail_task(task);
}

static void finish_broker(gpointer data)
{
	PfBroker *broker = data;

	g_hash_table_unref(broker->tasks);
}

static void drop_broker(PfBroker *broker)
{
	g_rc_box_release_full(broker, finish_broker);
}

static void on_end(PfBroker *broker)
{
	close_socket(broker);
	if (broker->events)
		broker->events->closed(broker->userdata);
}

static void return_hvas(GTask *task, const PfBrokerMessage *answer)
{
	if (answer->n_hvas != GPOINTER_TO_UINT(g_task_get_task_data(task)))
		g_task_return_new_error(task, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
			"the broker answered for another number of ranges");
	else
		g_task_return_pointer(
			task, g_memdup2(answer->body.hvas, answer->n_hvas * sizeof(PfHva)), g_free);
}

static void return_change(GTask *task, const PfBrokerMessage *answer)
{
	const PfAdditionsChange *change = &answer->body.additions;

	if (!memchr(change->drive, 0, sizeof(change->drive)))
		g_task_return_new_error(task, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
			"the broker names a drive without end");
	else
		g_task_return_pointer(task, g_memdup2(change, sizeof(*change)), g_free);
}

static void return_fd(GTask *task, int *fd)
{
	if (*fd < 0) {
		g_task_return_new_error(
			task, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "the broker sent no descriptor");
		return;
	}
	g_task_return_int(task, *fd);
	*fd = -1;
}

/* Takes *fd where the request was for one. */
static void on_answer(PfBroker *broker, const PfBrokerMessage *answer, int *fd)
{
	g_autofree gpointer id = NULL;
	gpointer stolen = NULL;
	g_autoptr(GTask) task = NULL;

	if (!g_hash_table_steal_extended(broker->tasks, &answer->id, &id, &stolen))
		return;
	task = stolen;
	if (answer->error >= 0)
		g_task_return_new_error(task, G_IO_ERROR, answer->error, "%s", answer->text);
	else if (g_task_get_source_tag(task) == pf_broker_translate)
		return_hvas(task, answer);
	else if (g_task_get_source_tag(task) == pf_broker_modify)
		g_task_return_boolean(task, TRUE);
	else if (g_task_get_source_tag(task) == pf_broker_additions_finish)
		return_change(task, answer);
	else
		return_fd(task, fd);
}

static void on_message(PfBroker *broker, const PfBrokerMessage *message, int *fd)
{
	switch (message->type) {
	case PF_BROKER_ANSWER:
		on_answer(broker, message, fd);
		break;
	case PF_BROKER_DOMAIN:
		broker->events->domain_changed(broker->userdata, &message->body.domain);
		break;
	case PF_BROKER_GONE:
		broker->events->domain_gone(broker->userdata, message->body.domain.uuid);
		break;
	default:
		broker->events->libvirt_changed(
			broker->userdata, message->type == PF_BROKER_CONNECTED, message->text);
	}
}

static gboolean on_readable(gint socket, GIOCondition condition, gpointer data)
{
	PfBroker *broker = g_rc_box_acquire((PfBroker *)data);
	PfBrokerMessage message;
	size_t n_fds;
	int fd;
	ssize_t n = pf_packet_receive(socket, &message, sizeof(message), &fd, &n_fds);

	if (n > 0 && pf_broker_check_message(&message, (size_t)n))
		on_message(broker, &message, &fd);
	else if (n != -EAGAIN)
		on_end(broker);
	if (fd >= 0)
		close(fd);
	drop_broker(broker);
	return G_SOURCE_CONTINUE;
}

static GSource *watch(PfBroker *broker, GIOCondition condition,
	gboolean (*callback)(gint, GIOCondition, gpointer))
{
	GSource *source = g_unix_fd_source_new(broker->fd, condition);

	/* First, so that a change is known here before anybody who was told that it is done can ask for it. */
	g_source_set_priority(source, G_PRIORITY_HIGH);
	return pf_source_start(source, G_SOURCE_FUNC(callback), broker);
}

static gboolean on_writable(gint socket, GIOCondition condition, gpointer data);

static gboolean on_retry(gpointer data)
{
	PfBroker *broker = data;

	pf_source_drop(&broker->writable);
	broker->writable = watch(broker, G_IO_OUT, on_writable);
	return G_SOURCE_REMOVE;
}

/* Sends what the socket takes. Another error shows on the readable side too, as the end of the stream, after what has been
 * answered. */
static gboolean on_writable(gint socket, GIOCondition condition, gpointer data)
{
	PfBroker *broker = data;
	int r = pf_packet_queue_flush(&broker->queue, socket);

	if (r == -EAGAIN)
		return G_SOURCE_CONTINUE;
	pf_source_drop(&broker->writable);
	if (r == -ENOBUFS || r == -ENOMEM)
		broker->writable =
			pf_source_start(g_timeout_source_new(RETRY_MS), on_retry, broker);
	else
		pf_packet_queue_clear(&broker->queue);
	return G_SOURCE_REMOVE;
}

PfBroker *pf_broker_new(int fd, const PfBrokerEvents *events, void *userdata)
{
	PfBroker *broker = g_rc_box_new0(PfBroker);

	broker->fd = fd;
	broker->events = events;
	broker->userdata = userdata;
	broker->tasks = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_object_unref);
	pf_packet_queue_init(&broker->queue, PF_BROKER_MAX_QUEUE);
	g_unix_set_fd_nonblocking(fd, TRUE, NULL);
	broker->readable = watch(broker, G_IO_IN | G_IO_HUP | G_IO_ERR, on_readable);
	return broker;
}

void pf_broker_free(PfBroker *broker)
{
	if (!broker)
		return;
	broker->events = NULL;
	close_socket(broker);
	drop_broker(broker);
}

/* Completes, checks and queues a request for this task, which is consumed. */
static void submit(PfBroker *broker, GTask *task, PfBrokerRequest *request)
{
	g_autoptr(GTask) owned = task;

	request->magic = PF_BROKER_MAGIC;
	request->id = ++broker->last_id;
	if (broker->fd < 0) {
		fail_task(task);
		return;
	}
	if (!pf_broker_check_request(request, sizeof(*request), 0)) {
		g_task_return_new_error(task, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
			"no valid name or UUID of a VM, no valid setting, or no valid range of memory");
		return;
	}
	if (pf_packet_queue_is_full(&broker->queue)) {
		g_task_return_new_error(task, G_IO_ERROR, G_IO_ERROR_BUSY,
			"the broker waits for libvirt: try again later");
		return;
	}
	g_hash_table_insert(broker->tasks, g_memdup2(&request->id, sizeof(request->id)),
		g_steal_pointer(&owned));
	pf_packet_queue_put(&broker->queue, request, sizeof(*request), -1);
	if (!broker->writable)
		broker->writable = watch(broker, G_IO_OUT, on_writable);
}

static GTask *new_task(GAsyncReadyCallback callback, void *userdata, gpointer tag)
{
	GTask *task = g_task_new(NULL, NULL, callback, userdata);

	g_task_set_source_tag(task, tag);
	return task;
}

void pf_broker_open_userfaultfd(
	PfBroker *broker, const char *uuid, GAsyncReadyCallback callback, void *userdata)
{
	PfBrokerRequest request = {.type = PF_BROKER_OPEN_USERFAULTFD};

	g_strlcpy(request.vm, uuid, sizeof(request.vm));
	submit(broker, new_task(callback, userdata, pf_broker_open_userfaultfd), &request);
}

int pf_broker_open_userfaultfd_finish(GAsyncResult *result, GError **error)
{
	return (int)g_task_propagate_int(G_TASK(result), error);
}

void pf_broker_open_channel(
	PfBroker *broker, const char *uuid, GAsyncReadyCallback callback, void *userdata)
{
	PfBrokerRequest request = {.type = PF_BROKER_OPEN_CHANNEL};

	g_strlcpy(request.vm, uuid, sizeof(request.vm));
	submit(broker, new_task(callback, userdata, pf_broker_open_channel), &request);
}

int pf_broker_open_channel_finish(GAsyncResult *result, GError **error)
{
	return (int)g_task_propagate_int(G_TASK(result), error);
}

void pf_broker_translate(PfBroker *broker, const char *uuid, const PfGuestRange *ranges,
	size_t n_ranges, GAsyncReadyCallback callback, void *userdata)
{
	GTask *task = new_task(callback, userdata, pf_broker_translate);
	PfBrokerRequest request = {.type = PF_BROKER_TRANSLATE};

	g_strlcpy(request.vm, uuid, sizeof(request.vm));
	/* Too many: left at zero ranges, which the check refuses. */
	if (n_ranges <= PF_SESSION_MAX_RAM_RANGES) {
		request.n_ranges = (uint32_t)n_ranges;
		memcpy(request.ranges, ranges, n_ranges * sizeof(*ranges));
	}
	g_task_set_task_data(task, GUINT_TO_POINTER(request.n_ranges), NULL);
	submit(broker, task, &request);
}

gboolean pf_broker_translate_finish(
	GAsyncResult *result, PfHva **hvas, size_t *n_ranges, GError **error)
{
	PfHva *found = g_task_propagate_pointer(G_TASK(result), error);

	if (!found)
		return FALSE;
	*hvas = found;
	*n_ranges = GPOINTER_TO_UINT(g_task_get_task_data(G_TASK(result)));
	return TRUE;
}

/* Cut: then it is no VM's name either. */
static void name_vm(PfBrokerRequest *request, const char *vm)
{
	if (g_strlcpy(request->vm, vm, sizeof(request->vm)) >= sizeof(request->vm))
		request->vm[0] = 0;
}

void pf_broker_modify(PfBroker *broker, const char *vm, const PfVmSettings *settings,
	GAsyncReadyCallback callback, void *userdata)
{
	GTask *task = new_task(callback, userdata, pf_broker_modify);
	PfBrokerRequest request = {.type = PF_BROKER_MODIFY,
		.changes = settings->changes,
		.enabled = settings->enabled ? 1 : 0,
		.thp = settings->thp};

	name_vm(&request, vm);
	g_strlcpy(request.group, settings->group, sizeof(request.group));
	submit(broker, task, &request);
}

gboolean pf_broker_modify_finish(GAsyncResult *result, GError **error)
{
	return g_task_propagate_boolean(G_TASK(result), error);
}

static void change_additions(PfBroker *broker, PfBrokerRequest *request, const char *vm,
	GAsyncReadyCallback callback, void *userdata)
{
	name_vm(request, vm);
	submit(broker, new_task(callback, userdata, pf_broker_additions_finish), request);
}

void pf_broker_insert_additions(
	PfBroker *broker, const char *vm, GAsyncReadyCallback callback, void *userdata)
{
	PfBrokerRequest request = {.type = PF_BROKER_INSERT_ADDITIONS};

	change_additions(broker, &request, vm, callback, userdata);
}

void pf_broker_eject_additions(PfBroker *broker, const char *vm, gboolean force,
	GAsyncReadyCallback callback, void *userdata)
{
	PfBrokerRequest request = {.type = PF_BROKER_EJECT_ADDITIONS, .force = force ? 1 : 0};

	change_additions(broker, &request, vm, callback, userdata);
}

gboolean pf_broker_additions_finish(GAsyncResult *result, PfAdditionsChange *change, GError **error)
{
	g_autofree PfAdditionsChange *done = g_task_propagate_pointer(G_TASK(result), error);

	if (done)
		*change = *done;
	return done != NULL;
}
