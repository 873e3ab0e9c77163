/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Stepping aside while QEMU uses a userfaultfd of its own.
 *
 * A VMA belongs to one userfaultfd. QEMU registers its RAM for postcopy and for background snapshots, and hears EBUSY
 * while any of it is registered with ours: what is fused, and what is private in a file VMA. So before QEMU gets its
 * userfaultfd, everything fused becomes private and our registrations go. From the first moment of that, under the
 * lock, no fuse begins; one that is under way gives the lock up between two transactions only, and looks again then.
 *
 * The registrations are taken off once, when the first one steps aside: some kernels let UNREGISTER take off another
 * userfaultfd's registration too, and that would be QEMU's.
 *
 * QEMU closes a userfaultfd by closing it, which nobody tells us. Each is known by its inode, which the kernel makes
 * for it alone, so the link's thread sees by fstat() whether the descriptor is still that one, whatever has taken its
 * number since.
 */
#include "host-service/shim/aside.h"
#include "host-service/shim/core_internal.h"
#include <errno.h>
#include <sys/stat.h>

#define MAX_FOREIGN 32u
#define MAX_TRIES   20

typedef struct Foreign {
	int fd;
	dev_t device;
	ino_t inode;
} Foreign;

/* Held while the core's lock is taken, never the other way round. */
static PfLock foreign_lock = PF_LOCK_INITIALIZER;
static Foreign foreign[MAX_FOREIGN] PF_LOCK_MARK(guarded_by(foreign_lock));
static atomic_uint n_foreign; /* read without the lock, written with it */

static bool unregister(char *start, size_t length)
{
	int error = -ENOMEM;

	/* Out of memory it may go better later; but QEMU waits, and can be refused what it wants. */
	for (int i = 0; i < MAX_TRIES && (error == -ENOMEM || error == -EAGAIN); i++) {
		if (i > 0)
			pf_core_nap();
		error = pf_uffd_unregister(pf_core.uffd, start, length);
	}
	return error == 0;
}

/* Where something else is mapped in the block, the kernel refuses it as a whole. */
PF_NEEDS_LOCK static bool unregister_parts(const PfRamBlock *block)
{
	bool good = true;

	for (size_t page = 0, n; page < block->n_pages; page += n) {
		bool gone = pf_ram_state(block, page) == PF_PAGE_GONE;

		for (n = 1; page + n < block->n_pages; n++)
			if ((pf_ram_state(block, page + n) == PF_PAGE_GONE) != gone)
				break;
		if (!gone && !unregister(pf_ram_address(block, page), n * PF_PAGE_SIZE))
			good = false;
	}
	return good;
}

PF_NEEDS_LOCK static bool unregister_all(void)
{
	bool good = true;
	PfRamBlock *block;

	for (char *at = NULL; (block = pf_ram_next(at)); at = pf_ram_address(block, block->n_pages))
		if (!unregister(block->start, block->n_pages * PF_PAGE_SIZE) &&
			!unregister_parts(block))
			good = false;
	return good;
}

void pf_core_step_aside(void)
{
	char *last = (char *)(UINTPTR_MAX / PF_PAGE_SIZE * PF_PAGE_SIZE);

	if (pf_core_is_child())
		return;
	pf_core_lock_first();
	pf_core.aside++;
	pf_core_make_range_private(NULL, last, PF_SHIM_LOST_RELEASED, true);
	if (!pf_core.unregistered && pf_core_started())
		pf_core.unregistered = unregister_all();
	pf_core_unlock();
	pf_core_signal(pf_core.event_fd);
}

void pf_core_come_back(void)
{
	if (pf_core_is_child())
		return;
	pf_core_lock();
	if (pf_core.aside > 0 && --pf_core.aside == 0)
		pf_core.unregistered = false;
	pf_core_unlock();
	pf_core_signal(pf_core.event_fd);
}

static bool is_open(const Foreign *one)
{
	struct stat status;

	return fstat(one->fd, &status) == 0 && status.st_dev == one->device &&
	       status.st_ino == one->inode;
}

PF_LOCK_MARK(requires_capability(foreign_lock)) PF_NO_LOCK static void forget_closed(void)
{
	for (unsigned i = 0; i < n_foreign;) {
		if (is_open(&foreign[i])) {
			i++;
			continue;
		}
		foreign[i] = foreign[n_foreign - 1];
		n_foreign--;
		pf_core_come_back();
	}
}

void pf_aside_remember(int uffd)
{
	struct stat status;

	if (pf_core_is_child())
		return;
	pf_lock(&foreign_lock);
	forget_closed();
	/* With more than it has room for we stay aside: that costs memory, never QEMU's postcopy. */
	if (n_foreign < MAX_FOREIGN && fstat(uffd, &status) == 0) {
		foreign[n_foreign] = (Foreign){uffd, status.st_dev, status.st_ino};
		n_foreign++;
	}
	pf_unlock(&foreign_lock);
	pf_core_signal(pf_core.event_fd);
}

bool pf_aside_look(void)
{
	bool any;

	if (n_foreign == 0 || pf_core_is_child())
		return false;
	pf_lock(&foreign_lock);
	forget_closed();
	any = n_foreign > 0;
	pf_unlock(&foreign_lock);
	return any;
}
