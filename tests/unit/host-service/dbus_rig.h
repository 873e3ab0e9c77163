/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* A service and a broker that the tests of the bus interface play, behind the real socket of the front; and calls. The main
 * loop runs until what is waited for is there; the program's alarm() ends a test in which that never comes. */
#include "host-service/front/dbus.h"
#include "host-service/front/dbus_names.h"
#include "host-service/service/service_front.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#define MANAGER   "org.pagefusion1.Manager"
#define MAX_CALLS 64 /* of one user, under way */

/* The service */

struct PfService {
	gboolean libvirt;
	PfDomain domains[3];
	PfVmView views[3];
	PfHostView host;
	unsigned rounds; /* how often all of them are listed */
	unsigned asked_for_all, asked_for_one;
};

static struct {
	unsigned calls;
	char vm[64];
	PfVmSettings settings;
	int code; /* of G_IO_ERROR, -1: success */
	const char *message;
	PfAdditionsChange change; /* what it answers */
	gboolean ejects, force;
} broker;

static inline void fill_vm(
	PfService *service, unsigned i, const char *uuid, const char *name, gboolean active)
{
	PfDomain *domain = &service->domains[i];
	PfVmView *view = &service->views[i];

	g_strlcpy(domain->uuid, uuid, sizeof(domain->uuid));
	g_strlcpy(domain->name, name, sizeof(domain->name));
	g_strlcpy(domain->group, "default", sizeof(domain->group));
	g_strlcpy(domain->state, active ? "running" : "shut off", sizeof(domain->state));
	domain->enabled = active;
	domain->active = active;
	domain->memory_pages = 131072;
	view->domain = domain;
	view->figures.thp = PF_THP_BALANCED;
	view->reason = active ? "" : "page fusion is off";
	view->agent_version = active ? "0.1.0" : "";
	view->kernel = active ? "6.1.0-42" : "";
	view->figures.shim_connected = active;
	view->figures.additions = active ? PF_ADDITIONS_CONNECTED : PF_ADDITIONS_NEVER_SEEN;
	view->figures.additions_since = active ? 1800000000 : 0;
	if (active) {
		view->figures.stats = (PfFusionVmStats){.hinted = 8000,
			.fused = 7000,
			.shared = 6000,
			.runs = 900,
			.revoked = 5,
			.over_quota = 15,
			.refused = {[PF_SHIM_BUSY] = 3,
				[PF_SHIM_NOT_PRESENT] = 4,
				[PF_SHIM_HUGE] = 6,
				[PF_SHIM_ASIDE] = 8}};
		view->figures.shim = (PfShimState){.maps = 1000,
			.maps_budget = 40000,
			.discarded_pages = 11,
			.written_pages = 12,
			.ways_out = 13,
			.busy_pages = 14};
	}
}

static PfService fake;
static PfBroker *const fake_broker = (PfBroker *)&broker;

static inline int reset_fake(void **state)
{
	memset(&fake, 0, sizeof(fake));
	memset(&broker, 0, sizeof(broker));
	broker.code = -1;
	fake.libvirt = TRUE;
	fake.rounds = 1;
	fill_vm(&fake, 0, "00000000-0000-4000-8000-000000000001", "db", TRUE);
	fill_vm(&fake, 1, "00000000-0000-4000-8000-000000000002", "idle", FALSE);
	fake.views[1].figures.thp = PF_THP_PRESERVE;
	fake.domains[1].thp = PF_THP_PRESERVE;
	fill_vm(&fake, 2, "00000000-0000-4000-8000-000000000003", "web \xff", TRUE); /* not UTF-8 */
	fake.host = (PfHostView){.stats = {.shared = 100, .frames = 50, .hint_to_fused_us_p90 = -1},
		.store_allocated_kib = 200,
		.store_swapped_kib = 24,
		.pressure = TRUE};
	return 0;
}

void pf_service_foreach_vm(
	PfService *service, void (*visit)(const PfVmView *vm, void *userdata), void *userdata)
{
	service->asked_for_all++;
	for (size_t i = 0; i < service->rounds * G_N_ELEMENTS(service->views); i++)
		visit(&service->views[i % G_N_ELEMENTS(service->views)], userdata);
}

gboolean pf_service_visit_vm(PfService *service, const char *name_or_uuid,
	void (*visit)(const PfVmView *vm, void *userdata), void *userdata)
{
	service->asked_for_one++;
	for (size_t i = 0; i < G_N_ELEMENTS(service->views); i++) {
		if (strcmp(service->domains[i].uuid, name_or_uuid) != 0 &&
			strcmp(service->domains[i].name, name_or_uuid) != 0)
			continue;
		visit(&service->views[i], userdata);
		return TRUE;
	}
	return FALSE;
}

void pf_service_host_view(PfService *service, PfHostView *view)
{
	*view = service->host;
}

gboolean pf_service_libvirt_connected(PfService *service, const char **reason)
{
	*reason = service->libvirt ? NULL : "libvirt is away: start it";
	return service->libvirt;
}

void pf_broker_modify(PfBroker *self, const char *vm, const PfVmSettings *settings,
	GAsyncReadyCallback callback, void *userdata)
{
	g_autoptr(GTask) task = g_task_new(NULL, NULL, callback, userdata);

	assert_ptr_equal(self, fake_broker);
	broker.calls++;
	g_strlcpy(broker.vm, vm, sizeof(broker.vm));
	broker.settings = *settings;
	if (broker.code < 0)
		g_task_return_boolean(task, TRUE);
	else
		g_task_return_new_error(task, G_IO_ERROR, broker.code, "%s", broker.message);
}

gboolean pf_broker_modify_finish(GAsyncResult *result, GError **error)
{
	return g_task_propagate_boolean(G_TASK(result), error);
}

static inline void change_additions(
	PfBroker *self, const char *vm, GAsyncReadyCallback callback, void *userdata)
{
	g_autoptr(GTask) task = g_task_new(NULL, NULL, callback, userdata);

	assert_ptr_equal(self, fake_broker);
	broker.calls++;
	g_strlcpy(broker.vm, vm, sizeof(broker.vm));
	if (broker.code < 0)
		g_task_return_boolean(task, TRUE);
	else
		g_task_return_new_error(task, G_IO_ERROR, broker.code, "%s", broker.message);
}

void pf_broker_insert_additions(
	PfBroker *self, const char *vm, GAsyncReadyCallback callback, void *userdata)
{
	broker.ejects = FALSE;
	change_additions(self, vm, callback, userdata);
}

void pf_broker_eject_additions(PfBroker *self, const char *vm, gboolean force,
	GAsyncReadyCallback callback, void *userdata)
{
	broker.ejects = TRUE;
	broker.force = force;
	change_additions(self, vm, callback, userdata);
}

gboolean pf_broker_additions_finish(GAsyncResult *result, PfAdditionsChange *change, GError **error)
{
	*change = broker.change;
	return g_task_propagate_boolean(G_TASK(result), error);
}

/* The front's end of the service's socket, and the service's */

typedef struct Rig {
	PfServiceFront *there;
	PfFront *here;
	unsigned ended;
} Rig;

static inline void on_end(void *userdata)
{
	((Rig *)userdata)->ended++;
}

static inline void rig_init(Rig *rig)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	rig->ended = 0;
	rig->there = pf_service_front_new(fds[1], on_end, rig);
	rig->here = pf_front_new(fds[0], NULL, on_end, rig);
	pf_service_front_serve(rig->there, &fake);
}

static inline void rig_deinit(Rig *rig)
{
	assert_int_equal(rig->ended, 0);
	pf_front_free(rig->here);
	pf_service_front_free(rig->there);
}

/* Calling */

static inline void store_result(GObject *source, GAsyncResult *result, void *userdata)
{
	*(GAsyncResult **)userdata = g_object_ref(result);
}

static inline void wait_for(GAsyncResult **result)
{
	while (!*result)
		g_main_context_iteration(NULL, TRUE);
}

static inline GVariant *call(GDBusConnection *connection, const char *destination,
	const char *interface, const char *method, const char *parameters, GError **error)
{
	GAsyncResult *result = NULL;
	GVariant *reply;

	g_dbus_connection_call(connection, destination, PF_DBUS_PATH, interface, method,
		g_variant_new_parsed(parameters), NULL, G_DBUS_CALL_FLAGS_NONE, -1, NULL,
		store_result, &result);
	wait_for(&result);
	reply = g_dbus_connection_call_finish(connection, result, error);
	g_object_unref(result);
	return reply;
}

static inline void assert_error(const GError *error, const char *name, const char *says)
{
	g_autofree char *remote = NULL;

	assert_non_null(error);
	remote = g_dbus_error_get_remote_error(error);
	assert_string_equal(remote, name);
	assert_non_null(strstr(error->message, says));
}

static inline void start_call(GDBusConnection *connection, const char *destination,
	const char *method, const char *parameters, GAsyncResult **result)
{
	*result = NULL;
	g_dbus_connection_call(connection, destination, PF_DBUS_PATH, MANAGER, method,
		g_variant_new_parsed(parameters), NULL, G_DBUS_CALL_FLAGS_NONE, -1, NULL,
		store_result, result);
}

/* NULL: it was a good answer. The caller frees the error. */
static inline GError *finish_call(GAsyncResult **result)
{
	GError *error = NULL;
	g_autoptr(GVariant) reply = NULL;
	g_autoptr(GObject) connection = NULL;

	wait_for(result);
	connection = g_async_result_get_source_object(*result);
	reply = g_dbus_connection_call_finish(G_DBUS_CONNECTION(connection), *result, &error);
	assert_true(reply || error);
	g_clear_object(result);
	return error;
}

/* As many as one user may have under way; the service does not answer them yet. */
static inline void start_many(
	GDBusConnection *connection, const char *destination, GAsyncResult *results[MAX_CALLS])
{
	for (size_t i = 0; i < MAX_CALLS; i++)
		start_call(connection, destination, "GetVM", "('db', @a{sv} {})", &results[i]);
}

static inline void finish_many(GAsyncResult *results[MAX_CALLS])
{
	for (size_t i = 0; i < MAX_CALLS; i++)
		assert_null(finish_call(&results[i]));
}

#define with_fake(test) cmocka_unit_test_setup(test, reset_fake)
