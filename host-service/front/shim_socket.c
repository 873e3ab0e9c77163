/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A lock beside the socket keeps a second service from taking it away; its file is never removed, because a service
 * that is just starting may have opened it. The first process alone has it open: the lock belongs to the open file,
 * so whoever had a descriptor of it could take the lock, hand the descriptor on, and keep every later service from
 * starting.
 *
 * A first process that was killed takes its service along a moment later, and only then the next one may write to the
 * stores. So it is written in the lock's file which process the service is, by its id and when it was started (ids come
 * again), and who has taken the lock waits until that process has ended. The service itself has no part in this.
 */
#include "host-service/front/shim_socket.h"
#include "host-service/wire/received_fds.h"
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/pidfd.h>
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
static int lock_in_time(int fd, gint64 deadline)
{
	while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno == EINTR)
			continue;
		if (errno != EWOULDBLOCK || g_get_monotonic_time() > deadline)
			return -1;
		g_usleep(LOCK_RETRY_US);
	}
	return 0;
}

/* When it was started, in ticks since the host was: the 22nd word of its line, the second is in parentheses. */
static gboolean read_start(pid_t pid, guint64 *start)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/stat", pid), *line = NULL;
	g_auto(GStrv) words = NULL;
	const char *rest;

	if (!g_file_get_contents(path, &line, NULL, NULL) || !(rest = strrchr(line, ')')))
		return FALSE;
	words = g_strsplit(rest, " ", -1);
	return g_strv_length(words) > 20 &&
	       g_ascii_string_to_unsigned(words[20], 10, 0, G_MAXUINT64, start, NULL);
}

/* A pidfd of the service that is written down, or -1: it has ended. */
static int open_earlier_service(int fd)
{
	char text[64] = "";
	guint64 written, start;
	int pid, pidfd;

	if (pread(fd, text, sizeof text - 1, 0) <= 0 ||
		sscanf(text, "%d %" G_GUINT64_FORMAT, &pid, &written) != 2 || pid <= 0)
		return -1;
	pidfd = pidfd_open(pid, 0);
	if (pidfd < 0 || (read_start(pid, &start) && start == written))
		return pidfd;
	close(pidfd);
	return -1;
}

/* 0 or -1 with errno: EWOULDBLOCK when it has not ended in time. */
static int outlive_earlier_service(int fd, gint64 deadline)
{
	struct pollfd end = {open_earlier_service(fd), POLLIN, 0};
	int n;

	if (end.fd < 0)
		return 0;
	do {
		gint64 wait_us = deadline - g_get_monotonic_time();

		n = poll(&end, 1, (int)(MAX(wait_us, 0) / 1000));
	} while (n < 0 && errno == EINTR);
	close(end.fd);
	errno = EWOULDBLOCK;
	return n == 1 ? 0 : -1;
}

/* The lock of the socket at this path, or -1 with error set. */
static int take_lock(const char *path, GError **error)
{
	gint64 deadline = g_get_monotonic_time() + LOCK_WAIT_US;
	g_autofree char *lock = g_strconcat(path, ".lock", NULL);
	g_autofree char *dir = g_path_get_dirname(path);
	int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd >= 0 && lock_in_time(fd, deadline) == 0 &&
		outlive_earlier_service(fd, deadline) == 0)
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
	/* QEMU runs as another user. Who connects is told apart by its process id. Whoever finds a place waits for his
	 * turn; the others have no order among them. */
	if (fd >= 0 && (unlink(path) == 0 || errno == ENOENT) &&
		bind(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
		g_chmod(path, 0666) == 0 && listen(fd, SOMAXCONN) == 0)
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
		/* With connections that nobody has taken. */
		pf_received_fds_close_later(shims->fd);
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

gboolean pf_shim_socket_serve(PfShimSocket *shims, pid_t service, GError **error)
{
	g_autofree char *text = NULL;
	guint64 start;

	/* One that has ended already writes to no store. */
	if (!read_start(service, &start))
		return TRUE;
	text = g_strdup_printf("%d %" G_GUINT64_FORMAT "\n", service, start);
	if (ftruncate(shims->lock, 0) == 0 &&
		pwrite(shims->lock, text, strlen(text), 0) == (ssize_t)strlen(text))
		return TRUE;
	g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "cannot write %s.lock: %s",
		shims->path, g_strerror(errno));
	return FALSE;
}
