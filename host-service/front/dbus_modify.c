/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ModifyVM: root's call (the bus policy keeps others away as well, this holds where a policy file is missing or too
 * generous), for which the broker edits the definition; that needs nothing of the front any more. The service has no
 * part in it: it could otherwise have other VMs put into its reach.
 */
#include "host-service/front/dbus_private.h"
#include <string.h>

/* A ModifyVM on its way. */
typedef struct Modify {
	PfDbusCall *call;
	PfDbusAnswers *answers; /* a reference */
} Modify;

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

static gboolean parse_group(GVariant *value, PfVmSettings *settings, GError **error)
{
	if (!g_variant_is_of_type(value, G_VARIANT_TYPE_STRING) ||
		!pf_group_name_is_valid(g_variant_get_string(value, NULL))) {
		g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT,
			"setting 'group' must be a string of " PF_GROUP_NAME_RULE);
		return FALSE;
	}
	g_strlcpy(settings->group, g_variant_get_string(value, NULL), sizeof(settings->group));
	settings->changes |= PF_VM_SET_GROUP;
	return TRUE;
}

static gboolean parse_setting(
	const char *key, GVariant *value, PfVmSettings *settings, GError **error)
{
	if (strcmp(key, "pagefusion") == 0)
		return parse_enabled(value, settings, error);
	if (strcmp(key, "thp") == 0)
		return parse_thp(value, settings, error);
	if (strcmp(key, "group") == 0)
		return parse_group(value, settings, error);
	g_set_error(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT,
		"setting '%s' is not known to this version of the service: leave it out", key);
	return FALSE;
}

/* What a VM without page fusion has not. */
static gboolean check_together(const PfVmSettings *settings, GError **error)
{
	if (!(settings->changes & PF_VM_SET_ENABLED) || settings->enabled)
		return TRUE;
	if (settings->changes & PF_VM_SET_THP) {
		g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT,
			"a VM without page fusion has no policy for huge pages: leave 'thp' out");
		return FALSE;
	}
	if (settings->changes & PF_VM_SET_GROUP) {
		g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT,
			"a VM without page fusion has no trust group: leave 'group' out");
		return FALSE;
	}
	return TRUE;
}

/* FALSE with error set unless they say what to change and nothing else. */
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
			"no setting was given: give 'pagefusion', 'thp' or 'group', or several");
		return FALSE;
	}
	return check_together(settings, error);
}

PfDbusError pf_dbus_broker_error(const GError *error)
{
	static const struct {
		GIOErrorEnum code;
		PfDbusError means;
	} errors[] = {
		{G_IO_ERROR_NOT_FOUND, PF_DBUS_E_NO_SUCH_VM},
		{G_IO_ERROR_BUSY, PF_DBUS_E_VM_NOT_SHUT_OFF},
		{G_IO_ERROR_NOT_SUPPORTED, PF_DBUS_E_REFUSED},
		{G_IO_ERROR_NOT_CONNECTED, PF_DBUS_E_NO_LIBVIRT},
	};

	for (guint i = 0; i < G_N_ELEMENTS(errors); i++)
		if (g_error_matches(error, G_IO_ERROR, (int)errors[i].code))
			return errors[i].means;
	return PF_DBUS_E_FAILED;
}

static void modify_free(Modify *modify)
{
	pf_dbus_answers_unref(modify->answers);
	g_free(modify);
}

static void modify_done(GObject *source, GAsyncResult *result, void *userdata)
{
	Modify *modify = userdata;
	g_autoptr(GError) error = NULL;

	if (pf_broker_modify_finish(result, &error)) {
		/* Who has changed something is to see it. */
		pf_dbus_answers_forget(modify->answers);
		pf_dbus_call_return(modify->call, NULL);
	} else {
		pf_dbus_call_fail_literal(
			modify->call, PF_DBUS_ERROR, pf_dbus_broker_error(error), error->message);
	}
	modify_free(modify);
}

void pf_dbus_modify(PfDbusFront *front, PfDbusCall *call)
{
	const char *vm;
	g_autoptr(GVariant) dictionary = NULL;
	g_autoptr(GError) error = NULL;
	PfVmSettings settings;
	Modify *modify;

	g_variant_get(pf_dbus_call_parameters(call), "(&s@a{sv})", &vm, &dictionary);
	if (!parse_settings(dictionary, &settings, &error)) {
		pf_dbus_call_fail(call, error);
		return;
	}
	if (!pf_dbus_call_is_roots(call)) {
		pf_dbus_call_fail_literal(call, G_DBUS_ERROR, G_DBUS_ERROR_ACCESS_DENIED,
			"only root may change a VM");
		return;
	}
	modify = g_new(Modify, 1);
	*modify = (Modify){call, pf_dbus_answers_ref(front->answers)};
	pf_broker_modify(front->broker, vm, &settings, modify_done, modify);
}
