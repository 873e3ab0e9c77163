/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What the processes of pagefusiond give up. The service, which parses what guests and QEMU processes send, keeps only
 * its open descriptors: another user, no capability, namespaces of its own (mounts, network, IPC, UTS, cgroups) with an
 * empty, read-only root in which there is nothing but its own part of /proc, a short list of system calls, and a limit
 * of memory that the frames do not count for.
 */
#include <glib.h>
#include <sys/types.h>

typedef struct PfSandbox {
	uid_t uid; /* not 0 */
	gid_t gid;
	guint64 memory_limit; /* bytes */
} PfSandbox;

/* Looks a user up, by name or by number (its group has the same number where the user has no entry). */
gboolean pf_sandbox_find_user(const char *user, uid_t *uid, gid_t *gid, GError **error);

/*
 * Where the configuration says nothing: an eighth of the host's memory, 512 MiB at least.
 *
 * Whoever cannot get memory ends, so what guests and QEMUs can make the service hold at a time has to fit. Half of the
 * limit is for what is known of pages (pf_fusion_set_memory_limit()), and an eighth of that more, because a table that is
 * doubled exists twice for a moment, and the pages of orders and unused frames are listed once more. What is left is for:
 *   each VM    a frame of the guest channel 1 MiB, its session's table of modules 0.5 MiB, what is kept of its shim's
 *              list 0.8 MiB, the first records of a group of its own 0.2 MiB: 2.5 MiB
 *   one VM     what the message is decoded to that is being dealt with, 10 MiB
 *   all        threads that close descriptors, 8 MiB of stacks
 *   each group what its store remembers of numbers whose frames are gone: 1 KiB for 512 frames or more
 * (Frames, and what lies in sockets, is the kernel's.) So there is room for a VM in every 48 MiB of the host's memory,
 * and for 80 VMs at the least.
 */
guint64 pf_sandbox_default_memory(void);

/*
 * Enters it, for ever: to be called by root, in a process of process.h with one thread that has opened all it needs.
 * Later threads are inside as well. FALSE with error set (what could not be done, and what to do): the process must end
 * then.
 */
gboolean pf_sandbox_enter(const PfSandbox *sandbox, GError **error);

/*
 * The other processes stay root, for the sake of libvirt, of the device and of the bus, and keep no capability but
 * these (of linux/capability.h, -1 ends the list); nothing that they execute gets more. 0 or FALSE with error set.
 */
gboolean pf_sandbox_keep_capabilities(const int *capabilities, GError **error);
