/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/shim/kernel.h"
#include "common/page.h"
#include <errno.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MPOL_F_ADDR_FLAG (1 << 1)

/* While maps change nothing can be moved, copied or protected. That ends within microseconds; a vCPU may be waiting. */
#define MAX_TRIES 10000

static int result(long value)
{
	return value < 0 ? -errno : 0;
}

void *pf_sys_mmap(
	void *start, size_t length, int prot, int flags, int fd, int64_t offset, int *error)
{
	long address = syscall(SYS_mmap, start, length, prot, flags, fd, offset);
	*error = address == -1 ? -errno : 0;
	return address == -1 ? NULL : (void *)address;
}

int pf_sys_munmap(void *start, size_t length)
{
	return result(syscall(SYS_munmap, start, length));
}

int pf_sys_madvise(void *start, size_t length, int advice)
{
	return result(syscall(SYS_madvise, start, length, advice));
}

void *pf_sys_mremap(
	void *old, size_t old_size, size_t new_size, int flags, void *new_start, int *error)
{
	long address = syscall(SYS_mremap, old, old_size, new_size, flags, new_start);
	*error = address == -1 ? -errno : 0;
	return address == -1 ? NULL : (void *)address;
}

int pf_sys_get_policy(void *page, PfPolicy *policy)
{
	return result(syscall(SYS_get_mempolicy, &policy->mode, policy->nodes, PF_POLICY_NODES,
		page, MPOL_F_ADDR_FLAG));
}

int pf_sys_set_policy(void *start, size_t length, const PfPolicy *policy)
{
	return result(
		syscall(SYS_mbind, start, length, policy->mode, policy->nodes, PF_POLICY_NODES, 0));
}

bool pf_sys_is_mapped(void *start, size_t length)
{
	unsigned char resident[64];

	for (size_t done = 0; done < length; done += sizeof resident * PF_PAGE_SIZE) {
		size_t n = length - done;

		if (n > sizeof resident * PF_PAGE_SIZE)
			n = sizeof resident * PF_PAGE_SIZE;
		/* Only this error says so: there may be no memory for the answer. */
		if (syscall(SYS_mincore, (char *)start + done, n, resident) < 0 && errno == ENOMEM)
			return false;
	}
	return true;
}

uint64_t pf_sys_huge_pages(int pagemap, const char *start, size_t n)
{
	struct page_region regions[64];
	struct pm_scan_arg scan = {
		.size = sizeof scan,
		.start = (uintptr_t)start,
		.end = (uintptr_t)start + n * PF_PAGE_SIZE,
		.vec = (uintptr_t)regions,
		.vec_len = sizeof regions / sizeof regions[0],
		.category_mask = PAGE_IS_HUGE,
		.return_mask = PAGE_IS_HUGE,
	};
	int found = ioctl(pagemap, PAGEMAP_SCAN, &scan);
	uint64_t huge = 0;

	for (int i = 0; i < found; i++)
		/* cppcheck-suppress uninitvar ; the kernel has set the first ones */
		for (uint64_t at = regions[i].start; at < regions[i].end; at += PF_PAGE_SIZE)
			huge |= 1ull << (at - (uintptr_t)start) / PF_PAGE_SIZE;
	return huge;
}

/* Not with ioctl(): interposed, that would take it for QEMU's. */
int pf_uffd_new(int device, int flags)
{
	long fd = syscall(SYS_ioctl, device, USERFAULTFD_IOC_NEW, flags);

	return fd < 0 ? -errno : (int)fd;
}

int pf_uffd_register(int uffd, void *start, size_t length, uint64_t mode)
{
	struct uffdio_register reg = {.range = {(uintptr_t)start, length}, .mode = mode};

	return result(ioctl(uffd, UFFDIO_REGISTER, &reg));
}

int pf_uffd_unregister(int uffd, void *start, size_t length)
{
	struct uffdio_range range = {(uintptr_t)start, length};

	return result(ioctl(uffd, UFFDIO_UNREGISTER, &range));
}

int pf_uffd_wake(int uffd, void *start, size_t length)
{
	struct uffdio_range range = {(uintptr_t)start, length};

	return result(ioctl(uffd, UFFDIO_WAKE, &range));
}

int pf_uffd_protect(int uffd, void *start, size_t length, uint64_t mode)
{
	struct uffdio_writeprotect wp = {.range = {(uintptr_t)start, length}, .mode = mode};
	int error = -EAGAIN;

	for (int tries = 0; tries < MAX_TRIES && error == -EAGAIN; tries++) {
		if (tries > 0)
			sched_yield();
		error = result(ioctl(uffd, UFFDIO_WRITEPROTECT, &wp));
	}
	return error;
}

int pf_uffd_move(int uffd, void *dst, const void *src, size_t length, size_t *moved)
{
	int tries = 0;

	*moved = 0;
	while (*moved < length) {
		struct uffdio_move move = {
			.dst = (uintptr_t)dst + *moved,
			.src = (uintptr_t)src + *moved,
			.len = length - *moved,
			.mode = UFFDIO_MOVE_MODE_DONTWAKE,
		};
		int error = result(ioctl(uffd, UFFDIO_MOVE, &move));

		if (error == 0) {
			*moved = length;
		} else if (error == -EAGAIN) {
			/* Part of it was moved (going on gives the real error), or maps are
			 * changing. */
			if (move.move > 0) {
				*moved += (size_t)move.move;
				tries = 0;
			} else if (++tries == MAX_TRIES) {
				return -EBUSY;
			} else {
				sched_yield();
			}
		} else {
			return error;
		}
	}
	return 0;
}

int pf_uffd_copy(int uffd, void *dst, const void *src, size_t length)
{
	size_t done = 0;
	int tries = 0;

	while (done < length) {
		struct uffdio_copy copy = {
			.dst = (uintptr_t)dst + done,
			.src = (uintptr_t)src + done,
			.len = length - done,
			.mode = UFFDIO_COPY_MODE_DONTWAKE,
		};
		int error = result(ioctl(uffd, UFFDIO_COPY, &copy));

		if (error != 0 && error != -EAGAIN)
			return error;
		if (copy.copy > 0) {
			done += (size_t)copy.copy;
			tries = 0;
		} else if (++tries == MAX_TRIES) {
			return -EAGAIN;
		} else {
			sched_yield();
		}
	}
	return 0;
}

int pf_uffd_zeropage(int uffd, void *start, size_t length)
{
	struct uffdio_zeropage zero = {.range = {(uintptr_t)start, length}};

	return result(ioctl(uffd, UFFDIO_ZEROPAGE, &zero));
}
