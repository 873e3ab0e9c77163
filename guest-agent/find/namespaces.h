/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The tables of mounts of other processes. Nothing but text and descriptors of the kernel's own is touched for it. */
#include "guest-agent/find/mounts.h"

typedef struct PfNamespaces PfNamespaces;

/* NULL without memory. */
PfNamespaces *pf_namespaces_new(void);
void pf_namespaces_free(PfNamespaces *namespaces);

/* The pass has ended: no namespace is held any longer. */
void pf_namespaces_forget(PfNamespaces *namespaces);

/*
 * The table of a process as it is now, or NULL: it is our own, cannot be had, is too large, or has changed too often in
 * this pass.
 * *by_root: the mount namespace belongs to our own user namespace. Valid until the next call.
 */
const PfMounts *pf_namespaces_table(PfNamespaces *namespaces, pid_t pid, bool *by_root);
