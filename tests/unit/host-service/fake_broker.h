/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * A broker that the test plays, one request at a time, in the thread of the main loop: what is
 * awaited stays so until the test answers it.
 */
#include "host-service/wire/broker_protocol.h"
#include "host-service/wire/packet.h"
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#define FAKE_UUID    "2f6a1c1e-8a0f-4c5f-9d1b-0a5f3a4d7c01"
#define FAKE_WAIT_US (30 * G_USEC_PER_SEC)

/* Turns the main loop until condition() holds. */
static inline void turn_until(gboolean (*condition)(void *userdata), void *userdata)
{
	gint64 deadline = g_get_monotonic_time() + FAKE_WAIT_US;

	while (!condition(userdata)) {
		if (g_get_monotonic_time() > deadline)
			fail_msg("what the test waits for did not come");
		if (!g_main_context_iteration(NULL, FALSE))
			g_usleep(1000);
	}
}

static inline gboolean is_readable(void *userdata)
{
	struct pollfd event = {*(const int *)userdata, POLLIN, 0};

	return poll(&event, 1, 0) > 0;
}

/* The service's end goes to *service_fd, the test's is returned. */
static inline int fake_broker_start(int *service_fd)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	*service_fd = fds[0];
	return fds[1];
}

static inline void fake_broker_send(int broker, PfBrokerMessage *message, int fd)
{
	message->magic = PF_BROKER_MAGIC;
	assert_int_equal(pf_packet_send(broker, message, sizeof *message, fd), 0);
}

static inline void fake_broker_domain(int broker, const PfDomain *domain)
{
	PfBrokerMessage event = {.type = PF_BROKER_DOMAIN, .error = -1, .body.domain = *domain};

	fake_broker_send(broker, &event, -1);
}

static inline PfBrokerRequest fake_broker_next_any(int broker)
{
	PfBrokerRequest request;
	size_t n_fds;
	int fd;

	turn_until(is_readable, &broker);
	assert_int_equal(
		pf_packet_receive(broker, &request, sizeof request, &fd, &n_fds), sizeof request);
	assert_true(pf_broker_check_request(&request, sizeof request, n_fds));
	return request;
}

/* The next request, which must be of this type. */
static inline PfBrokerRequest fake_broker_next(int broker, PfBrokerRequestType type)
{
	PfBrokerRequest request = fake_broker_next_any(broker);

	assert_int_equal(request.type, type);
	return request;
}

/* fd is consumed; -1: none. */
static inline void fake_broker_answer(int broker, const PfBrokerRequest *request, int fd)
{
	PfBrokerMessage answer = {.type = PF_BROKER_ANSWER, .id = request->id, .error = -1};

	fake_broker_send(broker, &answer, fd);
	if (fd >= 0)
		close(fd);
}

static inline void fake_broker_fail(
	int broker, const PfBrokerRequest *request, GIOErrorEnum code, const char *text)
{
	PfBrokerMessage answer = {
		.type = PF_BROKER_ANSWER, .id = request->id, .error = (int32_t)code};

	g_strlcpy(answer.text, text, sizeof answer.text);
	fake_broker_send(broker, &answer, -1);
}

/* A domain that runs as this process. */
static inline PfDomain fake_domain(void)
{
	return (PfDomain){.uuid = FAKE_UUID,
		.name = "toy",
		.group = "default",
		.state = "running",
		.enabled = TRUE,
		.active = TRUE,
		.has_shim = TRUE,
		.pid = getpid(),
		.memory_pages = 1024};
}

/* What is logged goes here from now on. */
typedef struct LogCapture {
	int file, standard_error;
} LogCapture;

static inline LogCapture capture_log(void)
{
	LogCapture capture = {memfd_create("log", MFD_CLOEXEC), dup(STDERR_FILENO)};

	assert_true(capture.file >= 0 && capture.standard_error >= 0);
	fflush(stderr);
	assert_int_equal(dup2(capture.file, STDERR_FILENO), STDERR_FILENO);
	return capture;
}

/* How many lines with this text were logged since capture_log(). */
static inline unsigned count_logged(const LogCapture *capture, const char *text)
{
	char log[65536] = "";
	unsigned n = 0;
	ssize_t size = pread(capture->file, log, sizeof log - 1, 0);

	assert_true(size >= 0);
	log[size] = 0;
	for (const char *at = log; (at = strstr(at, text)); at++)
		n++;
	return n;
}

static inline void end_capture(LogCapture *capture)
{
	fflush(stderr);
	dup2(capture->standard_error, STDERR_FILENO);
	close(capture->standard_error);
	close(capture->file);
}
