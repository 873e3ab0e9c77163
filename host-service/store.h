/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The frame store of one trust group: a sparse memfd that only this process can write. VMs get a
 * descriptor that was opened read-only, which they can map private and neither map shared for
 * writing nor reopen for writing. A frame is immutable once it is written, and its offset is never
 * used again.
 */
#include "common/page.h"
#include <glib.h>

typedef struct PfStore PfStore;

/* NULL with error set: no memory, or /proc is not mounted. name is the trust group's and shows in
 * /proc/PID/maps. */
PfStore *pf_store_new(const char *group, GError **error);
void pf_store_free(PfStore *store);

/* 16 random bytes, made with the store. */
const uint8_t *pf_store_id(const PfStore *store);

/* The read-only descriptor for the VMs; it stays the store's. */
int pf_store_readonly_fd(const PfStore *store);

/*
 * Writes a frame that was never written before. 0, or -errno: -EEXIST when it was (nothing is
 * changed then), -ENOSPC or -ENOMEM when the host has no memory for it (then the frame counts as
 * never written).
 */
int pf_store_write(PfStore *store, PfFrame frame, const uint8_t page[PF_PAGE_SIZE]);

/* Memory that the memfd takes by the kernel's count (st_blocks), in KiB. */
uint64_t pf_store_allocated_kib(const PfStore *store);
