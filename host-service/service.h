/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The service: the table of VMs, and what connects broker, guest channels, shims, fusion and
 * stores. Everything runs in one GLib main loop.
 */
#include "host-service/broker.h"
#include "host-service/fusion.h"
#include <gio/gio.h>

typedef struct PfService PfService;

#define PF_DEFAULT_RUN_DIR "/run/pagefusion"

typedef struct PfServiceConfig {
	const char *shim_socket; /* path to listen on for shims */
} PfServiceConfig;

/* broker_fd: the service's end of the broker's socket; consumed. closed() is called when the broker
 * has ended. */
PfService *pf_service_new(const PfServiceConfig *config, int broker_fd,
	void (*closed)(void *userdata), void *userdata, GError **error);
void pf_service_free(PfService *service);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PfService, pf_service_free)

/* What D-Bus shows of a VM; valid during the call that hands it out. */
typedef struct PfVmView {
	const PfDomain *domain;
	const char *reason; /* why it is not fusing, one sentence; empty when it is, or may at any
			       moment */
	const char *agent_version; /* empty: no agent was heard of */
	const char *kernel;        /* the guest's, empty likewise */
	gboolean shim_connected;
	PfFusionVmStats stats; /* zeros while the VM does not run */
	PfShimState shim;      /* as the shim last said, zeros before */
} PfVmView;

/* Every domain that libvirt knows, running or not, in the order of names. */
void pf_service_foreach_vm(
	PfService *service, void (*visit)(const PfVmView *vm, void *userdata), void *userdata);

/* Finds by UUID, then by name. FALSE: no such VM, and visit() was not called. */
gboolean pf_service_visit_vm(PfService *service, const char *name_or_uuid,
	void (*visit)(const PfVmView *vm, void *userdata), void *userdata);

typedef struct PfHostView {
	PfFusionStats stats;
	guint64 store_allocated_kib; /* memory of all stores, by the kernel's count */
} PfHostView;
void pf_service_host_view(PfService *service, PfHostView *view);

/* Whether libvirt is connected, and if not why, in one sentence (valid until the next main loop
 * iteration). */
gboolean pf_service_libvirt_connected(PfService *service, const char **reason);

/* For pf_broker_set_enabled(). */
PfBroker *pf_service_broker(PfService *service);
