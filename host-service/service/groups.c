/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The keeper (systemd, behind the front) keeps a store under the name "store-" and its id from the moment that it is made
 * here or came back with a shim, and all of them are handed to the next service. It would keep them for as long as the
 * unit runs, and their memory with them: so a store is taken back when the last VM of its group is gone, when no VM came
 * for it, and when it turns out to be none. Not when the service ends before a VM: then it is to be kept, also if other
 * VMs of the group leave later.
 *
 * Without a keeper a store is kept by those who map it.
 */
#include "host-service/service/groups.h"
#include "common/log.h"
#include "host-service/wire/received_fds.h"

#include <assert.h>
#include <string.h>
#include <unistd.h>

#define NAME_PREFIX "store-"
#define ID_SIZE     16

struct PfGroups {
	PfGroupsKeeper keeper;
	GHashTable *groups; /* name to PfGroup, which owns it */
};

struct PfGroup {
	PfGroups *groups;
	char *name;
	PfStore *store; /* NULL: none yet */
	guint n_vms;    /* 0: it waits for the first, with a store */
	gboolean forsaken;
};

/* Keeping */

static char *kept_name(const PfStore *store)
{
	GString *name = g_string_new(NAME_PREFIX);

	for (guint i = 0; i < ID_SIZE; i++)
		g_string_append_printf(name, "%02x", pf_store_id(store)[i]);
	return g_string_free(name, FALSE);
}

static void keep(const PfGroups *groups, const PfStore *store)
{
	g_autofree char *name = kept_name(store);

	if (groups->keeper.keep)
		groups->keeper.keep(groups->keeper.userdata, name, pf_store_fd(store));
}

static void unkeep(const PfGroups *groups, const char *name)
{
	if (groups->keeper.drop)
		groups->keeper.drop(groups->keeper.userdata, name);
}

/* Frees a store that nobody will come back for. */
static void end_store(const PfGroups *groups, PfStore *store)
{
	g_autofree char *name = kept_name(store);

	unkeep(groups, name);
	pf_store_free(store);
}

/* The registry */

static void group_free(gpointer data)
{
	PfGroup *group = data;

	assert(group->n_vms == 0);
	pf_store_free(group->store);
	g_free(group->name);
	g_free(group);
}

static PfGroup *need_group(PfGroups *groups, const char *name)
{
	PfGroup *group = g_hash_table_lookup(groups->groups, name);

	if (!group) {
		group = g_new0(PfGroup, 1);
		group->groups = groups;
		group->name = g_strdup(name);
		g_hash_table_insert(groups->groups, group->name, group);
	}
	return group;
}

/* One that an earlier service has had kept; fd is consumed. */
static void take_kept(PfGroups *groups, int fd, const char *name)
{
	g_autoptr(GError) error = NULL;
	PfStore *store = pf_store_adopt(fd, &error);
	PfGroup *group;

	if (!store) {
		/* NOLINTNEXTLINE(*NullDereference): no store means an error */
		pf_warning("kept for us was %s: %s", name, error->message);
		unkeep(groups, name);
		return;
	}
	group = need_group(groups, pf_store_group(store));
	if (!group->store) {
		group->store = store;
		return;
	}
	pf_warning("a second store was kept for trust group %s: it is dropped", group->name);
	if (pf_store_is(group->store, pf_store_fd(store)))
		pf_store_free(store);
	else
		end_store(groups, store);
}

PfGroups *pf_groups_new(const PfGroupsKeeper *keeper, const PfKeptStore *kept, size_t n_kept)
{
	PfGroups *groups = g_new0(PfGroups, 1);

	if (keeper)
		groups->keeper = *keeper;
	groups->groups = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, group_free);
	for (size_t i = 0; i < n_kept; i++)
		take_kept(groups, kept[i].fd, kept[i].name);
	return groups;
}

void pf_groups_free(PfGroups *groups)
{
	g_hash_table_unref(groups->groups);
	g_free(groups);
}

PfGroup *pf_groups_find(const PfGroups *groups, const char *name)
{
	return g_hash_table_lookup(groups->groups, name);
}

static gboolean drop_if_unused(gpointer name, gpointer data, gpointer unused)
{
	PfGroup *group = data;

	if (group->n_vms > 0)
		return FALSE;
	if (group->store)
		end_store(group->groups, g_steal_pointer(&group->store));
	return TRUE;
}

void pf_groups_drop_unused(PfGroups *groups)
{
	g_hash_table_foreach_remove(groups->groups, drop_if_unused, NULL);
}

void pf_groups_foreach_store(const PfGroups *groups,
	void (*visit)(void *userdata, const char *group, PfStore *store), void *userdata)
{
	GHashTableIter iter;
	PfGroup *group;

	g_hash_table_iter_init(&iter, groups->groups);
	while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&group))
		if (group->store)
			visit(userdata, group->name, group->store);
}

void pf_groups_memory(const PfGroups *groups, guint64 *allocated_kib, guint64 *swapped_kib)
{
	GHashTableIter iter;
	PfGroup *group;

	*allocated_kib = *swapped_kib = 0;
	g_hash_table_iter_init(&iter, groups->groups);
	while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&group)) {
		if (!group->store)
			continue;
		*allocated_kib += pf_store_allocated_kib(group->store);
		*swapped_kib += pf_store_swapped_kib(group->store);
	}
}

/* One group */

PfGroup *pf_groups_join(PfGroups *groups, const char *name)
{
	PfGroup *group = need_group(groups, name);

	group->n_vms++;
	return group;
}

static void part(PfGroup *group)
{
	assert(group->n_vms > 0);
	if (--group->n_vms > 0)
		return;
	if (group->store && !group->forsaken)
		end_store(group->groups, g_steal_pointer(&group->store));
	g_hash_table_remove(group->groups->groups, group->name);
}

void pf_group_leave(PfGroup *group)
{
	part(group);
}

void pf_group_forsake(PfGroup *group)
{
	group->forsaken = TRUE;
	part(group);
}

PfStore *pf_group_store(PfGroup *group, GError **error)
{
	if (!group->store) {
		group->store = pf_store_new(group->name, error);
		if (group->store)
			keep(group->groups, group->store);
	}
	return group->store;
}

PfStore *pf_group_peek_store(const PfGroup *group)
{
	return group->store;
}

static gboolean take_first(PfGroup *group, int fd, const char **why)
{
	g_autoptr(GError) error = NULL;
	PfStore *store = pf_store_adopt(fd, &error);

	if (!store) {
		/* NOLINTNEXTLINE(*NullDereference): no store means an error */
		pf_debug("trust group %s: %s", group->name, error->message);
		*why = "what it has sent back is no store";
		return FALSE;
	}
	if (strcmp(pf_store_group(store), group->name) != 0) {
		pf_store_free(store);
		*why = "the store that it has is another trust group's";
		return FALSE;
	}
	group->store = store;
	keep(group->groups, store);
	return TRUE;
}

gboolean pf_group_take_returned(PfGroup *group, int fd, const char **why)
{
	gboolean same;

	if (!group->store)
		return take_first(group, fd, why);
	same = pf_store_is(group->store, fd);
	pf_received_fds_close_later(fd);
	if (!same)
		*why = "what it has sent back is not its trust group's store";
	return same;
}
