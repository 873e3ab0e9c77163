/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Pid files, the guest channel's socket and the monitor's answers, with stand-ins for QEMU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "host-service/broker/qemu_process.h"
#include <fcntl.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define UUID  "2f6a1c1e-8a0f-4c5f-9d1b-0a5f3a4d7c01"
#define OTHER "2f6a1c1e-8a0f-4c5f-9d1b-0a5f3a4d7c02"

static char *directory;

static int make_directory(void **state)
{
	directory = g_dir_make_tmp("pf-qemu-XXXXXX", NULL);
	return directory && g_chmod(directory, 0755) == 0 ? 0 : -1;
}

static int remove_directory(void **state)
{
	g_autoptr(GDir) dir = g_dir_open(directory, 0, NULL);
	const char *name;

	while ((name = g_dir_read_name(dir))) {
		g_autofree char *path = g_build_filename(directory, name, NULL);

		g_remove(path);
	}
	g_rmdir(directory);
	g_free(directory);
	return 0;
}

static char *in_directory(const char *name)
{
	return g_build_filename(directory, name, NULL);
}

static void write_pid_file(const char *name, const char *text)
{
	g_autofree char *path = in_directory(name);

	assert_true(g_file_set_contents(path, text, -1, NULL));
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void test_pid(void **state)
{
	const char *const arguments[] = {"/bin/sh", "-c", "kill -STOP $$",
		"guest=vm,debug-threads=on", "-uuid", UUID, "-display", "none", NULL};
	g_autofree char *text = NULL;
	GPid pid;
	int status;

	assert_true(g_spawn_async(
		NULL, (char **)arguments, NULL, G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL, &pid, NULL));
	/* Stopped: so it has been executed, with its own command line. */
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_true(WIFSTOPPED(status));
	text = g_strdup_printf("%d\n", pid);
	write_pid_file("vm.pid", text);
	assert_int_equal(pf_qemu_pid(directory, "vm", UUID), pid);
	/* The number is another process's by now. */
	assert_int_equal(pf_qemu_pid(directory, "vm", OTHER), 0);
	end(pid);
	assert_int_equal(pf_qemu_pid(directory, "vm", UUID), 0);
}

static void test_no_pid(void **state)
{
	static const char *const texts[] = {"", "0", "-1", "1x", "99999999999999999999", "vm"};

	assert_int_equal(pf_qemu_pid(directory, "absent", UUID), 0);
	assert_int_equal(pf_qemu_pid(directory, "../vm", UUID), 0);
	for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
		write_pid_file("bad.pid", texts[i]);
		assert_int_equal(pf_qemu_pid(directory, "bad", UUID), 0);
	}
}

static int listen_at(const char *path, int backlog)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
		listen(fd, backlog) < 0)
		return -1;
	return fd;
}

static void expect_no_connection(const char *path, gint64 pid, GIOErrorEnum code)
{
	g_autoptr(GError) error = NULL;

	assert_int_equal(pf_qemu_connect(path, pid, &error), -1);
	assert_true(g_error_matches(error, G_IO_ERROR, (int)code));
	assert_non_null(strstr(error->message, path));
}

static void test_connects(void **state)
{
	g_autofree char *path = in_directory("channel");
	g_autoptr(GError) error = NULL;
	int server = listen_at(path, 1), fd, accepted;
	char byte;

	assert_true(server >= 0);
	fd = pf_qemu_connect(path, getpid(), &error);
	assert_null(error);
	assert_int_equal(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	accepted = accept(server, NULL, NULL);
	assert_int_equal(write(accepted, "a", 1), 1);
	assert_int_equal(read(fd, &byte, 1), 1);
	assert_int_equal(byte, 'a');
	close(accepted);
	close(fd);
	close(server);
	g_remove(path);
}

static void test_what_is_no_channel(void **state)
{
	g_autofree char *path = in_directory("channel"), *link = in_directory("link"),
			*file = in_directory("file"), *absent = in_directory("absent");
	g_autofree char *through = g_strconcat(link, "/channel", NULL);
	int server = listen_at(path, 1);

	assert_true(server >= 0);
	expect_no_connection(absent, getpid(), G_IO_ERROR_NOT_FOUND);
	assert_true(g_file_set_contents(file, "", 0, NULL));
	expect_no_connection(file, getpid(), g_io_error_from_errno(ENOTSOCK));
	assert_int_equal(g_chmod(directory, 0777), 0);
	assert_int_equal(symlink(path, link), 0);
	expect_no_connection(link, getpid(), G_IO_ERROR_TOO_MANY_LINKS);
	g_remove(link);
	assert_int_equal(symlink(directory, link), 0);
	expect_no_connection(through, getpid(), G_IO_ERROR_TOO_MANY_LINKS);
	g_remove(link);
	assert_int_equal(g_chmod(directory, 0755), 0);
	assert_int_equal(symlink("link", link), 0);
	expect_no_connection(through, getpid(), G_IO_ERROR_TOO_MANY_LINKS);
	g_remove(link);
	expect_no_connection("channel", getpid(), G_IO_ERROR_NOT_FOUND);
	close(server);
	expect_no_connection(path, getpid(), G_IO_ERROR_CONNECTION_REFUSED);
	g_remove(path);
}

static void expect_connection(const char *path, gboolean connects)
{
	g_autoptr(GError) error = NULL;
	int fd = pf_qemu_connect(path, getpid(), &error);

	assert_int_equal(fd >= 0, connects);
	assert_true(connects || strstr(error->message, "there is a symbolic link on its way"));
	if (fd >= 0)
		close(fd);
}

/* Links that root has made, to say where something is, are followed, and nobody else's. */
static void test_moved_directory(void **state)
{
	g_autofree char *link = in_directory("link"), *other = in_directory("other"),
			*back = in_directory("other/back"),
			*absolute = in_directory("link/channel"),
			*relative = in_directory("other/back/link/./channel");
	gboolean is_root = geteuid() == 0;
	int server;

	assert_int_equal(g_mkdir(other, 0755), 0);
	assert_int_equal(symlink("../other/..", back), 0);
	assert_int_equal(symlink(other, link), 0);
	server = listen_at(absolute, 2);
	assert_true(server >= 0);
	expect_connection(absolute, is_root);
	close(server);
	g_remove(absolute);
	server = listen_at(relative, 2);
	assert_true(server >= 0);
	expect_connection(relative, is_root);
	/* QEMU's user has made one of them. */
	assert_int_equal(g_chmod(other, 0775), 0);
	expect_connection(relative, FALSE);
	assert_int_equal(chown(other, is_root ? 1 : getuid(), getgid()), 0);
	assert_int_equal(g_chmod(other, 0755), 0);
	expect_connection(relative, FALSE);
	close(server);
	g_remove(relative);
	g_remove(link);
	g_remove(back);
	g_remove(other);
}

/* One connection waits, and nobody takes it: somebody else has the channel. */
static void test_channel_in_use(void **state)
{
	g_autofree char *path = in_directory("channel");
	int server = listen_at(path, 0);
	int fd = pf_qemu_connect(path, getpid(), NULL);

	assert_true(fd >= 0);
	expect_no_connection(path, getpid(), G_IO_ERROR_BUSY);
	close(fd);
	close(server);
	g_remove(path);
}

/* A process of an ordinary user serves the socket; only the pid tells whether it is the VM's. */
static void test_wrong_peer(void **state)
{
	g_autofree char *path = in_directory("peer");
	g_autoptr(GError) error = NULL;
	int ready[2], fd;
	char byte;
	pid_t pid;

	if (geteuid() != 0)
		skip();
	assert_int_equal(g_chmod(directory, 01777), 0);
	assert_int_equal(pipe(ready), 0);
	pid = fork();
	if (pid == 0) {
		if (setuid(65534) < 0 || listen_at(path, 8) < 0 || write(ready[1], "a", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	fd = pf_qemu_connect(path, pid, &error);
	assert_null(error);
	close(fd);
	expect_no_connection(path, getpid(), G_IO_ERROR_PERMISSION_DENIED);
	close(ready[0]);
	end(pid);
}

/* Another socket, put where the channel was: the path that it was bound to gives it away. */
static void test_other_socket_in_its_place(void **state)
{
	g_autofree char *path = in_directory("channel"), *other = in_directory("other");
	g_autofree char *longer = in_directory("channel2");
	int server = listen_at(other, 8), moved;

	assert_true(server >= 0);
	assert_int_equal(link(other, path), 0);
	expect_no_connection(path, getpid(), G_IO_ERROR_PERMISSION_DENIED);
	/* As libvirt's, which root has opened, and which is not of QEMU's process. */
	expect_no_connection(path, getppid(), G_IO_ERROR_PERMISSION_DENIED);
	g_remove(path);
	moved = listen_at(longer, 8);
	assert_int_equal(rename(longer, path), 0);
	expect_no_connection(path, getpid(), G_IO_ERROR_PERMISSION_DENIED);
	g_remove(path);
	g_remove(other);
	close(moved);
	close(server);
}

static void test_gpa2hva(void **state)
{
	static const struct {
		const char *reply;
		uint64_t gpa, hva;
	} good[] = {
		{"Host virtual address for 0x1000 (pc.ram) is 0x7f0000001000\r\n", 0x1000,
			0x7f0000001000},
		{"Host virtual address for 0x0 (/objects/a) is 0x0) is 0x7f0000000000", 0,
			0x7f0000000000},
	};
	static const char *const bad[] = {
		"",
		"No memory is mapped at address 0x1000\r\n",
		"Memory at address 0x1000is not RAM\r\n",
		"Host virtual address for 0x2000 (pc.ram) is 0x7f0000001000\r\n",
		"Host virtual address for 0x1000 (pc.ram) is 0x7f0000001001\r\n",
		"Host virtual address for 0x1000 (pc.ram) is 0x0\r\n",
		"Host virtual address for 0x1000 (pc.ram) is 0x\r\n",
		"Host virtual address for 0x1000 (pc.ram) is 0x7f000000100g\r\n",
		"Host virtual address for 0x1000 (pc.ram) is 0x7f0000001000 or so\r\n",
		"Host virtual address for 0x1000 (pc.ram) is 0x17f000000000000001000\r\n",
		"Host virtual address for 0x1000 (a\r\n) is 0x7f0000001000\r\n",
		"Host virtual address for 0x1000 (pc.ram) is (nil)\r\n",
	};
	PfHva hva = {0};

	for (size_t i = 0; i < G_N_ELEMENTS(good); i++) {
		assert_true(pf_qemu_parse_gpa2hva(good[i].reply, good[i].gpa, &hva));
		assert_true(hva.v == good[i].hva);
	}
	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++)
		assert_false(pf_qemu_parse_gpa2hva(bad[i], 0x1000, &hva));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pid),
		cmocka_unit_test(test_no_pid),
		cmocka_unit_test(test_connects),
		cmocka_unit_test(test_what_is_no_channel),
		cmocka_unit_test(test_moved_directory),
		cmocka_unit_test(test_channel_in_use),
		cmocka_unit_test(test_wrong_peer),
		cmocka_unit_test(test_other_socket_in_its_place),
		cmocka_unit_test(test_gpa2hva),
	};

	return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
