// SPDX-License-Identifier: LGPL-2.1-or-later
/* Processes that are killed between the walk over what they map and the visit of it. Needs root. */
#include "guest-agent/facts.h"
#include "guest-agent/find/guard.h"
#include "guest-agent/find/mappings.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define N_FILES 3
#define N_PAGES 4

static PfState files;
static PfMounts *mounts;
static PfReach *reach;
static PfVisitor *visitor;
static PfFacts facts;
static PfFileKey keys[N_FILES];
static pid_t child;

static int setup(void **state)
{
	pf_state_init(&files);
	if (pf_facts_read(&facts) < 0 || pf_guard_init() < 0 || pf_visitor_new(&visitor) < 0 ||
		pf_mounts_new(&mounts) < 0 || pf_reach_new(&reach, mounts, 3000) < 0) {
		print_message("this test must run as root\n");
		return -1;
	}
	pf_reach_begin(reach, 1000);
	pf_state_begin(&files, PF_CLASS_MAPPED, true);
	return 0;
}

static int teardown(void **state)
{
	pf_reach_free(reach);
	pf_mounts_free(mounts);
	pf_visitor_free(visitor);
	pf_state_deinit(&files);
	return 0;
}

/* A file that lives as long as it is mapped. */
static int make_file(unsigned number)
{
	char path[] = "/var/tmp/pagefusion-test-XXXXXX";
	uint8_t bytes[N_PAGES * PF_PAGE_SIZE];
	int fd = mkostemp(path, O_CLOEXEC);
	struct stat st;

	assert_true(fd >= 0);
	unlink(path);
	memset(bytes, (int)number + 1, sizeof(bytes));
	assert_int_equal(write(fd, bytes, sizeof(bytes)), sizeof(bytes));
	assert_int_equal(fstat(fd, &st), 0);
	keys[number] = (PfFileKey){PF_SOURCE_FILE, st.st_dev, st.st_ino};
	return fd;
}

/* A child that alone maps the files. */
static void start(void)
{
	int fds[N_FILES], ready[2];
	char byte;

	for (unsigned i = 0; i < N_FILES; i++)
		fds[i] = make_file(i);
	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		byte = 0;
		for (unsigned i = 0; i < N_FILES; i++) {
			if (mmap(NULL, N_PAGES * PF_PAGE_SIZE, PROT_READ, MAP_PRIVATE, fds[i], 0) ==
				MAP_FAILED)
				byte = 1;
		}
		if (write(ready[1], &byte, 1) == 1)
			pause();
		_exit(1);
	}
	for (unsigned i = 0; i < N_FILES; i++)
		close(fds[i]);
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	assert_int_equal(byte, 0);
	close(ready[0]);
}

static void kill_child(void)
{
	assert_int_equal(kill(child, SIGKILL), 0);
	assert_int_equal(waitpid(child, NULL, 0), child);
}

static unsigned count_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* Its pages that are to be reported, or -1 when the state does not have it. */
static int n_reportable(unsigned number)
{
	for (size_t i = 0; i < files.n; i++) {
		if (pf_file_key_compare(&files.files[i]->key, &keys[number]) == 0)
			return (int)files.files[i]->n_reportable;
	}
	return -1;
}

/* Walks, kills and visits with so many files open; how many files could be visited. */
static uint64_t visit_after_the_end(size_t max_open)
{
	PfMappings *mappings = pf_mappings_new(&files, reach, max_open);
	uint64_t n_files = 0;
	unsigned n_fds;

	assert_non_null(mappings);
	start();
	n_fds = count_fds();
	assert_int_equal(pf_mappings_add(mappings, child, NULL, NULL), 0);
	kill_child();
	assert_int_equal(pf_mappings_visit(mappings, visitor, &facts.ram, NULL, NULL, &n_files), 0);
	assert_false(pf_mappings_refused(mappings));
	pf_mappings_free(mappings);
	assert_int_equal(count_fds(), n_fds);
	return n_files;
}

/* What is open stays what it is. */
static void test_killed_before_the_visit(void **state)
{
	assert_true(visit_after_the_end(1000) >= N_FILES);
	for (unsigned i = 0; i < N_FILES; i++)
		assert_int_equal(n_reportable(i), N_PAGES);
}

/* What was closed for lack of room cannot be opened again: it is met, and nothing is known of its pages. */
static void test_killed_before_it_is_opened_again(void **state)
{
	int n_visited = 0;

	assert_int_equal(visit_after_the_end(1), 1);
	for (unsigned i = 0; i < N_FILES; i++) {
		assert_in_range(n_reportable(i), 0, N_PAGES);
		n_visited += n_reportable(i) == N_PAGES;
	}
	assert_in_range(n_visited, 0, 1);
	assert_in_range(files.n, N_FILES, 1000);
}

/* While its process lives it can: the same walk, nobody killed. */
static void test_opened_again(void **state)
{
	PfMappings *mappings = pf_mappings_new(&files, reach, 1);
	uint64_t n_files = 0;

	assert_non_null(mappings);
	start();
	assert_int_equal(pf_mappings_add(mappings, child, NULL, NULL), 0);
	assert_int_equal(pf_mappings_visit(mappings, visitor, &facts.ram, NULL, NULL, &n_files), 0);
	pf_mappings_free(mappings);
	kill_child();
	assert_in_range(n_files, N_FILES, 1000);
	for (unsigned i = 0; i < N_FILES; i++)
		assert_int_equal(n_reportable(i), N_PAGES);
}

/* Killed before its maps are read, it simply has none. */
static void test_killed_before_the_walk(void **state)
{
	PfMappings *mappings = pf_mappings_new(&files, reach, 1000);
	uint64_t n_files = 0;

	assert_non_null(mappings);
	start();
	kill_child();
	assert_int_equal(pf_mappings_add(mappings, child, NULL, NULL), 0);
	assert_int_equal(pf_mappings_visit(mappings, visitor, &facts.ram, NULL, NULL, &n_files), 0);
	pf_mappings_free(mappings);
	assert_int_equal(n_files, 0);
	assert_int_equal(files.n, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_killed_before_the_visit, setup, teardown),
		cmocka_unit_test_setup_teardown(
			test_killed_before_it_is_opened_again, setup, teardown),
		cmocka_unit_test_setup_teardown(test_opened_again, setup, teardown),
		cmocka_unit_test_setup_teardown(test_killed_before_the_walk, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
