/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Inside the broker: where guest memory lies, asked of QEMU's monitors. */
#include "host-service/broker/broker_threads.h"

#define PF_BROKER_TRANSLATE_THREADS 8

/* A PfBrokerWork: answers a TRANSLATE. */
void pf_broker_translate_work(virConnectPtr connection, const PfBrokerRequest *request,
	const char *name, const void *data, PfBrokerMessage *answer, GError **error);
