/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* New mappings in guest RAM, as like their neighbours as can be, and putting pages into them. */
#include "host-service/shim/core_internal.h"
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void advise_if(bool wanted, char *start, size_t length, int advice)
{
	/* A VMA without one of these is a little worse (it will not merge with its neighbours),
	 * never wrong. */
	if (wanted)
		pf_sys_madvise(start, length, advice);
}

void pf_core_advise_anonymous(const PfRamBlock *block, char *start, size_t length)
{
	advise_if(block->flags.mergeable, start, length, MADV_MERGEABLE);
	advise_if(block->flags.huge, start, length, MADV_HUGEPAGE);
	advise_if(block->flags.no_huge, start, length, MADV_NOHUGEPAGE);
	advise_if(block->flags.dont_fork, start, length, MADV_DONTFORK);
	advise_if(block->flags.dont_dump, start, length, MADV_DONTDUMP);
	if (block->has_policy && block->policy.mode != 0)
		pf_sys_set_policy(start, length, &block->policy);
}

/* No memory policy: mbind() on a file's mapping would set it for the file, and so for every VM. */
void pf_core_advise_frames(const PfRamBlock *block, char *start, size_t length)
{
	advise_if(true, start, length, MADV_NOHUGEPAGE);
	advise_if(block->flags.dont_fork, start, length, MADV_DONTFORK);
	advise_if(block->flags.dont_dump, start, length, MADV_DONTDUMP);
}

/*
 * Anywhere, the kernel may put it beside other anonymous memory of the process, a thread's stack
 * for one, and make one VMA of both: cut out of that, ours has an anon_vma already and will never
 * merge with guest RAM. So it begins as read-only memory, which little else is, and is made
 * writable when its flags are its own, and when it is registered: for what has the same flags is guest RAM, and a hole
 * beside that is a likely place.
 */
PF_NEEDS_LOCK static char *map_anywhere(
	const PfRamBlock *block, size_t length, int flags, int *error)
{
	char *fresh = pf_sys_mmap(NULL, length, PROT_READ, flags, -1, 0, error);

	if (!fresh)
		return NULL;
	pf_core_advise_anonymous(block, fresh, length);
	*error = pf_uffd_register(pf_core.uffd, fresh, length, UFFDIO_REGISTER_MODE_MISSING);
	if (*error == 0 && mprotect(fresh, length, PROT_READ | PROT_WRITE) < 0)
		*error = -errno;
	if (*error) {
		pf_sys_munmap(fresh, length);
		return NULL;
	}
	return fresh;
}

char *pf_core_map_anonymous(const PfRamBlock *block, char *start, size_t length, int *error)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | (block->flags.no_reserve ? MAP_NORESERVE : 0);
	char *fresh;

	if (!start)
		return map_anywhere(block, length, flags, error);
	fresh = pf_sys_mmap(start, length, PROT_READ | PROT_WRITE, flags | MAP_FIXED, -1, 0, error);
	if (fresh)
		pf_core_advise_anonymous(block, fresh, length);
	return fresh;
}

void pf_core_nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

void pf_core_put_pages(char *to, const char *from, size_t n)
{
	size_t done = 0, moved;

	while (done < n) {
		size_t at = done * PF_PAGE_SIZE;
		int error = pf_uffd_move(
			pf_core.uffd, to + at, from + at, (n - done) * PF_PAGE_SIZE, &moved);

		done += moved / PF_PAGE_SIZE;
		if (error == 0)
			return;
		/* This page cannot be moved (something pinned or shared it): its bytes can be copied. */
		at = done * PF_PAGE_SIZE;
		error = pf_uffd_copy(pf_core.uffd, to + at, from + at, PF_PAGE_SIZE);
		/* Somebody else has filled it, or mapped something else there: nothing of ours can come there. */
		if (error == -EEXIST || error == -ENOENT || error == -EINVAL) {
			pf_core_stop(error);
			error = 0;
		}
		if (error == 0)
			done++;
		else
			pf_core_nap();
	}
}

void pf_core_replace_pages(const PfRamBlock *block, char *start, const char *from, size_t n)
{
	size_t length = n * PF_PAGE_SIZE;
	char *fresh;
	int error;

	/* Filled elsewhere and moved there whole: nobody sees zeros in between. */
	while (!(fresh = pf_core_map_anonymous(block, NULL, length, &error)))
		pf_core_nap();

	pf_core_put_pages(fresh, from, n);
	while (!pf_sys_mremap(fresh, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, start, &error))
		pf_core_nap();
	pf_uffd_unregister(pf_core.uffd, start, length);
	pf_uffd_wake(pf_core.uffd, start, length);
}
