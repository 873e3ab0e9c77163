/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the files of the bus interface share: dbus.c (object and name), dbus_call.c, dbus_read.c and dbus_modify.c. */
#include "host-service/dbus.h"

#define PF_DBUS_MAX_CALLS 64 /* of one sender, under way */

typedef enum PfDbusError {
	PF_DBUS_E_NO_SUCH_VM,
	PF_DBUS_E_VM_NOT_SHUT_OFF,
	PF_DBUS_E_REFUSED,
	PF_DBUS_E_INVALID_ARGUMENT,
	PF_DBUS_E_NO_LIBVIRT,
	PF_DBUS_E_FAILED,
	PF_DBUS_N_ERRORS
} PfDbusError;

#define PF_DBUS_ERROR (pf_dbus_error_quark())
GQuark pf_dbus_error_quark(void);

struct PfDbusFront {
	PfFront *service;
	PfBroker *broker;
	void (*failed)(const char *message, void *userdata); /* NULL: said already, or none */
	void *userdata;
	guint owner;                 /* of the name, 0 when there is none */
	GDBusConnection *connection; /* where the object is registered, NULL before */
	guint object;                /* registration, 0 before */
	GCancellable *cancellable;   /* ends with the front */
	GHashTable
		*senders; /* of calls under way: name to their number; the calls hold references */
};

/* A call under way, which needs nothing of the front to be answered. */
typedef struct PfDbusCall PfDbusCall;

/* Takes the invocation. NULL: its sender has too many under way, and it was answered. */
PfDbusCall *pf_dbus_call_new(PfDbusFront *front, GDBusMethodInvocation *invocation);

/* Answer a call, which is consumed. value may be floating, NULL for nothing; message need not be UTF-8. */
void pf_dbus_call_return(PfDbusCall *call, GVariant *value);
void pf_dbus_call_fail(PfDbusCall *call, const GError *error);
void pf_dbus_call_fail_literal(PfDbusCall *call, GQuark domain, int code, const char *message);

/* Names and sizes of arguments are GDBus's to check; these answer the call, now or later. */
void pf_dbus_read(PfDbusFront *front, const char *method, GVariant *parameters, PfDbusCall *call);
void pf_dbus_modify(PfDbusFront *front, GVariant *parameters, PfDbusCall *call);

/* The caller of the call: NULL where no bus is in between. */
const char *pf_dbus_call_sender(const PfDbusCall *call);
GDBusConnection *pf_dbus_call_connection(const PfDbusCall *call);
