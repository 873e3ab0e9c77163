/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The real broker process on libvirt's test driver, which needs no QEMU and no daemon: each test
 * spawns its own and speaks with it through two PfBrokers, the service's and the front's. The main loop of a test runs until what it
 * waits for is there, and ends the test if that takes ten seconds.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "host-service/wire/broker_protocol.h"
#include <poll.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define NODE    "test://" PF_TEST_DOMAINS "/node.test.xml"
#define RUNS    "2f6a1c1e-8a0f-4c5f-9d1b-0a5f3a4d7c01"
#define OFF     "2f6a1c1e-8a0f-4c5f-9d1b-0a5f3a4d7c02"
#define NOBODY  "00000000-0000-4000-8000-000000000000"
#define TIMEOUT 10

typedef struct Fixture {
	GMainContext *context;
	PfBroker *broker, *front;
	pid_t pid;
	GHashTable *domains; /* name to PfDomain */
	guint changes;       /* domain_changed() calls */
	gboolean connected;
	guint n_domains_when_connected;
	char *reason;
	gboolean closed;
	GAsyncResult *result;
} Fixture;

static inline void domain_changed(void *userdata, const PfDomain *domain)
{
	Fixture *f = userdata;

	f->changes++;
	g_hash_table_replace(
		f->domains, g_strdup(domain->name), g_memdup2(domain, sizeof(*domain)));
}

static inline void domain_gone(void *userdata, const char *uuid)
{
	fail_msg("no domain of the test driver goes, but %s did", uuid);
}

static inline void libvirt_changed(void *userdata, gboolean connected, const char *reason)
{
	Fixture *f = userdata;

	f->connected = connected;
	if (connected)
		f->n_domains_when_connected = g_hash_table_size(f->domains);
	g_free(f->reason);
	f->reason = g_strdup(reason);
}

static inline void closed(void *userdata)
{
	((Fixture *)userdata)->closed = TRUE;
}

static const PfBrokerEvents events = {domain_changed, domain_gone, libvirt_changed, closed};

static inline void front_hears_of_domain(void *userdata, const PfDomain *domain)
{
	fail_msg("the front heard of %s", domain->name);
}

static inline void front_hears_of_libvirt(void *userdata, gboolean connected, const char *reason)
{
	fail_msg("the front heard of libvirt: %d", connected);
}

static inline void front_closed(void *userdata)
{
}

static const PfBrokerEvents front_events = {
	front_hears_of_domain, domain_gone, front_hears_of_libvirt, front_closed};

/* The image with the guest additions, of the brokers that are started; NULL: there is none. */
static char *broker_rig_iso;

static inline PfBrokerSockets spawn(pid_t *pid, const char *uri)
{
	const PfBrokerConfig config = {uri, "/lib/libpagefusion-vmm.so", "/run/shim.sock",
		broker_rig_iso ? broker_rig_iso : "/nonexistent"};
	g_autoptr(GError) error = NULL;
	PfBrokerSockets sockets = {-1, -1};

	*pid = pf_broker_spawn(&config, &sockets, &error);
	assert_null(error);
	assert_true(*pid > 0);
	assert_true(sockets.service >= 0 && sockets.front >= 0);
	return sockets;
}

static inline Fixture *start(const char *uri)
{
	Fixture *f = g_new0(Fixture, 1);
	PfBrokerSockets sockets;

	/* First: a broker that is forked with a default context (which is made by what follows) reads its wake-ups from a
	 * descriptor that may be anything by then. */
	sockets = spawn(&f->pid, uri);
	f->context = g_main_context_new();
	g_main_context_push_thread_default(f->context);
	f->domains = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
	f->broker = pf_broker_new(sockets.service, &events, f);
	f->front = pf_broker_new(sockets.front, &front_events, f);
	return f;
}

static inline int exit_status(pid_t pid)
{
	struct pollfd process = {.fd = pidfd_open(pid, 0), .events = POLLIN};
	int status;

	if (poll(&process, 1, 1000 * TIMEOUT) != 1)
		fail_msg("the broker has not ended after %d seconds", TIMEOUT);
	close(process.fd);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static inline void stop(Fixture *f)
{
	g_clear_pointer(&f->broker, pf_broker_free);
	if (f->pid)
		assert_int_equal(exit_status(f->pid), 0);
	g_clear_pointer(&f->front, pf_broker_free);
	g_clear_object(&f->result);
	g_main_context_pop_thread_default(f->context);
	g_main_context_unref(f->context);
	g_hash_table_unref(f->domains);
	g_free(f->reason);
	g_free(f);
}

static inline gboolean on_timeout(gpointer userdata)
{
	fail_msg("nothing came for %d seconds", TIMEOUT);
	return G_SOURCE_REMOVE;
}

static inline void run_until(Fixture *f, gboolean (*done)(Fixture *f))
{
	g_autoptr(GSource) timeout = g_timeout_source_new_seconds(TIMEOUT);

	g_source_set_callback(timeout, on_timeout, NULL, NULL);
	g_source_attach(timeout, f->context);
	while (!done(f))
		g_main_context_iteration(f->context, TRUE);
	g_source_destroy(timeout);
}

static inline gboolean has_result(Fixture *f)
{
	return f->result != NULL;
}

static inline gboolean is_connected(Fixture *f)
{
	return f->connected;
}

static inline void on_result(GObject *source, GAsyncResult *result, gpointer userdata)
{
	((Fixture *)userdata)->result = g_object_ref(result);
}

static inline void assert_error(GError *error, GIOErrorEnum code, const char *says)
{
	assert_non_null(error);
	assert_true(error->domain == G_IO_ERROR);
	if (error->code != (int)code || !strstr(error->message, says))
		fail_msg("error %d \"%s\", wanted %d \"%s\"", error->code, error->message, code,
			says);
	assert_null(strchr(error->message, '\n'));
}

static inline gboolean modify(
	Fixture *f, const char *vm, const PfVmSettings *settings, GError **error)
{
	g_clear_object(&f->result);
	pf_broker_modify(f->front, vm, settings, on_result, f);
	run_until(f, has_result);
	/* What the service hears of it was sent before the answer. */
	while (g_main_context_iteration(f->context, FALSE))
		;
	return pf_broker_modify_finish(f->result, error);
}

static inline gboolean set_enabled(Fixture *f, const char *vm, gboolean enabled, GError **error)
{
	const PfVmSettings settings = {.changes = PF_VM_SET_ENABLED, .enabled = enabled};

	return modify(f, vm, &settings, error);
}

static inline void expect_refused(
	Fixture *f, const char *vm, gboolean enabled, GIOErrorEnum code, const char *says)
{
	g_autoptr(GError) error = NULL;

	assert_false(set_enabled(f, vm, enabled, &error));
	assert_error(error, code, says);
}
