/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libvirt has no API for a domain's pid, but it writes /run/libvirt/qemu/NAME.pid itself, as root,
 * before it reports the domain as started, in every version and in libvirtd as well as in
 * virtqemud. The file may outlive its process when the host crashed or libvirt was away, and the
 * number may then be another process's. So the process must have the domain's UUID on its command
 * line.
 *
 * The channel's socket lies in a directory that belongs to QEMU's user, so a hostile QEMU could put
 * something else there, and have the broker connect to a socket of root's or of another VM's. The
 * broker resolves the path itself, and follows a symbolic link only where nobody but root could have
 * made it (somebody may have moved /var/lib/libvirt to another disk). It wants a socket, and wants QEMU
 * itself or root (libvirt opens the listening socket before it starts QEMU) at the other end. That alone lets in
 * root's other sockets: a hard link, or a socket of another VM moved here, whose files belong to the
 * same user. But a listening socket keeps the path that it was bound to, whatever becomes of its file,
 * and the kernel tells whoever connects: only libvirt and the VM itself bind this VM's path.
 */
#include "host-service/broker/qemu_process.h"
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_LINKS 40 /* as the kernel */

/* Whether the process was started with -uuid UUID. */
static gboolean runs_domain(gint64 pid, const char *uuid)
{
	g_autofree char *path = g_strdup_printf("/proc/%" G_GINT64_FORMAT "/cmdline", pid);
	g_autofree char *arguments = NULL;
	gboolean after_option = FALSE;
	gsize size;

	if (!g_file_get_contents(path, &arguments, &size, NULL))
		return FALSE;
	/* g_file_get_contents() puts a 0 behind the last one. */
	for (const char *p = arguments; p < arguments + size; p += strlen(p) + 1) {
		if (after_option && strcmp(p, uuid) == 0)
			return TRUE;
		after_option = strcmp(p, "-uuid") == 0;
	}
	return FALSE;
}

gint64 pf_qemu_pid(const char *pid_dir, const char *name, const char *uuid)
{
	g_autofree char *path = g_strdup_printf("%s/%s.pid", pid_dir, name);
	g_autofree char *text = NULL;
	gint64 pid;

	if (strchr(name, '/') || !g_file_get_contents(path, &text, NULL, NULL))
		return 0;
	if (!g_ascii_string_to_signed(g_strstrip(text), 10, 1, G_MAXINT32, &pid, NULL))
		return 0;
	return runs_domain(pid, uuid) ? pid : 0;
}

static int fail(const char *path, int code, GError **error)
{
	if (code == ELOOP)
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_TOO_MANY_LINKS,
			"the guest channel %s cannot be opened: there is a symbolic link on its way, in a "
			"directory that others than root can write to",
			path);
	else if (code == EAGAIN)
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY,
			"the guest channel %s is in use: end the program that has it open", path);
	else
		g_set_error(error, G_IO_ERROR, g_io_error_from_errno(code),
			"the guest channel %s cannot be opened: %s", path, g_strerror(code));
	return -1;
}

/* Whether nobody but root can have put into this directory what is there. */
static bool is_roots(int directory)
{
	struct stat status;

	return fstat(directory, &status) == 0 && status.st_uid == 0 &&
	       (status.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

/* What the link at this name says, to be followed from there; NULL: it is no link. */
static char *read_link(int directory, const char *name)
{
	char target[PATH_MAX];
	ssize_t n = readlinkat(directory, name, target, sizeof(target));

	return n < 0 || n == sizeof(target) ? NULL : g_strndup(target, (gsize)n);
}

/* A walk along a path. */
typedef struct Walk {
	int place;    /* an O_PATH descriptor: where we are */
	GQueue names; /* what is still to go, owned; "" is the root directory */
	int n_links;
} Walk;

/* In front of what is still to go. */
static void push_path(Walk *walk, const char *path)
{
	g_auto(GStrv) names = g_strsplit(path, "/", -1);

	for (guint i = g_strv_length(names); i > 0; i--)
		if (*names[i - 1] || i == 1)
			g_queue_push_head(&walk->names, g_strdup(names[i - 1]));
}

/* 0 or -errno. */
static int step(Walk *walk, const char *name)
{
	g_autofree char *target = *name ? read_link(walk->place, name) : NULL;
	int next;

	if (target) {
		if (++walk->n_links > MAX_LINKS || !is_roots(walk->place))
			return -ELOOP;
		push_path(walk, target);
		return 0;
	}
	next = openat(walk->place, *name ? name : "/", O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (next < 0)
		return -errno;
	if (walk->place >= 0)
		close(walk->place);
	walk->place = next;
	return 0;
}

/* An O_PATH descriptor of the socket at this path, or -errno. */
static int open_socket_path(const char *path)
{
	Walk walk = {.place = -1, .names = G_QUEUE_INIT};
	struct stat status;
	int r = *path == '/' ? 0 : -ENOENT;

	push_path(&walk, path);
	while (r == 0 && !g_queue_is_empty(&walk.names)) {
		g_autofree char *name = g_queue_pop_head(&walk.names);

		r = step(&walk, name);
	}
	g_queue_clear_full(&walk.names, g_free);
	if (r == 0 && (fstat(walk.place, &status) < 0 || !S_ISSOCK(status.st_mode)))
		r = -ENOTSOCK;
	if (r == 0)
		return walk.place;
	if (walk.place >= 0)
		close(walk.place);
	return r;
}

static gboolean peer_is_qemu(int fd, gint64 pid)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return FALSE;
	return peer.pid == pid || peer.uid == 0;
}

/* The path in address has room for its final 0, so it is the whole path. */
static gboolean is_bound_to(int fd, const char *path)
{
	struct sockaddr_un address = {0};
	socklen_t size = sizeof(address) - 1;

	return getpeername(fd, (struct sockaddr *)&address, &size) == 0 &&
	       strcmp(address.sun_path, path) == 0;
}

int pf_qemu_connect(const char *path, gint64 pid, GError **error)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int place = open_socket_path(path), fd, code = 0;

	if (place < 0)
		return fail(path, -place, error);
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d", place);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		code = errno;
	else if (!peer_is_qemu(fd, pid) || !is_bound_to(fd, path))
		code = EPERM;
	close(place);
	if (code == 0)
		return fd;
	if (fd >= 0)
		close(fd);
	return fail(path, code, error);
}

/* Moves *text behind prefix, if that is how it starts. */
static gboolean skip(const char **text, const char *prefix)
{
	if (!g_str_has_prefix(*text, prefix))
		return FALSE;
	*text += strlen(prefix);
	return TRUE;
}

/* "Host virtual address for 0x1000 (pc.ram) is 0x7f0000001000"; the name may be anything without a
 * line's end. */
gboolean pf_qemu_parse_gpa2hva(const char *reply, uint64_t gpa, PfHva *hva)
{
	g_autofree char *start = g_strdup_printf("Host virtual address for 0x%" PRIx64 " (", gpa);
	g_autofree char *line = g_strchomp(g_strdup(reply));
	const char *p = line, *address;
	guint64 value;

	if (!skip(&p, start) || strpbrk(p, "\r\n"))
		return FALSE;
	address = g_strrstr(p, ") is 0x");
	if (!address || !skip(&address, ") is 0x"))
		return FALSE;
	if (!g_ascii_string_to_unsigned(address, 16, 1, G_MAXUINT64, &value, NULL))
		return FALSE;
	if ((value ^ gpa) & (PF_PAGE_SIZE - 1))
		return FALSE;
	hva->v = value;
	return TRUE;
}
