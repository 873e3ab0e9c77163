/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the sandbox leaves to the service, how the service looks from outside, and who gets in. */
#include "common/digest.h"
#include "common/log.h"
#include "host-service/daemon/process.h"
#include "host-service/service/process_id.h"
#include "host-service/service/store.h"
#include "host-service/wire/received_fds.h"
#include "tests/security/inside.h"
#include "tests/security/inspect.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <pwd.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define WAIT_MS      20000
#define NR_CACHESTAT 451 /* in libc's headers from 2.38 on */

/* What is done inside says 0, or the line in which it went wrong (of the last 199). */
#define WANT(condition)                                                                            \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "inside: %s\n", #condition);                               \
			return 1;                                                                  \
		}                                                                                  \
	} while (0)

static int use_store(void *userdata)
{
	g_autoptr(GError) error = NULL;
	PfStore *store = pf_store_new("group", &error), *again;
	uint8_t page[PF_PAGE_SIZE], back[PF_PAGE_SIZE];
	uint64_t all[2] = {0}, counts[5], freed_kib;
	struct sysinfo host;
	int fd;

	WANT(store);
	memset(page, 7, sizeof page);
	WANT(pf_store_write(store, (PfFrame){PF_STORE_FIRST_FRAME}, page) == 0);
	WANT(write(pf_store_readonly_fd(store), page, 1) < 0 && errno == EBADF);
	fd = fcntl(pf_store_readonly_fd(store), F_DUPFD_CLOEXEC, 0);
	again = pf_store_adopt(fd, &error);
	WANT(again);
	WANT(pf_store_first_own(again) > PF_STORE_FIRST_FRAME);
	WANT(pf_store_read(again, (PfFrame){PF_STORE_FIRST_FRAME}, back) == 0);
	WANT(memcmp(page, back, sizeof page) == 0);
	pf_store_claim(again, (PfFrame){PF_STORE_FIRST_FRAME});
	pf_store_drop(again, (PfFrame){PF_STORE_FIRST_FRAME});
	pf_store_start_sweep(again);
	WANT(!pf_store_sweep(again, G_USEC_PER_SEC, &freed_kib));
	/* The label. */
	WANT(pf_store_allocated_kib(store) == PF_PAGE_SIZE / 1024);
	/* Without these two, it would always be 0. */
	WANT(sysinfo(&host) == 0);
	WANT(syscall(NR_CACHESTAT, pf_store_fd(store), all, counts, 0) == 0);
	WANT(pf_store_swapped_kib(store) == 0);
	return 0;
}

static void test_store(void **state)
{
	assert_int_equal(inside(use_store, NULL), 0);
}

/* Half as much again as the limit, in frames; then not even the limit itself in memory. */
static int use_memory(void *userdata)
{
	PfStore *store = pf_store_new("group", NULL);
	uint8_t page[PF_PAGE_SIZE];
	uint64_t n = INSIDE_MEMORY / PF_PAGE_SIZE * 3 / 2;
	void *large, *small;

	WANT(store);
	memset(page, 7, sizeof page);
	for (uint64_t i = 0; i < n; i++)
		WANT(pf_store_write(store, (PfFrame){PF_STORE_FIRST_FRAME + i}, page) == 0);
	WANT(pf_store_allocated_kib(store) >= n * PF_PAGE_SIZE / 1024);
	errno = 0;
	large = malloc(INSIDE_MEMORY);
	WANT(!large && errno == ENOMEM);
	small = malloc(INSIDE_MEMORY / 8);
	WANT(small);
	free(small);
	free(large);
	pf_store_free(store);
	return 0;
}

static void test_memory(void **state)
{
	assert_int_equal(inside(use_memory, NULL), 0);
}

static gpointer add_one(gpointer data)
{
	g_atomic_int_inc((int *)data);
	return NULL;
}

static gboolean quit(gpointer loop)
{
	g_main_loop_quit(loop);
	return G_SOURCE_REMOVE;
}

/* What GLib, OpenSSL and the log want of the kernel. */
static int use_libraries(void *userdata)
{
	g_autoptr(GMainLoop) loop = g_main_loop_new(NULL, FALSE);
	GThread *threads[4];
	int sum = 0;
	PfDigest digest;
	static const uint8_t page[PF_PAGE_SIZE];

	for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
		threads[i] = g_thread_try_new("one", add_one, &sum, NULL);
		WANT(threads[i]);
	}
	for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
		g_thread_join(threads[i]);
	WANT(sum == G_N_ELEMENTS(threads));
	g_timeout_add(1, quit, loop);
	g_main_loop_run(loop);
	WANT(pf_hasher_page(userdata, page, &digest) == 0);
	WANT(digest.bytes[0] == 0xad && digest.bytes[1] == 0x7f);
	pf_info("a line from inside, and an error: %s", g_strerror(ENOSYS));
	return 0;
}

static void test_libraries(void **state)
{
	PfHasher *hasher = pf_hasher_new();

	assert_int_equal(inside(use_libraries, hasher), 0);
	pf_hasher_free(hasher);
}

/* A descriptor from before is read, and closed by a thread. */
static int use_descriptor(void *userdata)
{
	int fd = *(int *)userdata;
	struct pollfd watched = {.fd = fd, .events = POLLIN};
	char byte = 0;

	WANT(poll(&watched, 1, WAIT_MS) == 1);
	WANT(read(fd, &byte, 1) == 1 && byte == 'x');
	pf_received_fds_close_later(fd);
	while (fcntl(fd, F_GETFD) >= 0)
		g_thread_yield();
	WANT(errno == EBADF);
	return 0;
}

static void test_descriptors(void **state)
{
	int pipes[2];
	pid_t pid;

	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	pid = inside_start(use_descriptor, &pipes[0], pipes[0]);
	assert_int_equal(write(pipes[1], "x", 1), 1);
	assert_int_equal(inside_end(pid), 0);
	close(pipes[0]);
	close(pipes[1]);
}

/* By number a process is found, and by its inode it is known. */
static int use_process(void *userdata)
{
	int fd = pidfd_open(*(pid_t *)userdata, 0);
	uint64_t id = 0;

	WANT(fd >= 0);
	WANT(pf_process_id(fd, &id) == 0);
	return 0;
}

static void test_process(void **state)
{
	pid_t self = getpid();

	assert_int_equal(inside(use_process, &self), 0);
}

static int give_up(void *userdata)
{
	abort();
}

/* inside_end() looks for the core file. */
static void test_abort(void **state)
{
	assert_int_equal(inside(give_up, NULL), INSIDE_SIGNAL + SIGABRT);
}

/* From outside */

static int wait_for_end(void *userdata)
{
	int fd = *(int *)userdata;
	char byte = 'i';

	WANT(write(fd, &byte, 1) == 1);
	/* Until the other end is closed. */
	WANT(read(fd, &byte, 1) == 0);
	return 0;
}

static void wait_for_byte(int fd)
{
	struct pollfd watched = {.fd = fd, .events = POLLIN};
	char byte;

	assert_int_equal(poll(&watched, 1, WAIT_MS), 1);
	assert_int_equal(read(fd, &byte, 1), 1);
}

static void test_from_outside(void **state)
{
	int pair[2];
	pid_t pid;

	assert_true(pf_process_socket_pair(pair, NULL));
	pid = inside_start(wait_for_end, &pair[1], pair[1]);
	close(pair[1]);
	wait_for_byte(pair[0]);
	inspect_is_sandboxed(pid, INSIDE_UID, INSIDE_GID, INSIDE_MEMORY);
	close(pair[0]);
	assert_int_equal(inside_end(pid), 0);
}

/* A new user makes the kernel forget that it was to die with its parent: has it been told again? */
static void test_dies_with_parent(void **state)
{
	int pair[2], gone;
	struct pollfd watched;
	pid_t parent;

	assert_true(pf_process_socket_pair(pair, NULL));
	parent = fork();
	assert_true(parent >= 0);
	if (parent == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		inside_start(wait_for_end, &pair[1], pair[1]);
		pause();
		_exit(0);
	}
	close(pair[1]);
	wait_for_byte(pair[0]);
	kill(parent, SIGKILL);
	assert_int_equal(waitpid(parent, NULL, 0), parent);
	watched = (struct pollfd){.fd = pair[0], .events = POLLIN};
	gone = poll(&watched, 1, WAIT_MS);
	close(pair[0]);
	assert_int_equal(gone, 1);
}

/* Who gets in */

static int enter_without_rights(void *userdata)
{
	const PfSandbox sandbox = {INSIDE_UID, INSIDE_GID, INSIDE_MEMORY};
	g_autoptr(GError) error = NULL;

	WANT(setresgid(INSIDE_GID, INSIDE_GID, INSIDE_GID) == 0);
	WANT(setresuid(INSIDE_UID, INSIDE_UID, INSIDE_UID) == 0);
	WANT(!pf_sandbox_enter(&sandbox, &error));
	WANT(strstr(error->message, "Operation not permitted"));
	WANT(strstr(error->message, "CAP_SYS_ADMIN"));
	WANT(!strchr(error->message, '\n'));
	return 0;
}

static void test_without_rights(void **state)
{
	static const int none[] = {-1};
	pid_t pid = pf_process_start("pf-inside", none, enter_without_rights, NULL, NULL);

	assert_int_equal(inside_end(pid), 0);
}

static int keep_two(void *userdata)
{
	static const int kept[] = {CAP_KILL, CAP_SYS_ADMIN, -1};

	WANT(pf_sandbox_keep_capabilities(kept, NULL));
	return wait_for_end(userdata);
}

static void test_keep_capabilities(void **state)
{
	int pair[2];
	pid_t pid;

	assert_true(pf_process_socket_pair(pair, NULL));
	pid = pf_process_start("pf-inside", (int[]){pair[1], -1}, keep_two, &pair[1], NULL);
	close(pair[1]);
	wait_for_byte(pair[0]);
	inspect_has_only(pid, UINT64_C(1) << CAP_KILL | UINT64_C(1) << CAP_SYS_ADMIN);
	close(pair[0]);
	assert_int_equal(inside_end(pid), 0);
}

#define IN_ROOTS_GROUP "in-roots-group"

struct passwd *__real_getpwnam(const char *name);
struct passwd *__wrap_getpwnam(const char *name);

/* Some distributions have such users (halt, sync). */
struct passwd *__wrap_getpwnam(const char *name)
{
	static struct passwd entry = {.pw_uid = 64320, .pw_gid = 0};

	return strcmp(name, IN_ROOTS_GROUP) == 0 ? &entry : __real_getpwnam(name);
}

static void test_find_user(void **state)
{
	static const char *const wrong[] = {
		"root", "0", IN_ROOTS_GROUP, "no-such-user", "", "-1", "4294967295"};
	g_autoptr(GError) error = NULL;
	uid_t uid;
	gid_t gid;

	for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
		g_autoptr(GError) why = NULL;

		assert_false(pf_sandbox_find_user(wrong[i], &uid, &gid, &why));
		assert_non_null(strstr(why->message, wrong[i]));
	}
	assert_true(pf_sandbox_find_user("nobody", &uid, &gid, &error));
	assert_int_equal(uid, 65534);
	assert_true(pf_sandbox_find_user("64321", &uid, &gid, &error));
	assert_int_equal(uid, 64321);
	assert_int_equal(gid, 64321);
}

static void test_default_memory(void **state)
{
	uint64_t host = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);

	assert_int_equal(pf_sandbox_default_memory(), MAX(host / 8, 512u << 20));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_store),
		cmocka_unit_test(test_memory),
		cmocka_unit_test(test_libraries),
		cmocka_unit_test(test_descriptors),
		cmocka_unit_test(test_process),
		cmocka_unit_test(test_abort),
		cmocka_unit_test(test_from_outside),
		cmocka_unit_test(test_dies_with_parent),
		cmocka_unit_test(test_without_rights),
		cmocka_unit_test(test_keep_capabilities),
		cmocka_unit_test(test_find_user),
		cmocka_unit_test(test_default_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
