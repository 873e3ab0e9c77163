/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* How many files each owner has in the state, so that one of them cannot take all the room. No I/O. */
#include "proto/limits.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PF_OWNERS_MAX_FILES  8192u                        /* of one owner that is not root */
#define PF_OWNERS_MAX_OTHERS (PF_SESSION_MAX_MODULES / 2) /* of all that are not root together */

typedef struct PfOwner {
	uid_t uid;
	uint32_t n_files; /* above 0 */
} PfOwner;

typedef struct PfOwners {
	PfOwner *items; /* ascending, owned; without root, whose files are not counted */
	size_t n, capacity;
	uint32_t n_files; /* of all of them */
	bool named;       /* one that has too many, in the log */
} PfOwners;

void pf_owners_deinit(PfOwners *owners);

/* Whether there is room for one more file of that owner; for root's there always is. Who has too many is said once. */
bool pf_owners_have_room(PfOwners *owners, uid_t uid);

/* One more file of that owner, room or not. 0 or -ENOMEM. */
int pf_owners_add(PfOwners *owners, uid_t uid);

/* One file less of that owner, which was added. */
void pf_owners_remove(PfOwners *owners, uid_t uid);
