/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dbus.c with a service that this file plays: over a socket pair, and on a private bus where names
 * and callers matter.
 */
#include "host-service/dbus.h"
#include "host-service/dbus_names.h"
#include "pagefusion-version.h"
#include <glib/gstdio.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#define MANAGER "org.pagefusion1.Manager"

/* The service */

struct PfService {
	gboolean libvirt;
	PfDomain domains[3];
	PfVmView views[3];
	PfHostView host;
};

static struct {
	unsigned calls;
	char vm[64];
	PfVmSettings settings;
	int code; /* of G_IO_ERROR, -1: success */
	const char *message;
} broker;

static void fill_vm(
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
	view->thp = PF_THP_BALANCED;
	view->reason = active ? "" : "page fusion is off";
	view->agent_version = active ? "0.1.0" : "";
	view->kernel = active ? "6.1.0-42" : "";
	view->shim_connected = active;
	if (active) {
		view->stats = (PfFusionVmStats){.hinted = 8000,
			.fused = 7000,
			.shared = 6000,
			.runs = 900,
			.revoked = 5,
			.refused = {[PF_SHIM_BUSY] = 3,
				[PF_SHIM_NOT_PRESENT] = 4,
				[PF_SHIM_HUGE] = 6,
				[PF_SHIM_ASIDE] = 8}};
		view->shim = (PfShimState){.maps = 1000,
			.maps_budget = 40000,
			.discarded_pages = 11,
			.written_pages = 12,
			.ways_out = 13,
			.busy_pages = 14};
	}
}

static PfService fake;

static int reset_fake(void **state)
{
	memset(&fake, 0, sizeof(fake));
	memset(&broker, 0, sizeof(broker));
	broker.code = -1;
	fake.libvirt = TRUE;
	fill_vm(&fake, 0, "00000000-0000-4000-8000-000000000001", "db", TRUE);
	fill_vm(&fake, 1, "00000000-0000-4000-8000-000000000002", "idle", FALSE);
	fake.views[1].thp = PF_THP_PRESERVE;
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
	for (size_t i = 0; i < G_N_ELEMENTS(service->views); i++)
		visit(&service->views[i], userdata);
}

gboolean pf_service_visit_vm(PfService *service, const char *name_or_uuid,
	void (*visit)(const PfVmView *vm, void *userdata), void *userdata)
{
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

PfBroker *pf_service_broker(PfService *service)
{
	return (PfBroker *)service;
}

void pf_broker_modify(PfBroker *self, const char *vm, const PfVmSettings *settings,
	GAsyncReadyCallback callback, void *userdata)
{
	g_autoptr(GTask) task = g_task_new(NULL, NULL, callback, userdata);

	assert_ptr_equal(self, &fake);
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

/* Calling */

typedef struct Peers {
	GDBusConnection *server;
	GDBusConnection *client;
	PfDbusFront *front;
} Peers;

static void store_result(GObject *source, GAsyncResult *result, void *userdata)
{
	*(GAsyncResult **)userdata = g_object_ref(result);
}

static void wait_for(GAsyncResult **result)
{
	while (!*result)
		g_main_context_iteration(NULL, TRUE);
}

static void start_connection(int fd, gboolean server, GAsyncResult **result)
{
	g_autoptr(GSocket) socket = g_socket_new_from_fd(fd, NULL);
	g_autoptr(GSocketConnection) stream = g_socket_connection_factory_create_connection(socket);
	g_autofree char *guid = g_dbus_generate_guid();

	g_dbus_connection_new(G_IO_STREAM(stream), server ? guid : NULL,
		server ? G_DBUS_CONNECTION_FLAGS_AUTHENTICATION_SERVER
		       : G_DBUS_CONNECTION_FLAGS_AUTHENTICATION_CLIENT,
		NULL, NULL, store_result, result);
}

static GDBusConnection *finish_connection(GAsyncResult **result)
{
	g_autoptr(GError) error = NULL;
	GDBusConnection *connection;

	wait_for(result);
	connection = g_dbus_connection_new_finish(*result, &error);
	assert_null(error);
	g_clear_object(result);
	return connection;
}

static void peers_init(Peers *peers)
{
	int fds[2];
	GAsyncResult *server = NULL;
	GAsyncResult *client = NULL;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	start_connection(fds[0], TRUE, &server);
	start_connection(fds[1], FALSE, &client);
	peers->server = finish_connection(&server);
	peers->client = finish_connection(&client);
	peers->front = pf_dbus_front_new_on(&fake, peers->server, NULL);
	assert_non_null(peers->front);
}

static void peers_deinit(Peers *peers)
{
	pf_dbus_front_free(peers->front);
	g_dbus_connection_close_sync(peers->client, NULL, NULL);
	g_object_unref(peers->client);
	g_object_unref(peers->server);
}

static GVariant *call(GDBusConnection *connection, const char *destination, const char *interface,
	const char *method, const char *parameters, GError **error)
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

static void assert_answer(const char *method, const char *parameters, const char *expected)
{
	Peers peers;
	g_autoptr(GError) error = NULL;
	g_autoptr(GVariant) reply = NULL;
	g_autofree char *printed = NULL;

	peers_init(&peers);
	reply = call(peers.client, NULL, MANAGER, method, parameters, &error);
	assert_null(error);
	printed = g_variant_print(reply, FALSE);
	assert_string_equal(printed, expected);
	peers_deinit(&peers);
}

static void assert_error(const GError *error, const char *name, const char *says)
{
	g_autofree char *remote = NULL;

	assert_non_null(error);
	remote = g_dbus_error_get_remote_error(error);
	assert_string_equal(remote, name);
	assert_non_null(strstr(error->message, says));
}

static void assert_fails(
	const char *method, const char *parameters, const char *name, const char *says)
{
	Peers peers;
	g_autoptr(GError) error = NULL;

	peers_init(&peers);
	assert_null(call(peers.client, NULL, MANAGER, method, parameters, &error));
	assert_error(error, name, says);
	peers_deinit(&peers);
}

/* Over a socket pair */

static void lists_vms_in_order(void **state)
{
	Peers peers;
	g_autoptr(GVariant) reply = NULL;
	g_autoptr(GVariant) vms = NULL;
	static const char *const names[] = {"db", "idle", "web \357\277\275"};

	peers_init(&peers);
	reply = call(peers.client, NULL, MANAGER, "ListVMs", "(@a{sv} {},)", NULL);
	vms = g_variant_get_child_value(reply, 0);
	assert_int_equal(g_variant_n_children(vms), 3);
	for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
		g_autoptr(GVariant) vm = g_variant_get_child_value(vms, i);
		const char *name = NULL;

		assert_true(g_variant_lookup(vm, "name", "&s", &name));
		assert_string_equal(name, names[i]);
	}
	peers_deinit(&peers);
}

/* Every key, its type and its value. */
static void describes_a_vm(void **state)
{
	static const struct {
		const char *key;
		const char *value;
	} expected[] = {
		{"uuid", "'00000000-0000-4000-8000-000000000001'"},
		{"name", "'db'"},
		{"group", "'default'"},
		{"state", "'running'"},
		{"pagefusion", "true"},
		{"thp", "'balanced'"},
		{"thp-setting", "'default'"},
		{"active", "true"},
		{"memory-kib", "uint64 524288"},
		{"reason", "''"},
		{"agent-version", "'0.1.0'"},
		{"kernel", "'6.1.0-42'"},
		{"shim-connected", "true"},
		{"hinted", "uint64 8000"},
		{"fused", "uint64 7000"},
		{"shared-kib", "uint64 24000"},
		{"runs", "uint64 900"},
		{"revoked", "uint64 5"},
		{"maps", "uint64 1000"},
		{"maps-budget", "uint64 40000"},
		{"discarded", "uint64 11"},
		{"written", "uint64 12"},
		{"ways-out", "uint64 13"},
		{"busy", "uint64 14"},
		{"refused", "{'busy': uint64 3, 'not-present': 4, 'huge': 6, 'aside': 8}"},
	};
	Peers peers;
	g_autoptr(GVariant) reply = NULL;
	g_autoptr(GVariant) vm = NULL;

	peers_init(&peers);
	reply = call(peers.client, NULL, MANAGER, "GetVM", "('db', @a{sv} {})", NULL);
	vm = g_variant_get_child_value(reply, 0);
	assert_int_equal(g_variant_n_children(vm), G_N_ELEMENTS(expected));
	for (size_t i = 0; i < G_N_ELEMENTS(expected); i++) {
		g_autoptr(GVariant) value = g_variant_lookup_value(vm, expected[i].key, NULL);
		g_autofree char *printed = NULL;

		assert_non_null(value);
		printed = g_variant_print(value, TRUE);
		assert_string_equal(printed, expected[i].value);
	}
	peers_deinit(&peers);
}

static void finds_by_uuid(void **state)
{
	Peers peers;
	g_autoptr(GVariant) reply = NULL;
	g_autoptr(GVariant) vm = NULL;
	const char *name = NULL;

	peers_init(&peers);
	reply = call(peers.client, NULL, MANAGER, "GetVM",
		"('00000000-0000-4000-8000-000000000002', @a{sv} {})", NULL);
	vm = g_variant_get_child_value(reply, 0);
	assert_true(g_variant_lookup(vm, "name", "&s", &name));
	assert_string_equal(name, "idle");
	assert_true(g_variant_lookup(vm, "thp-setting", "&s", &name));
	assert_string_equal(name, "preserve");
	peers_deinit(&peers);
}

static void queries_metrics(void **state)
{
	assert_answer("QueryMetrics", "('host', @as [], @a{sv} {})",
		"([('host', 'RAM/VMM/Shared', 400, 'kB'), ('host', 'RAM/VMM/Frames', 200, 'kB'), "
		"('host', 'RAM/VMM/FramesFreed', 0, 'frames'), "
		"('host', 'RAM/VMM/Revoked', 0, 'pages'), ('host', 'RAM/VMM/Candidates', 0, 'kB'), "
		"('host', 'RAM/VMM/StoreAllocated', 200, 'kB'), "
		"('host', 'RAM/VMM/StoreSwapped', 24, 'kB'), "
		"('host', 'RAM/VMM/Pressure', 1, 'bool')],)");
	assert_answer("QueryMetrics",
		"('db', ['Guest/PageFusion/Refused', 'Guest/RAM/*'], @a{sv} {})",
		"([('db', 'Guest/RAM/Usage/Shared', 24000, 'kB'), "
		"('db', 'Guest/PageFusion/Refused', 21, 'pages')],)");
	assert_answer("QueryMetrics",
		"('*', ['Guest/PageFusion/Runs', 'RAM/VMM/Shared'], @a{sv} {})",
		"([('host', 'RAM/VMM/Shared', 400, 'kB'), ('db', 'Guest/PageFusion/Runs', 900, "
		"'pieces'), ('web \357\277\275', 'Guest/PageFusion/Runs', 900, 'pieces')],)");
	assert_answer("QueryMetrics", "('idle', ['*'], @a{sv} {})", "([],)");
}

static void refuses_bad_queries(void **state)
{
	assert_fails("QueryMetrics", "('*', ['RAM/VMM/Shard'], @a{sv} {})",
		PF_DBUS_ERROR_INVALID_ARGUMENT, "the nearest name is RAM/VMM/Shared");
	assert_fails("QueryMetrics", "('nobody', @as [], @a{sv} {})", PF_DBUS_ERROR_NO_SUCH_VM,
		"'nobody'");
	assert_fails("GetVM", "('', @a{sv} {})", PF_DBUS_ERROR_NO_SUCH_VM, "no VM has");
}

static void does_not_repeat_absurd_names(void **state)
{
	g_autofree char *name = g_strnfill(256, 'n');
	g_autofree char *parameters = g_strdup_printf("('%s', @a{sv} {})", name);

	assert_fails("GetVM", parameters, PF_DBUS_ERROR_NO_SUCH_VM, "that long");
}

static void rejects_unknown_options(void **state)
{
	static const char *const calls[][2] = {
		{"ListVMs", "({'colour': <'red'>},)"},
		{"GetVM", "('db', {'colour': <1>})"},
		{"QueryMetrics", "('*', @as [], {'colour': <true>})"},
		{"ModifyVM", "('db', {'pagefusion': <true>, 'colour': <true>})"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(calls); i++)
		assert_fails(calls[i][0], calls[i][1], PF_DBUS_ERROR_INVALID_ARGUMENT, "'colour'");
	assert_int_equal(broker.calls, 0);
}

static void rejects_bad_settings(void **state)
{
	assert_fails("ModifyVM", "('db', @a{sv} {})", PF_DBUS_ERROR_INVALID_ARGUMENT, "no setting");
	assert_fails("ModifyVM", "('db', {'pagefusion': <'on'>})", PF_DBUS_ERROR_INVALID_ARGUMENT,
		"must be a boolean");
	assert_fails("ModifyVM", "('db', {'thp': <'some'>})", PF_DBUS_ERROR_INVALID_ARGUMENT,
		"'preserve', 'balanced', 'all' and 'default'");
	assert_fails("ModifyVM", "('db', {'thp': <true>})", PF_DBUS_ERROR_INVALID_ARGUMENT,
		"must be one of the strings");
	assert_fails("ModifyVM", "('db', {'thp': <'all'>, 'pagefusion': <false>})",
		PF_DBUS_ERROR_INVALID_ARGUMENT, "leave 'thp' out");
	assert_int_equal(broker.calls, 0);
}

static void says_that_libvirt_is_away(void **state)
{
	static const char *const calls[][2] = {
		{"ListVMs", "(@a{sv} {},)"},
		{"GetVM", "('db', @a{sv} {})"},
		{"QueryMetrics", "('*', @as [], @a{sv} {})"},
		{"ModifyVM", "('db', {'pagefusion': <true>})"},
	};

	fake.libvirt = FALSE;
	for (size_t i = 0; i < G_N_ELEMENTS(calls); i++)
		assert_fails(calls[i][0], calls[i][1], PF_DBUS_ERROR_NO_LIBVIRT,
			"libvirt is away: start it");
	assert_int_equal(broker.calls, 0);
}

static void modifies(void **state)
{
	assert_answer("ModifyVM", "('db', {'pagefusion': <true>})", "()");
	assert_int_equal(broker.calls, 1);
	assert_string_equal(broker.vm, "db");
	assert_true(broker.settings.enabled);
	assert_int_equal(broker.settings.changes, PF_VM_SET_ENABLED);
	assert_answer("ModifyVM", "('idle', {'pagefusion': <false>})", "()");
	assert_false(broker.settings.enabled);
	assert_int_equal(broker.settings.changes, PF_VM_SET_ENABLED);
}

static void modifies_the_policy(void **state)
{
	assert_answer("ModifyVM", "('db', {'thp': <'preserve'>})", "()");
	assert_int_equal(broker.settings.changes, PF_VM_SET_THP);
	assert_int_equal(broker.settings.thp, PF_THP_PRESERVE);
	assert_answer("ModifyVM", "('db', {'thp': <'default'>, 'pagefusion': <true>})", "()");
	assert_int_equal(broker.settings.changes, PF_VM_SET_ENABLED | PF_VM_SET_THP);
	assert_int_equal(broker.settings.thp, PF_THP_DEFAULT);
	assert_true(broker.settings.enabled);
}

static void passes_on_what_the_broker_says(void **state)
{
	static const struct {
		int code;
		const char *name;
	} cases[] = {
		{G_IO_ERROR_NOT_FOUND, PF_DBUS_ERROR_NO_SUCH_VM},
		{G_IO_ERROR_BUSY, PF_DBUS_ERROR_VM_NOT_SHUT_OFF},
		{G_IO_ERROR_NOT_SUPPORTED, PF_DBUS_ERROR_REFUSED},
		{G_IO_ERROR_FAILED, PF_DBUS_ERROR_FAILED},
		{G_IO_ERROR_CLOSED, PF_DBUS_ERROR_FAILED},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		broker.code = cases[i].code;
		broker.message = "what and what to do";
		assert_fails("ModifyVM", "('db', {'pagefusion': <true>})", cases[i].name,
			"what and what to do");
	}
}

static void properties_are_read_when_asked(void **state)
{
	Peers peers;
	const char *parameters = "('" MANAGER "',)";
	g_autoptr(GVariant) before = NULL;
	g_autoptr(GVariant) after = NULL;
	g_autofree char *printed_before = NULL;
	g_autofree char *printed_after = NULL;

	peers_init(&peers);
	before = call(
		peers.client, NULL, "org.freedesktop.DBus.Properties", "GetAll", parameters, NULL);
	fake.libvirt = FALSE;
	after = call(
		peers.client, NULL, "org.freedesktop.DBus.Properties", "GetAll", parameters, NULL);
	printed_before = g_variant_print(before, FALSE);
	printed_after = g_variant_print(after, FALSE);
	assert_string_equal(printed_before,
		"({'Version': <'" PF_VERSION "'>, 'LibvirtConnected': <true>, "
		"'LibvirtReason': <''>},)");
	assert_string_equal(printed_after,
		"({'Version': <'" PF_VERSION "'>, 'LibvirtConnected': <false>, "
		"'LibvirtReason': <'libvirt is away: start it'>},)");
	peers_deinit(&peers);
}

/* On a bus */

typedef struct Bus {
	GSubprocess *daemon;
	char *directory;
	char *address;
} Bus;

static const char open_policy[] =
	"<policy context='default'><allow user='*'/><allow own='*'/>"
	"<allow send_destination='*' eavesdrop='true'/><allow eavesdrop='true'/></policy>";

/* As the system bus starts with, and then our policy file. */
static const char strict_policy[] =
	"<policy context='default'><allow user='*'/><deny own='*'/><deny send_type='method_call'/>"
	"<allow send_requested_reply='true' send_type='method_return'/>"
	"<allow send_requested_reply='true' send_type='error'/><allow send_type='signal'/>"
	"<allow receive_type='method_call'/><allow receive_type='method_return'/>"
	"<allow receive_type='error'/><allow receive_type='signal'/>"
	"<allow send_destination='org.freedesktop.DBus'/></policy>"
	"<include>" PF_TEST_BUS_POLICY "</include>";

static void end_with_parent(void *userdata)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void bus_start(Bus *bus, const char *policy)
{
	g_autofree char *config = NULL;
	g_autofree char *argument = NULL;
	g_autofree char *text = NULL;
	g_autoptr(GDataInputStream) lines = NULL;
	g_autoptr(GSubprocessLauncher) launcher =
		g_subprocess_launcher_new(G_SUBPROCESS_FLAGS_STDOUT_PIPE);

	bus->directory = g_dir_make_tmp("pf-bus-XXXXXX", NULL);
	assert_non_null(bus->directory);
	assert_int_equal(chmod(bus->directory, 0755), 0);
	config = g_build_filename(bus->directory, "bus.conf", NULL);
	argument = g_strdup_printf("--config-file=%s", config);
	text = g_strdup_printf("<busconfig><type>session</type><listen>unix:dir=%s</listen>"
			       "<auth>EXTERNAL</auth>%s</busconfig>",
		bus->directory, policy);
	assert_true(g_file_set_contents(config, text, -1, NULL));
	g_subprocess_launcher_set_child_setup(launcher, end_with_parent, NULL, NULL);
	bus->daemon = g_subprocess_launcher_spawn(
		launcher, NULL, "dbus-daemon", "--nofork", "--print-address", argument, NULL);
	assert_non_null(bus->daemon);
	lines = g_data_input_stream_new(g_subprocess_get_stdout_pipe(bus->daemon));
	bus->address = g_data_input_stream_read_line(lines, NULL, NULL, NULL);
	assert_non_null(bus->address);
	g_unlink(config);
	g_setenv("DBUS_SYSTEM_BUS_ADDRESS", bus->address, TRUE);
}

static void bus_stop(Bus *bus)
{
	g_autoptr(GDir) directory = NULL;
	const char *name;

	g_unsetenv("DBUS_SYSTEM_BUS_ADDRESS");
	g_subprocess_force_exit(bus->daemon);
	g_subprocess_wait(bus->daemon, NULL, NULL);
	g_object_unref(bus->daemon);
	directory = g_dir_open(bus->directory, 0, NULL);
	while ((name = g_dir_read_name(directory))) {
		g_autofree char *path = g_build_filename(bus->directory, name, NULL);

		g_unlink(path);
	}
	g_rmdir(bus->directory);
	g_free(bus->directory);
	g_free(bus->address);
}

static GDBusConnection *bus_connect(const Bus *bus)
{
	g_autoptr(GError) error = NULL;
	GDBusConnection *connection = g_dbus_connection_new_for_address_sync(bus->address,
		G_DBUS_CONNECTION_FLAGS_AUTHENTICATION_CLIENT |
			G_DBUS_CONNECTION_FLAGS_MESSAGE_BUS_CONNECTION,
		NULL, NULL, &error);

	assert_null(error);
	return connection;
}

/* Runs a call as nobody; what it printed, on either stream. The caller frees it. */
static char *call_as_nobody(
	const char *destination, const char *method, const char *argument1, const char *argument2)
{
	g_autoptr(GSubprocess) process =
		g_subprocess_new(G_SUBPROCESS_FLAGS_STDOUT_PIPE | G_SUBPROCESS_FLAGS_STDERR_MERGE,
			NULL, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
			"gdbus", "call", "--system", "--dest", destination, "--object-path",
			PF_DBUS_PATH, "--method", method, argument1, argument2, NULL);
	GAsyncResult *result = NULL;
	char *output = NULL;

	assert_non_null(process);
	g_subprocess_communicate_utf8_async(process, NULL, NULL, store_result, &result);
	wait_for(&result);
	assert_true(g_subprocess_communicate_utf8_finish(process, result, &output, NULL, NULL));
	g_object_unref(result);
	return output;
}

static void only_root_modifies(void **state)
{
	Bus bus;
	g_autoptr(GDBusConnection) connection = NULL;
	g_autoptr(GDBusConnection) caller = NULL;
	g_autoptr(GVariant) reply = NULL;
	g_autoptr(GError) error = NULL;
	g_autofree char *output = NULL;
	const char *name;
	PfDbusFront *front;

	if (getuid() != 0)
		skip();
	bus_start(&bus, open_policy);
	connection = bus_connect(&bus);
	caller = bus_connect(&bus);
	name = g_dbus_connection_get_unique_name(connection);
	front = pf_dbus_front_new_on(&fake, connection, NULL);
	output = call_as_nobody(name, MANAGER ".ModifyVM", "db", "{'pagefusion': <true>}");
	assert_non_null(strstr(output, "only root may change a VM"));
	assert_int_equal(broker.calls, 0);
	reply = call(caller, name, MANAGER, "ModifyVM", "('db', {'pagefusion': <true>})", &error);
	assert_null(error);
	assert_int_equal(broker.calls, 1);
	pf_dbus_front_free(front);
	bus_stop(&bus);
}

static void count_failure(const char *message, void *userdata)
{
	GPtrArray *messages = userdata;

	g_ptr_array_add(messages, g_strdup(message));
}

static gboolean is_owned(GDBusConnection *connection)
{
	g_autoptr(GVariant) reply = g_dbus_connection_call_sync(connection, "org.freedesktop.DBus",
		"/org/freedesktop/DBus", "org.freedesktop.DBus", "NameHasOwner",
		g_variant_new("(s)", PF_DBUS_NAME), NULL, G_DBUS_CALL_FLAGS_NONE, -1, NULL, NULL);
	gboolean owned = FALSE;

	g_variant_get(reply, "(b)", &owned);
	return owned;
}

/* The policy file: root owns the name and calls everything, others read. */
static void policy_lets_everybody_read(void **state)
{
	Bus bus;
	g_autoptr(GPtrArray) messages = g_ptr_array_new_with_free_func(g_free);
	g_autoptr(GDBusConnection) caller = NULL;
	g_autoptr(GVariant) reply = NULL;
	g_autofree char *list = NULL;
	g_autofree char *metrics = NULL;
	g_autofree char *modify = NULL;
	PfDbusFront *front;

	if (getuid() != 0)
		skip();
	bus_start(&bus, strict_policy);
	caller = bus_connect(&bus);
	front = pf_dbus_front_new(&fake, count_failure, messages);
	while (!is_owned(caller) && messages->len == 0)
		g_main_context_iteration(NULL, FALSE);
	assert_int_equal(messages->len, 0);
	list = call_as_nobody(PF_DBUS_NAME, MANAGER ".GetVM", "db", "{}");
	assert_non_null(strstr(list, "'uuid': <'00000000-0000-4000-8000-000000000001'>"));
	metrics = call_as_nobody(
		PF_DBUS_NAME, "org.freedesktop.DBus.Properties.Get", MANAGER, "Version");
	assert_non_null(strstr(metrics, PF_VERSION));
	modify = call_as_nobody(PF_DBUS_NAME, MANAGER ".ModifyVM", "db", "{'pagefusion': <true>}");
	assert_non_null(strstr(modify, "AccessDenied"));
	assert_null(strstr(modify, "only root may")); /* it did not come as far as that */
	assert_int_equal(broker.calls, 0);
	reply = call(
		caller, PF_DBUS_NAME, MANAGER, "ModifyVM", "('db', {'pagefusion': <true>})", NULL);
	assert_non_null(reply);

	/* The bus goes away under a running service. */
	bus_stop(&bus);
	while (messages->len == 0)
		g_main_context_iteration(NULL, TRUE);
	assert_non_null(strstr(g_ptr_array_index(messages, 0), "the system bus is gone"));
	pf_dbus_front_free(front);
}

static void says_that_the_name_is_taken(void **state)
{
	Bus bus;
	g_autoptr(GPtrArray) messages = g_ptr_array_new_with_free_func(g_free);
	g_autoptr(GDBusConnection) other = NULL;
	g_autoptr(GVariant) reply = NULL;
	PfDbusFront *front;

	bus_start(&bus, open_policy);
	other = bus_connect(&bus);
	reply = g_dbus_connection_call_sync(other, "org.freedesktop.DBus", "/org/freedesktop/DBus",
		"org.freedesktop.DBus", "RequestName", g_variant_new("(su)", PF_DBUS_NAME, 4u),
		NULL, G_DBUS_CALL_FLAGS_NONE, -1, NULL, NULL);
	assert_non_null(reply);
	front = pf_dbus_front_new(&fake, count_failure, messages);
	while (messages->len == 0)
		g_main_context_iteration(NULL, TRUE);
	assert_non_null(strstr(g_ptr_array_index(messages, 0), "systemctl stop pagefusiond"));
	pf_dbus_front_free(front);
	bus_stop(&bus);
}

static void says_that_there_is_no_bus(void **state)
{
	g_autoptr(GPtrArray) messages = g_ptr_array_new_with_free_func(g_free);
	PfDbusFront *front;

	g_setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus", TRUE);
	front = pf_dbus_front_new(&fake, count_failure, messages);
	while (messages->len == 0)
		g_main_context_iteration(NULL, TRUE);
	assert_non_null(strstr(g_ptr_array_index(messages, 0), "systemctl start dbus"));
	assert_int_equal(messages->len, 1);
	pf_dbus_front_free(front);
	g_unsetenv("DBUS_SYSTEM_BUS_ADDRESS");
}

#define with_fake(test) cmocka_unit_test_setup(test, reset_fake)

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_fake(lists_vms_in_order),
		with_fake(describes_a_vm),
		with_fake(finds_by_uuid),
		with_fake(queries_metrics),
		with_fake(refuses_bad_queries),
		with_fake(does_not_repeat_absurd_names),
		with_fake(rejects_unknown_options),
		with_fake(rejects_bad_settings),
		with_fake(says_that_libvirt_is_away),
		with_fake(modifies),
		with_fake(modifies_the_policy),
		with_fake(passes_on_what_the_broker_says),
		with_fake(properties_are_read_when_asked),
		with_fake(only_root_modifies),
		with_fake(says_that_there_is_no_bus),
		with_fake(says_that_the_name_is_taken),
		with_fake(policy_lets_everybody_read),
	};

	alarm(100); /* an answer that never comes */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
