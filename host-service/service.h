/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The service: the table of VMs, and what connects broker, guest channels, shims, fusion and
 * stores. Everything runs in one GLib main loop.
 */
#include "host-service/broker.h"
#include "host-service/view.h"
#include <gio/gio.h>

typedef struct PfService PfService;

#define PF_DEFAULT_RUN_DIR "/run/pagefusion"

typedef struct PfServiceConfig {
	const char *shim_socket; /* path to listen on for shims; beside it lies a lock, PATH.lock */
	PfThp thp;               /* of VMs that do not say otherwise; not PF_THP_DEFAULT */
	PfFusionConfig fusion;
} PfServiceConfig;

/*
 * broker_fd: the service's end of the broker's socket; consumed. closed() is called when the broker
 * has ended. NULL with G_IO_ERROR_BUSY when another process's service has the socket: that one is
 * left alone.
 */
PfService *pf_service_new(const PfServiceConfig *config, int broker_fd,
	void (*closed)(void *userdata), void *userdata, GError **error);
void pf_service_free(PfService *service);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PfService, pf_service_free)

/* Every domain that libvirt knows, running or not, in the order of names. */
void pf_service_foreach_vm(
	PfService *service, void (*visit)(const PfVmView *vm, void *userdata), void *userdata);

/* Finds by UUID, then by name. FALSE: no such VM, and visit() was not called. */
gboolean pf_service_visit_vm(PfService *service, const char *name_or_uuid,
	void (*visit)(const PfVmView *vm, void *userdata), void *userdata);

void pf_service_host_view(PfService *service, PfHostView *view);

/* Whether libvirt is connected. *reason (unless reason is NULL) says why not, in one sentence, and
 * is empty while it is connected; it is valid until the next main loop iteration. */
gboolean pf_service_libvirt_connected(PfService *service, const char **reason);

/* For pf_broker_modify(). */
PfBroker *pf_service_broker(PfService *service);
