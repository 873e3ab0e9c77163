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
#include <sys/mman.h>
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
	PfServiceConfig config = {.thp = PF_THP_ALL, .fusion = PF_FUSION_DEFAULTS};
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

static void say_hello_with(int shim, uint32_t version, uint32_t flags, uint64_t fused_pages)
{
	PfShimHello hello = {.version = version,
		.version_oldest = version,
		.flags = flags,
		.page_size = PF_PAGE_SIZE,
		.fused_pages = fused_pages};

	say(shim, PF_SHIM_HELLO, 0, &hello, sizeof hello);
}

static void say_hello(int shim)
{
	say_hello_with(shim, PF_SHIM_VERSION, 0, 0);
}

static void return_store(int shim, int store)
{
	struct {
		PfShimHeader header;
		PfShimStore store;
	} packet = {{PF_SHIM_MAGIC, PF_SHIM_STORE_RETURN, 1, sizeof packet, 0, 0}, {{0}, 0}};
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof store)];
	} control = {{0}};
	struct iovec part = {&packet, sizeof packet};
	struct msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control};

	control.align = (struct cmsghdr){CMSG_LEN(sizeof store), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(&control.align), &store, sizeof store);
	assert_int_equal(sendmsg(shim, &message, MSG_NOSIGNAL), sizeof packet);
}

static void say_ready(int shim, PfShimReadyCode code)
{
	PfShimReady ready = {.code = code};

	say(shim, PF_SHIM_READY, 0, &ready, sizeof ready);
}

typedef struct Heard {
	unsigned type; /* 0: the service has closed the connection */
	uint64_t id;
	size_t size; /* of the payload */
	int fd;      /* that came along, or -1 */
} Heard;

static Heard hear(int shim)
{
	PfShimHeader header;
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = {&header, sizeof header};
	struct msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control};
	Heard heard = {.fd = -1};
	ssize_t n;

	turn_until(is_readable, &shim);
	n = recvmsg(shim, &message, MSG_TRUNC);
	if (n <= 0)
		return heard;
	assert_true((size_t)n >= sizeof header);
	if (CMSG_FIRSTHDR(&message))
		memcpy(&heard.fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof heard.fd);
	heard.type = header.type;
	heard.id = header.id;
	heard.size = (size_t)n - sizeof header;
	return heard;
}

static Heard expect(int shim, unsigned type)
{
	Heard heard = hear(shim);

	assert_int_equal(heard.type, type);
	if (heard.fd >= 0)
		close(heard.fd);
	return heard;
}

static void expect_closed(int shim)
{
	assert_int_equal(hear(shim).type, 0);
	close(shim);
}

/* Everything is to be released, and is. */
static void release(int shim)
{
	Heard order = expect(shim, PF_SHIM_RELEASE);

	assert_int_equal(order.size, 0);
	say(shim, PF_SHIM_RELEASED, order.id, NULL, 0);
}

/* Up to a stage of the conversation. */
typedef enum Stage {
	CONNECTED,
	RETURNING, /* the shim has a store */
	OPENING,   /* the broker is asked for the device */
	ATTACHING, /* it has answered */
	READY,
} Stage;

static int connect_announced(Rig *rig)
{
	fake_broker_domain(rig->fd, &rig->domain);
	wait_for_reason(rig, "");
	return connect_shim(rig, NOBODY);
}

static void attach(Rig *rig, int shim)
{
	PfBrokerRequest device = fake_broker_next(rig->fd, PF_BROKER_OPEN_USERFAULTFD);

	fake_broker_answer(rig->fd, &device, open("/dev/null", O_RDWR | O_CLOEXEC));
	expect(shim, PF_SHIM_ATTACH);
}

static int converse(Rig *rig, Stage stage, PfBrokerRequest *device)
{
	int shim = connect_announced(rig);

	if (stage == CONNECTED)
		return shim;
	say_hello_with(shim, PF_SHIM_VERSION, stage == RETURNING ? PF_SHIM_HAS_STORE : 0, 0);
	if (stage == RETURNING)
		return shim;
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
		{CONNECTED, PF_SHIM_LISTED},
		{RETURNING, PF_SHIM_HELLO},
		{RETURNING, PF_SHIM_READY},
		{RETURNING, PF_SHIM_RELEASED},
		{OPENING, PF_SHIM_HELLO},
		{OPENING, PF_SHIM_READY},
		{OPENING, PF_SHIM_RELEASED},
		{ATTACHING, PF_SHIM_HELLO},
		{ATTACHING, PF_SHIM_RELEASED},
		{READY, PF_SHIM_HELLO},
		{READY, PF_SHIM_READY},
		{READY, PF_SHIM_RELEASED},
		{READY, PF_SHIM_LISTED},
	};
	const PfShimListed listed = {0};

	for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
		PfBrokerRequest device;
		int shim = converse(rig, wrong[i].stage, &device);

		if (wrong[i].type == PF_SHIM_HELLO)
			say_hello(shim);
		else if (wrong[i].type == PF_SHIM_READY)
			say_ready(shim, PF_SHIM_READY_OK);
		else if (wrong[i].type == PF_SHIM_LISTED)
			say(shim, PF_SHIM_LISTED, 2, &listed, sizeof listed);
		else
			say(shim, PF_SHIM_RELEASED, 1, NULL, 0);
		wait_for_reason(rig, "out of turn");
		expect_closed(shim);
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
	expect_closed(shim);
}

static void test_second_service(void **state)
{
	Rig *rig = *state;
	PfServiceConfig config = {
		.shim_socket = rig->socket, .thp = PF_THP_ALL, .fusion = PF_FUSION_DEFAULTS};
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

	expect_trouble(rig, 0, "QEMU's process cannot be watched: Too many open files");
}

static void test_no_descriptor_for_captures(void **state)
{
	Rig *rig = *state;

	expect_trouble(rig, 1, "no memfd to receive pages in: Too many open files");
}

static void test_no_descriptor_for_the_store(void **state)
{
	Rig *rig = *state;
	struct rlimit old, low;
	PfBrokerRequest device;
	int shim = converse(rig, ATTACHING, &device);

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	low = old;
	low.rlim_cur = limit_that_leaves(0);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	say_ready(shim, PF_SHIM_READY_OK);
	wait_for_reason(rig, "there is no store for it");
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	expect_closed(shim);
	close(converse(rig, READY, &device));
}

/* What a shim can hold that is not the group's store: everything is released, and it gets the right one. */
static void test_foreign_store(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;
	int shim = converse(rig, RETURNING, &device);
	int store = memfd_create("pagefusion-default", MFD_ALLOW_SEALING | MFD_CLOEXEC);

	assert_true(store >= 0);
	return_store(shim, store);
	close(store);
	release(shim);
	attach(rig, shim);
	say_ready(shim, PF_SHIM_READY_OK);
	expect(shim, PF_SHIM_STORE);
	expect(shim, PF_SHIM_STAGING);
	close(shim);
}

static void test_store_comes_back(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;
	int shim = converse(rig, ATTACHING, &device);
	Heard store;

	say_ready(shim, PF_SHIM_READY_OK);
	store = hear(shim);
	assert_int_equal(store.type, PF_SHIM_STORE);
	assert_true(store.fd >= 0);
	expect(shim, PF_SHIM_STAGING);
	close(shim);
	wait_for_reason(rig, "it has closed the connection");
	shim = converse(rig, RETURNING, &device);
	return_store(shim, store.fd);
	attach(rig, shim);
	say_ready(shim, PF_SHIM_READY_OK);
	/* The list waits until the guest is known. */
	wait_for_reason(rig, "no guest channel");
	assert_false(is_readable(&shim));
	close(shim);
	close(store.fd);
}

static void test_shares_without_a_store(void **state)
{
	Rig *rig = *state;
	int shim = connect_announced(rig);

	say_hello_with(shim, PF_SHIM_VERSION, PF_SHIM_HAS_USERFAULTFD, 5);
	wait_for_reason(rig, "it shares pages and has no store");
	expect_closed(shim);
}

/* It is told to release everything, in words that every version has, and keeps its VM running. */
static void test_foreign_version(void **state)
{
	Rig *rig = *state;
	PfShimState unknown = {0};
	int shim = connect_announced(rig);
	int store = memfd_create("what it had", MFD_CLOEXEC);

	say_hello_with(shim, PF_SHIM_VERSION + 6, PF_SHIM_HAS_STORE, 3);
	return_store(shim, store);
	close(store);
	say(shim, 200, 0, &unknown, sizeof unknown);
	release(shim);
	wait_for_reason(rig, "the VM's shim speaks protocol 7 to 7 and this service 1: restart");
	/* Nothing else is asked of it, and nothing that it says ends the connection. */
	say(shim, PF_SHIM_LOST, 0, &unknown, 5);
	say(shim, 201, 0, NULL, 0);
	while (g_main_context_iteration(NULL, FALSE))
		;
	assert_false(is_readable(&shim));
	wait_for_reason(rig, "speaks protocol 7 to 7");
	close(shim);
}

static void test_refused_while_it_runs(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;
	int shim = converse(rig, READY, &device);

	g_strlcpy(rig->domain.refusal, "a device was plugged in", sizeof rig->domain.refusal);
	fake_broker_domain(rig->fd, &rig->domain);
	expect_closed(shim);
	shim = connect_shim(rig, NOBODY);
	say_hello(shim);
	release(shim);
	wait_for_reason(rig, "a device was plugged in");
	rig->domain.refusal[0] = 0;
	fake_broker_domain(rig->fd, &rig->domain);
	expect_closed(shim);
	shim = converse(rig, READY, &device);
	/* The same when its flag is taken away. */
	rig->domain.enabled = FALSE;
	fake_broker_domain(rig->fd, &rig->domain);
	expect_closed(shim);
	wait_for_reason(rig, "turned off for it while it runs");
}

/* A VM that nobody wants fused may have been before: its shim is heard. */
static void test_shim_of_a_refused_vm(void **state)
{
	Rig *rig = *state;
	int shim;

	rig->domain.enabled = FALSE;
	shim = connect_announced(rig);
	say_hello_with(shim, PF_SHIM_VERSION, PF_SHIM_HAS_STORE, 77);
	release(shim);
	wait_for_reason(rig, "turned off for it while it runs");
	close(shim);
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
	int shim;

	for (int i = 0; i < 3; i++) {
		close(converse(rig, READY, &device));
		wait_for_reason(rig, "it has closed the connection");
	}
	assert_int_equal(count_logged(&log, "gone: it has closed the connection"), 1);
	for (int i = 0; i < 3 && getuid() == 0; i++) {
		shim = connect_shim(rig, 0);
		expect_closed(shim);
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
		TEST(test_no_descriptor_for_captures),
		TEST(test_no_descriptor_for_the_store),
		TEST(test_foreign_store),
		TEST(test_store_comes_back),
		TEST(test_shares_without_a_store),
		TEST(test_foreign_version),
		TEST(test_refused_while_it_runs),
		TEST(test_shim_of_a_refused_vm),
		TEST(test_no_process_id),
		TEST(test_reasons_are_logged_once),
	};
#undef TEST

	return cmocka_run_group_tests(tests, NULL, NULL);
}
