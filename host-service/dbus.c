/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The D-Bus interface org.pagefusion1.Manager.
 *
 * The object is registered with the introspection data that gdbus-codegen makes of
 * org.pagefusion1.xml and a table of handlers of our own, so that properties are read from the
 * service when they are asked for and nothing has to be kept up to date. GDBus has checked the
 * signature of a call before it comes here; what strings and dictionaries contain is checked here.
 *
 * Three of the methods read and answer at once. ModifyVM goes through two asynchronous steps: who
 * is the caller (on a bus; the bus policy keeps others away as well, this holds where a policy file
 * is missing or too generous), then the broker edits the definition. The first step ends with the
 * front, by its cancellable; the second needs nothing of the front any more.
 */
#include "host-service/dbus.h"
#include "host-service/dbus_names.h"
#include "host-service/dbus_values.h"
#include "host-service/org.pagefusion1.h"
#include "pagefusion-version.h"
#include <assert.h>
#include <string.h>

typedef enum PfDbusError {
	PF_DBUS_E_NO_SUCH_VM,
	PF_DBUS_E_VM_NOT_SHUT_OFF,
	PF_DBUS_E_REFUSED,
	PF_DBUS_E_INVALID_ARGUMENT,
	PF_DBUS_E_NO_LIBVIRT,
	PF_DBUS_E_FAILED,
	PF_DBUS_N_ERRORS
} PfDbusError;

static const GDBusErrorEntry error_entries[] = {
	{PF_DBUS_E_NO_SUCH_VM, PF_DBUS_ERROR_NO_SUCH_VM},
	{PF_DBUS_E_VM_NOT_SHUT_OFF, PF_DBUS_ERROR_VM_NOT_SHUT_OFF},
	{PF_DBUS_E_REFUSED, PF_DBUS_ERROR_REFUSED},
	{PF_DBUS_E_INVALID_ARGUMENT, PF_DBUS_ERROR_INVALID_ARGUMENT},
	{PF_DBUS_E_NO_LIBVIRT, PF_DBUS_ERROR_NO_LIBVIRT},
	{PF_DBUS_E_FAILED, PF_DBUS_ERROR_FAILED},
};
static_assert(G_N_ELEMENTS(error_entries) == PF_DBUS_N_ERRORS, "a name for each error");

struct PfDbusFront {
	PfService *service;
	void (*failed)(const char *message, void *userdata); /* NULL: said already, or none */
	void *userdata;
	guint owner;                 /* of the name, 0 when there is none */
	GDBusConnection *connection; /* where the object is registered, NULL before */
	guint object;                /* registration, 0 before */
	GCancellable *cancellable;   /* ends with the front */
};

#define PF_DBUS_ERROR (dbus_error_quark())

static GQuark dbus_error_quark(void)
{
	static gsize quark;

	g_dbus_error_register_error_domain(
		"pf-dbus-error", &quark, error_entries, G_N_ELEMENTS(error_entries));
	return (GQuark)quark;
}

/* A dictionary in which no key is known: FALSE with error set when it is not empty. */
static gboolean check_options(GVariant *options, GError **error)
{
	GVariantIter iter;
	const char *key;

	g_variant_iter_init(&iter, options);
	if (!g_variant_iter_next(&iter, "{&sv}", &key, NULL))
		return TRUE;
	g_set_error(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT,
		"option '%s' is not known to this version of the service: leave it out", key);
	return FALSE;
}

static gboolean parse_enabled(GVariant *value, PfVmSettings *settings, GError **error)
{
	if (!g_variant_is_of_type(value, G_VARIANT_TYPE_BOOLEAN)) {
		g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT,
			"setting 'pagefusion' must be a boolean");
		return FALSE;
	}
	settings->enabled = g_variant_get_boolean(value);
	settings->changes |= PF_VM_SET_ENABLED;
	return TRUE;
}

static gboolean parse_thp(GVariant *value, PfVmSettings *settings, GError **error)
{
	if (!g_variant_is_of_type(value, G_VARIANT_TYPE_STRING) ||
		!pf_thp_parse(g_variant_get_string(value, NULL), &settings->thp)) {
		g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT,
			"setting 'thp' must be one of the strings 'preserve', 'balanced', 'all' "
			"and 'default'");
		return FALSE;
	}
	settings->changes |= PF_VM_SET_THP;
	return TRUE;
}

static gboolean parse_setting(
	const char *key, GVariant *value, PfVmSettings *settings, GError **error)
{
	if (strcmp(key, "pagefusion") == 0)
		return parse_enabled(value, settings, error);
	if (strcmp(key, "thp") == 0)
		return parse_thp(value, settings, error);
	g_set_error(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT,
		"setting '%s' is not known to this version of the service: leave it out", key);
	return FALSE;
}

/* ModifyVM's settings: FALSE with error set unless they say what to change and nothing else. */
static gboolean parse_settings(GVariant *dictionary, PfVmSettings *settings, GError **error)
{
	GVariantIter iter;
	const char *key;
	GVariant *value;

	*settings = (PfVmSettings){0};
	g_variant_iter_init(&iter, dictionary);
	while (g_variant_iter_next(&iter, "{&sv}", &key, &value)) {
		g_autoptr(GVariant) owned = value;

		if (!parse_setting(key, owned, settings, error))
			return FALSE;
	}
	if (settings->changes == 0) {
		g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT,
			"no setting was given: give 'pagefusion', 'thp', or both");
		return FALSE;
	}
	if (settings->changes == (PF_VM_SET_ENABLED | PF_VM_SET_THP) && !settings->enabled) {
		g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT,
			"a VM without page fusion has no policy for huge pages: leave 'thp' out");
		return FALSE;
	}
	return TRUE;
}

static gboolean check_libvirt(PfDbusFront *front, GError **error)
{
	const char *reason = NULL;
	g_autofree char *valid = NULL;

	if (pf_service_libvirt_connected(front->service, &reason))
		return TRUE;
	valid = g_utf8_make_valid(reason ? reason : "libvirt is not connected", -1);
	g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_NO_LIBVIRT, valid);
	return FALSE;
}

static void set_no_such_vm(GError **error, const char *vm)
{
	if (strlen(vm) > PF_METRIC_MAX_OBJECT)
		g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_NO_SUCH_VM,
			"no VM has a name that long: see 'pagefusionctl list vms'");
	else
		g_set_error(error, PF_DBUS_ERROR, PF_DBUS_E_NO_SUCH_VM,
			"no VM has the name or UUID '%s': see 'pagefusionctl list vms'", vm);
}

static void add_vm(const PfVmView *vm, void *userdata)
{
	GVariantBuilder *builder = userdata;

	g_variant_builder_add_value(builder, pf_dbus_describe_vm(vm));
}

/* The methods that answer at once: the answer (floating), or NULL with error set. */
static GVariant *list_vms(PfDbusFront *front, GVariant *parameters, GError **error)
{
	g_autoptr(GVariant) options = g_variant_get_child_value(parameters, 0);
	GVariantBuilder builder;

	if (!check_options(options, error) || !check_libvirt(front, error))
		return NULL;
	g_variant_builder_init(&builder, G_VARIANT_TYPE("aa{sv}"));
	pf_service_foreach_vm(front->service, add_vm, &builder);
	return g_variant_new("(aa{sv})", &builder);
}

static void take_vm(const PfVmView *vm, void *userdata)
{
	GVariant **description = userdata;

	*description = pf_dbus_describe_vm(vm);
}

static GVariant *get_vm(PfDbusFront *front, GVariant *parameters, GError **error)
{
	const char *vm;
	g_autoptr(GVariant) options = NULL;
	GVariant *description = NULL;

	g_variant_get(parameters, "(&s@a{sv})", &vm, &options);
	if (!check_options(options, error) || !check_libvirt(front, error))
		return NULL;
	if (!pf_service_visit_vm(front->service, vm, take_vm, &description)) {
		set_no_such_vm(error, vm);
		return NULL;
	}
	return g_variant_new("(@a{sv})", description);
}

typedef struct Values {
	const PfMetricQuery *query;
	GVariantBuilder builder;
} Values;

static void add_host_values(Values *values, PfService *service)
{
	PfHostView host;

	pf_service_host_view(service, &host);
	pf_dbus_add_host_values(&values->builder, values->query, &host);
}

static void add_vm_values(const PfVmView *vm, void *userdata)
{
	Values *values = userdata;

	pf_dbus_add_vm_values(&values->builder, values->query, vm);
}

static gboolean parse_query(
	PfMetricQuery *query, const char *object, GVariant *names, GError **error)
{
	gsize n_patterns;
	g_autofree const char **patterns = g_variant_get_strv(names, &n_patterns);
	g_autoptr(GError) wrong = NULL;

	if (pf_metric_query_parse(query, object, patterns, n_patterns, &wrong))
		return TRUE;
	g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT, wrong->message);
	return FALSE;
}

static GVariant *query_metrics(PfDbusFront *front, GVariant *parameters, GError **error)
{
	const char *object;
	g_autoptr(GVariant) names = NULL;
	g_autoptr(GVariant) options = NULL;
	PfMetricQuery query;
	Values values = {.query = &query};
	gboolean found = TRUE;

	g_variant_get(parameters, "(&s@as@a{sv})", &object, &names, &options);
	if (!check_options(options, error) || !parse_query(&query, object, names, error) ||
		!check_libvirt(front, error))
		return NULL;
	g_variant_builder_init(&values.builder, G_VARIANT_TYPE(PF_DBUS_VALUES));
	if (query.object != PF_METRIC_OBJECT_VM)
		add_host_values(&values, front->service);
	if (query.object == PF_METRIC_OBJECT_ALL)
		pf_service_foreach_vm(front->service, add_vm_values, &values);
	if (query.object == PF_METRIC_OBJECT_VM)
		found = pf_service_visit_vm(front->service, object, add_vm_values, &values);
	if (!found) {
		g_variant_builder_clear(&values.builder);
		set_no_such_vm(error, object);
		return NULL;
	}
	return g_variant_new("(a(ssts))", &values.builder);
}

/* A ModifyVM on its way. */
typedef struct Modify {
	PfDbusFront *front; /* not to be touched after its cancellable was cancelled */
	GDBusMethodInvocation *invocation; /* answering it takes this reference */
	char *vm;
	PfVmSettings settings;
} Modify;

static void modify_free(Modify *modify)
{
	g_free(modify->vm);
	g_free(modify);
}

static void modify_failed(Modify *modify, GQuark domain, int code, const char *message)
{
	g_autofree char *valid = g_utf8_make_valid(message, -1);

	g_dbus_method_invocation_return_error_literal(modify->invocation, domain, code, valid);
	modify_free(modify);
}

static PfDbusError broker_error(const GError *error)
{
	if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND))
		return PF_DBUS_E_NO_SUCH_VM;
	if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_BUSY))
		return PF_DBUS_E_VM_NOT_SHUT_OFF;
	if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED))
		return PF_DBUS_E_REFUSED;
	return PF_DBUS_E_FAILED;
}

static void modify_done(GObject *source, GAsyncResult *result, void *userdata)
{
	Modify *modify = userdata;
	g_autoptr(GError) error = NULL;

	if (!pf_broker_modify_finish(result, &error)) {
		modify_failed(modify, PF_DBUS_ERROR, broker_error(error), error->message);
		return;
	}
	g_dbus_method_invocation_return_value(modify->invocation, NULL);
	modify_free(modify);
}

static void modify_start(Modify *modify)
{
	pf_broker_modify(pf_service_broker(modify->front->service), modify->vm, &modify->settings,
		modify_done, modify);
}

static void caller_known(GObject *source, GAsyncResult *result, void *userdata)
{
	Modify *modify = userdata;
	g_autoptr(GError) error = NULL;
	g_autoptr(GVariant) reply =
		g_dbus_connection_call_finish(G_DBUS_CONNECTION(source), result, &error);
	guint32 uid;

	if (!reply) {
		modify_failed(modify, PF_DBUS_ERROR, PF_DBUS_E_FAILED,
			g_error_matches(error, G_IO_ERROR, G_IO_ERROR_CANCELLED)
				? "the service is ending: try again"
				: "the bus does not say who is calling: try again");
		return;
	}
	g_variant_get(reply, "(u)", &uid);
	if (uid != 0) {
		modify_failed(modify, G_DBUS_ERROR, G_DBUS_ERROR_ACCESS_DENIED,
			"only root may change a VM");
		return;
	}
	modify_start(modify);
}

/* Answers when everything is done. Takes the invocation. */
static void modify_vm(PfDbusFront *front, GVariant *parameters, GDBusMethodInvocation *invocation)
{
	GDBusConnection *connection = g_dbus_method_invocation_get_connection(invocation);
	const char *sender = g_dbus_method_invocation_get_sender(invocation);
	const char *vm;
	g_autoptr(GVariant) dictionary = NULL;
	g_autoptr(GError) error = NULL;
	PfVmSettings settings;
	Modify *modify;

	g_variant_get(parameters, "(&s@a{sv})", &vm, &dictionary);
	if (!parse_settings(dictionary, &settings, &error) || !check_libvirt(front, &error)) {
		g_dbus_method_invocation_return_gerror(invocation, error);
		return;
	}
	modify = g_new0(Modify, 1);
	modify->front = front;
	modify->invocation = invocation;
	modify->vm = g_strdup(vm);
	modify->settings = settings;
	if (!sender) /* no bus in between: who made the connection decided who may call */
		modify_start(modify);
	else
		g_dbus_connection_call(connection, "org.freedesktop.DBus", "/org/freedesktop/DBus",
			"org.freedesktop.DBus", "GetConnectionUnixUser",
			g_variant_new("(s)", sender), G_VARIANT_TYPE("(u)"), G_DBUS_CALL_FLAGS_NONE,
			-1, front->cancellable, caller_known, modify);
}

static const struct {
	const char *name;
	GVariant *(*answer)(PfDbusFront *front, GVariant *parameters, GError **error);
} methods[] = {
	{"ListVMs", list_vms},
	{"GetVM", get_vm},
	{"QueryMetrics", query_metrics},
};

static void on_method(GDBusConnection *connection, const char *sender, const char *path,
	const char *interface, const char *method, GVariant *parameters,
	GDBusMethodInvocation *invocation, void *userdata)
{
	PfDbusFront *front = userdata;

	for (size_t i = 0; i < G_N_ELEMENTS(methods); i++) {
		g_autoptr(GError) error = NULL;
		GVariant *answer;

		if (strcmp(method, methods[i].name) != 0)
			continue;
		answer = methods[i].answer(front, parameters, &error);
		if (answer)
			g_dbus_method_invocation_return_value(invocation, answer);
		else
			g_dbus_method_invocation_return_gerror(invocation, error);
		return;
	}
	/* GDBus lets nothing else through: the XML has no fifth method. */
	modify_vm(front, parameters, invocation);
}

static GVariant *on_get_property(GDBusConnection *connection, const char *sender, const char *path,
	const char *interface, const char *property, GError **error, void *userdata)
{
	PfDbusFront *front = userdata;
	const char *reason = NULL;
	gboolean connected;

	if (strcmp(property, "Version") == 0)
		return g_variant_new_string(PF_VERSION);
	connected = pf_service_libvirt_connected(front->service, &reason);
	if (strcmp(property, "LibvirtConnected") == 0)
		return g_variant_new_boolean(connected != FALSE);
	return pf_dbus_text(connected || !reason ? "" : reason);
}

static const GDBusInterfaceVTable vtable = {
	.method_call = on_method,
	.get_property = on_get_property,
};

static gboolean export_object(PfDbusFront *front, GDBusConnection *connection, GError **error)
{
	front->object = g_dbus_connection_register_object(connection, PF_DBUS_PATH,
		pf_dbus_manager_interface_info(), &vtable, front, NULL, error);
	if (front->object == 0)
		return FALSE;
	front->connection = g_object_ref(connection);
	return TRUE;
}

static void say_failed(PfDbusFront *front, const char *message)
{
	void (*failed)(const char *message, void *userdata) = front->failed;

	front->failed = NULL;
	if (failed)
		failed(message, front->userdata);
}

static void on_bus(GDBusConnection *connection, const char *name, void *userdata)
{
	PfDbusFront *front = userdata;
	g_autoptr(GError) error = NULL;
	g_autofree char *message = NULL;

	/* How the service ends when the bus does is failed()'s to decide. */
	g_dbus_connection_set_exit_on_close(connection, FALSE);
	if (export_object(front, connection, &error))
		return;
	message = g_strdup_printf(
		"cannot put " PF_DBUS_PATH " on the system bus: %s", error->message);
	say_failed(front, message);
}

static void on_name_lost(GDBusConnection *connection, const char *name, void *userdata)
{
	PfDbusFront *front = userdata;

	if (!connection && !front->connection)
		say_failed(front, "cannot reach the system bus: start it (systemctl start dbus)");
	else if (!connection)
		say_failed(front, "the system bus is gone: start it and this service again "
				  "(systemctl start dbus pagefusiond)");
	else
		say_failed(front,
			"cannot own the name " PF_DBUS_NAME " on the system bus: stop the "
			"pagefusiond that runs already (systemctl stop pagefusiond), or install "
			"the bus policy org.pagefusion1.conf and run this as root");
}

static PfDbusFront *front_new(PfService *service)
{
	PfDbusFront *front = g_new0(PfDbusFront, 1);

	front->service = service;
	front->cancellable = g_cancellable_new();
	return front;
}

PfDbusFront *pf_dbus_front_new(
	PfService *service, void (*failed)(const char *message, void *userdata), void *userdata)
{
	PfDbusFront *front = front_new(service);

	front->failed = failed;
	front->userdata = userdata;
	front->owner = g_bus_own_name(G_BUS_TYPE_SYSTEM, PF_DBUS_NAME,
		G_BUS_NAME_OWNER_FLAGS_DO_NOT_QUEUE, on_bus, NULL, on_name_lost, front, NULL);
	return front;
}

PfDbusFront *pf_dbus_front_new_on(PfService *service, GDBusConnection *connection, GError **error)
{
	PfDbusFront *front = front_new(service);

	if (export_object(front, connection, error))
		return front;
	pf_dbus_front_free(front);
	return NULL;
}

void pf_dbus_front_free(PfDbusFront *front)
{
	if (!front)
		return;
	g_cancellable_cancel(front->cancellable);
	if (front->object != 0)
		g_dbus_connection_unregister_object(front->connection, front->object);
	if (front->owner != 0)
		g_bus_unown_name(front->owner);
	g_clear_object(&front->connection);
	g_object_unref(front->cancellable);
	g_free(front);
}
