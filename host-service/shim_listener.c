/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A shim may be faster than libvirt's event about its VM, so unmatched ones wait a while. A lock beside the socket keeps
 * a second service from taking it away; its file is never removed, because a service that is just starting may have
 * opened it.
 */
#include "host-service/shim_listener.h"
#include "common/log.h"
#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_UNMATCHED    64 /* shims that no VM is known for */
#define UNMATCHED_MAX_US (30 * G_USEC_PER_SEC)
#define ACCEPT_RETRY_S   1

typedef struct Unmatched {
	PfShimLink *link;
	gint64 since_us;
} Unmatched;

struct PfShimListener {
	PfVm *(*find_vm)(void *userdata, pid_t pid);
	void *userdata;
	char *path;
	int lock, listener; /* -1: not ours */
	guint source;
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

static gboolean on_connection(gint fd, GIOCondition condition, gpointer userdata);

/* Out of descriptors the socket would stay readable, and nothing else have its turn. */
static gboolean on_accept_again(gpointer userdata)
{
	PfShimListener *listener = userdata;

	listener->source = g_unix_fd_add(listener->listener, G_IO_IN, on_connection, listener);
	return G_SOURCE_REMOVE;
}

static gboolean on_connection(gint fd, GIOCondition condition, gpointer userdata)
{
	PfShimListener *listener = userdata;
	g_autoptr(GError) error = NULL;
	int peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	PfShimLink *link;
	Unmatched *unmatched;

	if (peer < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED))
		return G_SOURCE_CONTINUE;
	if (peer < 0) {
		pf_warning("a shim cannot be let in: %s", g_strerror(errno));
		listener->source = g_timeout_add_seconds(ACCEPT_RETRY_S, on_accept_again, listener);
		return G_SOURCE_REMOVE;
	}
	link = pf_shim_link_new(peer, &error);
	if (!link) {
		pf_warning("%s", error->message);
		return G_SOURCE_CONTINUE;
	}
	unmatched = g_new(Unmatched, 1);
	*unmatched = (Unmatched){link, g_get_monotonic_time()};
	g_queue_push_tail(&listener->unmatched, unmatched);
	pf_shim_listener_match(listener);
	if (g_queue_get_length(&listener->unmatched) > MAX_UNMATCHED)
		free_unmatched(g_queue_pop_head(&listener->unmatched));
	return G_SOURCE_CONTINUE;
}

/* The lock of the socket at this path, or -1 with error set. */
static int take_lock(const char *path, GError **error)
{
	g_autofree char *lock = g_strconcat(path, ".lock", NULL);
	g_autofree char *dir = g_path_get_dirname(path);
	int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
		return fd;
	if (errno == EWOULDBLOCK)
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY,
			"another pagefusiond uses %s: stop it, or choose another --run-dir", dir);
	else
		g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
			"cannot lock %s: %s: run as root, or choose another --run-dir", lock,
			g_strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

/* What an earlier service has left at this path is removed: the caller has the lock. */
static int listen_at(const char *path, GError **error)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd;

	if (strlen(path) >= sizeof address.sun_path) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_FILENAME_TOO_LONG,
			"%s: too long for a socket: choose a shorter --run-dir", path);
		return -1;
	}
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* QEMU runs as another user. Who connects is told apart by its process id. */
	if (fd >= 0 && (unlink(path) == 0 || errno == ENOENT) &&
		bind(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
		g_chmod(path, 0666) == 0 && listen(fd, 64) == 0)
		return fd;
	g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "cannot listen at %s: %s",
		path, g_strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

PfShimListener *pf_shim_listener_new(const char *path, PfVm *(*find_vm)(void *userdata, pid_t pid),
	void *userdata, GError **error)
{
	PfShimListener *listener = g_new0(PfShimListener, 1);

	listener->find_vm = find_vm;
	listener->userdata = userdata;
	listener->stranger_us = G_MININT64;
	listener->path = g_strdup(path);
	g_queue_init(&listener->unmatched);
	listener->listener = -1;
	listener->lock = take_lock(path, error);
	if (listener->lock >= 0)
		listener->listener = listen_at(path, error);
	if (listener->listener < 0) {
		pf_shim_listener_free(listener);
		return NULL;
	}
	listener->source = g_unix_fd_add(listener->listener, G_IO_IN, on_connection, listener);
	return listener;
}

void pf_shim_listener_free(PfShimListener *listener)
{
	if (!listener)
		return;
	g_clear_handle_id(&listener->source, g_source_remove);
	g_queue_clear_full(&listener->unmatched, free_unmatched);
	if (listener->listener >= 0) {
		unlink(listener->path);
		close(listener->listener);
	}
	if (listener->lock >= 0)
		close(listener->lock);
	g_free(listener->path);
	g_free(listener);
}
