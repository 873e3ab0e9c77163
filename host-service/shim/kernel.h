/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * Raw system calls. The library interposes the libc functions of these names, and its own calls
 * must not be taken for QEMU's: they go through syscall() and ioctl(), which pass on all but what makes a userfaultfd
 * (interpose.c), and the one that does is pf_uffd_new(). Addresses are in bytes; every function returns 0 (or what it
 * says) or -errno.
 */
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Linux 6.8; the headers of Debian 12 are older. */
#ifndef UFFDIO_MOVE
struct uffdio_move {
	__u64 dst;
	__u64 src;
	__u64 len;
	__u64 mode;
	__s64 move;
};
#define UFFDIO_MOVE               _IOWR(UFFDIO, 0x05, struct uffdio_move)
#define UFFDIO_MOVE_MODE_DONTWAKE ((__u64)1 << 0)
#define UFFD_FEATURE_MOVE         (1 << 16)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
/* Without one of these nothing can be fused (host_features.c names them). */
#define PF_UFFD_NEEDED_FEATURES                                                                    \
	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMAP |                               \
		UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_MOVE)

/* Linux 6.7. */
#ifndef PAGEMAP_SCAN
struct page_region {
	__u64 start;
	__u64 end;
	__u64 categories;
};
struct pm_scan_arg {
	__u64 size;
	__u64 flags;
	__u64 start;
	__u64 end;
	__u64 walk_end;
	__u64 vec;
	__u64 vec_len;
	__u64 max_pages;
	__u64 category_inverted;
	__u64 category_mask;
	__u64 category_anyof_mask;
	__u64 return_mask;
};
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define PAGE_IS_HUGE (1 << 6)
#endif

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif

/* Bits of a /proc/PID/pagemap entry (Documentation/admin-guide/mm/pagemap.rst). */
#define PF_PAGEMAP_PRESENT (1ull << 63)
#define PF_PAGEMAP_SWAPPED (1ull << 62)
#define PF_PAGEMAP_WP      (1ull << 57) /* write-protected by userfaultfd */
#define PF_PAGEMAP_FILE    (1ull << 61)

/* A NUMA memory policy as get_mempolicy(2) gives it. */
#define PF_POLICY_NODES 1024
typedef struct PfPolicy {
	int mode; /* MPOL_DEFAULT (0): none of its own */
	unsigned long nodes[PF_POLICY_NODES / (8 * sizeof(unsigned long))];
} PfPolicy;

void *pf_sys_mmap(
	void *start, size_t length, int prot, int flags, int fd, int64_t offset, int *error);
int pf_sys_munmap(void *start, size_t length);
int pf_sys_madvise(void *start, size_t length, int advice);
/* The new address, or NULL with *error set. */
void *pf_sys_mremap(
	void *old, size_t old_size, size_t new_size, int flags, void *new_start, int *error);
int pf_sys_get_policy(void *page, PfPolicy *policy);
int pf_sys_set_policy(void *start, size_t length, const PfPolicy *policy);

/* Whether the whole range is mapped by something. */
bool pf_sys_is_mapped(void *start, size_t length);

#define PF_HUGE_PAGE_SIZE (2ul << 20)

/*
 * Which of n pages (at most 64) lie in a transparent huge page: one bit each, the first page's lowest. 0 where the
 * kernel cannot tell.
 */
uint64_t pf_sys_huge_pages(int pagemap, const char *start, size_t n);

/* A new userfaultfd from /dev/userfaultfd, or -errno. */
int pf_uffd_new(int device, int flags);
int pf_uffd_register(int uffd, void *start, size_t length, uint64_t mode);
int pf_uffd_unregister(int uffd, void *start, size_t length);
int pf_uffd_wake(int uffd, void *start, size_t length);
/*
 * These three try again while the kernel only asks for that (maps are changing), but not for ever: then it is -EAGAIN,
 * of pf_uffd_move() -EBUSY.
 */
/* mode: UFFDIO_WRITEPROTECT_MODE_WP, or 0 to lift the protection and wake. */
int pf_uffd_protect(int uffd, void *start, size_t length, uint64_t mode);
/* Never wakes. *moved is how many bytes were, also with an error. */
int pf_uffd_move(int uffd, void *dst, const void *src, size_t length, size_t *moved);
int pf_uffd_copy(int uffd, void *dst, const void *src, size_t length);
int pf_uffd_zeropage(int uffd, void *start, size_t length);
