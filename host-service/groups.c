/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * systemd keeps a store under the name "store-" and its id (FDSTORE) from the moment that it is made here or came back
 * with a shim, and hands all of them to the next service. It would keep them for as long as the unit runs, and their
 * memory with them: so a store is taken back (FDSTOREREMOVE) when the last VM of its group is gone, when no VM came for
 * it, and when it turns out to be none. Not when the service ends before a VM: then systemd is to keep it, also if
 * other VMs of the group leave later.
 *
 * Without systemd all this is silent, and a store is kept by those who map it.
 */
#include "host-service/groups.h"
#include "common/log.h"
#include "host-service/received_fds.h"

#include <assert.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#define NAME_PREFIX "store-"
#define ID_SIZE     16

struct PfGroups {
	GHashTable *groups; /* name to PfGroup, which owns it */
};

struct PfGroup {
	PfGroups *groups;
	char *name;
	PfStore *store; /* NULL: none yet */
	guint n_vms;    /* 0: it waits for the first, with a store */
	gboolean forsaken;
};

/* systemd's keeping */

static char *kept_name(const PfStore *store)
{
	GString *name = g_string_new(NAME_PREFIX);

	for (guint i = 0; i < ID_SIZE; i++)
		g_string_append_printf(name, "%02x", pf_store_id(store)[i]);
	return g_string_free(name, FALSE);
}

static void keep(const PfStore *store)
{
	g_autofree char *name = kept_name(store);
	g_autofree char *message = g_strdup_printf("FDSTORE=1\nFDNAME=%s", name);
	int fd = pf_store_fd(store);
	int r = sd_pid_notify_with_fds(0, 0, message, &fd, 1);

	if (r < 0)
		pf_warning("systemd does not keep the store of trust group %s: %s",
			pf_store_group(store), g_strerror(-r));
}

static void unkeep(const char *name)
{
	g_autofree char *message = g_strdup_printf("FDSTOREREMOVE=1\nFDNAME=%s", name);
	int r = sd_notify(0, message);

	if (r < 0)
		pf_warning("systemd cannot be told to drop %s: %s", name, g_strerror(-r));
}

/* Frees a store that nobody will come back for. */
static void end_store(PfStore *store)
{
	g_autofree char *name = kept_name(store);

	unkeep(name);
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

/* One that systemd has kept; fd is consumed. */
static void take_kept(PfGroups *groups, int fd, const char *name)
{
	g_autoptr(GError) error = NULL;
	PfStore *store = pf_store_adopt(fd, &error);
	PfGroup *group;

	if (!store) {
		/* NOLINTNEXTLINE(*NullDereference): no store means an error */
		pf_warning("systemd has kept %s: %s", name, error->message);
		unkeep(name);
		return;
	}
	group = need_group(groups, pf_store_group(store));
	if (!group->store) {
		group->store = store;
		return;
	}
	pf_warning(
		"systemd has kept a second store for trust group %s: it is dropped", group->name);
	if (pf_store_is(group->store, pf_store_fd(store)))
		pf_store_free(store);
	else
		end_store(store);
}

PfGroups *pf_groups_new(void)
{
	PfGroups *groups = g_new0(PfGroups, 1);
	char **names = NULL;
	int n = sd_listen_fds_with_names(1, &names);

	groups->groups = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, group_free);
	if (n < 0)
		pf_warning("what systemd has kept cannot be taken: %s", g_strerror(-n));
	for (int i = 0; i < n; i++) {
		int fd = SD_LISTEN_FDS_START + i;

		if (g_str_has_prefix(names[i], NAME_PREFIX))
			take_kept(groups, fd, names[i]);
		else
			pf_received_fds_close_later(fd);
		free(names[i]);
	}
	free(names);
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
		end_store(g_steal_pointer(&group->store));
	return TRUE;
}

void pf_groups_drop_unused(PfGroups *groups)
{
	g_hash_table_foreach_remove(groups->groups, drop_if_unused, NULL);
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
		end_store(g_steal_pointer(&group->store));
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
			keep(group->store);
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
	keep(store);
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
