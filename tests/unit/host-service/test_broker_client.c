/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A client's end against the toy broker: what only a running VM could show, and what libvirt
 * never sends. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "host-service/wire/broker_protocol.h"
#include "host-service/wire/packet.h"
#include "tests/vmm/toy_broker.h"
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define UUID "2f6a1c1e-8a0f-4c5f-9d1b-0a5f3a4d7c01"

#define RETRY_US 100000 /* as in broker.c */

typedef struct Heard {
	PfDomain domain; /* as last said */
	guint n_changed, n_gone, n_libvirt, n_closed;
	gboolean connected;
	GAsyncResult *result;
} Heard;

static void domain_changed(void *userdata, const PfDomain *domain)
{
	Heard *heard = userdata;

	heard->domain = *domain;
	heard->n_changed++;
}

static void domain_gone(void *userdata, const char *uuid)
{
	assert_string_equal(uuid, UUID);
	((Heard *)userdata)->n_gone++;
}

static void libvirt_changed(void *userdata, gboolean connected, const char *reason)
{
	Heard *heard = userdata;

	heard->connected = connected;
	heard->n_libvirt++;
	assert_string_equal(reason, connected ? "" : "why");
}

static void closed(void *userdata)
{
	((Heard *)userdata)->n_closed++;
}

static const PfBrokerEvents events = {domain_changed, domain_gone, libvirt_changed, closed};

static void on_result(GObject *source, GAsyncResult *result, gpointer userdata)
{
	((Heard *)userdata)->result = g_object_ref(result);
}

static gboolean on_timeout(gpointer userdata)
{
	fail_msg("nothing came for ten seconds");
	return G_SOURCE_REMOVE;
}

static void wait_for(const guint *count, guint n)
{
	guint timeout = g_timeout_add_seconds(10, on_timeout, NULL);

	while (*count < n)
		g_main_context_iteration(NULL, TRUE);
	g_source_remove(timeout);
}

static GAsyncResult *wait_result(Heard *heard)
{
	guint timeout = g_timeout_add_seconds(10, on_timeout, NULL);

	while (!heard->result)
		g_main_context_iteration(NULL, TRUE);
	g_source_remove(timeout);
	return g_steal_pointer(&heard->result);
}

static guint n_refusals, n_tries; /* of requests: to come, and since then */
static int refusal;

ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags);
ssize_t __real_sendmsg(int fd, const struct msghdr *message, int flags);

/* The kernel refuses requests, which this thread sends, and not what the broker's thread does. */
ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags)
{
	if (message->msg_iov->iov_len != sizeof(PfBrokerRequest))
		return __real_sendmsg(fd, message, flags);
	n_tries++;
	if (n_refusals == 0)
		return __real_sendmsg(fd, message, flags);
	n_refusals--;
	errno = refusal;
	return -1;
}

static PfDomain sample(void)
{
	return (PfDomain){.uuid = UUID,
		.name = "toy",
		.group = "default",
		.state = "running",
		.enabled = TRUE,
		.active = TRUE,
		.pid = getpid(),
		.memory_pages = 1024};
}

static void test_events(void **state)
{
	Heard heard = {0};
	PfDomain domain = sample();
	int fd;
	ToyBroker *toy = toy_broker_start(&fd);
	PfBroker *broker = pf_broker_new(fd, &events, &heard);

	toy_broker_set_libvirt(toy, TRUE, "");
	toy_broker_set_domain(toy, &domain);
	wait_for(&heard.n_changed, 1);
	assert_true(heard.connected);
	assert_memory_equal(&heard.domain, &domain, sizeof(domain));
	g_strlcpy(domain.state, "paused", sizeof(domain.state));
	toy_broker_set_domain(toy, &domain);
	wait_for(&heard.n_changed, 2);
	assert_string_equal(heard.domain.state, "paused");
	toy_broker_remove_domain(toy, UUID);
	wait_for(&heard.n_gone, 1);
	toy_broker_set_libvirt(toy, FALSE, "why");
	wait_for(&heard.n_libvirt, 2);
	assert_false(heard.connected);
	toy_broker_stop(toy);
	wait_for(&heard.n_closed, 1);
	assert_int_equal(heard.n_closed, 1);
	pf_broker_free(broker);
}

static void test_translate(void **state)
{
	const ToyRange memory[] = {{{0}, 160, {0x10000000}}, {{256}, 768, {0x10100000}}};
	const PfGuestRange ranges[] = {{{0}, 160}, {{300}, 1}, {{100}, 61}, {{200}, 1}};
	const uint64_t expected[] = {0x10000000, 0x10100000 + (44 << PF_PAGE_SHIFT), 0, 0};
	g_autoptr(GAsyncResult) result = NULL;
	g_autofree PfHva *hvas = NULL;
	Heard heard = {0};
	PfDomain domain = sample();
	size_t n;
	int fd;
	ToyBroker *toy = toy_broker_start(&fd);
	PfBroker *broker = pf_broker_new(fd, &events, &heard);

	toy_broker_set_domain(toy, &domain);
	toy_broker_set_memory(toy, UUID, memory, G_N_ELEMENTS(memory));
	pf_broker_translate(broker, UUID, ranges, G_N_ELEMENTS(ranges), on_result, &heard);
	result = wait_result(&heard);
	assert_true(pf_broker_translate_finish(result, &hvas, &n, NULL));
	assert_int_equal(n, G_N_ELEMENTS(ranges));
	for (size_t i = 0; i < n; i++)
		assert_true(hvas[i].v == expected[i]);
	pf_broker_free(broker);
	toy_broker_stop(toy);
}

static void test_channel(void **state)
{
	g_autofree char *directory = g_dir_make_tmp("pf-toy-XXXXXX", NULL);
	g_autofree char *path = g_build_filename(directory, "channel", NULL);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	g_autoptr(GAsyncResult) result = NULL;
	Heard heard = {0};
	PfDomain domain = sample();
	int fd, channel, accepted, server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ToyBroker *toy = toy_broker_start(&fd);
	PfBroker *broker = pf_broker_new(fd, &events, &heard);

	g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
	assert_int_equal(bind(server, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(server, 1), 0);
	g_strlcpy(domain.channel, path, sizeof(domain.channel));
	toy_broker_set_domain(toy, &domain);
	pf_broker_open_channel(broker, UUID, on_result, &heard);
	result = wait_result(&heard);
	channel = pf_broker_open_channel_finish(result, NULL);
	assert_true(channel >= 0);
	assert_int_equal(fcntl(channel, F_GETFD), FD_CLOEXEC);
	accepted = accept(server, NULL, NULL);
	assert_int_equal(write(channel, "a", 1), 1);
	assert_int_equal(read(accepted, &(char){0}, 1), 1);
	close(channel);
	close(accepted);
	close(server);
	g_remove(path);
	g_rmdir(directory);
	pf_broker_free(broker);
	toy_broker_stop(toy);
}

static void test_modify(void **state)
{
	g_autoptr(GAsyncResult) running = NULL;
	g_autoptr(GAsyncResult) off = NULL;
	g_autoptr(GAsyncResult) policy = NULL;
	g_autoptr(GError) error = NULL;
	const PfVmSettings turn_off = {.changes = PF_VM_SET_ENABLED};
	const PfVmSettings preserve = {.changes = PF_VM_SET_THP, .thp = PF_THP_PRESERVE};
	Heard heard = {0};
	PfDomain domain = sample();
	int fd;
	ToyBroker *toy = toy_broker_start(&fd);
	PfBroker *broker = pf_broker_new(fd, &events, &heard);

	toy_broker_set_domain(toy, &domain);
	pf_broker_modify(broker, "toy", &turn_off, on_result, &heard);
	running = wait_result(&heard);
	assert_false(pf_broker_modify_finish(running, &error));
	assert_true(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_BUSY));
	domain.active = FALSE;
	toy_broker_set_domain(toy, &domain);
	pf_broker_modify(broker, "toy", &preserve, on_result, &heard);
	policy = wait_result(&heard);
	assert_true(pf_broker_modify_finish(policy, NULL));
	assert_true(heard.domain.enabled);
	assert_int_equal(heard.domain.thp, PF_THP_PRESERVE);
	pf_broker_modify(broker, "toy", &turn_off, on_result, &heard);
	off = wait_result(&heard);
	assert_true(pf_broker_modify_finish(off, NULL));
	assert_false(heard.domain.enabled);
	pf_broker_free(broker);
	toy_broker_stop(toy);
}

/* A broker that has gone wrong: answers nobody asked for are dropped, other packets end the
 * connection. */
static void test_wrong_messages(void **state)
{
	PfBrokerMessage message = {
		.magic = PF_BROKER_MAGIC, .type = PF_BROKER_ANSWER, .id = 77, .error = -1};
	g_autoptr(GAsyncResult) result = NULL;
	g_autoptr(GError) error = NULL;
	Heard heard = {0};
	int fds[2];
	PfBroker *broker;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	broker = pf_broker_new(fds[0], &events, &heard);
	assert_int_equal(pf_packet_send(fds[1], &message, sizeof(message), STDERR_FILENO), 0);
	/* This one is asked for, but has no descriptor. */
	pf_broker_open_userfaultfd(broker, UUID, on_result, &heard);
	message.id = 1;
	assert_int_equal(pf_packet_send(fds[1], &message, sizeof(message), -1), 0);
	result = wait_result(&heard);
	assert_int_equal(pf_broker_open_userfaultfd_finish(result, &error), -1);
	assert_true(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA));
	assert_int_equal(heard.n_closed, 0);
	message.type = 1;
	assert_int_equal(pf_packet_send(fds[1], &message, sizeof(message), -1), 0);
	wait_for(&heard.n_closed, 1);
	pf_broker_free(broker);
	close(fds[1]);
}

/* The broker ends after it has answered, with another request unread: what was done is not taken for undone. */
static void test_last_answer(void **state)
{
	const PfVmSettings turn_off = {.changes = PF_VM_SET_ENABLED};
	PfBrokerMessage answer = {
		.magic = PF_BROKER_MAGIC, .type = PF_BROKER_ANSWER, .id = 1, .error = -1};
	Heard done = {0}, undone = {0}, heard = {0};
	g_autoptr(GAsyncResult) first = NULL;
	g_autoptr(GAsyncResult) second = NULL;
	g_autoptr(GError) error = NULL;
	struct pollfd request;
	PfBroker *broker;
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	broker = pf_broker_new(fds[0], &events, &heard);
	pf_broker_modify(broker, "toy", &turn_off, on_result, &done);
	pf_broker_modify(broker, "toy", &turn_off, on_result, &undone);
	request = (struct pollfd){.fd = fds[1], .events = POLLIN};
	while (poll(&request, 1, 0) == 0)
		g_main_context_iteration(NULL, TRUE);
	assert_int_equal(pf_packet_send(fds[1], &answer, sizeof(answer), -1), 0);
	close(fds[1]);
	first = wait_result(&done);
	assert_true(pf_broker_modify_finish(first, NULL));
	second = wait_result(&undone);
	assert_false(pf_broker_modify_finish(second, &error));
	assert_true(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_CLOSED));
	wait_for(&heard.n_closed, 1);
	pf_broker_free(broker);
}

static gboolean answer_additions(
	const PfAdditionsChange *said, PfAdditionsChange *change, GError **error)
{
	PfBrokerMessage answer = {.magic = PF_BROKER_MAGIC,
		.type = PF_BROKER_ANSWER,
		.id = 1,
		.error = -1,
		.body.additions = *said};
	g_autoptr(GAsyncResult) result = NULL;
	Heard heard = {0};
	PfBroker *broker;
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	broker = pf_broker_new(fds[0], &events, &heard);
	pf_broker_eject_additions(broker, "toy", TRUE, on_result, &heard);
	assert_int_equal(pf_packet_send(fds[1], &answer, sizeof(answer), -1), 0);
	result = wait_result(&heard);
	pf_broker_free(broker);
	close(fds[1]);
	return pf_broker_additions_finish(result, change, error);
}

static void test_additions(void **state)
{
	PfAdditionsChange said = {.drive = "sda", .changed = 1, .running = 1}, change = {0};
	g_autoptr(GError) error = NULL;

	assert_true(answer_additions(&said, &change, NULL));
	assert_memory_equal(&change, &said, sizeof(said));
	memset(said.drive, 'a', sizeof(said.drive));
	assert_false(answer_additions(&said, &change, &error));
	assert_true(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA));
	assert_string_equal(change.drive, "sda");
}

/* It is sent when there is memory again, and not tried all the time until then. */
static void test_no_memory_for_a_request(void **state)
{
	static const int refused[] = {ENOBUFS, ENOMEM};
	const PfVmSettings turn_off = {.changes = PF_VM_SET_ENABLED};

	for (size_t i = 0; i < G_N_ELEMENTS(refused); i++) {
		g_autoptr(GAsyncResult) result = NULL;
		Heard heard = {0};
		PfDomain domain = sample();
		gint64 begin = g_get_monotonic_time();
		int fd;
		ToyBroker *toy = toy_broker_start(&fd);
		PfBroker *broker = pf_broker_new(fd, &events, &heard);

		domain.active = FALSE;
		toy_broker_set_domain(toy, &domain);
		refusal = refused[i];
		n_refusals = 2;
		n_tries = 0;
		pf_broker_modify(broker, "toy", &turn_off, on_result, &heard);
		result = wait_result(&heard);
		assert_true(pf_broker_modify_finish(result, NULL));
		assert_int_equal(n_tries, 3);
		assert_true(g_get_monotonic_time() - begin >= 2 * RETRY_US);
		pf_broker_free(broker);
		toy_broker_stop(toy);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_events),
		cmocka_unit_test(test_translate),
		cmocka_unit_test(test_channel),
		cmocka_unit_test(test_modify),
		cmocka_unit_test(test_wrong_messages),
		cmocka_unit_test(test_last_answer),
		cmocka_unit_test(test_additions),
		cmocka_unit_test(test_no_memory_for_a_request),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
