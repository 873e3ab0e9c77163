// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Nothing in the file is guessed: a section or a key that there is not, one that comes twice, and a
 * value that is not what its key takes are errors. The port is a file that root writes to, so the
 * file is taken only from root (or from whom the agent was started by), and only when nobody else
 * can write to it.
 *
 * libinih tells keys from values. Distributions build it differently (length of lines, what begins
 * a comment, who counts lines), so it is handed line by line what every build reads alike: comments
 * are taken out before, a section's line is checked here, and a line that it would cut, or in which
 * it might see a comment, is refused. A line that begins with a blank continues the value above it:
 * it comes to on_key() with the same key once more.
 *
 * Values are read into a draft, so that an error leaves the configuration as it was.
 */
#include "guest-agent/config.h"
#include "common/text.h"
#include "guest-agent/config_key.h"
#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FILE 65536
#define SHOWN    128 /* bytes of somebody's text in a message */
#define SECTIONS "[agent], [classes] and [cache]"
#define NO_LINE  "this is neither a [section] nor 'key = value' nor a # comment"

typedef struct Reader {
	const char *path, *next, *end; /* next: what was not read yet */
	unsigned line;                 /* that was read last, from 1 */
	bool indented;                 /* it begins with a blank */
	const PfConfigKey *key;        /* that such a line goes on with, or NULL */
	uint64_t said;                 /* keys, a bit each */
	unsigned paths_line;
	PfConfigDraft draft;
	int error;
	char *message;
	size_t size;
} Reader;

/* --- what is wrong --- */

static void fail_at(Reader *reader, unsigned line, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* The first mistake is the one that is told. */
static void fail_at(Reader *reader, unsigned line, const char *format, ...)
{
	int length;
	va_list arguments;

	if (reader->error)
		return;
	reader->error = -EINVAL;
	length = snprintf(reader->message, reader->size, "%s:%u: ", reader->path, line);
	if (length < 0 || (size_t)length >= reader->size)
		return;
	va_start(arguments, format);
	vsnprintf(reader->message + length, reader->size - (size_t)length, format, arguments);
	va_end(arguments);
}

#define fail(reader, ...) fail_at(reader, (reader)->line, __VA_ARGS__)

static void fail_key(Reader *reader, const char *section, const char *name)
{
	char shown[SHOWN], names[SHOWN];

	pf_text_clean(shown, sizeof(shown), name);
	pf_config_key_names(section, names, sizeof(names));
	if (section[0])
		fail(reader, "[%s] has no key '%s': it may be one of %s", section, shown, names);
	else
		fail(reader, "key '%s' stands before any section: there are " SECTIONS, shown);
}

static void fail_value(Reader *reader, const PfConfigKey *key, const char *value)
{
	char shown[SHOWN];

	pf_text_clean(shown, sizeof(shown), value);
	fail(reader, "[%s] %s: cannot be '%s': give it %s", key->section, key->name, shown,
		key->takes);
}

/* --- lines --- */

static bool is_blank(char c)
{
	return c == ' ' || c == '\t';
}

/* A line of the text, without its end; its length. */
static size_t take_line(Reader *reader, const char **line)
{
	const char *end = memchr(reader->next, '\n', (size_t)(reader->end - reader->next));
	size_t length;

	*line = reader->next;
	reader->next = end ? end + 1 : reader->end;
	length = (size_t)((end ? end : reader->end) - *line);
	while (length > 0 && (is_blank((*line)[length - 1]) || (*line)[length - 1] == '\r'))
		length--;
	return length;
}

/* Whether the line, which ends with a 0, is text that may be shown. */
static bool is_clean(const char *line)
{
	while (*line) {
		uint32_t character;
		size_t length = pf_text_decode(line, &character);

		if (length == 0 || (character != '\t' && pf_text_is_harmful(character)))
			return false;
		line += length;
	}
	return true;
}

static void check_section(Reader *reader, const char *line)
{
	char shown[SHOWN];
	size_t length = strlen(line);

	reader->key = NULL;
	pf_text_clean(shown, sizeof(shown), line);
	if (line[length - 1] != ']' || length - 2 >= sizeof(shown)) {
		fail(reader, "'%s' is no section: it must end with ], with nothing behind", shown);
		return;
	}
	memcpy(shown, line + 1, length - 2);
	shown[length - 2] = '\0';
	if (!pf_config_is_section(shown))
		fail(reader, "there is no section [%s]: there are " SECTIONS, shown);
}

/* What libinih must not see, as other builds of it would read it in another way. */
static void check_line(Reader *reader, const char *line)
{
	const char *start = line + strspn(line, PF_CONFIG_BLANKS);

	reader->indented = start > line;
	if (!is_clean(line))
		fail(reader, "this line holds control characters or bytes that are no UTF-8");
	else if (strstr(line, " ;") || strstr(line, "\t;"))
		fail(reader, "a comment must stand on a line of its own");
	else if (*start == '[' && reader->indented)
		fail(reader, "a [section] begins its line, without blanks before it");
	else if (*start == '[')
		check_section(reader, start);
	else if (*start && !strpbrk(start, "=:") && !(reader->indented && reader->key))
		fail(reader, NO_LINE);
}

/* Hands libinih the next line (as fgets() would); NULL at the end and after a mistake. */
static char *read_line(char *to, int size, void *userdata)
{
	Reader *reader = userdata;
	size_t length, blanks = 0;
	const char *line;

	if (reader->error || reader->next == reader->end)
		return NULL;
	reader->line++;
	length = take_line(reader, &line);
	while (blanks < length && is_blank(line[blanks]))
		blanks++;
	if (blanks < length && (line[blanks] == '#' || line[blanks] == ';'))
		length = 0;
	if (length + 2 > (size_t)size)
		fail(reader,
			"this line is too long: at most %d bytes; one that begins with a blank"
			" goes on with the value above",
			size - 2);
	else if (memchr(line, 0, length))
		fail(reader, "this line holds a byte 0");
	if (reader->error)
		return NULL;
	memcpy(to, line, length);
	to[length] = '\0';
	check_line(reader, to);
	memcpy(to + length, "\n", 2);
	return reader->error ? NULL : to;
}

/* --- keys --- */

/* Whether the key may take (more of) a value from this line. */
static bool may_take(Reader *reader, const PfConfigKey *key)
{
	uint64_t bit = UINT64_C(1) << pf_config_key_number(key);

	if (reader->indented && reader->key == key) {
		if (key->parse == pf_config_key_paths)
			return true;
		fail(reader,
			"[%s] %s: its value is one line; this one begins with a blank, so it "
			"would go on with it",
			key->section, key->name);
		return false;
	}
	if (reader->said & bit) {
		fail(reader, "[%s] %s: comes a second time: say it once", key->section, key->name);
		return false;
	}
	reader->said |= bit;
	reader->key = key;
	return true;
}

/* libinih's handler: 1 to go on. */
static int on_key(void *userdata, const char *section, const char *name, const char *value)
{
	Reader *reader = userdata;
	const PfConfigKey *key;
	int r;

	if (reader->error || !name)
		return 1;
	key = pf_config_key_find(section, name);
	if (!key) {
		fail_key(reader, section, name);
		return 1;
	}
	if (!may_take(reader, key))
		return 1;
	if (key->parse == pf_config_key_paths)
		reader->paths_line = reader->line;
	r = key->parse(key, value ? value : "", &reader->draft);
	if (r == -EINVAL)
		fail_value(reader, key, value ? value : "");
	else if (r < 0)
		reader->error = r;
	return 1;
}

/* --- the whole --- */

int pf_agent_config_init(PfAgentConfig *config)
{
	static const char paths[] =
		"/usr /lib /lib32 /lib64 /bin /sbin /opt"
		" /var/lib/docker/overlay2"
		" /var/lib/containers/storage/overlay"
		" /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
	PfConfigDraft draft = {
		.values = {
			.interval_s = 60,
			.slow_interval_s = 600,
			.hash_limit = 128 << 20,
			.cpu_limit_permyriad = 10,
			.classes = {[PF_CLASS_MAPPED] = true, [PF_CLASS_CACHE] = true},
		}};
	int r = pf_config_key_paths(NULL, paths, &draft);

	if (r == 0)
		r = pf_config_draft_finish(&draft);
	*config = draft.values;
	draft.values = (PfAgentConfig){0};
	pf_config_draft_deinit(&draft);
	return r;
}

void pf_agent_config_deinit(PfAgentConfig *config)
{
	free(config->cache_paths);
	free(config->port);
	*config = (PfAgentConfig){0};
}

/* What the file has not said stays. The draft is consumed. */
static void accept(PfAgentConfig *config, PfAgentConfig *draft)
{
	PfAgentConfig old = *config;

	*config = *draft;
	*draft = (PfAgentConfig){0};
	if (config->port)
		draft->port = old.port;
	else
		config->port = old.port;
	if (config->cache_paths)
		draft->cache_paths = old.cache_paths;
	else
		config->cache_paths = old.cache_paths;
}

int pf_agent_config_parse(PfAgentConfig *config, const char *path, const char *text,
	size_t text_size, char *message, size_t size)
{
	static const char mark[] = "\xef\xbb\xbf"; /* that some editors begin UTF-8 with */
	Reader reader = {.path = path,
		.next = text,
		.end = text + text_size,
		.message = message,
		.size = size,
		.draft.values = *config};
	int line;

	if (text_size >= strlen(mark) && memcmp(text, mark, strlen(mark)) == 0)
		reader.next += strlen(mark);
	reader.draft.values.port = NULL;
	reader.draft.values.cache_paths = NULL;
	line = ini_parse_stream(read_line, &reader, on_key, &reader);
	if (line > 0)
		fail_at(&reader, (unsigned)line, NO_LINE);
	else if (line < 0 && !reader.error)
		reader.error = -ENOMEM;
	if (reader.paths_line && reader.draft.n_paths == 0)
		fail_at(&reader, reader.paths_line,
			"[cache] paths: names no directory: [classes] cache = off turns the class off");
	if (!reader.error)
		reader.error = pf_config_draft_finish(&reader.draft);
	if (reader.error == -ENOMEM)
		snprintf(message, size, "%s: %s", path, strerror(ENOMEM));
	if (!reader.error)
		accept(config, &reader.draft.values);
	pf_config_draft_deinit(&reader.draft);
	return reader.error;
}

/* Whether it may be read: 0 or -errno. */
static int check_file(const struct stat *status)
{
	if (S_ISDIR(status->st_mode))
		return -EISDIR;
	if (S_ISCHR(status->st_mode)) /* /dev/null is a file, too */
		return 0;
	if (!S_ISREG(status->st_mode))
		return -EINVAL;
	if (status->st_uid != 0 && status->st_uid != geteuid())
		return -EPERM;
	return status->st_mode & (S_IWGRP | S_IWOTH) ? -EPERM : 0;
}

/* Opens the file. A descriptor, or -errno with a message. */
static int open_file(const char *path, char *message, size_t size)
{
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC), r;
	const char *why = NULL;
	struct stat status;

	if (fd < 0 || fstat(fd, &status) < 0) {
		r = -errno;
	} else {
		r = check_file(&status);
		if (r == -EINVAL)
			why = "is no regular file";
		else if (r == -EPERM)
			why = "others than root can write to it: chown root, chmod go-w";
	}
	if (r == 0)
		return fd;
	snprintf(message, size, "%s: %s", path, why ? why : strerror(-r));
	if (fd >= 0)
		close(fd);
	return r;
}

/* Up to size bytes; their number or -errno. */
static ssize_t read_up_to(int fd, char *text, size_t size)
{
	size_t n = 0;

	while (n < size) {
		ssize_t got = read(fd, text + n, size - n);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			break;
		n += (size_t)got;
	}
	return (ssize_t)n;
}

int pf_agent_config_read(PfAgentConfig *config, const char *path, char *message, size_t size)
{
	int fd = open_file(path, message, size);
	char *text;
	ssize_t n;
	int r;

	if (fd < 0)
		return fd;
	text = malloc(MAX_FILE + 1);
	n = text ? read_up_to(fd, text, MAX_FILE + 1) : -ENOMEM;
	close(fd);
	if (n < 0) {
		snprintf(message, size, "%s: %s", path, strerror((int)-n));
		r = (int)n;
	} else if (n > MAX_FILE) {
		snprintf(message, size, "%s: is longer than %d KiB", path, MAX_FILE / 1024);
		r = -EINVAL;
	} else {
		r = pf_agent_config_parse(config, path, text, (size_t)n, message, size);
	}
	free(text);
	return r;
}
