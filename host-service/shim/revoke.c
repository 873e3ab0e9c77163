/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Making pages private again: because the guest wrote (revoke) or because we want it (release).
 *
 * The page's bytes are the frame's: the frame is immutable and the page was write-protected all the
 * time. They are made ready in the spare area first, so that all that can fail for memory comes
 * before the page is touched. A fresh anonymous VMA, registered MISSING, is moved over the page by
 * mremap(), atomic for everybody: nobody sees a gap or zeros, who comes now waits. UFFDIO_MOVE puts
 * the bytes in.
 *
 * Private neighbours are registered MISSING together with it. Three VMAs with the same registration
 * become one with one anon_vma, so that they stay one when the registration goes: without this each
 * revoke would leave a map behind. A neighbour in another huge page is registered with all of that: a part of it
 * would break it.
 *
 * A revoke never fails, for a vCPU waits. Where no map can be had, the protection is lifted and the
 * kernel copies.
 */
#include "host-service/shim/core_internal.h"
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

/* The frame's bytes into the spare area. false: they cannot be read, now or later (a memory error, a failed swap-in). */
PF_NEEDS_LOCK static bool fill_spare(PfFrame frame, size_t n)
{
	size_t size = n * PF_PAGE_SIZE;

	for (size_t done = 0; done < size;) {
		ssize_t got = pread(pf_core.store, pf_core.spare + done, size - done,
			(off_t)(frame.v * PF_PAGE_SIZE + done));

		if (got > 0)
			done += (size_t)got;
		else if (got < 0 && (errno == EIO || errno == EHWPOISON))
			return false;
		else if (got == 0 || errno != EINTR)
			/* Out of memory, for there is no other reason. It may come back, and we must go on. */
			pf_core_nap();
	}
	return true;
}

/* Where the neighbour lies in a huge page that has no part in this: that as a whole, or it would be broken. */
PF_NEEDS_LOCK static size_t huge_neighbour(
	const PfRamBlock *block, const char *neighbour, const char **start)
{
	*start = (const char *)((uintptr_t)neighbour & ~(PF_HUGE_PAGE_SIZE - 1));
	if (*start < block->start ||
		*start + PF_HUGE_PAGE_SIZE > block->start + block->n_pages * PF_PAGE_SIZE)
		return 0;
	return PF_HUGE_PAGE_SIZE;
}

/* Registers what lies beside `beside`, on the side of the page `neighbour`, if it is private. Returns its length. */
PF_NEEDS_LOCK static size_t register_neighbour(
	const PfRamBlock *block, size_t neighbour, size_t beside)
{
	const char *start = pf_ram_address(block, neighbour);
	size_t length = PF_PAGE_SIZE;

	if (neighbour >= block->n_pages || pf_ram_state(block, neighbour) != PF_PAGE_PRIVATE)
		return 0;
	if (((uintptr_t)start ^ (uintptr_t)pf_ram_address(block, beside)) >= PF_HUGE_PAGE_SIZE &&
		pf_sys_huge_pages(pf_core.pagemap, start, 1) != 0)
		length = huge_neighbour(block, start, &start);
	if (length == 0 || pf_uffd_register(pf_core.uffd, (void *)start, length,
				   UFFDIO_REGISTER_MODE_MISSING) != 0)
		return 0;
	return length;
}

/* Puts the spare area there. false: no map or no memory for one; nothing has changed then. */
PF_NEEDS_LOCK static bool replace(PfRamBlock *block, size_t page, size_t n)
{
	size_t length = n * PF_PAGE_SIZE;
	char *start = pf_ram_address(block, page), *fresh, *all;
	size_t left, right;
	int error;

	if (!pf_core_may_revoke_maps())
		return false;
	fresh = pf_core_map_anonymous(block, NULL, length, &error);
	if (!fresh)
		return false;

	left = page > 0 ? register_neighbour(block, page - 1, page) : 0;
	right = register_neighbour(block, page + n, page + n - 1);
	all = start - left;
	if (!pf_sys_mremap(fresh, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, start, &error)) {
		pf_sys_munmap(fresh, length);
		fresh = NULL;
		if (!pf_sys_is_mapped(start, length)) {
			/* mremap() had taken the target away before it failed. */
			pf_core_replace_pages(block, start, pf_core.spare, n);
			fresh = start;
		}
	} else {
		pf_core_put_pages(start, pf_core.spare, n);
	}
	length += left + right;
	if (fresh) {
		pf_uffd_unregister(pf_core.uffd, all, length);
	} else {
		/* Not the pages between them: those are still protected. */
		if (left)
			pf_uffd_unregister(pf_core.uffd, all, left);
		if (right)
			pf_uffd_unregister(pf_core.uffd, start + n * PF_PAGE_SIZE, right);
	}
	pf_uffd_wake(pf_core.uffd, all, length);
	return fresh != NULL;
}

bool pf_core_copy_in_place(char *page)
{
	uint64_t entry;
	int error;

	/* Once aside, a protection is QEMU's own, and the kernel would let us lift it. */
	if (!pf_core.unregistered)
		pf_uffd_protect(pf_core.uffd, page, PF_PAGE_SIZE, 0);
	if (pf_core_pagemap(page, 1, &entry) != 0)
		return false;
	if ((entry & PF_PAGEMAP_PRESENT) && !(entry & PF_PAGEMAP_FILE))
		return true;
	/* Where it is still protected the fault would wait for the lock that we hold. */
	if (entry & PF_PAGEMAP_WP)
		return false;
	/* A write fault without a write, and without a signal where the frame cannot be read. */
	while ((error = pf_sys_madvise(page, PF_PAGE_SIZE, MADV_POPULATE_WRITE)) == -ENOMEM &&
		pf_sys_is_mapped(page, PF_PAGE_SIZE))
		pf_core_nap();
	return error == 0;
}

bool pf_core_part(PfRamBlock *block, size_t page, PfShimLoss loss)
{
	char *address = pf_ram_address(block, page);
	bool parted = pf_core_copy_in_place(address);

	if (parted) {
		pf_core_note_lost(block, page, 1, loss);
		pf_ram_set(block, page, PF_PAGE_PRIVATE_IN_FILE, (PfFrame){0});
		pf_core.written++;
	} else {
		/* It maps the frame still, and so it is not lost: who touches it gets the kernel's error. */
		pf_ram_set(block, page, PF_PAGE_BROKEN, pf_ram_frame(block, page));
		pf_core_stop(-EIO);
	}
	pf_uffd_wake(pf_core.uffd, address, PF_PAGE_SIZE);
	return parted;
}

void pf_core_make_private(PfRamBlock *block, size_t page, size_t n, PfShimLoss loss)
{
	bool filled = fill_spare(pf_ram_frame(block, page), n);

	pf_core_added_maps(2);
	if (!filled || !replace(block, page, n)) {
		pf_core.ways_out += filled;
		for (size_t i = 0; i < n; i++)
			pf_core_part(block, page + i, loss);
		return;
	}
	pf_core_note_lost(block, page, n, loss);
	for (size_t i = 0; i < n; i++)
		pf_ram_set(block, page + i, PF_PAGE_PRIVATE, (PfFrame){0});
}

size_t pf_core_piece(const PfRamBlock *block, size_t page, size_t limit)
{
	size_t n = 0;

	while (n < limit && page + n < block->n_pages &&
		pf_ram_state(block, page + n) == PF_PAGE_FUSED &&
		pf_ram_frame(block, page + n).v == pf_ram_frame(block, page).v + n)
		n++;
	return n;
}

/* Goes on from page, which maps a frame; at most limit pages. Returns how many it dealt with. */
PF_NEEDS_LOCK static size_t make_some_private(
	PfRamBlock *block, size_t page, size_t limit, PfShimLoss loss)
{
	size_t n;

	if (pf_ram_state(block, page) == PF_PAGE_BROKEN) {
		pf_core_part(block, page, loss);
		return 1;
	}
	/* From the left edge of a piece: what is cut from its middle leaves maps behind. */
	n = pf_core_piece(block, page, limit < PF_SHIM_RUN_PAGES ? limit : PF_SHIM_RUN_PAGES);
	pf_core_make_private(block, page, n, loss);
	return n;
}

void pf_core_make_range_private(char *start, char *end, PfShimLoss loss, bool yield)
{
	PfRamBlock *block;

	while (start < end && pf_ram_n_fused() > 0 && (block = pf_ram_next(start)) &&
		block->start < end) {
		size_t page = start > block->start ? pf_ram_page(block, start) : 0;
		size_t last = block->n_pages;

		if (end < pf_ram_address(block, last))
			last = pf_ram_page(block, end + PF_PAGE_SIZE - 1);
		/* A part at a time: a large block without a fused page takes milliseconds too. */
		if (last - page > PAGES_A_TURN)
			last = page + PAGES_A_TURN;
		while (page < last && !pf_ram_maps_frame(block, page))
			page++;
		if (page < last)
			page += make_some_private(block, page, last - page, loss);
		start = pf_ram_address(block, page);
		if (yield)
			pf_core_give_way();
	}
}

int pf_core_release(PfHva hva, uint64_t n_pages)
{
	bool broken;
	uint64_t last = UINT64_MAX / PF_PAGE_SIZE * PF_PAGE_SIZE, end = last;

	if (n_pages < (last - hva.v) / PF_PAGE_SIZE)
		end = hva.v + n_pages * PF_PAGE_SIZE;
	pf_core_lock();
	pf_core_make_range_private((char *)hva.v, (char *)end, PF_SHIM_LOST_RELEASED, true);
	/* Elsewhere is as good as here: it is rare, and who asked must not think that no frame is needed any more. */
	broken = n_pages > 0 && pf_ram_n_broken() > 0;
	pf_core_unlock();
	return broken ? -EIO : 0;
}

void pf_core_resolve_fault(char *address, bool write_protect)
{
	PfRamBlock *block = pf_ram_find(address, PF_PAGE_SIZE);
	size_t page = block ? pf_ram_page(block, address) : 0;
	PfPageState state = block ? pf_ram_state(block, page) : PF_PAGE_PRIVATE;

	if (write_protect && state == PF_PAGE_FUSED) {
		pf_core_make_private(block, page, 1, PF_SHIM_LOST_REVOKED);
		return;
	}
	if (write_protect && state == PF_PAGE_BROKEN) {
		pf_core_part(block, page, PF_SHIM_LOST_REVOKED);
		return;
	}
	if (pf_core.unregistered)
		/* Read before that, and woken by it. What is registered there now is QEMU's: not ours to answer. */
		return;
	if (write_protect)
		pf_uffd_protect(pf_core.uffd, address, PF_PAGE_SIZE, 0);
	else if (state == PF_PAGE_PRIVATE)
		/* No freeze is under way, we hold the lock: fails where the page is there or
		 * nothing is registered. */
		pf_uffd_zeropage(pf_core.uffd, address, PF_PAGE_SIZE);
	pf_uffd_wake(pf_core.uffd, address, PF_PAGE_SIZE);
}
