/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Calls under way. They are counted for each sender, so that who floods the bus gets LimitsExceeded and others get their
 * answers. The table of senders is held by the calls as well, because they may outlive the front.
 */
#include "host-service/dbus_names.h"
#include "host-service/dbus_private.h"
#include <assert.h>

static const GDBusErrorEntry error_entries[] = {
	{PF_DBUS_E_NO_SUCH_VM, PF_DBUS_ERROR_NO_SUCH_VM},
	{PF_DBUS_E_VM_NOT_SHUT_OFF, PF_DBUS_ERROR_VM_NOT_SHUT_OFF},
	{PF_DBUS_E_REFUSED, PF_DBUS_ERROR_REFUSED},
	{PF_DBUS_E_INVALID_ARGUMENT, PF_DBUS_ERROR_INVALID_ARGUMENT},
	{PF_DBUS_E_NO_LIBVIRT, PF_DBUS_ERROR_NO_LIBVIRT},
	{PF_DBUS_E_FAILED, PF_DBUS_ERROR_FAILED},
};
static_assert(G_N_ELEMENTS(error_entries) == PF_DBUS_N_ERRORS, "a name for each error");

struct PfDbusCall {
	GDBusMethodInvocation *invocation; /* answering it takes this reference */
	GHashTable *senders;               /* a reference */
};

GQuark pf_dbus_error_quark(void)
{
	static gsize quark;

	g_dbus_error_register_error_domain(
		"pf-dbus-error", &quark, error_entries, G_N_ELEMENTS(error_entries));
	return (GQuark)quark;
}

/* Without a bus in between all calls have one sender. */
static const char *key_of(GDBusMethodInvocation *invocation)
{
	const char *sender = g_dbus_method_invocation_get_sender(invocation);

	return sender ? sender : "";
}

static guint count_calls(GHashTable *senders, const char *key)
{
	return GPOINTER_TO_UINT(g_hash_table_lookup(senders, key));
}

static void set_calls(GHashTable *senders, const char *key, guint n)
{
	if (n > 0)
		g_hash_table_insert(senders, g_strdup(key), GUINT_TO_POINTER(n));
	else
		g_hash_table_remove(senders, key);
}

PfDbusCall *pf_dbus_call_new(PfDbusFront *front, GDBusMethodInvocation *invocation)
{
	const char *key = key_of(invocation);
	guint n = count_calls(front->senders, key);
	PfDbusCall *call;

	if (n >= PF_DBUS_MAX_CALLS) {
		g_dbus_method_invocation_return_error_literal(invocation, G_DBUS_ERROR,
			G_DBUS_ERROR_LIMITS_EXCEEDED,
			"too many calls of yours are under way: wait for their answers");
		return NULL;
	}
	set_calls(front->senders, key, n + 1);
	call = g_new(PfDbusCall, 1);
	*call = (PfDbusCall){invocation, g_hash_table_ref(front->senders)};
	return call;
}

/* The invocation, to be answered; the call is consumed. */
static GDBusMethodInvocation *end_call(PfDbusCall *call)
{
	GDBusMethodInvocation *invocation = call->invocation;
	const char *key = key_of(invocation);

	set_calls(call->senders, key, count_calls(call->senders, key) - 1);
	g_hash_table_unref(call->senders);
	g_free(call);
	return invocation;
}

void pf_dbus_call_return(PfDbusCall *call, GVariant *value)
{
	g_dbus_method_invocation_return_value(end_call(call), value);
}

void pf_dbus_call_fail(PfDbusCall *call, const GError *error)
{
	pf_dbus_call_fail_literal(call, error->domain, error->code, error->message);
}

void pf_dbus_call_fail_literal(PfDbusCall *call, GQuark domain, int code, const char *message)
{
	g_autofree char *valid = g_utf8_make_valid(message, -1);

	g_dbus_method_invocation_return_error_literal(end_call(call), domain, code, valid);
}

const char *pf_dbus_call_sender(const PfDbusCall *call)
{
	return g_dbus_method_invocation_get_sender(call->invocation);
}

GDBusConnection *pf_dbus_call_connection(const PfDbusCall *call)
{
	return g_dbus_method_invocation_get_connection(call->invocation);
}
