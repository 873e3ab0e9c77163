/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * A broker without libvirt: speaks the broker's side of broker_protocol.h for VMs that a test makes
 * itself. It serves requests in a thread of the test and really opens /dev/userfaultfd. Link with
 * pf-broker (for the protocol) and Threads.
 *
 *   int service_fd;
 *   ToyBroker *toy = toy_broker_start(&service_fd);
 *   toy_broker_set_libvirt(toy, TRUE, "");
 *   toy_broker_set_domain(toy, &domain);      // with pid, channel (path of a listening unix
 * socket), enabled, active toy_broker_set_memory(toy, domain.uuid, &(ToyRange){ .first = { 0 },
 * .n_pages = 1024, .hva = { addr } }, 1);
 *   ... pf_service_new(&config, service_fd, ...) or pf_broker_new(service_fd, ...)
 *   toy_broker_remove_domain(toy, domain.uuid);
 *   toy_broker_stop(toy);
 *
 * All functions may be called from any thread of the test. Events wait in the socket until the
 * service reads them.
 */
#include "host-service/wire/broker.h"

typedef struct ToyBroker ToyBroker;

/* Guest-physical memory and where it lies in the toy VM's process. */
typedef struct ToyRange {
	PfGfn first;
	uint64_t n_pages;
	PfHva hva;
} ToyRange;

/* *service_fd is the service's end; the caller owns it (pf_broker_new() consumes it). Ends the test
 * on failure. */
ToyBroker *toy_broker_start(int *service_fd);

/* Closes the broker's end (the service hears closed()), joins the thread and frees. */
void toy_broker_stop(ToyBroker *toy);

/* Adds a domain, or changes the one with this uuid, and tells the service. */
void toy_broker_set_domain(ToyBroker *toy, const PfDomain *domain);

/* Forgets the domain and its memory and tells the service that it is gone. */
void toy_broker_remove_domain(ToyBroker *toy, const char *uuid);

/* What TRANSLATE answers from, replacing what was said before; a range that is in none of these
 * gets v = 0. */
void toy_broker_set_memory(
	ToyBroker *toy, const char *uuid, const ToyRange *ranges, size_t n_ranges);

/* Tells the service that libvirt came or went. */
void toy_broker_set_libvirt(ToyBroker *toy, gboolean connected, const char *reason);
