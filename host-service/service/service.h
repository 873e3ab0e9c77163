/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The service: the table of VMs, and what connects broker, guest channels, shims, fusion and
 * stores. Everything runs in one GLib main loop.
 */
#include "common/digest.h"
#include "host-service/config/config.h"
#include "host-service/service/groups.h"
#include "host-service/service/pressure.h"
#include "host-service/wire/broker.h"
#include "host-service/wire/view.h"
#include <gio/gio.h>

typedef struct PfService PfService;

typedef struct PfServiceConfig {
	const PfConfig *config; /* must live as long as the service */
	PfFusionConfig fusion;
	guint64 memory_limit;         /* bytes, for what is known of pages; 0: no limit */
	int shim_fd;                  /* where shims connect (nonblocking); consumed */
	const PfGroupsKeeper *keeper; /* copied; NULL: nobody keeps stores */
	const PfKeptStore *kept; /* the names stay the caller's, the descriptors are consumed */
	size_t n_kept;
	PfHasher *hasher;         /* stays the caller's, and must live as long as the service */
	PfPressureFiles pressure; /* consumed */
	guint answer_ms;          /* for how long a shim may be silent; 0: PF_VM_ANSWER_MS */
} PfServiceConfig;

/*
 * broker_fd: the service's end of the broker's socket; consumed. closed() is called when the broker
 * has ended. Everything that it needs of the host is in config: it opens no file.
 */
PfService *pf_service_new(const PfServiceConfig *config, int broker_fd,
	void (*closed)(void *userdata), void *userdata);
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
