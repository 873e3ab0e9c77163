// SPDX-License-Identifier: LGPL-2.1-or-later
/* Opens files of file systems that answer, and of one that does not. Needs root. */
#include "guest-agent/find/opening.h"
#include "guest-agent/find/guard.h"
#include "common/page.h"
#include "little_fuse.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define TIMEOUT_MS 1000 /* worker_clock.h says when it passes */

int __real_fstat64(int fd, struct stat *st);
int __wrap_fstat64(int fd, struct stat *st);

static int fstat_error; /* 0: none */

int __wrap_fstat64(int fd, struct stat *st)
{
	if (fstat_error == 0)
		return __real_fstat64(fd, st);
	errno = fstat_error;
	return -1;
}

static char path[64];
static int file_fd;

static int setup(void **state)
{
	strcpy(path, "/var/tmp/pagefusion-test-XXXXXX");
	file_fd = mkostemp(path, O_CLOEXEC);
	return file_fd < 0 || pf_guard_init() < 0;
}

static int teardown(void **state)
{
	close(file_fd);
	unlink(path);
	return 0;
}

static PfWorker *worker_new(void)
{
	PfWorker *worker;

	assert_int_equal(pf_worker_new(&worker, TIMEOUT_MS), 0);
	return worker;
}

static unsigned count_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void wait_for_left(const PfWorker *worker, size_t n)
{
	for (unsigned i = 0; i < 10000 && pf_worker_left(worker) != n; i++)
		usleep(1000);
	assert_int_equal(pf_worker_left(worker), n);
}

static const char *broken;

static void assert_opens(PfWorker *worker)
{
	PfFound found;
	struct stat st;

	assert_int_equal(ftruncate(file_fd, 12345), 0);
	assert_int_equal(fstat(file_fd, &st), 0);
	assert_int_equal(pf_opening_open(worker, path, &found), PF_OPENING_OK);
	assert_int_equal(found.key.source, PF_SOURCE_FILE);
	assert_int_equal(found.key.device, st.st_dev);
	assert_int_equal(found.key.inode, st.st_ino);
	assert_int_equal(found.stamp.size, 12345);
	assert_memory_equal(&found.stamp.mtime, &st.st_mtim, sizeof(st.st_mtim));
	assert_memory_equal(&found.stamp.ctime, &st.st_ctim, sizeof(st.st_ctim));
	assert_int_equal(fcntl(found.fd, F_GETFL) & (O_ACCMODE | O_NOATIME), O_RDONLY | O_NOATIME);
	assert_int_equal(fcntl(found.fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(pf_opening_build_id(worker, found.fd, (uint8_t[64]){0}, &broken), 0);
	assert_int_equal(pf_opening_close(worker, found.fd), 0);
	assert_int_equal(fcntl(found.fd, F_GETFD), -1);
}

static void test_opens(void **state)
{
	PfWorker *worker = worker_new();
	unsigned n = count_fds();

	assert_opens(NULL);
	assert_opens(worker);
	pf_worker_free(worker);
	assert_int_equal(count_fds(), n);
}

static void assert_unwanted(const char *what)
{
	PfWorker *worker = worker_new();
	PfFound found;

	assert_int_equal(pf_opening_open(NULL, what, &found), PF_OPENING_E_UNWANTED);
	assert_int_equal(pf_opening_open(worker, what, &found), PF_OPENING_E_UNWANTED);
	pf_worker_free(worker);
}

static void test_unwanted(void **state)
{
	unsigned n = count_fds();

	assert_unwanted(path); /* empty */
	assert_int_equal(ftruncate(file_fd, 1), 0);
	assert_unwanted("/var/tmp");
	assert_unwanted("/dev/null");
	assert_unwanted("/sys/kernel/uevent_seqnum");
	assert_unwanted("/proc/self/maps");
	assert_int_equal(
		ftruncate(file_fd, (off_t)(PF_SESSION_MAX_MODULE_PAGES * PF_PAGE_SIZE) + 1), 0);
	assert_unwanted(path);
	assert_int_equal(count_fds(), n);
}

/* Reading from a pipe that nobody writes to would never end, nor would opening it. */
static void test_pipe(void **state)
{
	char pipe_path[80];

	snprintf(pipe_path, sizeof(pipe_path), "%s.pipe", path);
	assert_int_equal(mkfifo(pipe_path, 0600), 0);
	assert_unwanted(pipe_path);
	unlink(pipe_path);
}

static void test_not_there(void **state)
{
	PfWorker *worker = worker_new();
	PfFound found;

	assert_int_equal(pf_opening_open(NULL, "/var/tmp/pagefusion/none", &found), -ENOENT);
	assert_int_equal(pf_opening_open(worker, "/var/tmp/pagefusion/none", &found), -ENOENT);
	pf_worker_free(worker);
}

/* What the file's server says is never mistaken for trouble of our own. */
static void test_errors_of_others(void **state)
{
	static const int errors[] = {ENOMEM, EMFILE, EAGAIN, EBUSY, ETIMEDOUT, EPERM};
	PfWorker *worker = worker_new();
	unsigned n = count_fds();
	PfFound found;

	for (size_t i = 0; i < 2 * sizeof(errors) / sizeof(errors[0]); i++) {
		int r;

		fstat_error = errors[i / 2];
		r = pf_opening_open(i % 2 ? worker : NULL, path, &found);
		fstat_error = 0;
		assert_int_equal(r, PF_OPENING_E_FAILED);
	}
	assert_int_equal(count_fds(), n);
	pf_worker_free(worker);
}

static bool refuse(void *userdata, int path_fd)
{
	assert_ptr_equal(userdata, path);
	assert_true((fcntl(path_fd, F_GETFL) & O_PATH) != 0);
	return false;
}

/* Nothing is asked before the check. */
static void test_refused(void **state)
{
	LittleFuse *fuse = little_fuse_new(4);
	unsigned n = count_fds(), n_asked;
	PfFound found;
	char link[64];
	int fd = open(little_fuse_file(fuse), O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n_asked = little_fuse_requests(fuse);
	assert_int_equal(
		pf_opening_open_checked(NULL, link, refuse, path, &found), PF_OPENING_E_REFUSED);
	assert_int_equal(little_fuse_requests(fuse), n_asked);
	close(fd);
	assert_int_equal(count_fds(), n);
	little_fuse_free(fuse);
}

/* A mapped file that has no name any more. */
static void test_deleted(void **state)
{
	char link[96];
	uint8_t *map;
	PfFound found;

	assert_int_equal(ftruncate(file_fd, PF_PAGE_SIZE), 0);
	map = mmap(NULL, PF_PAGE_SIZE, PROT_READ, MAP_PRIVATE, file_fd, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(unlink(path), 0);
	snprintf(link, sizeof(link), "/proc/self/map_files/%lx-%lx", (unsigned long)map,
		(unsigned long)map + PF_PAGE_SIZE);
	assert_int_equal(pf_opening_open(NULL, link, &found), PF_OPENING_OK);
	assert_int_equal(found.stamp.size, PF_PAGE_SIZE);
	close(found.fd);
	munmap(map, PF_PAGE_SIZE);
}

/* The program itself: reading its id needs more of the thread's stack than anything else. */
static void test_build_id(void **state)
{
	uint8_t here[PF_SESSION_MAX_BUILD_ID], there[PF_SESSION_MAX_BUILD_ID];
	PfWorker *worker = worker_new();
	unsigned n = count_fds();
	PfFound found;
	int size;

	assert_int_equal(pf_opening_open(worker, "/proc/self/exe", &found), PF_OPENING_OK);
	size = pf_opening_build_id(NULL, found.fd, here, &broken);
	assert_in_range(size, 8, PF_SESSION_MAX_BUILD_ID);
	assert_int_equal(pf_opening_build_id(worker, found.fd, there, &broken), size);
	assert_memory_equal(here, there, (size_t)size);
	assert_null(broken);
	close(found.fd);
	pf_worker_free(worker);
	assert_int_equal(count_fds(), n);
}

static void test_fuse_is_left_alone(void **state)
{
	LittleFuse *fuse = little_fuse_new(4);

	assert_unwanted(little_fuse_file(fuse));
	little_fuse_free(fuse);
}

/* A server that is silent from the first look on, or later: the caller goes on, and what hung is cleaned up when the
 * server is gone. */
static void assert_survives(uint32_t opcode)
{
	LittleFuse *fuse = little_fuse_new(4);
	PfWorker *worker = worker_new();
	unsigned n;
	PfFound found;

	little_fuse_hold(fuse, opcode);
	n = count_fds();
	assert_int_equal(pf_opening_open(worker, little_fuse_file(fuse), &found), -ETIMEDOUT);
	assert_int_equal(pf_worker_left(worker), 1);
	assert_opens(worker);
	little_fuse_free(fuse);
	wait_for_left(worker, 0);
	assert_opens(worker);
	pf_worker_free(worker);
	assert_int_equal(count_fds(), n - 1); /* the server's own */
}

static void test_silent_server(void **state)
{
	assert_survives(FUSE_LOOKUP);
	assert_survives(FUSE_GETATTR);
	assert_survives(FUSE_STATFS);
}

static void test_many_silent_servers(void **state)
{
	LittleFuse *fuse = little_fuse_new(4);
	PfWorker *worker = worker_new();
	int silent_fd = open(little_fuse_file(fuse), O_RDONLY | O_CLOEXEC);
	PfFound found;

	assert_true(silent_fd >= 0);
	little_fuse_hold(fuse, FUSE_STATFS);
	assert_int_equal(ftruncate(file_fd, 1), 0);
	for (unsigned i = 0; i < PF_WORKER_MAX_LEFT; i++)
		assert_int_equal(
			pf_opening_open(worker, little_fuse_file(fuse), &found), -ETIMEDOUT);
	assert_int_equal(pf_opening_open(worker, path, &found), -EBUSY);
	/* Not even a descriptor is copied, and closed: that would ask the server. */
	little_fuse_hold(fuse, FUSE_FLUSH);
	assert_int_equal(pf_opening_build_id(worker, silent_fd, (uint8_t[64]){0}, &broken), -EBUSY);
	little_fuse_hold(fuse, FUSE_STATFS);
	close(silent_fd);
	assert_int_equal(pf_opening_close(worker, file_fd), -EBUSY);
	assert_true(fcntl(file_fd, F_GETFD) >= 0);
	assert_opens(NULL);
	little_fuse_free(fuse);
	wait_for_left(worker, 0);
	assert_opens(worker);
	pf_worker_free(worker);
}

/* An overlay looks like a file system that answers, until one opens a file, or closes it. */
static void test_silent_below_an_overlay(void **state)
{
	LittleFuse *fuse = little_fuse_new(4);
	PfWorker *worker = worker_new();
	char over[80], file[96], options[256];
	unsigned n;
	PfFound found;

	snprintf(over, sizeof(over), "%s.over", path);
	snprintf(file, sizeof(file), "%s/file", over);
	assert_int_equal(mkdir(over, 0700), 0);
	snprintf(options, sizeof(options), "lowerdir=%s:%s", little_fuse_directory(fuse), over);
	assert_int_equal(mount("overlay", over, "overlay", 0, options), 0);
	assert_int_equal(pf_opening_open(worker, file, &found), PF_OPENING_OK);
	little_fuse_hold(fuse, FUSE_FLUSH);
	assert_int_equal(pf_opening_close(worker, found.fd), -ETIMEDOUT);
	little_fuse_hold(fuse, FUSE_OPEN);
	assert_int_equal(pf_opening_open(worker, file, &found), -ETIMEDOUT);
	assert_opens(worker);
	assert_int_equal(pf_worker_left(worker), 2);
	/* A file that is opened after all is closed again, and so is the one that led to it. */
	n = count_fds();
	little_fuse_release(fuse);
	wait_for_left(worker, 1);
	assert_int_equal(count_fds(), n - 1);
	little_fuse_free(fuse);
	wait_for_left(worker, 0);
	pf_worker_free(worker);
	assert_int_equal(umount2(over, MNT_DETACH), 0);
	assert_int_equal(rmdir(over), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_opens, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unwanted, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pipe, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_there, setup, teardown),
		cmocka_unit_test_setup_teardown(test_errors_of_others, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(test_deleted, setup, teardown),
		cmocka_unit_test_setup_teardown(test_build_id, setup, teardown),
		cmocka_unit_test_setup_teardown(test_fuse_is_left_alone, setup, teardown),
		cmocka_unit_test_setup_teardown(test_silent_server, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many_silent_servers, setup, teardown),
		cmocka_unit_test_setup_teardown(test_silent_below_an_overlay, setup, teardown),
	};

	little_fuse_enter();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
