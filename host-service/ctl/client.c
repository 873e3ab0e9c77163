/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Finding the service, and what its errors mean for the user.
 *
 * The connection is one of our own and not GLib's shared one: that one would end the process
 * without a word when the bus goes away. Nothing is loaded or started behind the user's back: a
 * service that does not run is an error.
 */
#include "host-service/ctl/client.h"
#include "host-service/front/dbus_names.h"
#include <gio/gio.h>

static GDBusConnection *connect_to_bus(GError **error)
{
	g_autofree char *address = g_dbus_address_get_for_bus_sync(G_BUS_TYPE_SYSTEM, NULL, error);

	if (!address)
		return NULL;
	return g_dbus_connection_new_for_address_sync(address,
		G_DBUS_CONNECTION_FLAGS_AUTHENTICATION_CLIENT |
			G_DBUS_CONNECTION_FLAGS_MESSAGE_BUS_CONNECTION,
		NULL, NULL, error);
}

PfDbusManager *pf_ctl_connect(PfCtl *ctl, PfCtlExit *code)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(GDBusConnection) connection = connect_to_bus(&error);
	PfDbusManager *manager = NULL;

	if (!connection) {
		*code = pf_ctl_fail(ctl, PF_CTL_UNREACHABLE,
			"the system bus cannot be reached (%s): start it (systemctl start dbus)",
			error->message);
		return NULL;
	}
	manager = pf_dbus_manager_proxy_new_sync(connection,
		G_DBUS_PROXY_FLAGS_DO_NOT_LOAD_PROPERTIES |
			G_DBUS_PROXY_FLAGS_DO_NOT_CONNECT_SIGNALS |
			G_DBUS_PROXY_FLAGS_DO_NOT_AUTO_START_AT_CONSTRUCTION,
		PF_DBUS_NAME, PF_DBUS_PATH, NULL, &error);
	if (!manager)
		*code = pf_ctl_call_failed(ctl, error);
	return manager;
}

static PfCtlExit unreachable(PfCtl *ctl, const GError *error)
{
	return pf_ctl_fail(ctl, PF_CTL_UNREACHABLE,
		"the page fusion service did not answer (%s): see its log (journalctl -u "
		"pagefusiond)",
		error->message);
}

/* Errors of the bus and of GDBus itself. */
static PfCtlExit transport_failed(PfCtl *ctl, const GError *error)
{
	if (g_error_matches(error, G_DBUS_ERROR, G_DBUS_ERROR_SERVICE_UNKNOWN) ||
		g_error_matches(error, G_DBUS_ERROR, G_DBUS_ERROR_NAME_HAS_NO_OWNER))
		return pf_ctl_fail(ctl, PF_CTL_UNREACHABLE,
			"the page fusion service is not running: start it "
			"(systemctl start pagefusiond)");
	if (g_error_matches(error, G_DBUS_ERROR, G_DBUS_ERROR_ACCESS_DENIED))
		return pf_ctl_fail(
			ctl, PF_CTL_REFUSED, "you may not do this: run the command as root (sudo)");
	if (g_error_matches(error, G_DBUS_ERROR, G_DBUS_ERROR_UNKNOWN_METHOD) ||
		g_error_matches(error, G_DBUS_ERROR, G_DBUS_ERROR_UNKNOWN_INTERFACE) ||
		g_error_matches(error, G_DBUS_ERROR, G_DBUS_ERROR_UNKNOWN_OBJECT) ||
		g_error_matches(error, G_DBUS_ERROR, G_DBUS_ERROR_INVALID_ARGS))
		return pf_ctl_fail(ctl, PF_CTL_FAILED,
			"the page fusion service is of another version than this program: "
			"restart it (systemctl restart pagefusiond)");
	return unreachable(ctl, error);
}

PfCtlExit pf_ctl_call_failed(PfCtl *ctl, const GError *error)
{
	static const struct {
		const char *name;
		PfCtlExit code;
	} own_errors[] = {
		{PF_DBUS_ERROR_NO_SUCH_VM, PF_CTL_NO_SUCH_VM},
		{PF_DBUS_ERROR_VM_NOT_SHUT_OFF, PF_CTL_REFUSED},
		{PF_DBUS_ERROR_REFUSED, PF_CTL_REFUSED},
		{PF_DBUS_ERROR_INVALID_ARGUMENT, PF_CTL_USAGE},
		{PF_DBUS_ERROR_NO_LIBVIRT, PF_CTL_UNREACHABLE},
		{PF_DBUS_ERROR_FAILED, PF_CTL_FAILED},
	};
	g_autofree char *name = g_dbus_error_get_remote_error(error);
	g_autoptr(GError) plain = g_error_copy(error);

	g_dbus_error_strip_remote_error(plain);
	for (size_t i = 0; name && i < G_N_ELEMENTS(own_errors); i++) {
		if (g_str_equal(name, own_errors[i].name))
			return pf_ctl_fail(ctl, own_errors[i].code, "%s", plain->message);
	}
	return transport_failed(ctl, plain);
}

GVariant *pf_ctl_no_options(void)
{
	return g_variant_new_array(G_VARIANT_TYPE("{sv}"), NULL, 0);
}
