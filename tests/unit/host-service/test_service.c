/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The service and its VMs, with a broker and a shim that this file plays. The process of the test
 * is the VM's QEMU; it connects as "nobody" where it is root, as QEMU does not run as root.
 */
#include "host-service/service.h"
#include "fake_broker.h"
#include "proto/shim_protocol.h"
#include <fcntl.h>
#include <glib/gstdio.h>
#include <sys/resource.h>
#include <sys/un.h>

#define NOBODY 65534

typedef struct Rig {
	char dir[32];
	char *socket;
	int fd; /* the broker's */
	PfService *service;
	PfDomain domain;
	const char *reason; /* that a test waits for, a part of it */
} Rig;

static void on_closed(void *userdata)
{
}

static int set_up(void **state)
{
	PfServiceConfig config;
	Rig *rig = g_new0(Rig, 1);
	int fd;

	strcpy(rig->dir, "/tmp/pf-service-XXXXXX");
	assert_non_null(g_mkdtemp(rig->dir));
	assert_int_equal(g_chmod(rig->dir, 0755), 0);
	rig->socket = g_build_filename(rig->dir, "shim.sock", NULL);
	config.shim_socket = rig->socket;
	rig->fd = fake_broker_start(&fd);
	rig->service = pf_service_new(&config, fd, on_closed, NULL, NULL);
	assert_non_null(rig->service);
	rig->domain = fake_domain();
	*state = rig;
	return 0;
}

static int tear_down(void **state)
{
	Rig *rig = *state;
	g_autofree char *lock = g_strconcat(rig->socket, ".lock", NULL);

	pf_service_free(rig->service);
	while (g_main_context_iteration(NULL, FALSE))
		;
	close(rig->fd);
	assert_int_equal(access(rig->socket, F_OK), -1);
	g_unlink(lock);
	assert_int_equal(g_rmdir(rig->dir), 0);
	g_free(rig->socket);
	g_free(rig);
	return 0;
}

static void match_reason(const PfVmView *view, void *userdata)
{
	Rig *rig = userdata;

	if (rig->reason && strstr(view->reason, rig->reason))
		rig->reason = NULL;
}

static gboolean has_reason(void *userdata)
{
	Rig *rig = userdata;

	pf_service_visit_vm(rig->service, "toy", match_reason, rig);
	return rig->reason == NULL;
}

static void wait_for_reason(Rig *rig, const char *reason)
{
	rig->reason = reason;
	turn_until(has_reason, rig);
}

/* The shim */

static int connect_shim(const Rig *rig, uid_t uid)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int result;

	g_strlcpy(address.sun_path, rig->socket, sizeof address.sun_path);
	if (geteuid() == 0 && uid != 0)
		assert_int_equal(seteuid(uid), 0);
	result = connect(fd, (struct sockaddr *)&address, sizeof address);
	if (getuid() == 0)
		assert_int_equal(seteuid(0), 0);
	assert_int_equal(result, 0);
	return fd;
}

static void say(int shim, PfShimType type, uint64_t id, const void *data, size_t size)
{
	PfShimHeader header = {
		PF_SHIM_MAGIC, (uint16_t)type, 0, (uint32_t)(sizeof header + size), 0, id};
	uint8_t packet[sizeof header + sizeof(PfShimState)];

	memcpy(packet, &header, sizeof header);
	if (size > 0)
		memcpy(packet + sizeof header, data, size);
	assert_int_equal(
		send(shim, packet, sizeof header + size, MSG_NOSIGNAL), sizeof header + size);
}

static void say_hello(int shim)
{
	PfShimHello hello = {.version = PF_SHIM_VERSION,
		.version_oldest = PF_SHIM_VERSION,
		.page_size = PF_PAGE_SIZE};

	say(shim, PF_SHIM_HELLO, 0, &hello, sizeof hello);
}

static void say_ready(int shim, PfShimReadyCode code)
{
	PfShimReady ready = {.code = code};

	say(shim, PF_SHIM_READY, 0, &ready, sizeof ready);
}

/* Waits for a message; 0: the service has closed the connection. */
static unsigned hear(int shim, uint64_t *id)
{
	PfShimHeader header;
	ssize_t n;

	*id = 0;
	turn_until(is_readable, &shim);
	n = recv(shim, &header, sizeof header, MSG_TRUNC);
	if (n <= 0)
		return 0;
	assert_true((size_t)n >= sizeof header);
	*id = header.id;
	return header.type;
}

static void expect(int shim, PfShimType type)
{
	uint64_t id;

	assert_int_equal(hear(shim, &id), type);
}

/* Up to a stage of the conversation. */
typedef enum Stage {
	CONNECTED,
	RELEASING,
	OPENING,   /* the broker is asked for the device */
	ATTACHING, /* it has answered */
	READY,
} Stage;

static int converse(Rig *rig, Stage stage, PfBrokerRequest *device)
{
	int shim;
	uint64_t id;

	fake_broker_domain(rig->fd, &rig->domain);
	wait_for_reason(rig, "");
	shim = connect_shim(rig, NOBODY);
	if (stage == CONNECTED)
		return shim;
	say_hello(shim);
	assert_int_equal(hear(shim, &id), PF_SHIM_RELEASE);
	if (stage == RELEASING)
		return shim;
	say(shim, PF_SHIM_RELEASED, id, NULL, 0);
	*device = fake_broker_next(rig->fd, PF_BROKER_OPEN_USERFAULTFD);
	if (stage == OPENING)
		return shim;
	fake_broker_answer(rig->fd, device, open("/dev/null", O_RDWR | O_CLOEXEC));
	expect(shim, PF_SHIM_ATTACH);
	if (stage == ATTACHING)
		return shim;
	say_ready(shim, PF_SHIM_READY_OK);
	expect(shim, PF_SHIM_STORE);
	expect(shim, PF_SHIM_STAGING);
	return shim;
}

static void test_conversation(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;
	int shim = converse(rig, ATTACHING, &device);

	wait_for_reason(rig, "the shim is getting ready");
	say_ready(shim, PF_SHIM_READY_NO_BLOCKS);
	wait_for_reason(rig, "no RAM of private anonymous memory");
	say_ready(shim, PF_SHIM_READY_OK);
	expect(shim, PF_SHIM_STORE);
	expect(shim, PF_SHIM_STAGING);
	wait_for_reason(rig, "no guest channel");
	close(shim);
}

static void test_out_of_turn(void **state)
{
	Rig *rig = *state;
	static const struct {
		Stage stage;
		PfShimType type;
	} wrong[] = {
		{CONNECTED, PF_SHIM_READY},
		{CONNECTED, PF_SHIM_RELEASED},
		{RELEASING, PF_SHIM_HELLO},
		{RELEASING, PF_SHIM_READY},
		{OPENING, PF_SHIM_HELLO},
		{OPENING, PF_SHIM_READY},
		{OPENING, PF_SHIM_RELEASED},
		{ATTACHING, PF_SHIM_HELLO},
		{ATTACHING, PF_SHIM_RELEASED},
		{READY, PF_SHIM_HELLO},
		{READY, PF_SHIM_READY},
		{READY, PF_SHIM_RELEASED},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
		PfBrokerRequest device;
		int shim = converse(rig, wrong[i].stage, &device);
		uint64_t id;

		if (wrong[i].type == PF_SHIM_HELLO)
			say_hello(shim);
		else if (wrong[i].type == PF_SHIM_READY)
			say_ready(shim, PF_SHIM_READY_OK);
		else
			say(shim, PF_SHIM_RELEASED, 1, NULL, 0);
		wait_for_reason(rig, "out of turn");
		assert_int_equal(hear(shim, &id), 0);
		close(shim);
		/* Too late for that one: nobody gets it. */
		if (wrong[i].stage == OPENING)
			fake_broker_answer(rig->fd, &device, open("/dev/null", O_RDWR | O_CLOEXEC));
	}
}

static void test_device_is_asked_for_again(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;
	LogCapture log = capture_log();
	int shim = converse(rig, OPENING, &device);

	fake_broker_fail(rig->fd, &device, G_IO_ERROR_PERMISSION_DENIED, "not allowed today");
	wait_for_reason(rig, "not allowed today");
	device = fake_broker_next(rig->fd, PF_BROKER_OPEN_USERFAULTFD);
	fake_broker_fail(rig->fd, &device, G_IO_ERROR_PERMISSION_DENIED, "not allowed today");
	device = fake_broker_next(rig->fd, PF_BROKER_OPEN_USERFAULTFD);
	assert_int_equal(count_logged(&log, "not allowed today"), 1);
	end_capture(&log);
	fake_broker_answer(rig->fd, &device, open("/dev/null", O_RDWR | O_CLOEXEC));
	expect(shim, PF_SHIM_ATTACH);
	wait_for_reason(rig, "the shim is getting ready");
	close(shim);
}

static void test_freed_while_answers_are_awaited(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;
	int shim;

	g_strlcpy(rig->domain.channel, "/nowhere", sizeof rig->domain.channel);
	fake_broker_domain(rig->fd, &rig->domain);
	fake_broker_next(rig->fd, PF_BROKER_OPEN_CHANNEL);
	shim = converse(rig, OPENING, &device);
	g_clear_pointer(&rig->service, pf_service_free);
	/* Only now do they hear of it. */
	while (g_main_context_iteration(NULL, FALSE))
		;
	assert_int_equal(hear(shim, &device.id), 0);
	close(shim);
}

static void test_second_service(void **state)
{
	Rig *rig = *state;
	PfServiceConfig config = {.shim_socket = rig->socket};
	g_autoptr(GError) error = NULL;
	PfBrokerRequest device;
	int fd, second = fake_broker_start(&fd);

	assert_null(pf_service_new(&config, fd, on_closed, NULL, &error));
	assert_true(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_BUSY));
	assert_non_null(strstr(error->message, "another pagefusiond uses /tmp/pf-service-"));
	assert_non_null(strstr(error->message, ": stop it, or choose another --run-dir"));
	close(second);
	/* The first one is where it was. */
	close(converse(rig, READY, &device));
}

static void test_refusals_are_logged(void **state)
{
	Rig *rig = *state;
	LogCapture log = capture_log();

	g_strlcpy(rig->domain.refusal, "huge pages", sizeof rig->domain.refusal);
	fake_broker_domain(rig->fd, &rig->domain);
	wait_for_reason(rig, "huge pages");
	fake_broker_domain(rig->fd, &rig->domain);
	/* Shut off it is no news; started again it is. */
	rig->domain.active = FALSE;
	fake_broker_domain(rig->fd, &rig->domain);
	rig->domain.active = TRUE;
	fake_broker_domain(rig->fd, &rig->domain);
	g_strlcpy(rig->domain.refusal, "a device", sizeof rig->domain.refusal);
	fake_broker_domain(rig->fd, &rig->domain);
	wait_for_reason(rig, "a device");
	assert_int_equal(count_logged(&log, "not fused: huge pages"), 2);
	assert_int_equal(count_logged(&log, "not fused: a device"), 1);
	end_capture(&log);
}

/* The limit of descriptors under which n more can be opened; there may be gaps between those that
 * are open. */
static rlim_t limit_that_leaves(unsigned n)
{
	rlim_t limit = 0;

	while (fcntl((int)limit, F_GETFD) >= 0 || n-- > 0)
		limit++;
	return limit;
}

/* With so many descriptors left the VM cannot be made, and when there are more it can. */
static void expect_trouble(Rig *rig, unsigned n_left, const char *reason)
{
	struct rlimit old, low;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	low = old;
	low.rlim_cur = limit_that_leaves(n_left);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	fake_broker_domain(rig->fd, &rig->domain);
	wait_for_reason(rig, reason);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	fake_broker_domain(rig->fd, &rig->domain);
	wait_for_reason(rig, "QEMU has not connected");
	rig->domain.active = FALSE;
	fake_broker_domain(rig->fd, &rig->domain);
	while (g_main_context_iteration(NULL, FALSE))
		;
	rig->domain.active = TRUE;
}

static void test_no_descriptors(void **state)
{
	Rig *rig = *state;

	expect_trouble(rig, 0, "Too many open files");
	expect_trouble(rig, 2, "no memfd to receive pages in: Too many open files");
}

static void test_no_process_id(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;

	rig->domain.pid = 0;
	fake_broker_domain(rig->fd, &rig->domain);
	wait_for_reason(rig, "does not say yet which process");
	rig->domain.pid = getpid();
	close(converse(rig, READY, &device));
}

static void test_reasons_are_logged_once(void **state)
{
	Rig *rig = *state;
	LogCapture log = capture_log();
	PfBrokerRequest device;
	uint64_t id;
	int shim;

	for (int i = 0; i < 3; i++) {
		close(converse(rig, READY, &device));
		wait_for_reason(rig, "it has closed the connection");
	}
	assert_int_equal(count_logged(&log, "gone: it has closed the connection"), 1);
	for (int i = 0; i < 3 && getuid() == 0; i++) {
		shim = connect_shim(rig, 0);
		assert_int_equal(hear(shim, &id), 0);
		close(shim);
	}
	assert_int_equal(count_logged(&log, "QEMU runs as root"), getuid() == 0 ? 1 : 0);
	end_capture(&log);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_conversation),
		TEST(test_out_of_turn),
		TEST(test_device_is_asked_for_again),
		TEST(test_freed_while_answers_are_awaited),
		TEST(test_second_service),
		TEST(test_refusals_are_logged),
		TEST(test_no_descriptors),
		TEST(test_no_process_id),
		TEST(test_reasons_are_logged_once),
	};
#undef TEST

	return cmocka_run_group_tests(tests, NULL, NULL);
}
