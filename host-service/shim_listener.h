/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The socket that shims connect to. A connection belongs to the VM whose QEMU has the process id that the kernel gives
 * for the peer; one whose VM is not known yet waits a while.
 */
#include "host-service/vm.h"
#include <sys/types.h>

typedef struct PfShimListener PfShimListener;

/*
 * Listens at path; beside it lies a lock, PATH.lock. find_vm() gives the VM that runs as this process, or NULL. NULL
 * with error set: G_IO_ERROR_BUSY when another process's service has the socket, which is left alone.
 */
PfShimListener *pf_shim_listener_new(const char *path, PfVm *(*find_vm)(void *userdata, pid_t pid),
	void *userdata, GError **error);
void pf_shim_listener_free(PfShimListener *listener);

/* More VMs may be known than before. */
void pf_shim_listener_match(PfShimListener *listener);

/* Whether nobody waits, and for so long nobody was turned away whom no VM was known for. */
gboolean pf_shim_listener_is_quiet(const PfShimListener *listener, gint64 for_us);
