/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Attempts through maps of the store. Some succeed: a private map may be written, and what changes is the writer's own
 * copy. That is asserted here, as far as this process can see it; that the frame is what it was is the test's to see.
 */
#include "host-service/shim/kernel.h"
#include "tests/security/hostile_attempts.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* linux/mman.h from 6.1 on */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
/* glibc leaves it out */
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif
#define HUGE_PAGE (2ul << 20)

static char rubbish[4096] = "a QEMU was here";

static int outcome(long result)
{
	return result < 0 ? errno : 0;
}

/* Of the first frame; NULL with errno. */
static char *map_frame(const HostileTarget *target, int protection, int flags)
{
	char *page = mmap(NULL, target->page_size, protection, flags, target->store, target->frame);

	return page == MAP_FAILED ? NULL : page;
}

static char *map_readonly(const HostileTarget *target)
{
	return map_frame(target, PROT_READ, MAP_SHARED);
}

static char *map_private(const HostileTarget *target)
{
	return map_frame(target, PROT_READ | PROT_WRITE, MAP_PRIVATE);
}

int hostile_map_shared(const HostileTarget *target)
{
	return map_frame(target, PROT_READ | PROT_WRITE, MAP_SHARED) ? 0 : errno;
}

int hostile_mprotect_shared(const HostileTarget *target)
{
	char *page = map_readonly(target);

	return page ? outcome(mprotect(page, target->page_size, PROT_READ | PROT_WRITE)) : errno;
}

/* A second map of the same pages, by way of mremap of nothing. */
int hostile_mremap_and_mprotect(const HostileTarget *target)
{
	char *page = map_readonly(target), *other;

	if (!page)
		return errno;
	other = mremap(page, 0, 2 * target->page_size, MREMAP_MAYMOVE);
	if (other == MAP_FAILED)
		return errno;
	return outcome(mprotect(other, 2 * target->page_size, PROT_READ | PROT_WRITE));
}

static int advise(const HostileTarget *target, char *page, int advice)
{
	if (!page)
		return errno;
	/* So that there is something to advise about. */
	(void)*(volatile char *)page;
	return outcome(madvise(page, target->page_size, advice));
}

int hostile_madvise_remove_shared(const HostileTarget *target)
{
	return advise(target, map_readonly(target), MADV_REMOVE);
}

int hostile_madvise_remove_private(const HostileTarget *target)
{
	return advise(target, map_private(target), MADV_REMOVE);
}

int hostile_madvise_hwpoison(const HostileTarget *target)
{
	return advise(target, map_readonly(target), MADV_HWPOISON);
}

int hostile_madvise_soft_offline(const HostileTarget *target)
{
	return advise(target, map_readonly(target), MADV_SOFT_OFFLINE);
}

int hostile_madvise_free(const HostileTarget *target)
{
	return advise(target, map_private(target), MADV_FREE);
}

int hostile_madvise_populate_write(const HostileTarget *target)
{
	return advise(target, map_readonly(target), MADV_POPULATE_WRITE);
}

int hostile_madvise_pageout(const HostileTarget *target)
{
	return advise(target, map_readonly(target), MADV_PAGEOUT);
}

/* The frames in one huge page, with the holes beside them; only an aligned map can have it. */
int hostile_madvise_collapse(const HostileTarget *target)
{
	off_t start = target->frame & ~(off_t)(HUGE_PAGE - 1);
	char *area = mmap(NULL, 2 * HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *aligned = (char *)(((uintptr_t)area + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));

	if (area == MAP_FAILED || mmap(aligned, HUGE_PAGE, PROT_READ, MAP_SHARED | MAP_FIXED,
					  target->store, start) == MAP_FAILED)
		return errno;
	(void)*(volatile char *)(aligned + (target->frame - start));
	return outcome(madvise(aligned, HUGE_PAGE, MADV_COLLAPSE));
}

/* Where the store's pages lie is anybody's to say; what is in them is not. */
int hostile_mbind_and_move(const HostileTarget *target)
{
	const unsigned long node_0 = 1;
	char *page = map_readonly(target);

	if (!page)
		return errno;
	(void)*(volatile char *)page;
	return outcome(syscall(SYS_mbind, page, target->page_size, MPOL_BIND, &node_0,
		8 * sizeof(node_0), MPOL_MF_MOVE));
}

/* Whether the page is this process's copy now: a map beside it shows another thing. */
static int expect_own_copy(const HostileTarget *target, const char *page)
{
	const char *frame = map_readonly(target);

	if (!frame)
		return errno;
	return memcmp(frame, page, target->page_size) != 0 ? 0 : EBADMSG;
}

int hostile_private_write(const HostileTarget *target)
{
	char *page = map_private(target);

	if (!page)
		return errno;
	memset(page, 'x', target->page_size);
	return expect_own_copy(target, page);
}

/* Its copy is gone, and the frame is there again. */
int hostile_private_write_and_dontneed(const HostileTarget *target)
{
	char *page = map_private(target);

	if (!page)
		return errno;
	memset(page, 'x', target->page_size);
	if (madvise(page, target->page_size, MADV_DONTNEED) < 0)
		return errno;
	return expect_own_copy(target, page) == EBADMSG ? 0 : EIO;
}

int hostile_private_mergeable(const HostileTarget *target)
{
	return advise(target, map_private(target), MADV_MERGEABLE);
}

/* As a debugger writes, whatever the map allows. */
static int write_by_file(const HostileTarget *target, char *page)
{
	int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC), code;

	if (!page || fd < 0)
		return errno;
	code = outcome(pwrite(fd, rubbish, sizeof(rubbish), (off_t)(uintptr_t)page));
	close(fd);
	return code;
}

int hostile_mem_file_shared(const HostileTarget *target)
{
	return write_by_file(target, map_readonly(target));
}

int hostile_mem_file_private(const HostileTarget *target)
{
	char *page = map_frame(target, PROT_READ, MAP_PRIVATE);
	int code = write_by_file(target, page);

	return code ? code : expect_own_copy(target, page);
}

int hostile_process_vm_writev(const HostileTarget *target)
{
	char *page = map_readonly(target);
	struct iovec here = {rubbish, sizeof(rubbish)}, there = {page, sizeof(rubbish)};

	return page ? outcome(process_vm_writev(getpid(), &here, 1, &there, 1, 0)) : errno;
}

/* Its page, given to the kernel as if it were its own, and what comes out of the pipe written over. */
int hostile_vmsplice_gift(const HostileTarget *target)
{
	char *page = map_private(target);
	struct iovec part = {page, target->page_size};
	int ends[2], file = memfd_create("gift", MFD_CLOEXEC), code;

	if (!page || file < 0 || pipe2(ends, O_CLOEXEC) < 0)
		return errno;
	(void)*(volatile char *)page;
	code = outcome(vmsplice(ends[1], &part, 1, SPLICE_F_GIFT));
	if (code == 0)
		code = outcome(splice(ends[0], NULL, file, NULL, target->page_size, SPLICE_F_MOVE));
	if (code == 0)
		code = outcome(pwrite(file, rubbish, sizeof(rubbish), 0));
	close(ends[0]);
	close(ends[1]);
	close(file);
	return code;
}

/* The kernel writes to the map for it. */
int hostile_read_into_shared(const HostileTarget *target)
{
	char *page = map_readonly(target);
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC), code;

	if (!page || zero < 0)
		return errno;
	code = outcome(read(zero, page, target->page_size));
	close(zero);
	return code;
}

int hostile_remap_file_pages(const HostileTarget *target)
{
	char *page = map_readonly(target);

	if (!page)
		return errno;
	/* With any other protection than none it is refused, and with none the map's own stays. */
	if (remap_file_pages(page, target->page_size, PROT_WRITE, 0, 0) == 0)
		return EBADMSG;
	if (remap_file_pages(page, target->page_size, 0, 0, 0) < 0)
		return errno;
	return outcome(mprotect(page, target->page_size, PROT_READ | PROT_WRITE));
}

/* The device that the service sent makes userfaultfds that see the kernel's faults as well. */
static int open_userfault(const HostileTarget *target)
{
	struct uffdio_api api = {.api = UFFD_API};
	int fd = ioctl(target->device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0)
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}

static struct uffdio_range range_of(const HostileTarget *target, const char *page)
{
	return (struct uffdio_range){(uintptr_t)page, target->page_size};
}

/* *fd is to be closed. */
static int register_page(const HostileTarget *target, const char *page, uint64_t mode, int *fd)
{
	struct uffdio_register request = {.range = range_of(target, page), .mode = mode};

	*fd = page ? open_userfault(target) : -1;
	return *fd < 0 ? errno : outcome(ioctl(*fd, UFFDIO_REGISTER, &request));
}

static int register_shared(const HostileTarget *target, uint64_t mode)
{
	int fd, code = register_page(target, map_readonly(target), mode, &fd);

	close(fd);
	return code;
}

int hostile_userfault_shared(const HostileTarget *target)
{
	return register_shared(target, UFFDIO_REGISTER_MODE_MISSING);
}

int hostile_userfault_shared_minor(const HostileTarget *target)
{
	return register_shared(target, UFFDIO_REGISTER_MODE_MINOR);
}

/* Its copy is the only thing that it can put there. */
int hostile_userfault_copy(const HostileTarget *target)
{
	char *page = map_private(target);
	struct uffdio_copy copy = {.dst = (uintptr_t)page, .src = (uintptr_t)rubbish};
	int fd, code = register_page(target, page, UFFDIO_REGISTER_MODE_MISSING, &fd);

	copy.len = target->page_size;
	if (code == 0)
		code = outcome(ioctl(fd, UFFDIO_COPY, &copy));
	close(fd);
	return code ? code : expect_own_copy(target, page);
}

int hostile_userfault_zeropage(const HostileTarget *target)
{
	char *page = map_private(target);
	struct uffdio_zeropage zero = {.range = range_of(target, page)};
	int fd, code = register_page(target, page, UFFDIO_REGISTER_MODE_MISSING, &fd);

	if (code == 0)
		code = outcome(ioctl(fd, UFFDIO_ZEROPAGE, &zero));
	close(fd);
	return code ? code : expect_own_copy(target, page);
}

int hostile_userfault_continue(const HostileTarget *target)
{
	char *page = map_private(target);
	struct uffdio_continue request = {.range = range_of(target, page)};
	int fd, code = register_page(target, page, UFFDIO_REGISTER_MODE_MINOR, &fd);

	if (code == 0)
		code = outcome(ioctl(fd, UFFDIO_CONTINUE, &request));
	if (code == 0)
		memset(page, 'x', target->page_size);
	close(fd);
	return code ? code : expect_own_copy(target, page);
}

int hostile_userfault_move(const HostileTarget *target)
{
	char *page = map_private(target);
	char *own = mmap(NULL, target->page_size, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_move move = {
		.dst = (uintptr_t)page, .src = (uintptr_t)own, .len = target->page_size};
	int fd, code = register_page(target, page, UFFDIO_REGISTER_MODE_MISSING, &fd);

	if (own == MAP_FAILED)
		return ENOMEM;
	memset(own, 'x', target->page_size);
	if (code == 0)
		code = outcome(ioctl(fd, UFFDIO_MOVE, &move));
	close(fd);
	return code;
}

/* Taking back a protection of its own gives no right that the map has not. */
int hostile_userfault_writeprotect(const HostileTarget *target)
{
	char *page = map_private(target);
	struct uffdio_writeprotect protect = {
		.range = range_of(target, page), .mode = UFFDIO_WRITEPROTECT_MODE_WP};
	int fd, code = register_page(target, page, UFFDIO_REGISTER_MODE_WP, &fd);

	if (code == 0 && page)
		(void)*(volatile char *)page;
	if (code == 0)
		code = outcome(ioctl(fd, UFFDIO_WRITEPROTECT, &protect));
	protect.mode = 0;
	if (code == 0)
		code = outcome(ioctl(fd, UFFDIO_WRITEPROTECT, &protect));
	if (code == 0)
		memset(page, 'x', target->page_size);
	close(fd);
	return code ? code : expect_own_copy(target, page);
}
