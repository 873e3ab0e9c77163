/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Inside the broker: the table of libvirt's domains and what the service may ask about one. */
#include "host-service/broker/broker_translate.h"
#include "host-service/broker/device_allowance.h"
#include "host-service/broker/domain_xml.h"
#include "host-service/wire/broker_protocol.h"
#include <libvirt/libvirt.h>

typedef struct PfBrokerDomains PfBrokerDomains;

/* emit() is called with each event about a domain; the message is the caller's. */
PfBrokerDomains *pf_broker_domains_new(
	void (*emit)(void *userdata, PfBrokerMessage *event), void *userdata);
void pf_broker_domains_free(PfBrokerDomains *domains);

/*
 * Watches this connection's domains (a reference is taken) and reads all of them anew, soon and not
 * in this call; behind their events comes PF_BROKER_CONNECTED. FALSE: libvirt refused, its last
 * error says why; what was begun is undone by pf_broker_domains_detach().
 */
gboolean pf_broker_domains_attach(PfBrokerDomains *domains, virConnectPtr connection);
/* Lets go of the connection; the table stays for comparison with the next one. */
void pf_broker_domains_detach(PfBrokerDomains *domains);

/* Reads a domain now, and emits what changed. */
void pf_broker_domains_refresh(PfBrokerDomains *domains, const char *uuid);

/* The domain as it was last read, or NULL. */
const PfDomain *pf_broker_domains_find(const PfBrokerDomains *domains, const char *uuid);

/* Whether one more userfaultfd may be handed out for a domain that is there (device_allowance.h); then it counts. */
gboolean pf_broker_domains_take_device(PfBrokerDomains *domains, const char *uuid, gint64 now_us);

/* Why a domain with this definition cannot be fused (g_free), its disks' file systems included;
 * NULL when it can. */
char *pf_broker_domains_refusal(const PfDomainXml *xml);

/* As virsh says it. */
const char *pf_broker_domains_state_name(int state);

/*
 * The requests (broker_requests.c); connection is NULL while libvirt is away. Errors are those that
 * broker.h promises for them.
 */
int pf_broker_serve_userfaultfd(PfBrokerDomains *domains, const char *uuid, GError **error);
int pf_broker_serve_channel(const PfBrokerDomains *domains, const char *uuid, GError **error);
/* TRUE: it was begun, the threads will answer. */
gboolean pf_broker_serve_translate(const PfBrokerDomains *domains, virConnectPtr connection,
	PfBrokerThreads *threads, const PfBrokerRequest *request, GError **error);
gboolean pf_broker_serve_modify(PfBrokerDomains *domains, virConnectPtr connection,
	const PfBrokerConfig *config, const PfBrokerRequest *request, GError **error);

/* What requests about a VM have in common. */

/* Finds by UUID, then by name; the caller frees. NULL with error set, also where connection is NULL. */
virDomainPtr pf_broker_find_vm(virConnectPtr connection, const char *vm, GError **error);

/* Puts another persistent definition in the place of the VM's own. */
gboolean pf_broker_define(virDomainPtr handle, const PfDomainXml *xml, GError **error);

/* Sets error to what libvirt said last in this thread, with its line ends made spaces; what is a sentence's start,
 * which the VM's name ends. */
void pf_broker_set_libvirt_error(
	GError **error, GIOErrorEnum code, const char *what, const char *name);
