/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Calls under way. They are counted for each user, whatever the number of his connections, so that who floods the bus gets
 * LimitsExceeded and others get their answers; root's are not limited. Who a sender is, the bus is asked at his first
 * call; it is known as long as he has calls under way, as the bus never gives a name to somebody else. Until it is, his
 * calls wait: more of them than a bus lets a connection have, in case he is root.
 *
 * The tables are held by the calls as well, because they may outlive the front.
 */
#include "host-service/front/dbus_names.h"
#include "host-service/front/dbus_private.h"
#include <assert.h>

#define MAX_WAITING 1024        /* of a sender who is not known yet */
#define NO_BUS      G_MAXUINT32 /* nobody's number: without a bus in between all calls have one sender */

static const GDBusErrorEntry error_entries[] = {
	{PF_DBUS_E_NO_SUCH_VM, PF_DBUS_ERROR_NO_SUCH_VM},
	{PF_DBUS_E_VM_NOT_SHUT_OFF, PF_DBUS_ERROR_VM_NOT_SHUT_OFF},
	{PF_DBUS_E_REFUSED, PF_DBUS_ERROR_REFUSED},
	{PF_DBUS_E_INVALID_ARGUMENT, PF_DBUS_ERROR_INVALID_ARGUMENT},
	{PF_DBUS_E_NO_LIBVIRT, PF_DBUS_ERROR_NO_LIBVIRT},
	{PF_DBUS_E_FAILED, PF_DBUS_ERROR_FAILED},
};
static_assert(G_N_ELEMENTS(error_entries) == PF_DBUS_N_ERRORS, "a name for each error");

struct PfDbusCallers {
	GHashTable *senders; /* name -> Sender (owned), those with calls under way */
	GHashTable *users;   /* uid -> number of calls under way, never 0 */
};

typedef struct Sender {
	gboolean is_known;
	guint32 uid;
	guint n_calls;
	GQueue waiting; /* of PfDbusCall, until it is known */
} Sender;

struct PfDbusCall {
	PfDbusFront *front;                /* not to be touched once it has started */
	GDBusMethodInvocation *invocation; /* answering it takes this reference */
	PfDbusCallers *callers;            /* a reference */
	Sender *sender;
	gboolean is_counted; /* for its user */
};

GQuark pf_dbus_error_quark(void)
{
	static gsize quark;

	g_dbus_error_register_error_domain(
		"pf-dbus-error", &quark, error_entries, G_N_ELEMENTS(error_entries));
	return (GQuark)quark;
}

/* Who calls */

PfDbusCallers *pf_dbus_callers_new(void)
{
	PfDbusCallers *callers = g_rc_box_new0(PfDbusCallers);

	callers->senders = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
	callers->users = g_hash_table_new(NULL, NULL);
	return callers;
}

static void finish_callers(gpointer data)
{
	PfDbusCallers *callers = data;

	g_hash_table_unref(callers->senders);
	g_hash_table_unref(callers->users);
}

void pf_dbus_callers_unref(PfDbusCallers *callers)
{
	g_rc_box_release_full(callers, finish_callers);
}

static const char *key_of(GDBusMethodInvocation *invocation)
{
	const char *sender = g_dbus_method_invocation_get_sender(invocation);

	return sender ? sender : "";
}

static Sender *find_sender(PfDbusCallers *callers, const char *key)
{
	Sender *sender = g_hash_table_lookup(callers->senders, key);

	if (sender)
		return sender;
	sender = g_new0(Sender, 1);
	sender->is_known = key[0] == 0;
	sender->uid = NO_BUS;
	g_queue_init(&sender->waiting);
	g_hash_table_insert(callers->senders, g_strdup(key), sender);
	return sender;
}

static guint count_calls(PfDbusCallers *callers, guint32 uid)
{
	return GPOINTER_TO_UINT(g_hash_table_lookup(callers->users, GUINT_TO_POINTER(uid)));
}

static void set_calls(PfDbusCallers *callers, guint32 uid, guint n)
{
	if (n > 0)
		g_hash_table_insert(callers->users, GUINT_TO_POINTER(uid), GUINT_TO_POINTER(n));
	else
		g_hash_table_remove(callers->users, GUINT_TO_POINTER(uid));
}

/* Beginning and end */

/* The invocation, to be answered; the call is consumed. */
static GDBusMethodInvocation *end_call(PfDbusCall *call)
{
	GDBusMethodInvocation *invocation = call->invocation;
	PfDbusCallers *callers = call->callers;
	guint32 uid = call->sender->uid;

	if (call->is_counted)
		set_calls(callers, uid, count_calls(callers, uid) - 1);
	if (--call->sender->n_calls == 0)
		g_hash_table_remove(callers->senders, key_of(invocation));
	g_free(call);
	pf_dbus_callers_unref(callers);
	return invocation;
}

static void refuse(PfDbusCall *call)
{
	pf_dbus_call_fail_literal(call, G_DBUS_ERROR, G_DBUS_ERROR_LIMITS_EXCEEDED,
		"too many calls of yours are under way: wait for their answers");
}

/* Its sender is known. */
static void start_call(PfDbusCall *call)
{
	guint32 uid = call->sender->uid;
	guint n = count_calls(call->callers, uid);

	if (n >= PF_DBUS_MAX_CALLS && uid != 0) {
		refuse(call);
		return;
	}
	set_calls(call->callers, uid, n + 1);
	call->is_counted = TRUE;
	pf_dbus_start(call->front, call);
}

/* The sender is gone when the last of his calls is. */
static void start_waiting(Sender *sender)
{
	for (guint n = sender->waiting.length; n > 0; n--)
		start_call(g_queue_pop_head(&sender->waiting));
}

static void fail_waiting(Sender *sender, const char *message)
{
	for (guint n = sender->waiting.length; n > 0; n--)
		pf_dbus_call_fail_literal(g_queue_pop_head(&sender->waiting), PF_DBUS_ERROR,
			PF_DBUS_E_FAILED, message);
}

static void on_user(GObject *source, GAsyncResult *result, void *userdata)
{
	Sender *sender = userdata;
	g_autoptr(GError) error = NULL;
	g_autoptr(GVariant) reply =
		g_dbus_connection_call_finish(G_DBUS_CONNECTION(source), result, &error);

	if (!reply) {
		fail_waiting(sender, g_error_matches(error, G_IO_ERROR, G_IO_ERROR_CANCELLED)
					     ? "the service is ending: try again"
					     : "the bus does not say who is calling: try again");
		return;
	}
	g_variant_get(reply, "(u)", &sender->uid);
	sender->is_known = TRUE;
	start_waiting(sender);
}

static void ask_for_user(PfDbusFront *front, GDBusMethodInvocation *invocation, Sender *sender)
{
	g_dbus_connection_call(g_dbus_method_invocation_get_connection(invocation),
		"org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus",
		"GetConnectionUnixUser", g_variant_new("(s)", key_of(invocation)),
		G_VARIANT_TYPE("(u)"), G_DBUS_CALL_FLAGS_NONE, -1, front->cancellable, on_user,
		sender);
}

void pf_dbus_call_begin(PfDbusFront *front, GDBusMethodInvocation *invocation)
{
	Sender *sender = find_sender(front->callers, key_of(invocation));
	PfDbusCall *call = g_new(PfDbusCall, 1);

	*call = (PfDbusCall){front, invocation, g_rc_box_acquire(front->callers), sender, FALSE};
	sender->n_calls++;
	if (sender->is_known) {
		start_call(call);
	} else if (sender->waiting.length >= MAX_WAITING) {
		refuse(call);
	} else {
		g_queue_push_tail(&sender->waiting, call);
		if (sender->waiting.length == 1)
			ask_for_user(front, invocation, sender);
	}
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

const char *pf_dbus_call_method(const PfDbusCall *call)
{
	return g_dbus_method_invocation_get_method_name(call->invocation);
}

GVariant *pf_dbus_call_parameters(const PfDbusCall *call)
{
	return g_dbus_method_invocation_get_parameters(call->invocation);
}

gboolean pf_dbus_call_is_roots(const PfDbusCall *call)
{
	return call->sender->uid == 0 || call->sender->uid == NO_BUS;
}
