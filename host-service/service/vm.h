/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* One VM whose QEMU has the shim: its guest, its shim, its place in fusion. */
#include "common/digest.h"
#include "host-service/config/config.h"
#include "host-service/decide/fusion.h"
#include "host-service/service/groups.h"
#include "host-service/service/shim_link.h"
#include "host-service/wire/broker.h"
#include "host-service/wire/view.h"

typedef struct PfVm PfVm;

/*
 * A shim that has to say something and does not, for so long, is disconnected; its HELLO has to come in a third of that.
 * The same time is added once when it has said something that was not read yet.
 */
#define PF_VM_ANSWER_MS 30000u

/* What VMs need of the service; lives as long as they do. */
typedef struct PfVmContext {
	PfBroker *broker;
	PfFusion *fusion;
	PfGroups *groups;
	PfHasher *hasher;
	const PfConfig *config;
	guint answer_ms; /* for how long a shim may be silent; 0: PF_VM_ANSWER_MS */
	/* Orders may have become possible, here or for another VM. */
	void (*wanted)(void *userdata);
	void *userdata;
} PfVmContext;

/* Joins the domain's trust group and stays in it, whatever the definition says later. The domain has a pid. NULL with
 * error set: the process has ended, or no memory or descriptor is left. */
PfVm *pf_vm_new(const PfVmContext *context, const PfDomain *domain, GError **error);

/* If its process has ended, so has what it shared. Else it is the service that ends: what the shim has fused stays. */
void pf_vm_free(PfVm *vm);

/* Whether QEMU's process has ended, by the kernel's word; a descriptor that becomes readable then, the VM's; its pid. */
gboolean pf_vm_has_ended(const PfVm *vm);
int pf_vm_process(const PfVm *vm);
gint64 pf_vm_pid(const PfVm *vm);

/* Its pf_process_id(); 0: there is none. Whether it is known what the process maps: pf_fusion_vm_is_known(). */
uint64_t pf_vm_process_id(const PfVm *vm);
gboolean pf_vm_is_known(const PfVm *vm);

/*
 * The same domain; its state, flag, channel or memory changed. While its flag is off or it is refused everything that
 * it shares is released.
 */
void pf_vm_update(PfVm *vm, const PfDomain *domain);

/* The policy for huge pages that is in force for this domain, whether it has a PfVm or not. */
PfThp pf_vm_thp(const PfConfig *config, const PfDomain *domain);

PfGroup *pf_vm_group(const PfVm *vm);
const char *pf_vm_group_name(const PfVm *vm);

/* The connection of this VM's shim; consumed. An earlier one is dropped: the process has given it up. */
void pf_vm_take_shim(PfVm *vm, PfShimLink *link);

/* Sends orders as far as the shim has room. */
void pf_vm_pump(PfVm *vm);

/*
 * For now and then: the guest's session begins anew if it has hinted so many pages that its quotas may have refused some,
 * which it would never hint again by itself. Not more often than once a minute, and more and more rarely while it hints
 * as many each time. The guest cannot tell from it what was fused.
 */
void pf_vm_ask_again(PfVm *vm, gint64 now_us);

/* Everything in view but domain. reason is valid until the next main loop iteration. */
void pf_vm_view(PfVm *vm, PfVmView *view);
