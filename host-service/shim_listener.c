/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A shim may be faster than libvirt's event about its VM, so unmatched ones wait a while. Any user may connect: of those
 * who wait, whoever has most loses first, so nobody crowds out another user's shims; and after ACCEPTS connections there
 * is a pause, so that nobody keeps the service busy by connecting.
 */
#include "host-service/shim_listener.h"
#include "host-service/log_limit.h"
#include <errno.h>
#include <glib-unix.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_UNMATCHED    128 /* shims that no VM is known for */
#define UNMATCHED_MAX_US (30 * G_USEC_PER_SEC)
#define ACCEPT_RETRY_MS  1000
#define ACCEPTS          10
#define ACCEPT_PAUSE_MS  100

typedef struct Unmatched {
	PfShimLink *link;
	gint64 since_us;
} Unmatched;

struct PfShimListener {
	PfVm *(*find_vm)(void *userdata, pid_t pid);
	void *userdata;
	int listener;
	guint source, n_accepted;
	PfLogLimit log;
	GQueue unmatched;   /* of Unmatched */
	gint64 stranger_us; /* when one was last turned away; G_MININT64: never */
};

static void free_unmatched(gpointer data)
{
	Unmatched *unmatched = data;

	pf_shim_link_free(unmatched->link);
	g_free(unmatched);
}

void pf_shim_listener_match(PfShimListener *listener)
{
	gint64 now = g_get_monotonic_time();

	for (GList *item = listener->unmatched.head, *next; item; item = next) {
		Unmatched *unmatched = item->data;
		PfVm *vm = listener->find_vm(listener->userdata, pf_shim_link_pid(unmatched->link));
		gboolean alive = pf_shim_link_is_alive(unmatched->link);

		next = item->next;
		if (!vm && alive && now - unmatched->since_us < UNMATCHED_MAX_US)
			continue;
		g_queue_delete_link(&listener->unmatched, item);
		/* Its number may be another process's by now. */
		if (vm && alive)
			pf_vm_take_shim(vm, g_steal_pointer(&unmatched->link));
		else
			listener->stranger_us = now;
		free_unmatched(unmatched);
	}
}

gboolean pf_shim_listener_is_quiet(const PfShimListener *listener, gint64 for_us)
{
	if (!g_queue_is_empty((GQueue *)&listener->unmatched))
		return FALSE;
	return listener->stranger_us == G_MININT64 ||
	       g_get_monotonic_time() - listener->stranger_us > for_us;
}

static guint count_of_user(const PfShimListener *listener, uid_t uid)
{
	guint n = 0;

	for (const GList *item = listener->unmatched.head; item; item = item->next)
		n += pf_shim_link_uid(((const Unmatched *)item->data)->link) == uid;
	return n;
}

/* The oldest of whoever has most. */
static void drop_one(PfShimListener *listener)
{
	GList *dropped = NULL;
	guint most = 0;

	for (GList *item = listener->unmatched.head; item; item = item->next) {
		const Unmatched *unmatched = item->data;
		guint n = count_of_user(listener, pf_shim_link_uid(unmatched->link));

		if (n > most)
			dropped = item;
		most = MAX(n, most);
	}
	free_unmatched(dropped->data);
	g_queue_delete_link(&listener->unmatched, dropped);
}

static gboolean on_connection(gint fd, GIOCondition condition, gpointer userdata);

/* Without descriptors left the socket would stay readable, and nothing else have its turn. */
static gboolean on_accept_again(gpointer userdata)
{
	PfShimListener *listener = userdata;

	listener->source = g_unix_fd_add(listener->listener, G_IO_IN, on_connection, listener);
	return G_SOURCE_REMOVE;
}

static gboolean accept_later(PfShimListener *listener, guint ms)
{
	listener->source = g_timeout_add(ms, on_accept_again, listener);
	return G_SOURCE_REMOVE;
}

static void add(PfShimListener *listener, PfShimLink *link)
{
	Unmatched *unmatched = g_new(Unmatched, 1);

	*unmatched = (Unmatched){link, g_get_monotonic_time()};
	g_queue_push_tail(&listener->unmatched, unmatched);
	pf_shim_listener_match(listener);
	if (g_queue_get_length(&listener->unmatched) > MAX_UNMATCHED)
		drop_one(listener);
}

static gboolean on_connection(gint fd, GIOCondition condition, gpointer userdata)
{
	PfShimListener *listener = userdata;
	g_autoptr(GError) error = NULL;
	int peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	PfShimLink *link;

	if (peer < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED))
		return G_SOURCE_CONTINUE;
	if (peer < 0) {
		pf_log_limited(&listener->log, PF_LOG_WARNING, "a shim cannot be let in: %s",
			g_strerror(errno));
		return accept_later(listener, ACCEPT_RETRY_MS);
	}
	link = pf_shim_link_new(peer, &error);
	if (link)
		add(listener, link);
	else
		pf_log_limited(&listener->log, PF_LOG_WARNING, "%s", error->message);
	if (++listener->n_accepted < ACCEPTS)
		return G_SOURCE_CONTINUE;
	listener->n_accepted = 0;
	return accept_later(listener, ACCEPT_PAUSE_MS);
}

PfShimListener *pf_shim_listener_new(
	int fd, PfVm *(*find_vm)(void *userdata, pid_t pid), void *userdata)
{
	PfShimListener *listener = g_new0(PfShimListener, 1);

	listener->find_vm = find_vm;
	listener->userdata = userdata;
	listener->stranger_us = G_MININT64;
	listener->listener = fd;
	pf_log_limit_init(&listener->log, "the shims' socket", g_get_monotonic_time());
	g_queue_init(&listener->unmatched);
	listener->source = g_unix_fd_add(fd, G_IO_IN, on_connection, listener);
	return listener;
}

void pf_shim_listener_free(PfShimListener *listener)
{
	if (!listener)
		return;
	g_clear_handle_id(&listener->source, g_source_remove);
	g_queue_clear_full(&listener->unmatched, free_unmatched);
	close(listener->listener);
	g_free(listener);
}
