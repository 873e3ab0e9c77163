/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The service's face on the bus: org.pagefusion1.xml, exported for a PfService. All calls are
 * answered from the main loop's thread without blocking it.
 */
#include "host-service/service.h"
#include <gio/gio.h>

typedef struct PfDbusFront PfDbusFront;

/*
 * Connects to the system bus and owns org.pagefusion1 there. When that fails, or ends later,
 * failed() is called from the main loop, once, with a sentence that says what to do. service, and
 * userdata, must live as long as the front.
 */
PfDbusFront *pf_dbus_front_new(
	PfService *service, void (*failed)(const char *message, void *userdata), void *userdata);

/* The same on a connection that the caller has (a reference is taken), without a name; NULL with
 * error set. */
PfDbusFront *pf_dbus_front_new_on(PfService *service, GDBusConnection *connection, GError **error);

/* Calls that are not answered yet are answered still, with an error or by the broker, as long as
 * the main context goes on turning. */
void pf_dbus_front_free(PfDbusFront *front);
