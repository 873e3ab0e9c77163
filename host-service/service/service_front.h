/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The service's end of the front's socket (front_protocol.h): answers queries from a PfService, and sends stores to be kept. */
#include "host-service/service/service.h"
#include "host-service/wire/keeper.h"

typedef struct PfServiceFront PfServiceFront;

/* fd is consumed; nothing blocks. closed() is called once, from the main loop, when the front has ended. */
PfServiceFront *pf_service_front_new(int fd, void (*closed)(void *userdata), void *userdata);
void pf_service_front_free(PfServiceFront *front);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PfServiceFront, pf_service_front_free)

/* Queries are answered from this service; before, they wait. NULL: it is going. */
void pf_service_front_serve(PfServiceFront *front, PfService *service);

/* Has stores kept by whoever is behind the front. */
PfGroupsKeeper pf_service_front_keeper(PfServiceFront *front);
