/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Inside the broker: the medium of the guest additions, in and out of a VM's drive. */
#include "host-service/broker/broker_threads.h"

#define PF_BROKER_CHANGE_THREADS 4

/*
 * Serves an INSERT_ADDITIONS or EJECT_ADDITIONS. TRUE: it was begun, the threads will answer. FALSE: answer is the answer, or
 * error is set. connection is NULL while libvirt is away; config must live as long as the process.
 */
gboolean pf_broker_serve_additions(virConnectPtr connection, PfBrokerThreads *threads,
	const PfBrokerConfig *config, const PfBrokerRequest *request, PfBrokerMessage *answer,
	GError **error);
