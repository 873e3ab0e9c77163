/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whatever is changed must be put back, also when the test is interrupted or killed, and an exit
 * handler does not run then. So a process of its own, the keeper, waits at the end of a pipe whose
 * other end is the test's: each change is told to it before it is made, and when the pipe ends,
 * because the test did, it undoes them, the last one first. At a normal end the test waits for it.
 */
#include "tests/mechanism/host.h"
#include "common/page.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_CHANGES 64
#define SWAP_PAGES  8192u

typedef enum ChangeKind { CHANGE_SETTING, CHANGE_SWAP, CHANGE_CGROUP } ChangeKind;

typedef struct Change {
	ChangeKind kind;
	char path[160];
	char before[160]; /* the setting's value, or the cgroup that processes go back to */
} Change;

static int keeper_pipe = -1;
static pid_t keeper, owner;
static char why[256];
static char swap_file[160];
static char cgroup[160], cgroup_home[160];
static bool cgroup_is_v1;

const char *host_why(void)
{
	return why;
}

static bool missing(const char *what)
{
	snprintf(why, sizeof(why), "%s: %s", what, strerror(errno));
	return false;
}

static bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), saved;
	bool good;

	if (fd < 0)
		return false;
	good = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	saved = errno;
	close(fd);
	errno = saved;
	return good;
}

void host_read(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, size - 1);

	text[n > 0 ? n : 0] = 0;
	if (n > 0 && text[n - 1] == '\n')
		text[n - 1] = 0;
	if (fd >= 0)
		close(fd);
}

/* The keeper */

static void nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

/* Moves all its processes to where they came from; those that are ending leave by themselves. */
static void remove_cgroup(const Change *change)
{
	char procs[192], home[192], pid[32];

	snprintf(procs, sizeof(procs), "%s/cgroup.procs", change->path);
	snprintf(home, sizeof(home), "%s/cgroup.procs", change->before);
	for (int tries = 0; tries < 1000; tries++) {
		FILE *list = fopen(procs, "re");

		while (list && fscanf(list, "%31s", pid) == 1)
			write_file(home, pid);
		if (list)
			fclose(list);
		if (rmdir(change->path) == 0 || errno != EBUSY)
			return;
		nap();
	}
}

static void undo(const Change *change)
{
	switch (change->kind) {
	case CHANGE_SETTING:
		write_file(change->path, change->before);
		break;
	case CHANGE_SWAP:
		swapoff(change->path);
		unlink(change->path);
		break;
	case CHANGE_CGROUP:
		remove_cgroup(change);
		break;
	}
}

__attribute__((noreturn)) static void keep(int end)
{
	static Change changes[MAX_CHANGES];
	size_t n = 0;
	sigset_t all;
	int null;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	setsid();
	/* Who reads the test's output waits until all who could write to it are gone. */
	null = open("/dev/null", O_RDWR);
	dup2(null, STDOUT_FILENO);
	dup2(null, STDERR_FILENO);
	dup2(end, STDIN_FILENO);
	close_range(STDERR_FILENO + 1, ~0u, 0);
	while (n < MAX_CHANGES &&
		read(STDIN_FILENO, &changes[n], sizeof(changes[n])) == sizeof(changes[n]))
		n++;
	while (n > 0)
		undo(&changes[--n]);
	_exit(0);
}

static void wait_for_keeper(void)
{
	/* A child of the test may end by exit() too. */
	if (getpid() != owner)
		return;
	close(keeper_pipe);
	waitpid(keeper, NULL, 0);
}

void host_start(void)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0 || (keeper = fork()) < 0) {
		perror("host_start");
		exit(1);
	}
	if (keeper == 0) {
		close(ends[1]);
		keep(ends[0]);
	}
	close(ends[0]);
	keeper_pipe = ends[1];
	owner = getpid();
	atexit(wait_for_keeper);
}

/* To be called before the change is made. */
static void will_change(ChangeKind kind, const char *path, const char *before)
{
	Change change = {.kind = kind};

	snprintf(change.path, sizeof(change.path), "%s", path);
	snprintf(change.before, sizeof(change.before), "%s", before);
	if (write(keeper_pipe, &change, sizeof(change)) != sizeof(change)) {
		perror("the keeper");
		exit(1);
	}
}

bool host_set(const char *path, const char *value)
{
	char before[160], *chosen;

	host_read(path, before, sizeof(before));
	/* "always [madvise] never" */
	chosen = strchr(before, '[');
	if (chosen) {
		chosen[strcspn(chosen, "]")] = 0;
		memmove(before, chosen + 1, strlen(chosen));
	}
	will_change(CHANGE_SETTING, path, before);
	return write_file(path, value) || missing(path);
}

/* Swap */

/* include/linux/swap.h, union swap_header: the signature ends the first page, the information begins at 1024. */
static bool make_swap_file(int fd)
{
	static uint8_t page[PF_PAGE_SIZE];
	const uint32_t info[] = {1, SWAP_PAGES - 1, 0};

	memcpy(page + 1024, info, sizeof(info));
	memcpy(page + PF_PAGE_SIZE - 10, "SWAPSPACE2", 10);
	for (size_t i = 0; i < SWAP_PAGES; i++) {
		if (write(fd, page, sizeof(page)) != sizeof(page))
			return false;
		memset(page, 0, sizeof(page));
	}
	return fsync(fd) == 0;
}

static bool swap_on_in(const char *dir)
{
	char path[160];
	bool good;
	int fd;

	snprintf(path, sizeof(path), "%s/pf-test-swap-%d", dir, getpid());
	will_change(CHANGE_SWAP, path, "");
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return missing(path);
	good = make_swap_file(fd) && swapon(path, SWAP_FLAG_PREFER | SWAP_FLAG_PRIO_MASK) == 0;
	if (!good)
		missing(path);
	close(fd);
	if (good)
		snprintf(swap_file, sizeof(swap_file), "%s", path);
	return good;
}

bool host_swap_on(void)
{
	/* Not every file system can hold one. */
	return swap_file[0] || swap_on_in("/var/tmp") || swap_on_in("/tmp");
}

uint64_t host_swap_used_pages(void)
{
	FILE *swaps = fopen("/proc/swaps", "re");
	char line[512], path[256];
	uint64_t used_kib = 0, size_kib;

	while (swaps && fgets(line, sizeof(line), swaps))
		if (sscanf(line, "%255s %*s %lu %lu", path, &size_kib, &used_kib) == 3 &&
			strcmp(path, swap_file) == 0)
			break;
	if (swaps)
		fclose(swaps);
	return used_kib * 1024 / PF_PAGE_SIZE;
}

bool host_is_swapped(const void *page)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;
	ssize_t n = pread(
		fd, &entry, sizeof(entry), (off_t)((uintptr_t)page / PF_PAGE_SIZE * sizeof(entry)));

	close(fd);
	return n == sizeof(entry) && (entry >> 62 & 1);
}

/* The memory cgroup */

/* Finds this process's own: "4:memory:/path", or of the unified hierarchy "0::/path". */
static bool find_own_cgroup(char *path, size_t size)
{
	bool unified = access("/sys/fs/cgroup/cgroup.controllers", F_OK) == 0;
	FILE *list = fopen("/proc/self/cgroup", "re");
	const char *wanted = unified ? "0::" : ":memory:";
	char line[512];
	bool found = false;

	cgroup_is_v1 = !unified;
	while (list && !found && fgets(line, sizeof(line), list)) {
		char *at = strstr(line, wanted);

		line[strcspn(line, "\n")] = 0;
		found = at != NULL;
		if (found)
			snprintf(path, size, "/sys/fs/cgroup%s%.100s", unified ? "" : "/memory",
				at + strlen(wanted));
	}
	if (list)
		fclose(list);
	return found;
}

static bool make_cgroup(void)
{
	char name[160], file[192];

	if (!find_own_cgroup(cgroup_home, sizeof(cgroup_home)))
		return missing("no memory cgroup");
	/* Beside the root's others: there processes may stand in a group that has groups. */
	snprintf(name, sizeof(name), "/sys/fs/cgroup%s/pf-test-%d", cgroup_is_v1 ? "/memory" : "",
		getpid());
	will_change(CHANGE_CGROUP, name, cgroup_home);
	if (mkdir(name, 0755) < 0)
		return missing(name);
	snprintf(file, sizeof(file), "%s/%s", name,
		cgroup_is_v1 ? "memory.force_empty" : "memory.reclaim");
	if (access(file, W_OK) < 0)
		return missing(file);
	snprintf(cgroup, sizeof(cgroup), "%s", name);
	return true;
}

static bool move_to(const char *group)
{
	char path[192];

	snprintf(path, sizeof(path), "%s/cgroup.procs", group);
	return write_file(path, "0") || missing(path);
}

bool host_cgroup_enter(void)
{
	return (cgroup[0] || make_cgroup()) && move_to(cgroup);
}

void host_cgroup_leave(void)
{
	if (!move_to(cgroup_home)) {
		fprintf(stderr, "%s\n", why);
		exit(1);
	}
}

uint64_t host_cgroup_bytes(void)
{
	char path[192], text[64];

	snprintf(path, sizeof(path), "%s/%s", cgroup,
		cgroup_is_v1 ? "memory.usage_in_bytes" : "memory.current");
	host_read(path, text, sizeof(text));
	return strtoull(text, NULL, 10);
}

void host_cgroup_reclaim(void)
{
	char path[192];

	snprintf(path, sizeof(path), "%s/%s", cgroup,
		cgroup_is_v1 ? "memory.force_empty" : "memory.reclaim");
	/* It fails where it could not get as much, which is no matter. */
	write_file(path, cgroup_is_v1 ? "0" : "64M");
}

uint64_t host_smaps_kib(const void *start, size_t length, const char *field)
{
	uintptr_t from = (uintptr_t)start, to = from + length;
	FILE *smaps = fopen("/proc/self/smaps", "re");
	unsigned long first, end, value;
	bool inside = false;
	uint64_t sum = 0;
	char line[512];
	size_t n = strlen(field);

	while (smaps && fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx ", &first, &end) == 2)
			inside = first < to && end > from;
		else if (inside && strncmp(line, field, n) == 0 && line[n] == ':' &&
			 sscanf(line + n + 1, "%lu", &value) == 1)
			sum += value;
	}
	if (smaps)
		fclose(smaps);
	return sum;
}
