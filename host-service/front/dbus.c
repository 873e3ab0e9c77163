/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The D-Bus interface org.pagefusion1.Manager: the object, and its name on the bus.
 *
 * The object is registered with the introspection data that gdbus-codegen makes of org.pagefusion1.xml and a table of
 * handlers of our own. The table has none for properties, so GDBus hands their Get and GetAll on as method calls: like
 * every other answer, theirs comes later (dbus_read.c, dbus_modify.c, dbus_additions.c). GDBus has checked the signature of a call before
 * it comes here; what strings and dictionaries contain is checked where they are used.
 */
#include "host-service/front/dbus.h"
#include "host-service/front/dbus_names.h"
#include "host-service/front/dbus_private.h"
#include "host-service/front/org.pagefusion1.h"
#include <string.h>

static void on_method(GDBusConnection *connection, const char *sender, const char *path,
	const char *interface, const char *method, GVariant *parameters,
	GDBusMethodInvocation *invocation, void *userdata)
{
	pf_dbus_call_begin(userdata, invocation);
}

void pf_dbus_start(PfDbusFront *front, PfDbusCall *call)
{
	const char *method = pf_dbus_call_method(call);

	if (strcmp(method, "ModifyVM") == 0)
		pf_dbus_modify(front, call);
	else if (g_str_has_suffix(method, "Additions"))
		pf_dbus_additions(front, call);
	else
		pf_dbus_read(front, call);
}

static const GDBusInterfaceVTable vtable = {
	.method_call = on_method,
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

static PfDbusFront *front_new(PfFront *service, PfBroker *broker)
{
	PfDbusFront *front = g_new0(PfDbusFront, 1);

	front->answers = pf_dbus_answers_new(service);
	front->broker = broker;
	front->callers = pf_dbus_callers_new();
	front->cancellable = g_cancellable_new();
	return front;
}

PfDbusFront *pf_dbus_front_new(PfFront *service, PfBroker *broker,
	void (*failed)(const char *message, void *userdata), void *userdata)
{
	PfDbusFront *front = front_new(service, broker);

	front->failed = failed;
	front->userdata = userdata;
	front->owner = g_bus_own_name(G_BUS_TYPE_SYSTEM, PF_DBUS_NAME,
		G_BUS_NAME_OWNER_FLAGS_DO_NOT_QUEUE, on_bus, NULL, on_name_lost, front, NULL);
	return front;
}

PfDbusFront *pf_dbus_front_new_on(
	PfFront *service, PfBroker *broker, GDBusConnection *connection, GError **error)
{
	PfDbusFront *front = front_new(service, broker);

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
	pf_dbus_callers_unref(front->callers);
	pf_dbus_answers_unref(front->answers);
	g_free(front);
}
