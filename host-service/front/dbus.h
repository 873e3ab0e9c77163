/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The face on the bus: org.pagefusion1.xml, exported by the front. What it shows comes from the service, what it changes
 * goes to the broker. All calls are answered from the main loop's thread without blocking it.
 */
#include "host-service/front/front.h"
#include "host-service/wire/broker.h"

typedef struct PfDbusFront PfDbusFront;

/*
 * Connects to the system bus and owns org.pagefusion1 there. When that fails, or ends later, failed() is called from the
 * main loop, once, with a sentence that says what to do. service, broker (the front's own client of it) and userdata
 * must live as long as this.
 */
PfDbusFront *pf_dbus_front_new(PfFront *service, PfBroker *broker,
	void (*failed)(const char *message, void *userdata), void *userdata);

/* The same on a connection that the caller has (a reference is taken), without a name; NULL with error set. */
PfDbusFront *pf_dbus_front_new_on(
	PfFront *service, PfBroker *broker, GDBusConnection *connection, GError **error);

/*
 * Calls that are not answered yet are answered still, with an error, by the service or by the broker, as long as the main
 * context goes on turning.
 */
void pf_dbus_front_free(PfDbusFront *front);
