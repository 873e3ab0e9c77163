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
#include <stdbool.h>
#include <sys/types.h>

typedef struct PfStore PfStore;

/*
 * The first page of a store is its label: whose it is, and which frame numbers were used. Behind it lies the table of its
 * members, the processes that were ever given it. The service that made the store writes them; a later one reads them.
 * Frame numbers therefore begin at PF_STORE_FIRST_FRAME.
 */
#define PF_STORE_FIRST_FRAME 512u

/* NULL with error set: no memory, or /proc is not mounted. group is the trust group's name and shows in
 * /proc/PID/maps. */
PfStore *pf_store_new(const char *group, GError **error);

/* Says so in the log where the host makes frames of 2 MiB. Reads a file of /sys. */
void pf_store_warn_of_huge_frames(void);

/*
 * A store that an earlier service made, from a descriptor of it that systemd kept or a shim sent back; consumed. It is
 * opened anew for writing, which only the user who made it can. NULL with error set when it is anything but such a
 * store: another file, of another user, with other seals or rights, or without a label. Nothing in it counts as
 * written yet: see pf_store_claim() and pf_store_sweep().
 */
PfStore *pf_store_adopt(int fd, GError **error);
void pf_store_free(PfStore *store);

/* Whether fd, which may be anything that a stranger sent, is a descriptor of this store. */
bool pf_store_is(const PfStore *store, int fd);

const char *pf_store_group(const PfStore *store);

/* 16 random bytes, made with the store. */
const uint8_t *pf_store_id(const PfStore *store);

/* The read-only descriptor for the VMs, and the one that can write, for systemd alone. They stay the store's. */
int pf_store_readonly_fd(const PfStore *store);
int pf_store_fd(const PfStore *store);

/* The frame numbers below were used by earlier services, or may have been. */
uint64_t pf_store_first_own(const PfStore *store);

/*
 * Writes a frame whose number was never used before. 0, or -errno: -EEXIST when it was (nothing is
 * changed then, also when the frame was dropped since), -ENOSPC or -ENOMEM when the host has no memory for it (then
 * the frame counts as never written).
 */
int pf_store_write(PfStore *store, PfFrame frame, const uint8_t page[PF_PAGE_SIZE]);

/* Reads a frame of an earlier service. 0 or -errno: -ENOENT when nothing was ever written there, or it was freed. */
int pf_store_read(const PfStore *store, PfFrame frame, uint8_t page[PF_PAGE_SIZE]);

/* This frame of an earlier service is in use. Claiming twice is claiming. */
void pf_store_claim(PfStore *store, PfFrame frame);

/* Nobody maps the frame any more: its memory goes back to the host. */
void pf_store_drop(PfStore *store, PfFrame frame);

/*
 * Gives back what the memfd holds beside the frames that were written or claimed and not dropped: remains of an earlier
 * service, or holes that somebody has touched. A sweep is one way through the store, from pf_store_start_sweep() on.
 * Whoever has the store decides how much there is to do, so pf_store_sweep() does what it can in max_us, and one system call
 * at least. false: the end was reached. *freed_kib: since the start.
 */
void pf_store_start_sweep(PfStore *store);
bool pf_store_is_sweeping(const PfStore *store);
bool pf_store_sweep(PfStore *store, int64_t max_us, uint64_t *freed_kib);

/*
 * To be called before this process (which lives) is given the store, and when it turns out to have it. 1: it is a member
 * from now on; 0: it was; or -errno: -ENOSPC when there are too many.
 */
int pf_store_add_member(PfStore *store, int pidfd, pid_t pid);

/*
 * Whether is_known() holds for each member that lives, by its pf_process_id(). Members that have ended are forgotten.
 * Those that cannot be told from other processes (the kernel had no pidfs) are not asked for: whether there are any.
 */
bool pf_store_members_known(
	PfStore *store, bool (*is_known)(void *userdata, uint64_t process), void *userdata);
bool pf_store_members_unsure(const PfStore *store);

/* Frames written or claimed, and not dropped. */
uint64_t pf_store_n_frames(const PfStore *store);

/* Pages that the memfd is to hold: frames, label, and the table of members. */
uint64_t pf_store_n_pages(const PfStore *store);

/* Memory that the memfd takes by the kernel's count (st_blocks), in KiB. */
uint64_t pf_store_allocated_kib(const PfStore *store);

/* Of it, what is swapped out: one slot for all VMs that map the page. 0 where the kernel cannot tell (before 6.5). */
uint64_t pf_store_swapped_kib(const PfStore *store);
