/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What QEMU does to its own memory. A discard over a page that maps a frame, or has bytes of its
 * own in a file VMA, would bring the frame's bytes back where QEMU expects zeros: anonymous memory
 * takes its place first. A mapping that goes away is forgotten, one that moves is made private
 * before. The real call runs under the lock, so that no transaction finds a page table that has
 * changed under it.
 */
#include "host-service/shim/core_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static int fail(int error)
{
	errno = -error;
	return -1;
}

/* madvise() rounds its length up. */
static size_t round_up(size_t length)
{
	return (length + PF_PAGE_SIZE - 1) & ~(PF_PAGE_SIZE - 1);
}

static bool discards(int advice)
{
	return advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_DONTNEED_LOCKED ||
	       advice == MADV_GUARD_INSTALL;
}

static bool changes_flags(int advice)
{
	switch (advice) {
	case MADV_DONTFORK:
	case MADV_DOFORK:
	case MADV_MERGEABLE:
	case MADV_UNMERGEABLE:
	case MADV_HUGEPAGE:
	case MADV_NOHUGEPAGE:
	case MADV_DONTDUMP:
	case MADV_DODUMP:
		return true;
	default:
		return false;
	}
}

/* What neither drops nor moves contents, so that fused pages can stay. */
static bool harmless(int advice)
{
	switch (advice) {
	case MADV_NORMAL:
	case MADV_RANDOM:
	case MADV_SEQUENTIAL:
	case MADV_WILLNEED:
	case MADV_POPULATE_READ:
	case MADV_POPULATE_WRITE:
		return true;
	default:
		return false;
	}
}

PF_NEEDS_LOCK static bool in_file(const PfRamBlock *block, size_t page)
{
	return pf_ram_maps_frame(block, page) ||
	       pf_ram_state(block, page) == PF_PAGE_PRIVATE_IN_FILE;
}

/* The length of the stretch of pages that lie in a file VMA or not, as the first one does. */
PF_NEEDS_LOCK static size_t stretch(const PfRamBlock *block, size_t page, size_t limit)
{
	size_t n = 1;

	while (n < limit && in_file(block, page + n) == in_file(block, page))
		n++;
	return n;
}

PF_NEEDS_LOCK static void forget(PfRamBlock *block, size_t page, size_t n, PfPageState state)
{
	for (size_t i = 0, piece; i < n; i += piece) {
		piece = pf_core_piece(block, page + i, n - i);
		piece = piece > 0 ? piece : 1;
		if (pf_ram_maps_frame(block, page + i))
			pf_core_note_lost(block, page + i, piece, PF_SHIM_LOST_DISCARDED);
		for (size_t k = 0; k < piece; k++)
			pf_ram_set(block, page + i + k, state, (PfFrame){0});
	}
}

static bool is_protected(const char *page)
{
	uint64_t entry;

	return pf_core_pagemap(page, 1, &entry) != 0 || (entry & PF_PAGEMAP_WP);
}

/* Zeros where no map can be had: the pages stay in the file VMA, with bytes of their own. 0 or -EIO. */
PF_NEEDS_LOCK static int zero_in_file(PfRamBlock *block, size_t page, size_t n)
{
	int error = 0;

	for (size_t i = page; i < page + n; i++) {
		char *address = pf_ram_address(block, i);

		if (pf_ram_maps_frame(block, i) && !pf_core_part(block, i, PF_SHIM_LOST_DISCARDED))
			error = -EIO;
		else if (!pf_core_copy_in_place(address) || is_protected(address))
			error = -EIO;
		else
			memset(address, 0, PF_PAGE_SIZE);
	}
	return error;
}

/* Discards pages in a file VMA. 0, or -EIO when some of them cannot be. */
PF_NEEDS_LOCK static int discard_in_file(PfRamBlock *block, size_t page, size_t n)
{
	char *start = pf_ram_address(block, page);
	size_t length = n * PF_PAGE_SIZE;
	bool mapped = false;
	int error = 0;

	if (pf_core_may_revoke_maps())
		mapped = pf_core_map_anonymous(block, start, length, &error) != NULL;
	/* Linux before 6.12 may have unmapped what was there by the time it failed. */
	while (!mapped && !pf_sys_is_mapped(start, length)) {
		pf_core_nap();
		mapped = pf_core_map_anonymous(block, start, length, &error) != NULL;
	}
	error = 0;
	if (mapped)
		forget(block, page, n, PF_PAGE_PRIVATE);
	else
		error = zero_in_file(block, page, n);
	pf_core.ways_out += !mapped;
	pf_uffd_wake(pf_core.uffd, start, length);
	pf_core_added_maps(2);
	return error;
}

/* A discard, block by block and stretch by stretch. 0 or the first error of the real calls. */
PF_NEEDS_LOCK static int discard(char *start, size_t length, int advice)
{
	char *end = start + length;
	int error = 0;

	while (start < end && error == 0) {
		PfRamBlock *block = pf_ram_next(start);
		char *next = block ? block->start : end;
		size_t page, n;

		if (!block || block->start > start) {
			next = next < end ? next : end;
			error = pf_sys_madvise(start, (size_t)(next - start), advice);
			start = next;
			continue;
		}
		page = pf_ram_page(block, start);
		n = block->n_pages - page;
		if ((size_t)(end - start) / PF_PAGE_SIZE < n)
			n = (size_t)(end - start) / PF_PAGE_SIZE;
		n = stretch(block, page, n);
		if (in_file(block, page))
			error = discard_in_file(block, page, n);
		/* Not over what had to stay in a file VMA: there it would bring the frame's bytes
		 * back. */
		if (error == 0 && !in_file(block, page))
			error = pf_sys_madvise(start, n * PF_PAGE_SIZE, advice);
		start += n * PF_PAGE_SIZE;
	}
	return error;
}

PF_NO_LOCK static int madvise_ram(char *start, size_t length, int advice)
{
	int error;

	pf_core_lock_first();
	if (discards(advice)) {
		/* A lazily freed page may vanish while it is frozen; dropped at once is always allowed. */
		error = discard(start, length, advice == MADV_FREE ? MADV_DONTNEED : advice);
	} else if (changes_flags(advice)) {
		error = pf_sys_madvise(start, length, advice);
		if (error == 0)
			pf_ram_advised(start, length, advice);
	} else {
		if (!harmless(advice))
			pf_core_make_range_private(
				start, start + length, PF_SHIM_LOST_RELEASED, false);
		/* These may touch pages, and so meet a fault that is answered under the lock. */
		pf_core_unlock();
		return pf_sys_madvise(start, length, advice);
	}
	pf_core_unlock();
	return error;
}

int pf_core_madvise(void *start, size_t length_bytes, int advice)
{
	size_t length = round_up(length_bytes);
	int error;

	if ((uintptr_t)start % PF_PAGE_SIZE || length < length_bytes ||
		!pf_core_touches(start, length))
		error = pf_sys_madvise(start, length_bytes, advice);
	else
		error = madvise_ram(start, length, advice);
	return error ? fail(error) : 0;
}

PF_NEEDS_LOCK static void forget_range(char *start, char *end)
{
	PfRamBlock *block;

	for (char *at = start; at < end && (block = pf_ram_next(at)) && block->start < end;) {
		size_t page = at > block->start ? pf_ram_page(block, at) : 0;

		for (; page < block->n_pages && pf_ram_address(block, page) < end; page++)
			if (in_file(block, page))
				forget(block, page, 1, PF_PAGE_PRIVATE);
		at = pf_ram_address(block, page);
	}
	pf_ram_remove(start, (size_t)(end - start));
}

/* A call failed, and Linux before 6.12 may have unmapped what was there by then: only that is forgotten. */
PF_NEEDS_LOCK static void forget_unmapped(char *start, char *end)
{
	if ((uintptr_t)start % PF_PAGE_SIZE)
		return;
	for (; start < end; start += PF_PAGE_SIZE)
		if (pf_ram_find(start, PF_PAGE_SIZE) && !pf_sys_is_mapped(start, PF_PAGE_SIZE))
			forget_range(start, start + PF_PAGE_SIZE);
}

/* Something was mapped there with MAP_FIXED, or it failed. */
PF_NEEDS_LOCK static void forget_mapped_over(char *start, size_t length, bool done)
{
	if (done)
		forget_range(start, start + length);
	else
		forget_unmapped(start, start + length);
}

int pf_core_munmap(void *start, size_t length_bytes)
{
	size_t length = round_up(length_bytes);
	int error;

	if (!pf_core_touches(start, length)) {
		error = pf_sys_munmap(start, length_bytes);
	} else {
		pf_core_lock_first();
		error = pf_sys_munmap(start, length_bytes);
		if (error == 0)
			forget_range(start, (char *)start + length);
		pf_core_unlock();
	}
	return error ? fail(error) : 0;
}

void *pf_core_mmap(
	void *start, size_t length_bytes, int prot, int flags, int fd, int64_t offset_bytes)
{
	void *address;
	int error;

	if ((flags & MAP_FIXED) && pf_core_touches(start, round_up(length_bytes))) {
		pf_core_lock_first();
		address = pf_sys_mmap(start, length_bytes, prot, flags, fd, offset_bytes, &error);
		forget_mapped_over(start, round_up(length_bytes), address != NULL);
		pf_core_unlock();
	} else {
		address = pf_sys_mmap(start, length_bytes, prot, flags, fd, offset_bytes, &error);
	}
	if (address || !error)
		return address;
	errno = -error;
	return MAP_FAILED;
}

/* Whether a page of the range lies in a file VMA: that cannot be moved to another address as RAM. */
PF_NEEDS_LOCK static bool has_file_pages(char *start, char *end)
{
	PfRamBlock *block;

	for (char *at = start; at < end && (block = pf_ram_next(at)) && block->start < end;) {
		size_t page = at > block->start ? pf_ram_page(block, at) : 0;

		for (; page < block->n_pages && pf_ram_address(block, page) < end; page++)
			if (in_file(block, page))
				return true;
		at = pf_ram_address(block, page);
	}
	return false;
}

PF_NEEDS_LOCK static void *mremap_ram(
	void *old, size_t old_bytes, size_t new_bytes, int flags, void *new_start, int *error)
{
	char *from = old;
	void *address;

	pf_core_make_range_private(from, from + round_up(old_bytes), PF_SHIM_LOST_RELEASED, false);
	/* QEMU does not move RAM; one that does is told that it cannot be done. */
	if (has_file_pages(from, from + round_up(old_bytes))) {
		*error = -ENOMEM;
		return NULL;
	}
	address = pf_sys_mremap(old, old_bytes, new_bytes, flags, new_start, error);
	if (address)
		forget_range(from, from + round_up(old_bytes));
	if (flags & MREMAP_FIXED)
		forget_mapped_over(new_start, round_up(new_bytes), address != NULL);
	return address;
}

void *pf_core_mremap(void *old, size_t old_bytes, size_t new_bytes, int flags, void *new_start)
{
	void *address;
	int error;

	if (pf_core_touches(old, round_up(old_bytes)) ||
		((flags & MREMAP_FIXED) && pf_core_touches(new_start, round_up(new_bytes)))) {
		pf_core_lock_first();
		address = mremap_ram(old, old_bytes, new_bytes, flags, new_start, &error);
		pf_core_unlock();
	} else {
		address = pf_sys_mremap(old, old_bytes, new_bytes, flags, new_start, &error);
	}
	if (address)
		return address;
	errno = -error;
	return MAP_FAILED;
}
