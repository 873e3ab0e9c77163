/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The front's end of the service's socket.
 *
 * Queries are answered in the order in which they were asked, one after the other, so at most one answer is put together
 * at any time, and what is no part of it ends the conversation: another query's messages, what was not asked for, more
 * VMs or bytes than an answer may have. MAX_ASKED queries are with the service at once, others wait here for their
 * turn, not more than MAX_WAITING. Each has TIMEOUT_S for all of it. One that was sent and is not waited for any more
 * keeps its place, because its answer may come still, which is then dropped.
 *
 * The service has its stores kept under names that it cannot choose freely; how many at once, and how often it speaks of
 * them, is limited too, because each time somebody outside is troubled. Its descriptors are touched by F_GET_SEALS
 * alone, and closed in another thread; so is the socket, which may hold some that nobody has read.
 *
 * A task calls back at once or from the main context, and the callback may free the front: whoever calls one holds a
 * reference and does nothing more with it.
 */
#include "host-service/front/front.h"
#include "common/log.h"
#include "host-service/wire/front_protocol.h"
#include "host-service/wire/packet.h"
#include "host-service/wire/received_fds.h"
#include "host-service/wire/source.h"
#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <string.h>

#define MAX_ASKED        16
#define MAX_WAITING      4096
#define MAX_ANSWER_BYTES ((gsize)128 << 20)
#define TIMEOUT_S        10
#define MAX_STORE_WORDS  (4 * PF_FRONT_MAX_STORES) /* KEEP and DROP, in STORE_WORDS_US */
#define STORE_WORDS_US   (60 * G_USEC_PER_SEC)

typedef struct Query {
	PfFront *front;
	PfFrontQuery request;
	gboolean names_nobody; /* no VM can have the name that was asked for */
	gboolean has_host;
	GTask *task;           /* owned; NULL: nobody waits for the answer any more */
	PfFrontAnswer *answer; /* as far as it has come */
	guint n_vms;
	gsize n_bytes; /* of VMs */
	GSource *timeout;
} Query;

struct PfFront {
	int fd; /* nonblocking; -1 once the service has ended */
	PfGroupsKeeper keeper;
	void (*closed)(void *userdata); /* NULL: never again */
	void *userdata;
	GSource *readable;
	GSource *writable;   /* while the socket is full */
	GQueue asked;        /* of Query, owned: with the service, the one that it answers first */
	GQueue waiting;      /* of Query, owned: not yet */
	GHashTable *stores;  /* names that are kept */
	gint64 counted_from; /* store_words began then */
	guint store_words;
	uint64_t last_id;
};

/* A PfVmView and all that it points to. */
typedef struct View {
	PfVmView view;
	PfDomain domain;
	char texts[];
} View;

void pf_front_answer_free(PfFrontAnswer *answer)
{
	if (!answer)
		return;
	g_free(answer->reason);
	g_ptr_array_unref(answer->vms);
	g_free(answer);
}

static PfFrontAnswer *answer_new(void)
{
	PfFrontAnswer *answer = g_new0(PfFrontAnswer, 1);

	answer->vms = g_ptr_array_new_with_free_func(g_free);
	return answer;
}

static void query_free(gpointer data)
{
	Query *query = data;

	pf_source_drop(&query->timeout);
	g_clear_object(&query->task);
	pf_front_answer_free(query->answer);
	g_free(query);
}

/* The query is consumed. */
static void fail_query(gpointer data)
{
	Query *query = data;
	g_autoptr(GTask) task = g_steal_pointer(&query->task);

	query_free(query);
	if (task)
		g_task_return_new_error(task, G_IO_ERROR, G_IO_ERROR_CLOSED,
			"the service process of pagefusiond has ended");
}

/* Nothing more is sent or received; all queries fail. */
static void close_socket(PfFront *front)
{
	GQueue asked = front->asked, waiting = front->waiting;

	pf_source_drop(&front->readable);
	pf_source_drop(&front->writable);
	if (front->fd >= 0)
		pf_received_fds_close_later(front->fd);
	front->fd = -1;
	g_queue_init(&front->asked);
	g_queue_init(&front->waiting);
	g_queue_clear_full(&asked, fail_query);
	g_queue_clear_full(&waiting, fail_query);
}

static void finish_front(gpointer data)
{
	PfFront *front = data;

	g_hash_table_unref(front->stores);
}

static void drop_front(PfFront *front)
{
	g_rc_box_release_full(front, finish_front);
}

static void on_end(PfFront *front)
{
	void (*closed)(void *userdata);

	close_socket(front);
	closed = g_steal_pointer(&front->closed);
	if (closed)
		closed(front->userdata);
}

/* Asking */

static gboolean on_writable(gint fd, GIOCondition condition, gpointer userdata);

static GSource *watch(
	PfFront *front, GIOCondition condition, gboolean (*callback)(gint, GIOCondition, gpointer))
{
	return pf_source_start(
		g_unix_fd_source_new(front->fd, condition), G_SOURCE_FUNC(callback), front);
}

/* An error shows on the readable side too, as the end of the stream. */
static void ask_waiting(PfFront *front)
{
	while (front->asked.length < MAX_ASKED && !g_queue_is_empty(&front->waiting)) {
		const Query *query = g_queue_peek_head(&front->waiting);

		if (pf_packet_send(front->fd, &query->request, sizeof(query->request), -1) < 0) {
			if (!front->writable)
				front->writable = watch(front, G_IO_OUT, on_writable);
			return;
		}
		g_queue_push_tail(&front->asked, g_queue_pop_head(&front->waiting));
	}
	pf_source_drop(&front->writable);
}

static gboolean on_writable(gint fd, GIOCondition condition, gpointer userdata)
{
	ask_waiting(userdata);
	return G_SOURCE_CONTINUE;
}

/* What was sent stays, for the answer that may come still. */
static gboolean on_timeout(gpointer userdata)
{
	Query *query = userdata;
	g_autoptr(GTask) task = g_steal_pointer(&query->task);

	pf_source_drop(&query->timeout);
	g_clear_pointer(&query->answer, pf_front_answer_free);
	if (g_queue_remove(&query->front->waiting, query))
		query_free(query);
	g_task_return_new_error(task, G_IO_ERROR, G_IO_ERROR_TIMED_OUT,
		"the service does not answer: see its log (journalctl -u pagefusiond)");
	return G_SOURCE_REMOVE;
}

static Query *query_new(PfFront *front, guint want, const char *vm, GTask *task)
{
	Query *query = g_new0(Query, 1);

	query->front = front;
	query->task = task;
	query->answer = answer_new();
	query->request =
		(PfFrontQuery){.magic = PF_FRONT_MAGIC, .want = want, .id = ++front->last_id};
	query->names_nobody = vm && (!vm[0] || strlen(vm) >= sizeof(query->request.vm));
	if (query->names_nobody)
		query->request.want &= ~(uint32_t)PF_FRONT_WANT_VMS;
	else if (vm)
		g_strlcpy(query->request.vm, vm, sizeof(query->request.vm));
	query->timeout =
		pf_source_start(g_timeout_source_new_seconds(TIMEOUT_S), on_timeout, query);
	return query;
}

void pf_front_query(
	PfFront *front, guint want, const char *vm, GAsyncReadyCallback callback, void *userdata)
{
	g_autoptr(GTask) task = g_task_new(NULL, NULL, callback, userdata);

	if (front->fd < 0) {
		g_task_return_new_error(task, G_IO_ERROR, G_IO_ERROR_CLOSED,
			"the service process of pagefusiond has ended");
		return;
	}
	if (front->waiting.length >= MAX_WAITING) {
		g_task_return_new_error(task, G_IO_ERROR, G_IO_ERROR_BUSY,
			"too many others ask at the same time: try again later");
		return;
	}
	g_queue_push_tail(&front->waiting, query_new(front, want, vm, g_steal_pointer(&task)));
	ask_waiting(front);
}

PfFrontAnswer *pf_front_query_finish(GAsyncResult *result, GError **error)
{
	return g_task_propagate_pointer(G_TASK(result), error);
}

/* Answers. What returns FALSE: this is no message that the service may send now. */

static_assert(sizeof(PfVmView) == 4 * sizeof(void *) + sizeof(PfVmFigures),
	"what a view points to is copied here and by put_vm()");

/* Copies a text behind another; where the next one goes. */
static char *put_text(char *at, const char *text, const char **where)
{
	*where = at;
	return stpcpy(at, text) + 1;
}

static View *view_new(const PfFrontVm *vm, gsize size)
{
	View *view = g_malloc(size);
	char *at = view->texts;

	view->domain = vm->domain;
	view->view = (PfVmView){.domain = &view->domain, .figures = vm->figures};
	at = put_text(at, vm->reason, &view->view.reason);
	at = put_text(at, vm->agent_version, &view->view.agent_version);
	put_text(at, vm->kernel, &view->view.kernel);
	return view;
}

static gboolean on_vm(Query *query, const PfFrontVm *vm)
{
	gsize size = sizeof(View) + strlen(vm->reason) + strlen(vm->agent_version) +
		     strlen(vm->kernel) + 3;

	query->n_vms++;
	query->n_bytes += size;
	if (!(query->request.want & PF_FRONT_WANT_VMS) || query->n_bytes > MAX_ANSWER_BYTES ||
		query->n_vms > (query->request.vm[0] ? 1 : PF_FRONT_MAX_VMS))
		return FALSE;
	if (query->answer)
		g_ptr_array_add(query->answer->vms, view_new(vm, size));
	return TRUE;
}

static gboolean on_host(Query *query, const PfHostView *host)
{
	if (!(query->request.want & PF_FRONT_WANT_HOST) || query->has_host)
		return FALSE;
	query->has_host = TRUE;
	if (query->answer)
		query->answer->host = *host;
	return TRUE;
}

/* Whether everything has come that was asked for. */
static gboolean is_complete(const Query *query, const PfFrontEnd *end)
{
	if (query->request.want & PF_FRONT_WANT_HOST && !query->has_host)
		return FALSE;
	return end->found == (query->request.vm[0] ? query->n_vms : 1);
}

static gboolean on_answered(PfFront *front, Query *query, const PfFrontEnd *end)
{
	g_autoptr(GTask) task = NULL;
	PfFrontAnswer *answer;

	if (!is_complete(query, end))
		return FALSE;
	g_queue_pop_head(&front->asked);
	task = g_steal_pointer(&query->task);
	answer = g_steal_pointer(&query->answer);
	if (answer) {
		answer->connected = end->connected != 0;
		answer->reason = g_strdup(end->connected ? "" : end->reason);
		answer->found = end->found && !query->names_nobody;
	}
	query_free(query);
	ask_waiting(front);
	if (task)
		g_task_return_pointer(task, answer, (GDestroyNotify)pf_front_answer_free);
	return TRUE;
}

/* Stores */

/* Touches no file system. */
static gboolean is_sealed_memory(int fd)
{
	const int wanted = F_SEAL_SHRINK | F_SEAL_GROW;
	int seals = fcntl(fd, F_GET_SEALS);

	return seals >= 0 && (seals & wanted) == wanted;
}

static gboolean may_speak_of_stores(PfFront *front)
{
	gint64 now = g_get_monotonic_time();

	if (front->store_words == 0 || now - front->counted_from >= STORE_WORDS_US) {
		front->counted_from = now;
		front->store_words = 0;
	}
	return ++front->store_words <= MAX_STORE_WORDS;
}

static gboolean on_keep(PfFront *front, const char *name, int fd)
{
	if (!is_sealed_memory(fd))
		return FALSE;
	if (g_hash_table_contains(front->stores, name))
		return TRUE;
	if (g_hash_table_size(front->stores) >= PF_FRONT_MAX_STORES) {
		pf_warning(
			"%s is not kept over a restart: %d others are", name, PF_FRONT_MAX_STORES);
		return TRUE;
	}
	g_hash_table_add(front->stores, g_strdup(name));
	if (front->keeper.keep)
		front->keeper.keep(front->keeper.userdata, name, fd);
	return TRUE;
}

/* Also of one that an earlier service has had kept. */
static void on_drop(PfFront *front, const char *name)
{
	g_hash_table_remove(front->stores, name);
	if (front->keeper.drop)
		front->keeper.drop(front->keeper.userdata, name);
}

static gboolean on_store(PfFront *front, const PfFrontMessage *message, int fd)
{
	if (!may_speak_of_stores(front))
		return FALSE;
	if (message->type == PF_FRONT_KEEP)
		return on_keep(front, message->body.store, fd);
	on_drop(front, message->body.store);
	return TRUE;
}

/* Receiving */

static gboolean on_message(PfFront *front, const PfFrontMessage *message, int fd)
{
	Query *query = g_queue_peek_head(&front->asked);

	if (message->type == PF_FRONT_KEEP || message->type == PF_FRONT_DROP)
		return on_store(front, message, fd);
	if (!query || message->id != query->request.id)
		return FALSE;
	if (message->type == PF_FRONT_HOST)
		return on_host(query, &message->body.host);
	if (message->type == PF_FRONT_VM)
		return on_vm(query, &message->body.vm);
	return on_answered(front, query, &message->body.end);
}

static gboolean on_readable(gint socket, GIOCondition condition, gpointer userdata)
{
	PfFront *front = g_rc_box_acquire((PfFront *)userdata);
	PfFrontMessage message;
	size_t n_fds;
	int fd;
	ssize_t n = pf_packet_receive(socket, &message, sizeof(message), &fd, &n_fds);

	if (n == 0) {
		on_end(front);
	} else if (n != -EAGAIN && (n < 0 || !pf_front_check_message(&message, (size_t)n, n_fds) ||
					   !on_message(front, &message, fd))) {
		pf_error("the service process has sent what it may not send: nothing more is heard "
			 "of it");
		on_end(front);
	}
	if (fd >= 0)
		pf_received_fds_close_later(fd);
	drop_front(front);
	return G_SOURCE_CONTINUE;
}

PfFront *pf_front_new(
	int fd, const PfGroupsKeeper *keeper, void (*closed)(void *userdata), void *userdata)
{
	PfFront *front = g_rc_box_new0(PfFront);

	front->fd = fd;
	if (keeper)
		front->keeper = *keeper;
	front->closed = closed;
	front->userdata = userdata;
	front->stores = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	g_unix_set_fd_nonblocking(fd, TRUE, NULL);
	front->readable = watch(front, G_IO_IN | G_IO_HUP | G_IO_ERR, on_readable);
	return front;
}

void pf_front_free(PfFront *front)
{
	if (!front)
		return;
	front->closed = NULL;
	close_socket(front);
	drop_front(front);
}
