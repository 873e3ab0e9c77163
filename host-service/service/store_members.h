/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The processes that were ever given a store, and may map it as long as they live: a table in the store itself, so that
 * it lives exactly as long as the frames do.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct PfStoreMembers PfStoreMembers;

/* The table lies in fd (which must live as long) from this offset on, a multiple of the page size, and has so many pages. */
PfStoreMembers *pf_store_members_new(int fd, off_t offset, size_t n_pages);
void pf_store_members_free(PfStoreMembers *members);

/* Reads what an earlier service has written, and takes out whoever has ended. 0 or -errno. */
int pf_store_members_load(PfStoreMembers *members);

/*
 * Adds a process, which lives; process: its pf_process_id(). When this returns 1, or 0 (it was there), a later service
 * will know of it whatever happens. -ENOSPC: the table is full.
 */
int pf_store_members_add(PfStoreMembers *members, pid_t pid, uint64_t process);

/*
 * Whether is_known() holds for each member that lives; those that have ended are taken out. Unsure ones are not asked
 * for, see below.
 */
bool pf_store_members_are_known(PfStoreMembers *members,
	bool (*is_known)(void *userdata, uint64_t process), void *userdata);

/* Whether there is a member that cannot be told from other processes: the kernel had no pidfs. */
bool pf_store_members_has_unsure(const PfStoreMembers *members);

/* Pages of the table that were written to. */
size_t pf_store_members_n_pages(const PfStoreMembers *members);
