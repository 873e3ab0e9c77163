// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * What a user can mount in namespaces of one's own: FUSE, an overlay on it, and one on what is local. A process maps a
 * file of each; a pass must not ask the server anything, and not even open them. What is in memory is looked at all
 * the same. Needs root.
 */
#include "guest-agent/find/scan.h"
#include "common/log.h"
#include "little_fuse.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define N_PAGES 4

enum { IN_MEMORY, ON_FUSE, OVER_FUSE, OVER_LOCAL, N_FILES };

/* Seen by both. */
static struct Shared {
	struct stat st[N_FILES];
	unsigned n_asked; /* of the server, while the pass looked */
	int line, error;  /* where it went wrong, or 0; errno */
} * shared;

static PfState files;
static PfScanner *scanner;
static PfFacts facts;
static char directory[64];
static unsigned n_informed;

void __wrap_pf_log(PfLogLevel level, const char *format, ...) __attribute__((format(printf, 2, 3)));

void __wrap_pf_log(PfLogLevel level, const char *format, ...)
{
	n_informed += level == PF_LOG_INFO && strstr(format, "left alone");
}

static int setup(void **state)
{
	pf_state_init(&files);
	shared = mmap(
		NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	strcpy(directory, "/var/tmp/pagefusion-test-XXXXXX");
	if (shared == MAP_FAILED || !mkdtemp(directory))
		return -1;
	return pf_facts_read(&facts) < 0 || pf_scanner_new(&scanner, &files) < 0 ? -1 : 0;
}

static int teardown(void **state)
{
	pf_scanner_free(scanner);
	pf_state_deinit(&files);
	munmap(shared, sizeof(*shared));
	return rmdir(directory);
}

/* --- the process, which says where it fails --- */

#define CHECK(holds)                                                                               \
	do {                                                                                       \
		if (!(holds)) {                                                                    \
			shared->line = __LINE__;                                                   \
			return;                                                                    \
		}                                                                                  \
	} while (0)

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return written;
}

static bool enter(void)
{
	return unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0 &&
	       write_text("/proc/self/setgroups", "deny") &&
	       write_text("/proc/self/uid_map", "0 0 1") &&
	       write_text("/proc/self/gid_map", "0 0 1") &&
	       mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}

static bool make(const char *path)
{
	char bytes[N_PAGES * PF_PAGE_SIZE];
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	bool made = fd >= 0;

	memset(bytes, 'x', sizeof(bytes));
	made = made && write(fd, bytes, sizeof(bytes)) == sizeof(bytes);
	if (fd >= 0)
		close(fd);
	return made;
}

static bool map(unsigned number, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	volatile char *bytes;

	if (fd < 0 || fstat(fd, &shared->st[number]) < 0)
		return false;
	bytes = mmap(NULL, N_PAGES * PF_PAGE_SIZE, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	for (unsigned i = 0; i < N_PAGES && bytes != MAP_FAILED; i++)
		(void)bytes[i * PF_PAGE_SIZE];
	return bytes != MAP_FAILED;
}

static bool mount_overlay(const char *lower, const char *other, const char *point)
{
	char options[256];

	snprintf(options, sizeof(options), "lowerdir=%s:%s", lower, other);
	return mkdir(point, 0700) == 0 && mount("overlay", point, "overlay", 0, options) == 0;
}

static const char *in_directory(const char *name)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	return path;
}

static void live(int ready, int hold)
{
	char lower[80], empty[80], byte = 0;
	LittleFuse *fuse;
	unsigned n_asked;

	CHECK(enter());
	CHECK(mount("none", directory, "tmpfs", 0, NULL) == 0);
	snprintf(lower, sizeof(lower), "%s/lower", directory);
	snprintf(empty, sizeof(empty), "%s/empty", directory);
	CHECK(mkdir(lower, 0700) == 0 && mkdir(empty, 0700) == 0);
	CHECK(make(in_directory("memory")) && make(in_directory("lower/local")));
	fuse = little_fuse_new(N_PAGES);
	CHECK(mount_overlay(little_fuse_directory(fuse), lower, in_directory("over-fuse")));
	CHECK(mount_overlay(lower, empty, in_directory("over-local")));
	CHECK(map(IN_MEMORY, in_directory("memory")) && map(ON_FUSE, little_fuse_file(fuse)) &&
		map(OVER_FUSE, in_directory("over-fuse/file")) &&
		map(OVER_LOCAL, in_directory("over-local/local")));
	n_asked = little_fuse_requests(fuse);
	CHECK(n_asked > 0 && write(ready, &byte, 1) == 1);
	CHECK(read(hold, &byte, 1) == 0);
	shared->n_asked = little_fuse_requests(fuse) - n_asked;
	little_fuse_free(fuse);
}

static pid_t start(int *hold)
{
	int ready[2], held[2];
	char byte;
	pid_t pid;

	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	assert_int_equal(pipe2(held, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		close(held[1]);
		live(ready[1], held[0]);
		_exit(0);
	}
	close(ready[1]);
	close(held[0]);
	if (read(ready[0], &byte, 1) != 1)
		fail_msg("line %d: %s", shared->line, strerror(shared->error));
	close(ready[0]);
	*hold = held[1];
	return pid;
}

/* --- the pass --- */

static bool is_found(unsigned number)
{
	const struct stat *st = &shared->st[number];

	for (size_t i = 0; i < files.n; i++) {
		const PfFile *file = files.files[i];

		if (file->key.device == st->st_dev && file->key.inode == st->st_ino)
			return file->n_reportable == N_PAGES;
	}
	return false;
}

static void test_users_mounts(void **state)
{
	static const PfAgentConfig config;
	PfScanStats stats;
	int hold, r;
	pid_t pid = start(&hold);

	r = pf_scanner_pass(scanner, PF_CLASS_MAPPED, &config, &facts.ram, NULL, NULL, &stats);
	if (r == 0)
		r = pf_scanner_look(scanner, &pid, 1, &facts.ram, NULL, NULL, &stats);
	close(hold);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(r, 0);
	assert_int_equal(shared->line, 0);
	assert_int_equal(shared->n_asked, 0);
	assert_true(is_found(IN_MEMORY));
	assert_false(is_found(ON_FUSE));
	assert_false(is_found(OVER_FUSE));
	assert_false(is_found(OVER_LOCAL));
	assert_int_equal(n_informed, 1);
	assert_true(pf_scanner_left_alone(scanner) >= 3);
	assert_int_equal(pf_scanner_left_behind(scanner), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_users_mounts, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
