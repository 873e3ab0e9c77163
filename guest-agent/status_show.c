// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Asks the agent that runs: connects, reads to the end, and writes one of the two parts. The other
 * side may be of another version, and may be killed while it answers: the parts must be complete and
 * be text, and what they say is its own business. What a newer one adds behind them is left out.
 */
#include "common/log.h"
#include "common/text.h"
#include "guest-agent/service.h"
#include "guest-agent/status_show.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_ANSWER 65536
#define PATIENCE_S 10 /* the agent answers between two files of a pass */

/* A connected descriptor, which waits for PATIENCE_S at most, or -errno. */
static int ask(const char *path, int flags)
{
	const struct timeval patience = {.tv_sec = PATIENCE_S};
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd, r = 0;

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
	if (fd < 0)
		return -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) < 0 ||
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0 ||
		connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		r = errno == EAGAIN ? -ETIMEDOUT : -errno;
	if (r == 0)
		return fd;
	close(fd);
	return r;
}

int pf_status_probe(const char *path)
{
	int fd = ask(path, SOCK_NONBLOCK);

	if (fd < 0)
		return fd;
	close(fd);
	return 0;
}

/* Up to size bytes; their number, -ETIMEDOUT, or another -errno. */
static ssize_t read_answer(int fd, char *answer, size_t size)
{
	size_t n = 0;

	while (n < size) {
		ssize_t got = recv(fd, answer + n, size - n, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		if (got == 0)
			break;
		n += (size_t)got;
	}
	return (ssize_t)n;
}

/* Whether it is text that a terminal bears. */
static bool is_text(const char *text)
{
	while (*text) {
		uint32_t character;
		size_t length = pf_text_decode(text, &character);

		if (length == 0 || (character != '\n' && pf_text_is_harmful(character)))
			return false;
		text += length;
	}
	return true;
}

/* The part that is wanted of an answer, or NULL. */
static const char *find_part(const char *answer, size_t size, bool json)
{
	const char *end = memchr(answer, 0, size);
	const char *text = end ? end + 1 : NULL;

	if (!text || !memchr(text, 0, size - (size_t)(text - answer)) || answer[0] != '{')
		return NULL;
	if (json)
		text = answer;
	return is_text(text) ? text : NULL;
}

static int explain(const char *path, int error)
{
	if (error == -ENOENT || error == -ECONNREFUSED)
		pf_error(
			"no agent runs here, or it has only just started. What it said last: %s. "
			"When this VM has no port to the host, page fusion is to be turned on for it "
			"there (pagefusionctl modifyvm VM --pagefusion on). pagefusion-agent --check "
			"says more",
			pf_service_log());
	else if (error == -EACCES || error == -EPERM)
		pf_error("only root may ask the agent: run this as root");
	else if (error == -ETIMEDOUT)
		pf_error("the agent has not answered within %d s. What it said last: %s",
			PATIENCE_S, pf_service_log());
	else if (error == -EBADMSG)
		pf_error("the agent's answer is not complete, or of another version: ask again, or "
			 "restart it (%s)",
			pf_service_restart());
	else
		pf_error("%s: %s", path, strerror(-error));
	return EXIT_FAILURE;
}

int pf_status_show(FILE *out, const char *path, bool json)
{
	int fd = ask(path, 0);
	const char *part = NULL;
	char *answer;
	ssize_t n;

	if (fd < 0)
		return explain(path, fd);
	answer = malloc(MAX_ANSWER);
	n = answer ? read_answer(fd, answer, MAX_ANSWER) : -ENOMEM;
	close(fd);
	if (n >= 0) {
		part = find_part(answer, (size_t)n, json);
		n = part ? 0 : -EBADMSG;
	}
	if (part && (fputs(part, out) < 0 || fflush(out) != 0))
		n = -EIO;
	free(answer);
	return n < 0 ? explain("status", (int)n) : EXIT_SUCCESS;
}
