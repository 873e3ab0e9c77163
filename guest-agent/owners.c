// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Anybody can make files, map them and have the agent know them, and there is room for so many only: on the host, which
 * knows a number of modules a guest, and here. So an owner has a share, and all who are not root together leave half of
 * the room to root, whose files the system is made of. An owner stands here as long as he has files: that bounds the
 * memory, even where a user has thousands of user ids of his own.
 */
#include "guest-agent/owners.h"
#include "common/log.h"
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define ROOT 0

void pf_owners_deinit(PfOwners *owners)
{
	free(owners->items);
	*owners = (PfOwners){0};
}

/* Index of the first that is not below uid. */
static size_t lower_bound(const PfOwners *owners, uid_t uid)
{
	size_t begin = 0, end = owners->n;

	while (begin < end) {
		size_t middle = begin + (end - begin) / 2;

		if (owners->items[middle].uid < uid)
			begin = middle + 1;
		else
			end = middle;
	}
	return begin;
}

static PfOwner *find(const PfOwners *owners, uid_t uid)
{
	size_t i = lower_bound(owners, uid);

	return i < owners->n && owners->items[i].uid == uid ? &owners->items[i] : NULL;
}

static void name_owner(PfOwners *owners, uid_t uid, uint32_t n_files)
{
	if (owners->named)
		return;
	owners->named = true;
	pf_warning("user %" PRIu32 " has %" PRIu32 " files in memory (all users but root: %" PRIu32
		   "), as many as are looked at: more are left out. pagefusion-agent --status "
		   "counts them; other users are not named",
		(uint32_t)uid, n_files, owners->n_files);
}

bool pf_owners_have_room(PfOwners *owners, uid_t uid)
{
	const PfOwner *owner = find(owners, uid);
	uint32_t n_files = owner ? owner->n_files : 0;

	if (uid == ROOT ||
		(n_files < PF_OWNERS_MAX_FILES && owners->n_files < PF_OWNERS_MAX_OTHERS))
		return true;
	name_owner(owners, uid, n_files);
	return false;
}

static int insert(PfOwners *owners, size_t i, uid_t uid)
{
	if (owners->n == owners->capacity) {
		size_t capacity = owners->capacity ? owners->capacity * 2 : 8;
		PfOwner *items = reallocarray(owners->items, capacity, sizeof(*items));

		if (!items)
			return -ENOMEM;
		owners->items = items;
		owners->capacity = capacity;
	}
	memmove(owners->items + i + 1, owners->items + i, (owners->n - i) * sizeof(PfOwner));
	owners->items[i] = (PfOwner){.uid = uid};
	owners->n++;
	return 0;
}

int pf_owners_add(PfOwners *owners, uid_t uid)
{
	size_t i = lower_bound(owners, uid);

	if (uid == ROOT)
		return 0;
	if ((i == owners->n || owners->items[i].uid != uid) && insert(owners, i, uid) < 0)
		return -ENOMEM;
	owners->items[i].n_files++;
	owners->n_files++;
	return 0;
}

void pf_owners_remove(PfOwners *owners, uid_t uid)
{
	PfOwner *owner = find(owners, uid);

	if (uid == ROOT)
		return;
	assert(owner);
	owners->n_files--;
	if (--owner->n_files > 0)
		return;
	owners->n--;
	memmove(owner, owner + 1, (size_t)(owners->items + owners->n - owner) * sizeof(PfOwner));
}
