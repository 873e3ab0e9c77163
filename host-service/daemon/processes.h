/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The first process of pagefusiond: it starts the broker and the service, is the front, and ends them. */
#include "host-service/config/config.h"
#include "host-service/decide/fusion.h"
#include "host-service/wire/broker.h"

typedef struct PfProcesses {
	PfBrokerConfig broker;
	const PfConfig *config;
	PfFusionConfig fusion;
	gboolean debug; /* as this process logs already */
	/* For tests: */
	int broker_fd; /* the service's end of a broker that runs already, consumed; -1: it is started */
	gboolean no_bus;
} PfProcesses;

/*
 * Serves until a signal ends it: TRUE. FALSE with error set when something could not be set up, or a part has ended by
 * itself: then all have to be started anew. To be called once, by a process with one thread and no main loop.
 */
gboolean pf_processes_run(const PfProcesses *processes, GError **error);
