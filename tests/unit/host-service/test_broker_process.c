/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The broker as a process: what it inherits, what each client may ask, and how it ends. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "host-service/wire/packet.h"
#include "tests/unit/host-service/broker_rig.h"
#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void close_sockets(const PfBrokerSockets *sockets)
{
	close(sockets->service);
	close(sockets->front);
}

static gboolean is_closed(Fixture *f)
{
	return f->closed;
}

static gboolean has_test_domain(Fixture *f)
{
	return g_hash_table_contains(f->domains, "test");
}

static void test_awaited_answers_fail_when_the_broker_dies(void **state)
{
	Fixture *f = start("test:///default");
	g_autoptr(GError) error = NULL;

	run_until(f, has_test_domain);
	kill(f->pid, SIGSTOP);
	pf_broker_open_userfaultfd(f->broker, RUNS, on_result, f);
	kill(f->pid, SIGKILL);
	assert_true(WIFSIGNALED(exit_status(f->pid)));
	f->pid = 0;
	run_until(f, is_closed);
	run_until(f, has_result);
	assert_int_equal(pf_broker_open_userfaultfd_finish(f->result, &error), -1);
	assert_error(error, G_IO_ERROR_CLOSED, "ended");
	/* Later ones fail likewise. */
	expect_refused(f, "test", TRUE, G_IO_ERROR_CLOSED, "ended");
	stop(f);
}

static void test_awaited_answers_fail_when_it_is_freed(void **state)
{
	Fixture *f = start("test:///default");
	g_autoptr(GError) error = NULL;

	pf_broker_open_userfaultfd(f->broker, RUNS, on_result, f);
	g_clear_pointer(&f->broker, pf_broker_free);
	run_until(f, has_result);
	assert_int_equal(pf_broker_open_userfaultfd_finish(f->result, &error), -1);
	assert_error(error, G_IO_ERROR_CLOSED, "ended");
	assert_false(f->closed);
	stop(f);
}

static guint n_answers;

static void count_answer(GObject *source, GAsyncResult *result, gpointer userdata)
{
	g_autoptr(GError) error = NULL;

	assert_false(pf_broker_modify_finish(result, &error));
	assert_error(error, G_IO_ERROR_NOT_FOUND, "there is no VM nobody");
	n_answers++;
}

static gboolean has_all_answers(Fixture *f)
{
	return n_answers == 2000;
}

/* More requests than the socket takes at once, while the broker stands still. */
static void test_many_requests_wait(void **state)
{
	const PfVmSettings on = {.changes = PF_VM_SET_ENABLED, .enabled = TRUE};
	Fixture *f = start("test:///default");

	n_answers = 0;
	run_until(f, is_connected);
	kill(f->pid, SIGSTOP);
	for (int i = 0; i < 2000; i++)
		pf_broker_modify(f->front, "nobody", &on, count_answer, f);
	for (int i = 0; i < 10; i++)
		g_main_context_iteration(f->context, FALSE);
	kill(f->pid, SIGCONT);
	run_until(f, has_all_answers);
	stop(f);
}

/* The broker ends with status 1 when it gets this packet from this client. */
static void expect_end(PfBrokerClient client, const void *packet, size_t size, int descriptor)
{
	pid_t pid;
	PfBrokerSockets sockets = spawn(&pid, "test:///default");
	int fd = client == PF_BROKER_CLIENT_SERVICE ? sockets.service : sockets.front, status;

	assert_int_equal(pf_packet_send(fd, packet, size, descriptor), 0);
	status = exit_status(pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 1);
	close_sockets(&sockets);
}

static void test_what_is_no_request_ends_the_broker(void **state)
{
	PfBrokerRequest request = {
		.magic = PF_BROKER_MAGIC, .type = PF_BROKER_OPEN_USERFAULTFD, .id = 1, .vm = RUNS};

	expect_end(PF_BROKER_CLIENT_SERVICE, "rubbish", 7, -1);
	expect_end(PF_BROKER_CLIENT_FRONT, "rubbish", 7, -1);
	expect_end(PF_BROKER_CLIENT_SERVICE, &request, sizeof(request) - 1, -1);
	expect_end(PF_BROKER_CLIENT_SERVICE, &request, sizeof(request), STDERR_FILENO);
	request.type = PF_BROKER_ANSWER;
	expect_end(PF_BROKER_CLIENT_SERVICE, &request, sizeof(request), -1);
}

/* Good requests, each of the client that has no right to it. */
static void test_rights(void **state)
{
	PfBrokerRequest request = {.magic = PF_BROKER_MAGIC,
		.type = PF_BROKER_MODIFY,
		.id = 1,
		.changes = PF_VM_SET_ENABLED,
		.vm = OFF,
		.ranges = {{{0}, 1}}};

	expect_end(PF_BROKER_CLIENT_SERVICE, &request, sizeof(request), -1);
	request.changes = 0;
	request.type = PF_BROKER_OPEN_USERFAULTFD;
	expect_end(PF_BROKER_CLIENT_FRONT, &request, sizeof(request), -1);
	request.type = PF_BROKER_OPEN_CHANNEL;
	expect_end(PF_BROKER_CLIENT_FRONT, &request, sizeof(request), -1);
	request.type = PF_BROKER_TRANSLATE;
	request.n_ranges = 1;
	expect_end(PF_BROKER_CLIENT_FRONT, &request, sizeof(request), -1);
}

/* Everything has been said to the service, and nothing to the front. */
static void test_front_hears_nothing(void **state)
{
	struct pollfd front;
	pid_t pid;
	PfBrokerSockets sockets = spawn(&pid, NODE);
	PfBrokerMessage message = {0};
	size_t n_fds;
	int fd;

	while (message.type != PF_BROKER_CONNECTED)
		assert_int_equal(
			pf_packet_receive(sockets.service, &message, sizeof(message), &fd, &n_fds),
			sizeof(message));
	front = (struct pollfd){.fd = sockets.front, .events = POLLIN};
	assert_int_equal(poll(&front, 1, 0), 0);
	close_sockets(&sockets);
	assert_int_equal(exit_status(pid), 0);
}

static void test_ends_with_each_client(void **state)
{
	pid_t pid;
	PfBrokerSockets sockets = spawn(&pid, "test:///default");

	close(sockets.front);
	assert_int_equal(exit_status(pid), 0);
	close(sockets.service);
	sockets = spawn(&pid, "test:///default");
	close(sockets.service);
	assert_int_equal(exit_status(pid), 0);
	close(sockets.front);
}

/* A service that asks for descriptors, as fast as it can, and reads nothing. */
static void fill_with_requests(int service)
{
	const PfBrokerRequest request = {
		.magic = PF_BROKER_MAGIC, .type = PF_BROKER_OPEN_USERFAULTFD, .id = 1, .vm = RUNS};
	struct pollfd room = {.fd = service, .events = POLLOUT};
	int r;

	assert_true(g_unix_set_fd_nonblocking(service, TRUE, NULL));
	/* Full for so long: the broker takes no more. */
	while (poll(&room, 1, 500) > 0) {
		r = pf_packet_send(service, &request, sizeof(request), -1);
		assert_true(r == 0 || r == -EAGAIN);
	}
}

static guint n_open_files(pid_t pid)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/fd", pid);
	g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
	guint n = 0;

	assert_non_null(dir);
	while (g_dir_read_name(dir))
		n++;
	return n;
}

/* The front gets its answers all the same, and the broker keeps no descriptors. */
static void test_service_that_does_not_read(void **state)
{
	const PfBrokerRequest request = {.magic = PF_BROKER_MAGIC,
		.type = PF_BROKER_MODIFY,
		.id = 7,
		.changes = PF_VM_SET_ENABLED,
		.vm = "nobody"};
	struct timeval patience = {.tv_sec = TIMEOUT};
	pid_t pid;
	PfBrokerSockets sockets = spawn(&pid, "test:///default");
	PfBrokerMessage answer;
	guint n_files;
	size_t n_fds;
	int fd;

	setsockopt(sockets.front, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	for (int i = 0; i < 2; i++) {
		assert_int_equal(pf_packet_send(sockets.front, &request, sizeof(request), -1), 0);
		assert_int_equal(
			pf_packet_receive(sockets.front, &answer, sizeof(answer), &fd, &n_fds),
			sizeof(answer));
		assert_int_equal(answer.id, 7);
		if (i > 0)
			break;
		n_files = n_open_files(pid);
		fill_with_requests(sockets.service);
	}
	assert_in_range(n_open_files(pid), n_files - 1, n_files + 1);
	close_sockets(&sockets);
	assert_int_equal(exit_status(pid), 0);
}

/* The service reads none of the events that the front causes; the broker has had enough at last, and not before. */
static void test_service_that_has_hung(void **state)
{
	PfBrokerRequest request = {.magic = PF_BROKER_MAGIC,
		.type = PF_BROKER_MODIFY,
		.changes = PF_VM_SET_THP,
		.vm = "off"};
	struct timeval patience = {.tv_sec = TIMEOUT};
	pid_t pid;
	PfBrokerSockets sockets = spawn(&pid, NODE);
	PfBrokerMessage answer;
	ssize_t n = sizeof(answer);
	size_t n_fds;
	int fd, status;

	setsockopt(sockets.front, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	while (n == sizeof(answer) && request.id < 3 * 8192) {
		request.id++;
		request.thp = 1 + request.id % 2;
		if (pf_packet_send(sockets.front, &request, sizeof(request), -1) < 0)
			break;
		n = pf_packet_receive(sockets.front, &answer, sizeof(answer), &fd, &n_fds);
	}
	assert_in_range(request.id, 8192, 2 * 8192);
	status = exit_status(pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 1);
	close_sockets(&sockets);
}

/* A signal to the whole process group ends the service first, and the broker with it. */
static void test_ends_with_the_service(void **state)
{
	Fixture *f = start("test:///default");

	run_until(f, is_connected);
	kill(f->pid, SIGTERM);
	kill(f->pid, SIGINT);
	expect_refused(f, "nobody", TRUE, G_IO_ERROR_NOT_FOUND, "there is no VM nobody");
	stop(f);
}

/* Descriptors that the service was started with, the stores that systemd keeps among them, are not the broker's. */
static void test_inherits_nothing(void **state)
{
	PfBrokerSockets sockets;
	pid_t pid;
	char byte;
	int pipe_fds[2], low, high;

	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	low = fcntl(pipe_fds[1], F_DUPFD, 3);
	high = fcntl(pipe_fds[1], F_DUPFD, 200);
	sockets = spawn(&pid, "test:///default");
	close(pipe_fds[1]);
	close(low);
	close(high);
	/* It ends only when nobody has the other end. */
	assert_int_equal(read(pipe_fds[0], &byte, 1), 0);
	close(pipe_fds[0]);
	close_sockets(&sockets);
	assert_true(WIFEXITED(exit_status(pid)));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_inherits_nothing),
		cmocka_unit_test(test_awaited_answers_fail_when_the_broker_dies),
		cmocka_unit_test(test_awaited_answers_fail_when_it_is_freed),
		cmocka_unit_test(test_many_requests_wait),
		cmocka_unit_test(test_what_is_no_request_ends_the_broker),
		cmocka_unit_test(test_rights),
		cmocka_unit_test(test_front_hears_nothing),
		cmocka_unit_test(test_ends_with_each_client),
		cmocka_unit_test(test_service_that_does_not_read),
		cmocka_unit_test(test_service_that_has_hung),
		cmocka_unit_test(test_ends_with_the_service),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
