/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The path for shims: one service at a time, and the next one as soon as the last process of the one before has ended. */
#include "host-service/front/shim_socket.h"
#include <fcntl.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

typedef struct Rig {
	char dir[32];
	char *path, *lock;
} Rig;

static int set_up(void **state)
{
	Rig *rig = g_new0(Rig, 1);

	strcpy(rig->dir, "/tmp/pf-socket-XXXXXX");
	assert_non_null(g_mkdtemp(rig->dir));
	rig->path = g_build_filename(rig->dir, "shim.sock", NULL);
	rig->lock = g_strconcat(rig->path, ".lock", NULL);
	*state = rig;
	return 0;
}

static int tear_down(void **state)
{
	Rig *rig = *state;

	g_unlink(rig->lock);
	assert_int_equal(g_rmdir(rig->dir), 0);
	g_free(rig->path);
	g_free(rig->lock);
	g_free(rig);
	return 0;
}

static PfShimSocket *need(const Rig *rig)
{
	g_autoptr(GError) error = NULL;
	PfShimSocket *shims = pf_shim_socket_new(rig->path, &error);

	assert_null(error);
	assert_non_null(shims);
	return shims;
}

static int connect_to(const Rig *rig)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), result;

	g_strlcpy(address.sun_path, rig->path, sizeof address.sun_path);
	result = connect(fd, (struct sockaddr *)&address, sizeof address);
	close(fd);
	return result;
}

static void test_listens(void **state)
{
	Rig *rig = *state;
	PfShimSocket *shims = need(rig);
	GStatBuf status;

	assert_int_equal(connect_to(rig), 0);
	/* QEMU's user may connect; nobody else may open the lock. */
	assert_int_equal(g_stat(rig->path, &status), 0);
	assert_int_equal(status.st_mode & 07777, 0666);
	assert_int_equal(g_stat(rig->lock, &status), 0);
	assert_int_equal(status.st_mode & 07777, 0600);
	assert_true(fcntl(pf_shim_socket_fd(shims), F_GETFL) & O_NONBLOCK);
	pf_shim_socket_free(shims);
	assert_int_equal(access(rig->path, F_OK), -1);
	assert_int_equal(access(rig->lock, F_OK), 0);
	pf_shim_socket_free(need(rig));
}

static void test_second_one(void **state)
{
	Rig *rig = *state;
	PfShimSocket *first = need(rig);
	g_autoptr(GError) error = NULL;

	assert_null(pf_shim_socket_new(rig->path, &error));
	assert_true(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_BUSY));
	assert_non_null(strstr(error->message, "another pagefusiond uses /tmp/pf-socket-"));
	assert_non_null(strstr(error->message, ": stop it, or choose another --run-dir"));
	/* The first one is where it was. */
	assert_int_equal(connect_to(rig), 0);
	pf_shim_socket_free(first);
}

/* A process that serves shims, and has nothing of the first one open. */
static pid_t serve(PfShimSocket *shims, int *go)
{
	g_autoptr(GError) error = NULL;
	int ends[2];
	pid_t child;
	char byte;

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		dup2(ends[0], STDIN_FILENO);
		close_range(STDERR_FILENO + 1, ~0u, 0);
		_exit(read(STDIN_FILENO, &byte, 1) == 1 ? 0 : 1);
	}
	assert_true(pf_shim_socket_serve(shims, child, &error));
	assert_null(error);
	close(ends[0]);
	*go = ends[1];
	return child;
}

static gpointer end_soon(gpointer go)
{
	g_usleep(200000);
	assert_int_equal(write(*(const int *)go, "1", 1), 1);
	return NULL;
}

static void test_service_that_is_just_ending(void **state)
{
	Rig *rig = *state;
	PfShimSocket *shims = need(rig), *next;
	int go, status;
	pid_t child = serve(shims, &go);
	gint64 before;
	GThread *thread;

	pf_shim_socket_free(shims);
	before = g_get_monotonic_time();
	thread = g_thread_new("end-soon", end_soon, &go);
	next = need(rig);
	/* Not before the other one had let go of it. */
	assert_true(g_get_monotonic_time() - before >= 200000);
	g_thread_join(thread);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	assert_int_equal(connect_to(rig), 0);
	pf_shim_socket_free(next);
	close(go);
}

static void test_service_that_hangs(void **state)
{
	Rig *rig = *state;
	PfShimSocket *shims = need(rig);
	g_autoptr(GError) error = NULL;
	int go, status;
	pid_t child = serve(shims, &go);

	pf_shim_socket_free(shims);
	assert_null(pf_shim_socket_new(rig->path, &error));
	assert_true(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_BUSY));
	assert_int_equal(write(go, "1", 1), 1);
	assert_int_equal(waitpid(child, &status, 0), child);
	close(go);
}

/* What is written down is no process, or another one that has its id now, or one that has ended. */
static void test_service_that_has_ended(void **state)
{
	const char *const texts[] = {"", "x", "0 0", "-1 7", "99999999999 1", "2147483647 1"};
	Rig *rig = *state;
	g_autofree char *own = g_strdup_printf("%d 1\n", getpid());
	gint64 before = g_get_monotonic_time();
	PfShimSocket *shims;
	int go, status;
	pid_t child;

	for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
		assert_true(g_file_set_contents(rig->lock, texts[i], -1, NULL));
		pf_shim_socket_free(need(rig));
	}
	assert_true(g_file_set_contents(rig->lock, own, -1, NULL));
	shims = need(rig);
	child = serve(shims, &go);
	assert_int_equal(write(go, "1", 1), 1);
	assert_int_equal(waitpid(child, &status, 0), child);
	pf_shim_socket_free(shims);
	pf_shim_socket_free(need(rig));
	/* Nobody was waited for. */
	assert_true(g_get_monotonic_time() - before < G_USEC_PER_SEC);
	close(go);
}

static void test_path_too_long(void **state)
{
	Rig *rig = *state;
	g_autofree char *name = g_strnfill(120, 'x'),
			*path = g_build_filename(rig->dir, name, NULL),
			*lock = g_strconcat(path, ".lock", NULL);
	g_autoptr(GError) error = NULL;

	assert_null(pf_shim_socket_new(path, &error));
	assert_true(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_FILENAME_TOO_LONG));
	g_unlink(lock);
}

static void test_no_directory(void **state)
{
	g_autoptr(GError) error = NULL;

	assert_null(pf_shim_socket_new("/nonexistent/pagefusion/shim.sock", &error));
	assert_non_null(error);
	assert_non_null(strstr(error->message, "run as root, or choose another --run-dir"));
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_listens),
		TEST(test_second_one),
		TEST(test_service_that_is_just_ending),
		TEST(test_service_that_hangs),
		TEST(test_service_that_has_ended),
		TEST(test_path_too_long),
		TEST(test_no_directory),
	};
#undef TEST

	return cmocka_run_group_tests(tests, NULL, NULL);
}
