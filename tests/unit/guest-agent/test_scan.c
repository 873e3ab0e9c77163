// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Passes over this very machine, on which this process and its children map temporary files, which
 * lie in a file system of the test's own. Needs root: page frame numbers and map_files are not for
 * others.
 */
#include "common/digest.h"
#include "guest-agent/find/scan.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define N_PAGES 40

static PfState files;
static PfScanner *scanner;
static PfFacts facts;
static char directory[64], path[128];
static char *cache_paths[] = {directory, NULL};
static const PfAgentConfig config = {.cache_paths = cache_paths};
static int file_fd;

/* Page i is filled with i. */
static int make_file(const char *name, unsigned n_pages)
{
	uint8_t page[PF_PAGE_SIZE];
	int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	for (unsigned i = 0; i < n_pages; i++) {
		memset(page, (int)i, sizeof(page));
		assert_int_equal(write(fd, page, sizeof(page)), sizeof(page));
	}
	return fd;
}

static int setup(void **state)
{
	pf_state_init(&files);
	/* So that nothing that is mounted here outlives this process. */
	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return -1;
	strcpy(directory, "/tmp/pagefusion-test-XXXXXX");
	if (!mkdtemp(directory) || mount("none", directory, "tmpfs", 0, NULL) < 0)
		return -1;
	if (pf_facts_read(&facts) < 0 || pf_scanner_new(&scanner, &files) < 0) {
		print_message("this test must run as root\n");
		return -1;
	}
	snprintf(path, sizeof(path), "%s/file", directory);
	file_fd = make_file(path, N_PAGES);
	return 0;
}

static int teardown(void **state)
{
	close(file_fd);
	umount2(directory, MNT_DETACH);
	rmdir(directory);
	pf_scanner_free(scanner);
	pf_state_deinit(&files);
	return 0;
}

static PfScanStats pass(PfPageClass class)
{
	PfScanStats stats;

	assert_int_equal(
		pf_scanner_pass(scanner, class, &config, &facts.ram, NULL, NULL, &stats), 0);
	return stats;
}

static PfScanStats look_at(pid_t pid)
{
	PfScanStats stats;

	assert_int_equal(pf_scanner_look(scanner, &pid, 1, &facts.ram, NULL, NULL, &stats), 0);
	return stats;
}

static PfFile *find(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	for (size_t i = 0; i < files.n; i++) {
		if (files.files[i]->key.source == PF_SOURCE_FILE &&
			files.files[i]->key.inode == st.st_ino &&
			files.files[i]->key.device == st.st_dev)
			return files.files[i];
	}
	return NULL;
}

static uint64_t n_reportable(int fd)
{
	const PfFile *file = find(fd);

	return file ? file->n_reportable : 0;
}

static uint8_t *map_pages(int fd, int prot, int flags, unsigned first, unsigned n)
{
	uint8_t *map = mmap(NULL, n * PF_PAGE_SIZE, prot, flags, fd, (off_t)(first * PF_PAGE_SIZE));

	assert_ptr_not_equal(map, MAP_FAILED);
	return map;
}

static void unmap(uint8_t *map, unsigned n)
{
	assert_int_equal(munmap(map, n * PF_PAGE_SIZE), 0);
}

static void test_mappings(void **state)
{
	uint8_t *low = map_pages(file_fd, PROT_READ | PROT_EXEC, MAP_PRIVATE, 2, 5),
		*high = map_pages(file_fd, PROT_READ, MAP_SHARED, 20, 3),
		*data = map_pages(file_fd, PROT_READ | PROT_WRITE, MAP_PRIVATE, 30, 4);
	PfHasher *hasher = pf_hasher_new();
	PfScanStats stats = pass(PF_CLASS_MAPPED);
	const PfFile *file = find(file_fd);
	PfDigest digest;

	assert_true(stats.n_files > 1 && stats.n_hashed >= 8);
	assert_non_null(file);
	assert_int_equal(file->n_reportable, 8);
	assert_int_equal(file->n_pages, N_PAGES);
	assert_string_equal(file->name, "file");
	assert_int_equal(file->fd, -1);
	for (unsigned i = 0; i < N_PAGES; i++) {
		const PfFilePage *page = pf_file_find(file, i);
		uint8_t bytes[PF_PAGE_SIZE];

		assert_int_equal(page != NULL, (i >= 2 && i < 7) || (i >= 20 && i < 23));
		if (!page)
			continue;
		memset(bytes, (int)i, sizeof(bytes));
		assert_int_equal(pf_hasher_page(hasher, bytes, &digest), 0);
		assert_true(pf_digest_equal(&page->digest, &digest));
	}
	pf_hasher_free(hasher);
	/* Hashed once, also when it is mapped elsewhere. */
	unmap(low, 5);
	unmap(high, 3);
	unmap(data, 4);
	look_at(getpid());
	assert_int_equal(n_reportable(file_fd), 8);
	pass(PF_CLASS_MAPPED);
	assert_int_equal(n_reportable(file_fd), 0);
	low = map_pages(file_fd, PROT_READ, MAP_PRIVATE, 0, 7);
	assert_int_equal(look_at(getpid()).n_hashed, 2);
	assert_int_equal(n_reportable(file_fd), 7);
	unmap(low, 7);
}

/* A child that maps pages, until it is told to end. */
static pid_t start(int fd, unsigned first, unsigned n, int *hold)
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
		map_pages(fd, PROT_READ, MAP_PRIVATE, first, n);
		close(ready[1]);
		close(ready[0]);
		_exit(read(held[0], &byte, 1) == 0 ? 0 : 1);
	}
	close(ready[1]);
	close(held[0]);
	assert_int_equal(read(ready[0], &byte, 1), 0);
	close(ready[0]);
	*hold = held[1];
	return pid;
}

static void stop(pid_t pid, int hold)
{
	close(hold);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void test_processes_add_up(void **state)
{
	uint8_t *own = map_pages(file_fd, PROT_READ, MAP_PRIVATE, 0, 4);
	int hold;
	pid_t pid = start(file_fd, 2, 10, &hold);

	pass(PF_CLASS_MAPPED);
	assert_int_equal(n_reportable(file_fd), 12);
	stop(pid, hold);
	/* A look only adds. */
	look_at(getpid());
	assert_int_equal(n_reportable(file_fd), 12);
	pass(PF_CLASS_MAPPED);
	assert_int_equal(n_reportable(file_fd), 4);
	unmap(own, 4);
}

static void test_new_process(void **state)
{
	uint8_t *own = map_pages(file_fd, PROT_READ, MAP_PRIVATE, 0, 4);
	uint64_t n_files;
	int hold;
	pid_t pid;

	pass(PF_CLASS_MAPPED);
	n_files = files.n;
	pid = start(file_fd, 10, 10, &hold);
	assert_in_range(look_at(pid).n_files, 1, n_files);
	assert_int_equal(n_reportable(file_fd), 14);
	/* What it maps as well as others was known before. */
	assert_int_equal(look_at(pid).n_hashed, 0);
	stop(pid, hold);
	/* It is gone: nothing to see. */
	assert_int_equal(look_at(pid).n_files, 0);
	assert_int_equal(n_reportable(file_fd), 14);
	unmap(own, 4);
}

static void test_changed_file(void **state)
{
	uint8_t *map = map_pages(file_fd, PROT_READ, MAP_SHARED, 0, 10), byte = 99;
	const struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};

	pass(PF_CLASS_MAPPED);
	find(file_fd)->declared = true;
	assert_int_equal(pwrite(file_fd, &byte, 1, 0), 1);
	/* The clock of the file system is coarse. */
	assert_int_equal(futimens(file_fd, times), 0);
	assert_int_equal(look_at(getpid()).n_hashed, 10);
	assert_true(find(file_fd)->outdated);
	unmap(map, 10);
}

static void test_deleted_file(void **state)
{
	uint8_t *map = map_pages(file_fd, PROT_READ | PROT_EXEC, MAP_PRIVATE, 0, 10);

	assert_int_equal(unlink(path), 0);
	pass(PF_CLASS_MAPPED);
	assert_int_equal(n_reportable(file_fd), 10);
	assert_string_equal(find(file_fd)->name, "file");
	unmap(map, 10);
}

/* Names are anybody's choice, and cannot hide a file. */
static void test_odd_names(void **state)
{
	static const char *const names[] = {"new\nline", "\xff\xfe", " (deleted)", "a (deleted)",
		"7f0000000000-7f0000001000 r-xp 00000000 00:01 7 x", "\\012", "%s%n", "\x1b[2J"};
	char long_name[256];

	memset(long_name, 'x', 255);
	long_name[255] = '\0';
	for (size_t i = 0; i <= sizeof(names) / sizeof(names[0]); i++) {
		bool last = i == sizeof(names) / sizeof(names[0]);
		char odd[512];
		uint8_t *map;
		int fd;

		snprintf(odd, sizeof(odd), "%s/%s", directory, last ? long_name : names[i]);
		fd = make_file(odd, 3);
		map = map_pages(fd, PROT_READ, MAP_PRIVATE, 0, 3);
		look_at(getpid());
		if (n_reportable(fd) != 3)
			fail_msg("a file named %s was not found", odd);
		unmap(map, 3);
		close(fd);
		unlink(odd);
	}
}

static int count_step(void *userdata, uint64_t n_hashed)
{
	++*(unsigned *)userdata;
	return 0;
}

/* As many mappings as a process may have. They are of one page each, and never two of them in
 * order, or the kernel would merge them. The agent goes on serving meanwhile. */
static void test_many_mappings(void **state)
{
	const size_t limit = 65000;
	uint8_t **maps = calloc(limit, sizeof(*maps));
	unsigned n_before = 0, n_steps = 0;
	pid_t self = getpid();
	PfScanStats stats;
	size_t n = 0;

	assert_non_null(maps);
	assert_int_equal(
		pf_scanner_look(scanner, &self, 1, &facts.ram, count_step, &n_before, &stats), 0);
	while (n < limit) {
		maps[n] = mmap(NULL, PF_PAGE_SIZE, PROT_READ, MAP_PRIVATE, file_fd,
			(off_t)(n * 5 % N_PAGES * PF_PAGE_SIZE));
		if (maps[n] == MAP_FAILED)
			break;
		n++;
	}
	assert_true(n > 10000);
	assert_int_equal(
		pf_scanner_look(scanner, &self, 1, &facts.ram, count_step, &n_steps, &stats), 0);
	assert_int_equal(n_reportable(file_fd), N_PAGES / 5);
	assert_true(n_steps >= n_before + n / 4096);
	while (n > 0)
		unmap(maps[--n], 1);
	free(maps);
}

/* More files than may be open at the same time. */
static int scan_with_few_descriptors(int n_files)
{
	const struct rlimit few = {80, 80};
	char name[128];
	int fd, found = 0;

	pf_scanner_free(scanner);
	for (int i = 0; i < n_files; i++) {
		snprintf(name, sizeof(name), "%s/%d", directory, i);
		fd = make_file(name, 2);
		map_pages(fd, PROT_READ, MAP_PRIVATE, 0, 2);
		close(fd);
	}
	if (setrlimit(RLIMIT_NOFILE, &few) < 0 || pf_scanner_new(&scanner, &files) < 0)
		return -1;
	look_at(getpid());
	for (int i = 0; i < n_files; i++) {
		snprintf(name, sizeof(name), "%s/%d", directory, i);
		fd = open(name, O_RDONLY | O_CLOEXEC);
		found += n_reportable(fd) == 2;
		close(fd);
		unlink(name);
	}
	return found;
}

static void test_few_descriptors(void **state)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0)
		_exit(scan_with_few_descriptors(100));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 100);
}

static int give_up(void *userdata, uint64_t n_hashed)
{
	return ++*(int *)userdata == 3 ? 4711 : 0;
}

/* Whatever the step returns is what comes back; nothing is taken for gone then. */
static void test_given_up(void **state)
{
	uint8_t *map = map_pages(file_fd, PROT_READ, MAP_SHARED, 0, 10);
	PfScanStats stats;
	int calls = 0;

	pass(PF_CLASS_MAPPED);
	unmap(map, 10);
	assert_int_equal(pf_scanner_pass(scanner, PF_CLASS_MAPPED, &config, &facts.ram, give_up,
				 &calls, &stats),
		4711);
	assert_int_equal(calls, 3);
	for (size_t i = 0; i < files.n; i++)
		assert_int_equal(files.files[i]->fd, -1);
	assert_int_equal(n_reportable(file_fd), 10);
	calls = 2;
	assert_int_equal(pf_scanner_pass(scanner, PF_CLASS_CACHE, &config, &facts.ram, give_up,
				 &calls, &stats),
		4711);
	assert_int_equal(calls, 3);
}

static void test_other_ram(void **state)
{
	uint8_t *map = map_pages(file_fd, PROT_READ, MAP_SHARED, 0, 10);
	const PfRam nowhere = {.ranges = {{{1ull << 39}, 1}}, .n = 1};
	PfScanStats stats;

	assert_int_equal(
		pf_scanner_pass(scanner, PF_CLASS_MAPPED, &config, &nowhere, NULL, NULL, &stats),
		0);
	assert_int_equal(stats.n_hashed, 0);
	assert_int_equal(n_reportable(file_fd), 0);
	unmap(map, 10);
}

static void test_unwanted_files(void **state)
{
	int fd = memfd_create("unwanted", MFD_CLOEXEC);
	uint8_t *map;

	assert_int_equal(ftruncate(fd, PF_PAGE_SIZE), 0);
	map = map_pages(fd, PROT_READ, MAP_SHARED, 0, 1);
	assert_int_equal(*(volatile uint8_t *)map, 0);
	look_at(getpid());
	assert_null(find(fd));
	unmap(map, 1);
	close(fd);
}

/* Whose times change in each look is hashed when they do not. */
static void test_restless_file(void **state)
{
	static const uint64_t n_hashed[] = {10, 10, 0, 0};
	uint8_t *map = map_pages(file_fd, PROT_READ, MAP_SHARED, 0, 10);

	pass(PF_CLASS_MAPPED);
	for (time_t i = 1; i < 4; i++) {
		const struct timespec times[2] = {{.tv_sec = i}, {.tv_sec = i}};

		assert_int_equal(futimens(file_fd, times), 0);
		assert_int_equal(look_at(getpid()).n_hashed, n_hashed[i]);
		assert_int_equal(n_reportable(file_fd), n_hashed[i]);
	}
	assert_int_equal(look_at(getpid()).n_hashed, 0);
	assert_int_equal(look_at(getpid()).n_hashed, 10);
	assert_int_equal(n_reportable(file_fd), 10);
	unmap(map, 10);
}

/* Of an owner who has enough files nothing more is found, in whatever class; of root it is. */
static void test_full_owner(void **state)
{
	uint8_t *map = map_pages(file_fd, PROT_READ, MAP_SHARED, 0, 10);

	assert_int_equal(fchown(file_fd, 65534, 65534), 0);
	for (unsigned i = 0; i < PF_OWNERS_MAX_FILES; i++)
		assert_int_equal(pf_owners_add(&files.owners, 65534), 0);
	pass(PF_CLASS_MAPPED);
	assert_null(find(file_fd));
	pass(PF_CLASS_CACHE);
	assert_null(find(file_fd));
	assert_true(files.n_left_out[PF_CLASS_MAPPED] >= 1);
	assert_int_equal(files.n_left_out[PF_CLASS_CACHE], 1);
	assert_int_equal(fchown(file_fd, 0, 0), 0);
	pass(PF_CLASS_MAPPED);
	assert_int_equal(n_reportable(file_fd), 10);
	pass(PF_CLASS_CACHE);
	assert_int_equal(n_reportable(file_fd), N_PAGES);
	unmap(map, 10);
}

/* In memory, and mapped by nobody. */
static void test_cache(void **state)
{
	pass(PF_CLASS_MAPPED);
	assert_int_equal(n_reportable(file_fd), 0);
	assert_int_equal(pf_scanner_impossible(scanner, PF_CLASS_CACHE), NULL);
	assert_int_equal(pass(PF_CLASS_CACHE).n_hashed, N_PAGES);
	assert_int_equal(n_reportable(file_fd), N_PAGES);
	assert_int_equal(pass(PF_CLASS_CACHE).n_hashed, 0);
	/* The mappings' passes leave it alone. */
	pass(PF_CLASS_MAPPED);
	assert_int_equal(n_reportable(file_fd), N_PAGES);
	assert_int_equal(unlink(path), 0);
	pass(PF_CLASS_CACHE);
	assert_int_equal(n_reportable(file_fd), 0);
}

/* The other sources are there or not; which, the scanner says. */
static void test_other_classes(void **state)
{
	const PfPageClass classes[] = {PF_CLASS_BUFFERS, PF_CLASS_KERNEL};

	for (size_t i = 0; i < 2; i++) {
		PfScanStats stats;
		int r = pf_scanner_pass(
			scanner, classes[i], &config, &facts.ram, NULL, NULL, &stats);

		if (r != 0)
			assert_int_equal(r, -ENOTSUP);
		assert_int_equal(pf_scanner_impossible(scanner, classes[i]) != NULL, r == -ENOTSUP);
	}
	assert_null(pf_scanner_impossible(scanner, PF_CLASS_MAPPED));
	assert_int_equal(pf_scanner_left_behind(scanner), 0);
}

/* Programs and libraries are read in as they are used: what a look hashes must be what a test has changed. */
static int read_everything_in(void **state)
{
	return mlockall(MCL_CURRENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_mappings, setup, teardown),
		cmocka_unit_test_setup_teardown(test_processes_add_up, setup, teardown),
		cmocka_unit_test_setup_teardown(test_new_process, setup, teardown),
		cmocka_unit_test_setup_teardown(test_changed_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_deleted_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_odd_names, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many_mappings, setup, teardown),
		cmocka_unit_test_setup_teardown(test_few_descriptors, setup, teardown),
		cmocka_unit_test_setup_teardown(test_given_up, setup, teardown),
		cmocka_unit_test_setup_teardown(test_other_ram, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unwanted_files, setup, teardown),
		cmocka_unit_test_setup_teardown(test_restless_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_full_owner, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cache, setup, teardown),
		cmocka_unit_test_setup_teardown(test_other_classes, setup, teardown),
	};

	return cmocka_run_group_tests(tests, read_everything_in, NULL);
}
