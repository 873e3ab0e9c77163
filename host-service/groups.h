/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The trust groups' stores, and how they outlive the service. A group has no store until its first VM needs one, unless
 * an earlier service has left it one: kept by systemd (the descriptor store), or by a shim that sends it back. It ends
 * with the last VM of the group.
 */
#include "host-service/store.h"

typedef struct PfGroups PfGroups;
typedef struct PfGroup PfGroup;

/* Takes the stores that systemd has kept for us (sd_listen_fds_with_names), and nothing else of what it hands over. */
PfGroups *pf_groups_new(void);
void pf_groups_free(PfGroups *groups); /* no VM may be left in any; systemd keeps what it has */

/* A VM joins the group of this name; valid until it leaves. */
PfGroup *pf_groups_join(PfGroups *groups, const char *name);
/* With the last VM goes the store, also from systemd's keeping. */
void pf_group_leave(PfGroup *group);
/* The service ends, not the VM: systemd keeps the store. */
void pf_group_forsake(PfGroup *group);

/* What there are no VMs of, once all VMs are known, is not needed any more. */
void pf_groups_drop_unused(PfGroups *groups);

/* The group's store, made now if there is none, and given to systemd to keep. NULL with error set. */
PfStore *pf_group_store(PfGroup *group, GError **error);
/* The store if there is one. */
PfStore *pf_group_peek_store(const PfGroup *group);

/*
 * A shim has sent back the store that it holds; fd is consumed, and may be anything. TRUE: it is the group's store,
 * maybe only from now on. FALSE: what the shim maps has to be released, *why (a literal) says why.
 */
gboolean pf_group_take_returned(PfGroup *group, int fd, const char **why);

/* Memory of all stores. */
void pf_groups_memory(const PfGroups *groups, guint64 *allocated_kib, guint64 *swapped_kib);

/* NULL: there is no group of this name. */
PfGroup *pf_groups_find(const PfGroups *groups, const char *name);
