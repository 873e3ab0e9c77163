// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A line of /proc/PID/maps is
 *
 *     START-END PERMS OFFSET MAJOR:MINOR INODE      PATH
 *
 * with the first four in hexadecimal. The path is the last thing on the line and may hold anything,
 * spaces included; the kernel writes a newline in it as \012 and puts " (deleted)" behind the path
 * of a file that has no name any more. Both can also be part of a real name. That is harmless: the
 * path only names a module, the file itself is opened through map_files.
 */
#include "guest-agent/find/maps.h"
#include "common/page.h"

/* Plain digits: strtoull() would take signs, blanks and 0x as well, and the kernel writes none of
 * them. */
static bool parse_number(char **cursor, unsigned base, uint64_t *value)
{
	static const char digits[] = "0123456789abcdef";
	const char *start = *cursor, *digit;

	*value = 0;
	while (**cursor && (digit = strchr(digits, **cursor)) && digit - digits < (int)base) {
		if (*value > (UINT64_MAX - (uint64_t)(digit - digits)) / base)
			return false;
		*value = *value * base + (uint64_t)(digit - digits);
		(*cursor)++;
	}
	return *cursor != start;
}

static bool parse_char(char **cursor, char c)
{
	if (**cursor != c)
		return false;
	(*cursor)++;
	return true;
}

static bool parse_flag(char **cursor, char yes, char no, bool *flag)
{
	*flag = **cursor == yes;
	return parse_char(cursor, *flag ? yes : no);
}

static bool parse_perms(char **cursor, PfMapsEntry *entry)
{
	return parse_flag(cursor, 'r', '-', &entry->readable) &&
	       parse_flag(cursor, 'w', '-', &entry->writable) &&
	       parse_flag(cursor, 'x', '-', &entry->executable) &&
	       parse_flag(cursor, 's', 'p', &entry->shared);
}

static bool parse_device(char **cursor, PfMapsEntry *entry)
{
	uint64_t major, minor;

	if (!parse_number(cursor, 16, &major) || !parse_char(cursor, ':') ||
		!parse_number(cursor, 16, &minor) || major > UINT32_MAX || minor > UINT32_MAX)
		return false;
	entry->major = (uint32_t)major;
	entry->minor = (uint32_t)minor;
	return true;
}

static bool plausible(const PfMapsEntry *entry)
{
	return entry->start < entry->end &&
	       ((entry->start | entry->end | entry->offset) & (PF_PAGE_SIZE - 1)) == 0 &&
	       entry->end - entry->start <= UINT64_MAX - entry->offset;
}

/* Cuts the newline and the mark of deleted files off, and puts newlines back where the name has
 * them. */
static void clean_path(char *path)
{
	static const char deleted[] = " (deleted)";
	char *to = path;
	size_t size;

	path[strcspn(path, "\n")] = '\0';
	size = strlen(path);
	if (size >= sizeof(deleted) - 1 &&
		strcmp(path + size - (sizeof(deleted) - 1), deleted) == 0)
		path[size - (sizeof(deleted) - 1)] = '\0';
	for (const char *from = path; *from; to++) {
		bool escape = strncmp(from, "\\012", 4) == 0;

		*to = escape ? '\n' : *from;
		from += escape ? 4 : 1;
	}
	*to = '\0';
}

int pf_maps_parse(char *line, PfMapsEntry *entry)
{
	char *cursor = line;

	*entry = (PfMapsEntry){0};
	if (!parse_number(&cursor, 16, &entry->start) || !parse_char(&cursor, '-') ||
		!parse_number(&cursor, 16, &entry->end) || !parse_char(&cursor, ' ') ||
		!parse_perms(&cursor, entry) || !parse_char(&cursor, ' ') ||
		!parse_number(&cursor, 16, &entry->offset) || !parse_char(&cursor, ' ') ||
		!parse_device(&cursor, entry) || !parse_char(&cursor, ' ') ||
		!parse_number(&cursor, 10, &entry->inode))
		return PF_MAPS_E_SYNTAX;
	if (*cursor && *cursor != ' ' && *cursor != '\n')
		return PF_MAPS_E_SYNTAX;
	if (!plausible(entry))
		return PF_MAPS_E_SYNTAX;
	cursor += strspn(cursor, " ");
	clean_path(cursor);
	entry->path = cursor;
	return PF_MAPS_OK;
}

bool pf_maps_wanted(const PfMapsEntry *entry)
{
	static const char *const unwanted[] = {
		"/dev/", "/memfd:", "/SYSV", "/[aio]", "/anon_hugepage"};

	if (!entry->readable || entry->writable || entry->inode == 0 || entry->path[0] != '/')
		return false;
	for (size_t i = 0; i < sizeof(unwanted) / sizeof(unwanted[0]); i++) {
		if (strncmp(entry->path, unwanted[i], strlen(unwanted[i])) == 0)
			return false;
	}
	return true;
}

const char *pf_maps_name(const PfMapsEntry *entry)
{
	const char *slash = strrchr(entry->path, '/');

	return slash ? slash + 1 : entry->path;
}
