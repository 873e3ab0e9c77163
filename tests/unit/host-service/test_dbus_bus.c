/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The bus interface on a private bus, where names and callers matter. */
#include "tests/unit/host-service/dbus_rig.h"
#include "pagefusion-version.h"
#include <glib/gstdio.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>

/* Users that every distribution has: a bus turns strangers away. */
#define DAEMON 1
#define NOBODY 65534

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
	g_autofree char *insert = NULL;
	g_autofree char *eject = NULL;
	g_autofree char *output = NULL;
	const char *name;
	PfDbusFront *front;
	Rig rig;

	if (getuid() != 0)
		skip();
	bus_start(&bus, open_policy);
	rig_init(&rig);
	connection = bus_connect(&bus);
	caller = bus_connect(&bus);
	name = g_dbus_connection_get_unique_name(connection);
	front = pf_dbus_front_new_on(rig.here, fake_broker, connection, NULL);
	output = call_as_nobody(name, MANAGER ".ModifyVM", "db", "{'pagefusion': <true>}");
	assert_non_null(strstr(output, "only root may change a VM"));
	insert = call_as_nobody(name, MANAGER ".InsertAdditions", "db", "{}");
	assert_non_null(strstr(insert, "only root may change a VM"));
	eject = call_as_nobody(name, MANAGER ".EjectAdditions", "db", "{'force': <true>}");
	assert_non_null(strstr(eject, "only root may change a VM"));
	assert_int_equal(broker.calls, 0);
	reply = call(caller, name, MANAGER, "ModifyVM", "('db', {'pagefusion': <true>})", &error);
	assert_null(error);
	assert_int_equal(broker.calls, 1);
	pf_dbus_front_free(front);
	rig_deinit(&rig);
	bus_stop(&bus);
}

/* A connection of another user than the test's. */
static GDBusConnection *bus_connect_as(const Bus *bus, uid_t uid)
{
	GDBusConnection *connection;

	assert_int_equal(seteuid(uid), 0);
	connection = bus_connect(bus);
	assert_int_equal(seteuid(0), 0);
	return connection;
}

/* What was called before has arrived behind this answer. */
static void wait_for_arrival(GDBusConnection *caller, const char *name)
{
	g_autoptr(GError) error = NULL;

	assert_null(call(caller, name, MANAGER, "ModifyVM", "('db', @a{sv} {})", &error));
	assert_error(error, PF_DBUS_ERROR_INVALID_ARGUMENT, "no setting");
}

static void assert_refused(GDBusConnection *caller, const char *name)
{
	g_autoptr(GError) error = NULL;

	assert_null(call(caller, name, MANAGER, "ListVMs", "(@a{sv} {},)", &error));
	assert_error(error, "org.freedesktop.DBus.Error.LimitsExceeded", "under way");
}

static guint count_answered(GAsyncResult **results, size_t n)
{
	guint answered = 0;

	for (size_t i = 0; i < n; i++) {
		g_autoptr(GError) error = finish_call(&results[i]);

		if (!error)
			answered++;
		else
			assert_error(error, "org.freedesktop.DBus.Error.LimitsExceeded", "");
	}
	return answered;
}

#define FLOODING_CONNECTIONS 70

/* However many connections a user has, others and root have their answers. */
static void who_floods_stands_in_nobodys_way(void **state)
{
	Bus bus;
	g_autoptr(GDBusConnection) connection = NULL;
	g_autoptr(GDBusConnection) caller = NULL;
	g_autoptr(GDBusConnection) root = NULL;
	g_autoptr(GPtrArray) floods = g_ptr_array_new_with_free_func(g_object_unref);
	static GAsyncResult *results[FLOODING_CONNECTIONS * MAX_CALLS], *roots[MAX_CALLS + 1];
	GAsyncResult *other;
	const char *name;
	PfDbusFront *front;
	Rig rig;

	if (getuid() != 0)
		skip();
	bus_start(&bus, open_policy);
	rig_init(&rig);
	connection = bus_connect(&bus);
	caller = bus_connect_as(&bus, DAEMON);
	root = bus_connect(&bus);
	name = g_dbus_connection_get_unique_name(connection);
	front = pf_dbus_front_new_on(rig.here, fake_broker, connection, NULL);
	pf_service_front_serve(rig.there, NULL);
	for (size_t i = 0; i < FLOODING_CONNECTIONS; i++) {
		g_ptr_array_add(floods, bus_connect_as(&bus, NOBODY));
		start_many(floods->pdata[i], name, &results[i * MAX_CALLS]);
	}
	for (size_t i = 0; i < FLOODING_CONNECTIONS; i++)
		assert_refused(floods->pdata[i], name);
	start_call(caller, name, "GetVM", "('idle', @a{sv} {})", &other);
	wait_for_arrival(caller, name);
	start_many(root, name, roots);
	start_call(root, name, "ListVMs", "(@a{sv} {},)", &roots[MAX_CALLS]);
	wait_for_arrival(root, name);
	pf_service_front_serve(rig.there, &fake);
	assert_null(finish_call(&other));
	assert_int_equal(count_answered(roots, G_N_ELEMENTS(roots)), MAX_CALLS + 1);
	assert_int_equal(count_answered(results, G_N_ELEMENTS(results)), MAX_CALLS);
	/* They are not held against him for ever. */
	start_many(floods->pdata[0], name, results);
	assert_int_equal(count_answered(results, MAX_CALLS), MAX_CALLS);
	pf_dbus_front_free(front);
	rig_deinit(&rig);
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
	g_autofree char *insert = NULL;
	PfDbusFront *front;
	Rig rig;

	if (getuid() != 0)
		skip();
	bus_start(&bus, strict_policy);
	rig_init(&rig);
	caller = bus_connect(&bus);
	front = pf_dbus_front_new(rig.here, fake_broker, count_failure, messages);
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
	insert = call_as_nobody(PF_DBUS_NAME, MANAGER ".InsertAdditions", "db", "{}");
	assert_non_null(strstr(insert, "AccessDenied"));
	assert_null(strstr(insert, "only root may"));
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
	rig_deinit(&rig);
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
	front = pf_dbus_front_new(NULL, NULL, count_failure, messages);
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
	front = pf_dbus_front_new(NULL, NULL, count_failure, messages);
	while (messages->len == 0)
		g_main_context_iteration(NULL, TRUE);
	assert_non_null(strstr(g_ptr_array_index(messages, 0), "systemctl start dbus"));
	assert_int_equal(messages->len, 1);
	pf_dbus_front_free(front);
	g_unsetenv("DBUS_SYSTEM_BUS_ADDRESS");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_fake(only_root_modifies),
		with_fake(who_floods_stands_in_nobodys_way),
		with_fake(says_that_there_is_no_bus),
		with_fake(says_that_the_name_is_taken),
		with_fake(policy_lets_everybody_read),
	};

	alarm(100); /* an answer that never comes */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
