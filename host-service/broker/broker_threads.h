/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Inside the broker: what waits for a QEMU, which may never answer. */
#include "host-service/wire/broker_protocol.h"
#include <libvirt/libvirt.h>

typedef struct PfBrokerThreads PfBrokerThreads;

/* One request, in a thread, with a connection of its own. data is pf_broker_threads_begin()'s. */
typedef void (*PfBrokerWork)(virConnectPtr connection, const PfBrokerRequest *request,
	const char *name, const void *data, PfBrokerMessage *answer, GError **error);

/*
 * answered() is called in the thread of libvirt's event loop for each request that was begun, with its answer or an
 * error; both are ours. uri is libvirt's and must live as long as the process. NULL: errno says why.
 */
PfBrokerThreads *pf_broker_threads_new(const char *uri, guint max_threads,
	void (*answered)(void *userdata, PfBrokerMessage *answer, const GError *error),
	void *userdata);

/* Nothing is answered any more. A call that hangs is left alone: nobody waits for it. */
void pf_broker_threads_free(PfBrokerThreads *threads);

/*
 * Begins with a request that was checked, about the VM with this UUID and name, or puts it behind others. FALSE: an earlier
 * one about this VM has no answer yet. data must live as long as the process.
 */
gboolean pf_broker_threads_begin(PfBrokerThreads *threads, const PfBrokerRequest *request,
	const char *uuid, const char *name, PfBrokerWork work, const void *data);
