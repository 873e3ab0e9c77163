/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the files of the bus interface share: dbus.c (object and name), dbus_call.c, dbus_answers.c, dbus_read.c,
 * dbus_modify.c and dbus_additions.c. */
#include "host-service/front/dbus.h"

#define PF_DBUS_MAX_CALLS 64 /* of one user who is not root, under way */

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

typedef struct PfDbusAnswers PfDbusAnswers;
typedef struct PfDbusCallers PfDbusCallers;

struct PfDbusFront {
	PfDbusAnswers *answers; /* a reference */
	PfBroker *broker;
	void (*failed)(const char *message, void *userdata); /* NULL: said already, or none */
	void *userdata;
	guint owner;                 /* of the name, 0 when there is none */
	GDBusConnection *connection; /* where the object is registered, NULL before */
	guint object;                /* registration, 0 before */
	GCancellable *cancellable;   /* ends with the front */
	PfDbusCallers *callers;      /* a reference */
};

/* Calls */

/* A call under way, which needs nothing of the front to be answered. */
typedef struct PfDbusCall PfDbusCall;

/* Who has calls under way; they hold references. */
PfDbusCallers *pf_dbus_callers_new(void);
void pf_dbus_callers_unref(PfDbusCallers *callers);

/* Takes the invocation. pf_dbus_start() follows, now or later, unless its user has too many under way: then it is answered. */
void pf_dbus_call_begin(PfDbusFront *front, GDBusMethodInvocation *invocation);
void pf_dbus_start(PfDbusFront *front, PfDbusCall *call);

/* Answer a call, which is consumed. value may be floating, NULL for nothing; message need not be UTF-8. */
void pf_dbus_call_return(PfDbusCall *call, GVariant *value);
void pf_dbus_call_fail(PfDbusCall *call, const GError *error);
void pf_dbus_call_fail_literal(PfDbusCall *call, GQuark domain, int code, const char *message);

/* Valid until the call is answered. */
const char *pf_dbus_call_method(const PfDbusCall *call);
GVariant *pf_dbus_call_parameters(const PfDbusCall *call);

/* Whether root calls, by the word of the bus; without a bus in between, who made the connection decided who may call. */
gboolean pf_dbus_call_is_roots(const PfDbusCall *call);

/* Names and sizes of arguments are GDBus's to check; these answer the call, now or later. */
void pf_dbus_read(PfDbusFront *front, PfDbusCall *call);
void pf_dbus_modify(PfDbusFront *front, PfDbusCall *call);
void pf_dbus_additions(PfDbusFront *front, PfDbusCall *call);

/* What an error of the broker's is on the bus. */
PfDbusError pf_dbus_broker_error(const GError *error);

/* What the service says, shared by calls; queries under way hold nothing of it. service must live as long. */
PfDbusAnswers *pf_dbus_answers_new(PfFront *service);
PfDbusAnswers *pf_dbus_answers_ref(PfDbusAnswers *answers);
void pf_dbus_answers_unref(PfDbusAnswers *answers);

/* answer: NULL with an error of pf_front_query(). Both are valid during the call only. */
typedef void (*PfDbusAnswered)(const PfFrontAnswer *answer, const GError *error, void *userdata);

/* As pf_front_query(), but the answer may be of a moment ago, and come at once. */
void pf_dbus_answers_ask(PfDbusAnswers *answers, guint want, const char *vm,
	PfDbusAnswered answered, void *userdata);

/* Something has changed: who asks from now on gets a new answer. */
void pf_dbus_answers_forget(PfDbusAnswers *answers);
