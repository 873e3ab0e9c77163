/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A line is made in one buffer and written by one write(), so that lines of several threads do not
 * mix. Messages carry text that a guest or another peer chose: what is no UTF-8, or must not reach
 * a terminal, is written as \xNN, byte by byte. A message that does not fit is cut.
 */
#include "common/log.h"
#include "common/text.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MESSAGE_SIZE 2048
#define LINE_SIZE    (MESSAGE_SIZE * 4 + 256)

static _Atomic(PfLogLevel) max_level = PF_LOG_INFO;
static const char *program_name;
static bool to_journal;

/* systemd sets JOURNAL_STREAM to "device:inode" of the stream that it gave us. */
static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long device, inode;
	struct stat status;
	char rest;

	return stream && sscanf(stream, "%llu:%llu%c", &device, &inode, &rest) == 2 &&
	       fstat(STDERR_FILENO, &status) == 0 && status.st_dev == device &&
	       status.st_ino == inode;
}

void pf_log_set_level(PfLogLevel level)
{
	max_level = level;
}

void pf_log_init(const char *program)
{
	program_name = program;
	to_journal = stderr_is_journal();
}

/* line has room for four bytes for each of text's, which ends with a 0. Returns the length. */
static size_t escape(char *line, const char *text)
{
	char *out = line;

	while (*text) {
		uint32_t character;
		size_t length = pf_text_decode(text, &character);

		if (length > 0 && !pf_text_is_harmful(character)) {
			memcpy(out, text, length);
			out += length;
			text += length;
		} else {
			out += sprintf(out, "\\x%02x", (uint8_t)*text++);
		}
	}
	return (size_t)(out - line);
}

static size_t write_prefix(char *line, size_t size, PfLogLevel level)
{
	const char *program = program_name ? program_name : program_invocation_short_name;
	int length = to_journal ? snprintf(line, size, "<%d>", (int)level)
				: snprintf(line, size, "%s: ", program);

	return length < 0 ? 0 : (size_t)length < size ? (size_t)length : size - 1;
}

static void write_all(const char *data, size_t size)
{
	while (size > 0) {
		ssize_t n = write(STDERR_FILENO, data, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		data += n;
		size -= (size_t)n;
	}
}

void pf_log(PfLogLevel level, const char *format, ...)
{
	int saved_errno = errno;
	char message[MESSAGE_SIZE];
	char line[LINE_SIZE];
	size_t length;
	va_list arguments;

	if (level > max_level)
		return;
	va_start(arguments, format);
	if (vsnprintf(message, sizeof(message), format, arguments) < 0)
		message[0] = '\0';
	va_end(arguments);
	length = write_prefix(line, 255, level);
	length += escape(line + length, message);
	line[length++] = '\n';
	write_all(line, length);
	errno = saved_errno;
}
