/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * InsertAdditions and EjectAdditions: root's calls, as ModifyVM is. The broker does it; to change a drive of a VM that runs
 * may take long, and for ever where QEMU hangs.
 */
#include "host-service/front/dbus_private.h"
#include "host-service/front/dbus_values.h"
#include <string.h>

static gboolean parse_force(const char *key, GVariant *value, gboolean *force, GError **error)
{
	if (!force || strcmp(key, "force") != 0) {
		g_set_error(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT,
			"option '%s' is not known to this version of the service: leave it out",
			key);
		return FALSE;
	}
	if (!g_variant_is_of_type(value, G_VARIANT_TYPE_BOOLEAN)) {
		g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT,
			"option 'force' must be a boolean");
		return FALSE;
	}
	*force = g_variant_get_boolean(value);
	return TRUE;
}

/* force: NULL where the method has no such option. */
static gboolean parse_options(GVariant *options, gboolean *force, GError **error)
{
	GVariantIter iter;
	const char *key;
	GVariant *value;

	g_variant_iter_init(&iter, options);
	while (g_variant_iter_next(&iter, "{&sv}", &key, &value)) {
		g_autoptr(GVariant) owned = value;

		if (!parse_force(key, owned, force, error))
			return FALSE;
	}
	return TRUE;
}

static GVariant *describe_change(const PfAdditionsChange *change)
{
	GVariantDict dict;

	g_variant_dict_init(&dict, NULL);
	g_variant_dict_insert_value(&dict, "drive", pf_dbus_text(change->drive));
	g_variant_dict_insert(&dict, "changed", "b", change->changed != 0);
	g_variant_dict_insert(&dict, "running", "b", change->running != 0);
	g_variant_dict_insert(&dict, "of-drive", "b", change->of_drive != 0);
	return g_variant_new("(@a{sv})", g_variant_dict_end(&dict));
}

static void on_done(GObject *source, GAsyncResult *result, void *userdata)
{
	PfDbusCall *call = userdata;
	g_autoptr(GError) error = NULL;
	PfAdditionsChange change;

	if (pf_broker_additions_finish(result, &change, &error))
		pf_dbus_call_return(call, describe_change(&change));
	else
		pf_dbus_call_fail_literal(
			call, PF_DBUS_ERROR, pf_dbus_broker_error(error), error->message);
}

void pf_dbus_additions(PfDbusFront *front, PfDbusCall *call)
{
	gboolean eject = strcmp(pf_dbus_call_method(call), "EjectAdditions") == 0;
	gboolean force = FALSE;
	const char *vm;
	g_autoptr(GVariant) options = NULL;
	g_autoptr(GError) error = NULL;

	g_variant_get(pf_dbus_call_parameters(call), "(&s@a{sv})", &vm, &options);
	if (!parse_options(options, eject ? &force : NULL, &error))
		pf_dbus_call_fail(call, error);
	else if (!pf_dbus_call_is_roots(call))
		pf_dbus_call_fail_literal(call, G_DBUS_ERROR, G_DBUS_ERROR_ACCESS_DENIED,
			"only root may change a VM");
	else if (eject)
		pf_broker_eject_additions(front->broker, vm, force, on_done, call);
	else
		pf_broker_insert_additions(front->broker, vm, on_done, call);
}
