/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A lock beside the socket keeps a second service from taking it away; its file is never removed, because a service that
 * is just starting may have opened it. The lock is of the open file, so it is held by every process that has inherited
 * the descriptor: a first process that was killed takes its service along a moment later, and only then the next one may
 * write to the stores.
 */
#include "host-service/shim_socket.h"
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define LOCK_WAIT_US  G_USEC_PER_SEC
#define LOCK_RETRY_US 10000

struct PfShimSocket {
	char *path;
	int fd, lock; /* -1: not ours */
};

/* 0 or -1 with errno: EWOULDBLOCK when somebody has held it all the time. */
static int lock_in_time(int fd)
{
	gint64 deadline = g_get_monotonic_time() + LOCK_WAIT_US;

	while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno == EINTR)
			continue;
		if (errno != EWOULDBLOCK || g_get_monotonic_time() > deadline)
			return -1;
		g_usleep(LOCK_RETRY_US);
	}
	return 0;
}

/* The lock of the socket at this path, or -1 with error set. */
static int take_lock(const char *path, GError **error)
{
	g_autofree char *lock = g_strconcat(path, ".lock", NULL);
	g_autofree char *dir = g_path_get_dirname(path);
	int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd >= 0 && lock_in_time(fd) == 0)
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

PfShimSocket *pf_shim_socket_new(const char *path, GError **error)
{
	PfShimSocket *shims = g_new0(PfShimSocket, 1);

	shims->path = g_strdup(path);
	shims->fd = -1;
	shims->lock = take_lock(path, error);
	if (shims->lock >= 0)
		shims->fd = listen_at(path, error);
	if (shims->fd >= 0)
		return shims;
	pf_shim_socket_free(shims);
	return NULL;
}

void pf_shim_socket_free(PfShimSocket *shims)
{
	if (!shims)
		return;
	if (shims->fd >= 0) {
		unlink(shims->path);
		close(shims->fd);
	}
	if (shims->lock >= 0)
		close(shims->lock);
	g_free(shims->path);
	g_free(shims);
}

int pf_shim_socket_fd(const PfShimSocket *shims)
{
	return shims->fd;
}

int pf_shim_socket_lock(const PfShimSocket *shims)
{
	return shims->lock;
}
