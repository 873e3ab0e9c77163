/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What stands between the parts of the shim in this program (the linker's --wrap): it tells the writers which run is
 * being fused, counts what the stress has to show, and can take the place of a part with one that has a defect, of
 * which the stress must show that it finds it.
 */
#include "tests/stress/defects.h"
#include "host-service/shim/core_internal.h"
#include "tests/stress/vmm.h"
#include <errno.h>
#include <sys/mman.h>

static bool defect(StressDefect which)
{
	return shared->defect == which;
}

static void fired(void)
{
	atomic_fetch_add_explicit(&me->defect_fired, 1, memory_order_relaxed);
}

static void note_result(const PfShimRun *run, unsigned n, PfShimResult result)
{
	static bool was_fused[STRESS_PAGES];
	int i = page_of_address((const char *)run->hva + n * PF_PAGE_SIZE);

	if (result < PF_SHIM_N_RESULTS)
		atomic_fetch_add_explicit(&me->fuse_results[result], 1, memory_order_relaxed);
	if (result == PF_SHIM_DONE)
		frames_note(run->frame + n);
	if (i >= 0 && result == PF_SHIM_DONE && !was_fused[i]) {
		was_fused[i] = true;
		atomic_fetch_add(&me->places, 1);
	}
	if (i >= 0 && (result == PF_SHIM_WRITTEN || result == PF_SHIM_NOT_PRIVATE))
		pages[i].renew = true;
}

void __wrap_pf_core_fuse(const PfShimRun *run, uint8_t *results)
{
	const char *start = (const char *)run->hva;
	int i = page_of_address(start);

	if (i >= 0 && is_vcpu_page((unsigned)i))
		vcpu_target((unsigned)i);
	else if (i >= 0)
		writers_target(start, run->n_pages);
	__real_pf_core_fuse(run, results);
	writers_target(NULL, 0);
	for (unsigned n = 0; n < run->n_pages; n++)
		note_result(run, n, (PfShimResult)results[n]);
	if (run->n_pages > me->longest_run)
		me->longest_run = run->n_pages;
}

void __wrap_pf_core_note_lost(const PfRamBlock *block, size_t page, size_t n, PfShimLoss loss)
{
	int i = page_of_address(pf_ram_address(block, page));

	if (loss == PF_SHIM_LOST_REVOKED && i >= 0 && is_vcpu_page((unsigned)i))
		atomic_fetch_add_explicit(&me->vcpu_cycles, n, memory_order_relaxed);
	__real_pf_core_note_lost(block, page, n, loss);
}

/* Of the link's thread: the next look at the page table is the second comparison. */
static _Thread_local bool looks_again;

int __wrap_pf_sys_madvise(void *start, size_t length, int advice)
{
	looks_again = advice == MADV_POPULATE_READ;
	return __real_pf_sys_madvise(start, length, advice);
}

int __wrap_pf_core_pagemap(const char *start, size_t n, uint64_t *entries)
{
	int error = __real_pf_core_pagemap(start, n, entries);
	const uint64_t frame = PF_PAGEMAP_PRESENT | PF_PAGEMAP_FILE;

	if (!defect(STRESS_NO_SECOND_COMPARISON) || !looks_again)
		return error;
	looks_again = false;
	for (size_t i = 0; i < n; i++) {
		if ((entries[i] & frame) != frame)
			fired();
		entries[i] |= frame;
	}
	return error;
}

int __wrap_pf_core_madvise(void *start, size_t length_bytes, int advice)
{
	if (!defect(STRESS_DISCARD_NOT_INTERCEPTED) || advice != MADV_DONTNEED)
		return __real_pf_core_madvise(start, length_bytes, advice);
	fired();
	return __real_pf_sys_madvise(start, length_bytes, advice);
}

int __wrap_pf_core_munmap(void *start, size_t length_bytes)
{
	if (!defect(STRESS_MUNMAP_NOT_INTERCEPTED) || page_of_address(start) < 0)
		return __real_pf_core_munmap(start, length_bytes);
	fired();
	return pf_sys_munmap(start, length_bytes);
}

/* The bytes are taken and the page is dropped, whoever has pinned it. */
static bool take_pinned(int uffd, void *dst, const void *src)
{
	fired();
	return pf_uffd_copy(uffd, dst, src, PF_PAGE_SIZE) == 0 &&
	       __real_pf_sys_madvise((void *)src, PF_PAGE_SIZE, MADV_DONTNEED) == 0;
}

int __wrap_pf_uffd_move(int uffd, void *dst, const void *src, size_t length, size_t *moved)
{
	int error = __real_pf_uffd_move(uffd, dst, src, length, moved);

	while (error == -EBUSY && defect(STRESS_PIN_CHECK_BYPASSED) &&
		take_pinned(uffd, (char *)dst + *moved, (const char *)src + *moved)) {
		size_t more = 0;

		*moved += PF_PAGE_SIZE;
		error = *moved == length
				? 0
				: __real_pf_uffd_move(uffd, (char *)dst + *moved,
					  (const char *)src + *moved, length - *moved, &more);
		*moved += more;
	}
	return error;
}

/* The way out lifts the protection where a page is, and lets the kernel copy. */
int __wrap_pf_uffd_protect(int uffd, void *start, size_t length, uint64_t mode)
{
	if (!defect(STRESS_NO_WAY_OUT) || mode != 0)
		return __real_pf_uffd_protect(uffd, start, length, mode);
	fired();
	return 0;
}
