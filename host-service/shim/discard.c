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

/* What neither drops nor moves contents, so that fused pages can stay. */
static bool harmless(int advice)
{
	switch (advice) {
	case MADV_NORMAL:
	case MADV_RANDOM:
	case MADV_SEQUENTIAL:
	case MADV_WILLNEED:
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

/* The length of the stretch of pages that are private or not, as the first one is. */
static size_t stretch(const PfRamBlock *block, size_t page, size_t limit)
{
	bool is_private = pf_ram_state(block, page) == PF_PAGE_PRIVATE;
	size_t n = 1;

	while (n < limit && (pf_ram_state(block, page + n) == PF_PAGE_PRIVATE) == is_private)
		n++;
	return n;
}

static void forget(PfRamBlock *block, size_t page, size_t n, PfPageState state)
{
	for (size_t i = 0, piece; i < n; i += piece) {
		piece = pf_core_piece(block, page + i, n - i);
		if (piece > 0)
			pf_core_note_lost(block, page + i, piece, PF_SHIM_LOST_DISCARDED);
		piece = piece > 0 ? piece : 1;
		for (size_t k = 0; k < piece; k++)
			pf_ram_set(block, page + i + k, state, (PfFrame){0});
	}
}

/* Discards pages in a file VMA. Without a map for that: zeros, in bytes of their own. */
static void discard_in_file(PfRamBlock *block, size_t page, size_t n)
{
	char *start = pf_ram_address(block, page);
	int error;

	if (pf_core_map_anonymous(block, start, n * PF_PAGE_SIZE, &error)) {
		forget(block, page, n, PF_PAGE_PRIVATE);
	} else {
		pf_core_lift(start, n);
		memset(start, 0, n * PF_PAGE_SIZE);
		forget(block, page, n, PF_PAGE_PRIVATE_IN_FILE);
	}
	pf_uffd_wake(pf_core.uffd, start, n * PF_PAGE_SIZE);
	pf_core_added_maps(2);
}

/* A discard, block by block and stretch by stretch. 0 or the first error of the real calls. */
static int discard(char *start, size_t length, int advice)
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
		if (pf_ram_state(block, page) != PF_PAGE_PRIVATE)
			discard_in_file(block, page, n);
		/* Not over what had to stay in a file VMA: there it would bring the frame's bytes
		 * back. */
		if (pf_ram_state(block, page) == PF_PAGE_PRIVATE)
			error = pf_sys_madvise(start, n * PF_PAGE_SIZE, advice);
		start += n * PF_PAGE_SIZE;
	}
	return error;
}

static int madvise_locked(char *start, size_t length, int advice)
{
	int error;

	if (discards(advice))
		return discard(start, length, advice);
	if (!harmless(advice))
		pf_core_make_range_private(start, start + length, PF_SHIM_LOST_RELEASED, false);
	error = pf_sys_madvise(start, length, advice);
	if (error == 0)
		pf_ram_advised(start, length, advice);
	return error;
}

int pf_core_madvise(void *start, size_t length_bytes, int advice)
{
	size_t length = round_up(length_bytes);
	int error;

	if ((uintptr_t)start % PF_PAGE_SIZE || length < length_bytes ||
		!pf_core_touches(start, length)) {
		error = pf_sys_madvise(start, length_bytes, advice);
	} else {
		pf_core_lock();
		error = madvise_locked(start, length, advice);
		pf_core_unlock();
	}
	return error ? fail(error) : 0;
}

static void forget_range(char *start, char *end)
{
	PfRamBlock *block;

	for (char *at = start; at < end && (block = pf_ram_next(at)) && block->start < end;) {
		size_t page = at > block->start ? pf_ram_page(block, at) : 0;

		for (; page < block->n_pages && pf_ram_address(block, page) < end; page++)
			if (pf_ram_state(block, page) != PF_PAGE_PRIVATE)
				forget(block, page, 1, PF_PAGE_PRIVATE);
		at = pf_ram_address(block, page);
	}
	pf_ram_remove(start, (size_t)(end - start));
}

int pf_core_munmap(void *start, size_t length_bytes)
{
	size_t length = round_up(length_bytes);
	int error;

	if (!pf_core_touches(start, length)) {
		error = pf_sys_munmap(start, length_bytes);
	} else {
		pf_core_lock();
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
	size_t length = round_up(length_bytes);
	bool ours = (flags & MAP_FIXED) && pf_core_touches(start, length);
	void *address;
	int error;

	if (ours)
		pf_core_lock();
	address = pf_sys_mmap(start, length_bytes, prot, flags, fd, offset_bytes, &error);
	if (ours) {
		if (address)
			forget_range(start, (char *)start + length);
		pf_core_unlock();
	}
	if (address || !error)
		return address;
	errno = -error;
	return MAP_FAILED;
}

void *pf_core_mremap(void *old, size_t old_bytes, size_t new_bytes, int flags, void *new_start)
{
	size_t old_length = round_up(old_bytes), new_length = round_up(new_bytes);
	bool from_ours = pf_core_touches(old, old_length);
	bool to_ours = (flags & MREMAP_FIXED) && pf_core_touches(new_start, new_length);
	void *address;
	int error;

	if (from_ours || to_ours)
		pf_core_lock();
	if (from_ours)
		pf_core_make_range_private(
			old, (char *)old + old_length, PF_SHIM_LOST_RELEASED, false);
	address = pf_sys_mremap(old, old_bytes, new_bytes, flags, new_start, &error);
	if (address && from_ours)
		forget_range(old, (char *)old + old_length);
	if (address && to_ours)
		forget_range(new_start, (char *)new_start + new_length);
	if (from_ours || to_ours)
		pf_core_unlock();
	if (address)
		return address;
	errno = -error;
	return MAP_FAILED;
}
