/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The socket that shims connect to. A connection belongs to the VM whose QEMU has the process id that the kernel gives
 * for the peer; one whose VM is not known yet waits a while.
 */
#include "host-service/service/vm.h"
#include <sys/types.h>

#define PF_SHIM_LISTENER_WAIT_MS 30000

typedef struct PfShimListener PfShimListener;

/*
 * fd: where they connect (nonblocking); consumed. wait_ms: for how long one may wait for its VM. find_vm() gives the VM
 * that runs as this process, or NULL.
 */
PfShimListener *pf_shim_listener_new(
	int fd, guint wait_ms, PfVm *(*find_vm)(void *userdata, pid_t pid), void *userdata);
void pf_shim_listener_free(PfShimListener *listener);

/* More VMs may be known than before. */
void pf_shim_listener_match(PfShimListener *listener);

/* Whether nobody waits, and for so long nobody was turned away whom no VM was known for. */
gboolean pf_shim_listener_is_quiet(const PfShimListener *listener, gint64 for_us);
