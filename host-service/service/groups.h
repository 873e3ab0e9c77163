/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The trust groups' stores, and how they outlive the service. A group has no store until its first VM needs one, unless
 * an earlier service has left it one: kept by systemd (the descriptor store), or by a shim that sends it back. It ends
 * with the last VM of the group.
 */
#include "host-service/service/store.h"
#include "host-service/wire/keeper.h"

typedef struct PfGroups PfGroups;
typedef struct PfGroup PfGroup;

/* keeper (copied): NULL when there is nobody. The descriptors of kept are consumed. */
PfGroups *pf_groups_new(const PfGroupsKeeper *keeper, const PfKeptStore *kept, size_t n_kept);
void pf_groups_free(PfGroups *groups); /* no VM may be left in any; the keeper keeps what it has */

/* A VM joins the group of this name; valid until it leaves. */
PfGroup *pf_groups_join(PfGroups *groups, const char *name);
/* With the last VM goes the store, also from its keeping. */
void pf_group_leave(PfGroup *group);
/* The service ends, not the VM: the store is kept on. */
void pf_group_forsake(PfGroup *group);

/* What there are no VMs of, once all VMs are known, is not needed any more. */
void pf_groups_drop_unused(PfGroups *groups);

/* The group's store, made now if there is none, and given to the keeper. NULL with error set. */
PfStore *pf_group_store(PfGroup *group, GError **error);
/* The store if there is one. */
PfStore *pf_group_peek_store(const PfGroup *group);

/*
 * A shim has sent back the store that it holds; fd is consumed, and may be anything. TRUE: it is the group's store,
 * maybe only from now on. FALSE: what the shim maps has to be released, *why (a literal) says why.
 */
gboolean pf_group_take_returned(PfGroup *group, int fd, const char **why);

/* Calls visit() for each group that has a store. */
void pf_groups_foreach_store(const PfGroups *groups,
	void (*visit)(void *userdata, const char *group, PfStore *store), void *userdata);

/* Memory of all stores. */
void pf_groups_memory(const PfGroups *groups, guint64 *allocated_kib, guint64 *swapped_kib);

/* NULL: there is no group of this name. */
PfGroup *pf_groups_find(const PfGroups *groups, const char *name);
