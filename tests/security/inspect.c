/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/security/inspect.h"
#include <elf.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

char *inspect_read(pid_t pid, const char *name)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/%s", pid, name);
	g_autoptr(GError) error = NULL;
	char *text;

	if (!g_file_get_contents(path, &text, NULL, &error))
		fail_msg("%s", error->message);
	return text;
}

char *inspect_status(pid_t pid, const char *field)
{
	g_autofree char *status = inspect_read(pid, "status");
	g_autofree char *start = g_strdup_printf("\n%s:", field);
	const char *line = strstr(status, start);

	assert_non_null(line);
	line += strlen(start);
	return g_strstrip(g_strndup(line, strcspn(line, "\n")));
}

static int open_file(pid_t pid, const char *name)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/%s", pid, name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

void inspect_random(pid_t pid, uint8_t random[INSPECT_RANDOM])
{
	int auxv = open_file(pid, "auxv"), memory = open_file(pid, "mem");
	Elf64_auxv_t entry = {0};

	while (entry.a_type != AT_RANDOM)
		assert_int_equal(read(auxv, &entry, sizeof entry), sizeof entry);
	assert_int_equal(
		pread(memory, random, INSPECT_RANDOM, (off_t)entry.a_un.a_val), INSPECT_RANDOM);
	close(auxv);
	close(memory);
}

uint64_t inspect_address(pid_t pid, const char *name)
{
	g_autofree char *maps = inspect_read(pid, "maps");
	g_auto(GStrv) lines = g_strsplit(maps, "\n", -1);

	for (char **line = lines; *line; line++)
		if (g_str_has_suffix(*line, name))
			return g_ascii_strtoull(*line, NULL, 16);
	fail_msg("process %d has no mapping %s", pid, name);
	return 0;
}

static void assert_status(pid_t pid, const char *field, const char *expected)
{
	g_autofree char *value = inspect_status(pid, field);

	if (strcmp(value, expected) != 0)
		fail_msg("%s is \"%s\" and not \"%s\"", field, value, expected);
}

uint64_t inspect_capabilities(pid_t pid, const char *set)
{
	g_autofree char *value = inspect_status(pid, set);

	return g_ascii_strtoull(value, NULL, 16);
}

static void assert_capabilities(pid_t pid, const char *set, uint64_t expected)
{
	uint64_t held = inspect_capabilities(pid, set);

	if (held != expected)
		fail_msg("%s is %" PRIx64 " and not %" PRIx64, set, held, expected);
}

static bool shares_namespace(pid_t pid, const char *name)
{
	g_autofree char *their_path = g_strdup_printf("/proc/%d/ns/%s", pid, name);
	g_autofree char *our_path = g_strdup_printf("/proc/self/ns/%s", name);
	g_autofree char *theirs = g_file_read_link(their_path, NULL);
	g_autofree char *ours = g_file_read_link(our_path, NULL);

	assert_non_null(theirs);
	assert_non_null(ours);
	return strcmp(theirs, ours) == 0;
}

static void assert_namespaces(pid_t pid)
{
	static const char *const own[] = {"mnt", "net", "ipc", "uts", "cgroup"};
	static const char *const shared[] = {"pid", "user", "time"};

	for (size_t i = 0; i < G_N_ELEMENTS(own); i++)
		if (shares_namespace(pid, own[i]))
			fail_msg("it has our %s namespace", own[i]);
	for (size_t i = 0; i < G_N_ELEMENTS(shared); i++)
		if (!shares_namespace(pid, shared[i]))
			fail_msg("it has another %s namespace", shared[i]);
}

static void assert_has(const char *mount, const char *const *options)
{
	for (; *options; options++)
		if (!strstr(mount, *options))
			fail_msg("no \"%s\" in the mount \"%s\"", *options, mount);
}

/* As many mounts as these, with these options. */
static void assert_mounts(pid_t pid)
{
	static const char *const root[] = {
		" / / ro,nosuid,nodev,noexec,", " - tmpfs tmpfs ro,", NULL};
	static const char *const proc[] = {" / /proc ro,nosuid,nodev,noexec,", " - proc proc ",
		"hidepid=invisible", "subset=pid", NULL};
	g_autofree char *text = inspect_read(pid, "mountinfo");
	g_auto(GStrv) lines = g_strsplit(g_strchomp(text), "\n", -1);

	assert_int_equal(g_strv_length(lines), 2);
	assert_has(lines[0], root);
	assert_has(lines[1], proc);
}

static void assert_root_is_empty(pid_t pid)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/root", pid);
	g_autoptr(GDir) root = g_dir_open(path, 0, NULL);
	const char *name;

	assert_non_null(root);
	while ((name = g_dir_read_name(root)))
		assert_string_equal(name, "proc");
}

/* The line of /proc/PID/limits, its blanks made one. */
static char *find_limit(pid_t pid, const char *name)
{
	g_autofree char *limits = inspect_read(pid, "limits");
	const char *line = strstr(limits, name);
	g_autoptr(GRegex) blanks = g_regex_new(" +", 0, 0, NULL);
	g_autofree char *whole = NULL;

	assert_non_null(line);
	whole = g_strndup(line, strcspn(line, "\n"));
	return g_regex_replace_literal(blanks, whole, -1, 0, " ", 0, NULL);
}

static void assert_limit(pid_t pid, const char *name, uint64_t expected)
{
	g_autofree char *line = find_limit(pid, name);
	g_autofree char *wanted =
		g_strdup_printf("%s %" PRIu64 " %" PRIu64 " ", name, expected, expected);

	if (!g_str_has_prefix(line, wanted))
		fail_msg("\"%s\" and not \"%s\"", line, wanted);
}

static void assert_same_limit(pid_t pid, const char *name)
{
	g_autofree char *theirs = find_limit(pid, name);
	g_autofree char *ours = find_limit(getpid(), name);

	assert_string_equal(theirs, ours);
}

static void assert_limits(pid_t pid, uint64_t memory_limit)
{
	assert_limit(pid, "Max data size", memory_limit);
	assert_limit(pid, "Max core file size", 0);
	assert_limit(pid, "Max locked memory", 0);
	assert_limit(pid, "Max msgqueue size", 0);
	assert_limit(pid, "Max processes", 64);
	assert_same_limit(pid, "Max file size");
	assert_same_limit(pid, "Max open files");
}

/* What a process that can be dumped has in /proc belongs to its user. */
static void assert_not_dumpable(pid_t pid)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/mem", pid);
	struct stat status;

	assert_int_equal(stat(path, &status), 0);
	assert_int_equal(status.st_uid, 0);
}

void inspect_is_sandboxed(pid_t pid, uid_t uid, gid_t gid, uint64_t memory_limit)
{
	static const char *const sets[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};
	g_autofree char *uids = g_strdup_printf("%u\t%u\t%u\t%u", uid, uid, uid, uid);
	g_autofree char *gids = g_strdup_printf("%u\t%u\t%u\t%u", gid, gid, gid, gid);

	assert_status(pid, "Uid", uids);
	assert_status(pid, "Gid", gids);
	assert_status(pid, "Groups", "");
	for (size_t i = 0; i < G_N_ELEMENTS(sets); i++)
		assert_capabilities(pid, sets[i], 0);
	assert_status(pid, "NoNewPrivs", "1");
	assert_status(pid, "Seccomp", "2");
	assert_status(pid, "Seccomp_filters", "1");
	assert_namespaces(pid);
	assert_mounts(pid);
	assert_root_is_empty(pid);
	assert_limits(pid, memory_limit);
	assert_not_dumpable(pid);
}

void inspect_has_only(pid_t pid, uint64_t capabilities)
{
	assert_capabilities(pid, "CapInh", 0);
	assert_capabilities(pid, "CapPrm", capabilities);
	assert_capabilities(pid, "CapEff", capabilities);
	assert_capabilities(pid, "CapBnd", capabilities);
	assert_capabilities(pid, "CapAmb", 0);
	assert_status(pid, "NoNewPrivs", "1");
}
