/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Connections whose VM nobody knows: they are turned away by the clock alone. */
#include "host-service/service/shim_listener.h"
#include <glib-unix.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#define WAIT_MS 50

static PfVm *find_none(void *userdata, pid_t pid)
{
	return NULL;
}

static int listen_somewhere(struct sockaddr_un *address, socklen_t *size)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	/* A name of the kernel's choosing, which is in no file system. */
	*address = (struct sockaddr_un){.sun_family = AF_UNIX};
	assert_int_equal(bind(fd, (struct sockaddr *)address, sizeof(sa_family_t)), 0);
	*size = sizeof(*address);
	assert_int_equal(getsockname(fd, (struct sockaddr *)address, size), 0);
	assert_int_equal(listen(fd, 8), 0);
	return fd;
}

static int connect_to(const struct sockaddr_un *address, socklen_t size)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	assert_int_equal(connect(fd, (const struct sockaddr *)address, size), 0);
	return fd;
}

static void turn(void)
{
	g_main_context_iteration(NULL, TRUE);
}

static gboolean on_end(gint fd, GIOCondition condition, gpointer userdata)
{
	char byte;

	assert_int_equal(recv(fd, &byte, 1, 0), 0);
	*(gboolean *)userdata = TRUE;
	return G_SOURCE_REMOVE;
}

/* Another thread may close it. */
static void wait_for_end(int fd)
{
	gboolean ended = FALSE;

	g_unix_fd_add(fd, G_IO_IN, on_end, &ended);
	while (!ended)
		turn();
	close(fd);
}

/* Nobody else comes, and no domain changes. */
static void turns_away_who_waits_too_long(void **state)
{
	struct sockaddr_un address;
	socklen_t size;
	int fd = listen_somewhere(&address, &size), first, second;
	PfShimListener *listener = pf_shim_listener_new(fd, WAIT_MS, find_none, NULL);
	gint64 since_us, later_us;

	assert_true(pf_shim_listener_is_quiet(listener, G_MAXINT64));
	first = connect_to(&address, size);
	since_us = g_get_monotonic_time();
	while (pf_shim_listener_is_quiet(listener, 0))
		turn();
	/* Its time does not end with the first one's. */
	while (g_get_monotonic_time() - since_us < WAIT_MS * 1000 / 4)
		g_main_context_iteration(NULL, FALSE);
	second = connect_to(&address, size);
	later_us = g_get_monotonic_time();
	wait_for_end(first);
	assert_true(g_get_monotonic_time() - since_us >= WAIT_MS * 1000);
	wait_for_end(second);
	assert_true(g_get_monotonic_time() - later_us >= WAIT_MS * 1000);
	/* It may have been a VM's that is not known any more, and come back. */
	assert_false(pf_shim_listener_is_quiet(listener, 3600 * (gint64)G_USEC_PER_SEC));
	while (!pf_shim_listener_is_quiet(listener, 0))
		g_main_context_iteration(NULL, FALSE);
	pf_shim_listener_free(listener);
}

/* Its timer goes with it. */
static void ends_while_somebody_waits(void **state)
{
	struct sockaddr_un address;
	socklen_t size;
	int fd = listen_somewhere(&address, &size), waiting = connect_to(&address, size);
	PfShimListener *listener = pf_shim_listener_new(fd, WAIT_MS, find_none, NULL);

	while (pf_shim_listener_is_quiet(listener, 0))
		turn();
	pf_shim_listener_free(listener);
	wait_for_end(waiting);
	assert_false(g_main_context_pending(NULL));
	assert_null(g_main_context_find_source_by_user_data(NULL, listener));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(turns_away_who_waits_too_long),
		cmocka_unit_test(ends_while_somebody_waits),
	};

	alarm(60); /* one that waits for ever */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
