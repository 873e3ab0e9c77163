/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* One VM that runs with the flag on: its guest, its shim, its place in fusion. */
#include "common/digest.h"
#include "host-service/broker.h"
#include "host-service/fusion.h"
#include "host-service/shim_link.h"
#include "host-service/store.h"
#include "host-service/view.h"

typedef struct PfVm PfVm;

/* What VMs need of the service; lives as long as they do. */
typedef struct PfVmContext {
	PfBroker *broker;
	PfFusion *fusion;
	PfHasher *hasher;
	/* Orders may have become possible, here or for another VM. */
	void (*wanted)(void *userdata);
	void *userdata;
} PfVmContext;

/* Joins the domain's trust group, whose store this is; the store must live as long as the VM. NULL
 * with error set: no memory, or no descriptor is left. */
PfVm *pf_vm_new(const PfVmContext *context, const PfDomain *domain, PfStore *store, GError **error);
void pf_vm_free(PfVm *vm);

/* The same domain; its state, channel or memory changed. */
void pf_vm_update(PfVm *vm, const PfDomain *domain);

/* The connection of this VM's shim; consumed. An earlier one is dropped: the process has given it
 * up. */
void pf_vm_take_shim(PfVm *vm, PfShimLink *link);

/* Sends orders as far as the shim has room. */
void pf_vm_pump(PfVm *vm);

/* Everything in view but domain. reason is valid until the next main loop iteration. */
void pf_vm_view(const PfVm *vm, PfVmView *view);
