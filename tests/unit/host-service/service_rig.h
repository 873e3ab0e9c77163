/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The service with one VM, and a broker and a shim that the test plays. The process of the test is the VM's QEMU; it
 * connects as "nobody" where it is root, as QEMU does not run as root.
 */
#include "host-service/service/service.h"
#include "fake_broker.h"
#include "host-service/front/shim_socket.h"
#include "proto/shim_protocol.h"
#include <fcntl.h>
#include <glib/gstdio.h>
#include <sys/un.h>

#define NOBODY 65534

typedef struct Rig {
	char dir[32];
	char *socket;
	int fd; /* the broker's */
	PfShimSocket *shims;
	PfConfig *config;
	PfHasher *hasher;
	PfService *service;
	PfDomain domain;
	const char *reason; /* that a test waits for, a part of it */
} Rig;

static inline void on_closed(void *userdata)
{
}

#define ANSWER_MS 900u

/* Of the services that are set up. */
static guint64 rig_memory_limit;

/* answer_ms: for how long shims may be silent; 0: as ever. */
static inline int set_up_configured(void **state, guint answer_ms, const char *config_text)
{
	PfServiceConfig config = {
		.fusion = PF_FUSION_DEFAULTS, .pressure = {-1, -1}, .answer_ms = answer_ms};
	Rig *rig = g_new0(Rig, 1);
	int fd;

	strcpy(rig->dir, "/tmp/pf-service-XXXXXX");
	assert_non_null(g_mkdtemp(rig->dir));
	assert_int_equal(g_chmod(rig->dir, 0755), 0);
	rig->socket = g_build_filename(rig->dir, "shim.sock", NULL);
	rig->shims = pf_shim_socket_new(rig->socket, NULL);
	assert_non_null(rig->shims);
	rig->config = pf_config_parse("test", config_text, strlen(config_text), NULL);
	assert_non_null(rig->config);
	rig->hasher = pf_hasher_new();
	config.shim_fd = fcntl(pf_shim_socket_fd(rig->shims), F_DUPFD_CLOEXEC, 0);
	config.config = rig->config;
	config.hasher = rig->hasher;
	config.memory_limit = rig_memory_limit;
	rig->fd = fake_broker_start(&fd);
	rig->service = pf_service_new(&config, fd, on_closed, NULL);
	rig->domain = fake_domain();
	*state = rig;
	return 0;
}

static inline int set_up(void **state)
{
	return set_up_configured(state, 0, "");
}

/* Shims have little time. */
static inline int set_up_impatient(void **state)
{
	return set_up_configured(state, ANSWER_MS, "");
}

static inline int tear_down(void **state)
{
	Rig *rig = *state;
	g_autofree char *lock = g_strconcat(rig->socket, ".lock", NULL);

	pf_service_free(rig->service);
	while (g_main_context_iteration(NULL, FALSE))
		;
	close(rig->fd);
	pf_shim_socket_free(rig->shims);
	pf_config_free(rig->config);
	pf_hasher_free(rig->hasher);
	g_unlink(lock);
	assert_int_equal(g_rmdir(rig->dir), 0);
	g_free(rig->socket);
	g_free(rig);
	return 0;
}

static inline void match_reason(const PfVmView *view, void *userdata)
{
	Rig *rig = userdata;

	if (rig->reason && strstr(view->reason, rig->reason))
		rig->reason = NULL;
}

static inline gboolean has_reason(void *userdata)
{
	Rig *rig = userdata;

	pf_service_visit_vm(rig->service, "toy", match_reason, rig);
	return rig->reason == NULL;
}

static inline void wait_for_reason(Rig *rig, const char *reason)
{
	rig->reason = reason;
	turn_until(has_reason, rig);
}

/* The shim */

static inline int connect_shim(const Rig *rig, uid_t uid)
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

static inline void say(int shim, PfShimType type, uint64_t id, const void *data, size_t size)
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

static inline void say_hello_with(int shim, uint32_t version, uint32_t flags, uint64_t fused_pages)
{
	PfShimHello hello = {.version = version,
		.version_oldest = version,
		.flags = flags,
		.page_size = PF_PAGE_SIZE,
		.fused_pages = fused_pages};

	say(shim, PF_SHIM_HELLO, 0, &hello, sizeof hello);
}

static inline void say_hello(int shim)
{
	say_hello_with(shim, PF_SHIM_VERSION, 0, 0);
}

static inline void return_store(int shim, int store)
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

static inline void say_ready(int shim, PfShimReadyCode code)
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

static inline Heard hear(int shim)
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

static inline Heard expect(int shim, unsigned type)
{
	Heard heard = hear(shim);

	assert_int_equal(heard.type, type);
	if (heard.fd >= 0)
		close(heard.fd);
	return heard;
}

static inline void expect_closed(int shim)
{
	assert_int_equal(hear(shim).type, 0);
	close(shim);
}

/* Everything is to be released, and is. */
static inline void release(int shim)
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

static inline int connect_announced(Rig *rig)
{
	fake_broker_domain(rig->fd, &rig->domain);
	wait_for_reason(rig, "");
	return connect_shim(rig, NOBODY);
}

static inline void attach(Rig *rig, int shim)
{
	PfBrokerRequest device = fake_broker_next(rig->fd, PF_BROKER_OPEN_USERFAULTFD);

	fake_broker_answer(rig->fd, &device, open("/dev/null", O_RDWR | O_CLOEXEC));
	expect(shim, PF_SHIM_ATTACH);
}

static inline int converse(Rig *rig, Stage stage, PfBrokerRequest *device)
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
