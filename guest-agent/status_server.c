// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Who connects gets an answer at once and is hung up on: the JSON object, a byte 0, the text for
 * people, a byte 0. Nothing is read, so nobody can make the agent wait; an answer of a few KiB fits
 * into the socket's buffer, and what would not fit is cut, which the other side sees by the missing
 * last 0. The agent writes both forms itself: then --status of another version needs to know neither.
 *
 * The socket belongs to root alone (0600, before anybody can see it). One that an agent left which
 * was killed is replaced; one on which somebody listens is left alone.
 *
 * A process without a free descriptor cannot accept(), and the connection would stay and wake it for
 * ever: so one is kept in reserve, and given up for the moment of the answer.
 */
#include "guest-agent/status_server.h"
#include "common/log.h"
#include "guest-agent/status_show.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 4

/* Of the directory that the socket is in. 0 or -errno. */
static int make_directory(const char *path)
{
	char directory[108];
	char *slash;

	snprintf(directory, sizeof(directory), "%s", path);
	slash = strrchr(directory, '/');
	if (!slash || slash == directory)
		return 0;
	*slash = '\0';
	return mkdir(directory, 0755) == 0 || errno == EEXIST ? 0 : -errno;
}

/* Removes a socket on which nobody listens. 0; -EADDRINUSE: somebody does, or it is no socket. */
static int remove_stale(const char *path)
{
	struct stat status;

	if (lstat(path, &status) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(status.st_mode) || pf_status_probe(path) != -ECONNREFUSED)
		return -EADDRINUSE;
	return unlink(path) == 0 || errno == ENOENT ? 0 : -errno;
}

/* Binds and listens. 0 or -errno. */
static int listen_at(int fd, const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int r;

	memcpy(address.sun_path, path, strlen(path) + 1);
	/* The file gets the mode that the socket has. */
	if (fchmod(fd, 0600) < 0)
		return -errno;
	r = make_directory(path);
	if (r == 0)
		r = remove_stale(path);
	if (r == 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		r = -errno;
	if (r == 0 && listen(fd, BACKLOG) < 0) {
		r = -errno;
		unlink(path);
	}
	return r;
}

static int open_spare(void)
{
	return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

int pf_status_server_init(PfStatusServer *server, const char *path)
{
	int r;

	*server = (PfStatusServer){.fd = -1, .spare = -1};
	if (strlen(path) >= sizeof(server->path))
		return -ENAMETOOLONG;
	strcpy(server->path, path);
	server->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (server->fd < 0)
		return -errno;
	r = listen_at(server->fd, path);
	if (r < 0) {
		close(server->fd);
		server->fd = -1;
		return r;
	}
	server->spare = open_spare();
	return 0;
}

void pf_status_server_deinit(PfStatusServer *server)
{
	if (server->fd >= 0) {
		unlink(server->path);
		close(server->fd);
	}
	if (server->spare >= 0)
		close(server->spare);
	*server = (PfStatusServer){.fd = -1, .spare = -1};
}

/* A connection, or -errno. */
static int accept_one(PfStatusServer *server)
{
	int fd = accept4(server->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0 && (errno == EMFILE || errno == ENFILE) && server->spare >= 0) {
		close(server->spare);
		server->spare = -1;
		fd = accept4(server->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	}
	return fd < 0 ? -errno : fd;
}

/* Both forms, each with a 0 behind it (free()); NULL without memory. */
static char *write_answer(const PfAgentStatus *status, size_t *size)
{
	char *answer = NULL;
	FILE *out = open_memstream(&answer, size);
	time_t now = time(NULL);
	bool failed;

	if (!out)
		return NULL;
	pf_status_write_json(out, status, now);
	fputc(0, out);
	pf_status_write_text(out, status, now);
	fputc(0, out);
	failed = ferror(out);
	if (fclose(out) == 0 && !failed)
		return answer;
	free(answer);
	return NULL;
}

void pf_status_server_answer(PfStatusServer *server, const PfAgentStatus *status)
{
	int fd = accept_one(server);
	char *answer;
	size_t size;

	if (fd >= 0) {
		answer = write_answer(status, &size);
		if (answer)
			(void)!send(fd, answer, size, MSG_NOSIGNAL | MSG_DONTWAIT);
		free(answer);
		close(fd);
	} else if (fd != -EAGAIN && fd != -EINTR && fd != -ECONNABORTED) {
		pf_warning("--status is not answered any longer: accept: %s", strerror(-fd));
		pf_status_server_deinit(server);
		return;
	}
	if (server->spare < 0)
		server->spare = open_spare();
}

void pf_status_measure(PfAgentStatus *status)
{
	FILE *file = fopen("/proc/self/status", "re");
	struct timespec cpu;
	char line[256];

	if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu) == 0)
		status->cpu_us = (uint64_t)cpu.tv_sec * 1000000 + (uint64_t)cpu.tv_nsec / 1000;
	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "RssAnon: %" SCNu64, &status->rss_anon_kib) != 1)
			(void)!sscanf(line, "RssFile: %" SCNu64, &status->rss_file_kib);
	}
	if (file)
		fclose(file);
}
