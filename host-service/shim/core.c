/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation
 *
 * A page of guest RAM is private (anonymous memory, as QEMU made it), fused (a private file mapping
 * of a frame, write-protected by userfaultfd), or private in a file VMA (it was written in the
 * moment it was fused, or no map could be had to revoke it: bytes of its own, but the VMA around it
 * is the store's). fuse.c, revoke.c and discard.c hold the transactions between these; all of them,
 * and the real system call behind an interposed one, run under one lock, so that the page table and
 * our states agree whenever the lock is free.
 *
 * Two states are for what goes wrong. A page is gone when QEMU has put something else there, and
 * broken when its frame can be neither read nor copied (a memory error): it maps the frame still,
 * so nobody is told that it is lost.
 *
 * Three threads, all signals blocked: the fault and the revoke thread (faults.c), and the link's
 * thread (link.c), which fuses, captures, releases and lists. It lets pending faults go first
 * before each run, so that a vCPU waits for one freeze at most.
 *
 * A fault is always answered. On a fused page it revokes. On any other page the protection is
 * lifted, a page that is missing becomes zeros if it lies in anonymous memory (some step failed and
 * left a registration behind), and the waiter is woken; if his page is not there yet, he faults
 * again and is answered again. So no failed step hangs a guest.
 *
 * Nothing here allocates from the heap, logs, or reads guest memory in a way that could fault on a
 * MISSING range: a thread that waits for userfaultfd while it holds the lock would wait for ever.
 * Frames are read with pread(), never through a map, so that a truncated or punched store cannot
 * raise a signal in QEMU.
 */
#include "host-service/shim/core_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define AREA_BYTES (PF_SHIM_RUN_PAGES * PF_PAGE_SIZE)

PfLock pf_core_mutex = PF_LOCK_INITIALIZER;

PfCore pf_core = {
	.drained = PTHREAD_COND_INITIALIZER,
	.uffd = -1,
	.pagemap = -1,
	.store = -1,
	.event_fd = -1,
};

/* Losses not yet taken by the link. While no service listens they overflow; the next one asks for the list. */
#define MAX_LOST 8192u
static PfShimLost lost[MAX_LOST] PF_GUARDED;
static size_t n_lost PF_GUARDED;
static bool lost_overflow PF_GUARDED;

void pf_core_lock(void)
{
	pf_lock(&pf_core_mutex);
}

void pf_core_unlock(void)
{
	pf_unlock(&pf_core_mutex);
}

void pf_core_lock_first(void)
{
	atomic_fetch_add(&pf_core.pending, 1);
	pf_core_lock();
	pf_core_served();
}

void pf_core_served(void)
{
	if (atomic_fetch_sub(&pf_core.pending, 1) == 1)
		pthread_cond_broadcast(&pf_core.drained);
}

void pf_core_yield(void)
{
	while (atomic_load(&pf_core.pending) > 0)
		pthread_cond_wait(&pf_core.drained, &pf_core_mutex.mutex);
}

void pf_core_give_way(void)
{
	pf_core_unlock();
	sched_yield();
	pf_core_lock();
	pf_core_yield();
}

void pf_core_signal(int fd)
{
	uint64_t one = 1;

	/* A full counter is readable too: nothing is lost when this fails. */
	if (write(fd, &one, sizeof one) < 0)
		return;
}

void pf_core_stop(int error)
{
	if (pf_core.stopped_error == 0)
		pf_core.stopped_error = error;
	pf_core_signal(pf_core.event_fd);
}

/* Start */

static int make_userfaultfd(int device, uint64_t features, struct uffdio_api *api)
{
	int fd = pf_uffd_new(device, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return fd;
	*api = (struct uffdio_api){.api = UFFD_API, .features = features};
	if (ioctl(fd, UFFDIO_API, api) < 0) {
		int error = -errno;

		close(fd);
		return error;
	}
	return fd;
}

static int open_userfaultfd(int device, uint64_t *missing)
{
	struct uffdio_api api = {0};
	int probe = make_userfaultfd(device, 0, &api);

	*missing = 0;
	if (probe < 0)
		return probe;
	close(probe);
	*missing = PF_UFFD_NEEDED_FEATURES & ~api.features;
	if (*missing)
		return -EOPNOTSUPP;
	return make_userfaultfd(device, PF_UFFD_NEEDED_FEATURES, &api);
}

static char *map_area(void)
{
	int error;
	char *area = pf_sys_mmap(NULL, AREA_BYTES, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &error);

	if (!area)
		return NULL;
	/*
	 * Before first use: a child made by fork() in a freeze would share the frozen page, KSM
	 * would merge it, and MOVE could not give it back.
	 */
	if (pf_sys_madvise(area, AREA_BYTES, MADV_DONTFORK) != 0 ||
		pf_sys_madvise(area, AREA_BYTES, MADV_DONTDUMP) != 0) {
		pf_sys_munmap(area, AREA_BYTES);
		return NULL;
	}
	/* These two say EINVAL on a kernel without the feature, and then they are not needed. */
	pf_sys_madvise(area, AREA_BYTES, MADV_UNMERGEABLE);
	pf_sys_madvise(area, AREA_BYTES, MADV_NOHUGEPAGE);
	return area;
}

PF_NEEDS_LOCK static void drop_resources(void)
{
	if (pf_core.scratch)
		pf_sys_munmap(pf_core.scratch, AREA_BYTES);
	if (pf_core.spare)
		pf_sys_munmap(pf_core.spare, AREA_BYTES);
	if (pf_core.frames)
		pf_sys_munmap(pf_core.frames, AREA_BYTES);
	pf_core.scratch = pf_core.spare = NULL;
	pf_core.frames = NULL;
	if (pf_core.pagemap >= 0)
		close(pf_core.pagemap);
	if (pf_core.uffd >= 0)
		close(pf_core.uffd);
	pf_core.pagemap = pf_core.uffd = -1;
}

PF_NEEDS_LOCK static int acquire_resources(int device, uint64_t *missing)
{
	pf_core.uffd = open_userfaultfd(device, missing);
	if (pf_core.uffd < 0)
		return pf_core.uffd;
	pf_core.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pf_core.pagemap < 0)
		return -errno;
	pf_core.scratch = map_area();
	pf_core.spare = map_area();
	pf_core.frames = (uint8_t *)map_area();
	if (!pf_core.scratch || !pf_core.spare || !pf_core.frames)
		return -ENOMEM;
	return pf_uffd_register(
		pf_core.uffd, pf_core.scratch, AREA_BYTES, UFFDIO_REGISTER_MODE_MISSING);
}

int pf_core_start(int device, uint64_t *missing_features)
{
	static int start_error; /* of the link's thread */
	int error;

	*missing_features = 0;
	if (atomic_load(&pf_core.started) || start_error)
		return start_error;
	if (pf_core_event_fd() < 0)
		return pf_core_event_fd();
	pf_core_lock();
	error = acquire_resources(device, missing_features);
	if (error)
		drop_resources();
	pf_core_unlock();
	if (error)
		return error;
	/* Threads cannot be taken back: if one is missing, nothing will ever be fused in this
	 * process. */
	start_error = pf_faults_start();
	if (start_error)
		return start_error;
	atomic_store(&pf_core.started, true);
	return 0;
}

bool pf_core_started(void)
{
	return atomic_load(&pf_core.started);
}

int pf_core_event_fd(void)
{
	int fd = atomic_load(&pf_core.event_fd), fresh;

	if (fd >= 0)
		return fd;
	fresh = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fresh < 0)
		return -errno;
	if (atomic_compare_exchange_strong(&pf_core.event_fd, &fd, fresh))
		return fresh;
	/* Another thread was first. */
	close(fresh);
	return fd;
}

void pf_core_before_fork(void)
{
	pf_core_lock();
}

void pf_core_after_fork(void)
{
	pf_core_unlock();
}

void pf_core_forked(void)
{
	pf_core_unlock();
	/* Before the first block there is nothing to lose: -daemonize forks then, and the child is the VM. */
	if (pf_ram_was_used())
		atomic_store(&pf_core.forked, true);
}

bool pf_core_is_child(void)
{
	return atomic_load(&pf_core.forked);
}

/* Blocks and store */

int pf_core_add_block(void *start, size_t length_bytes)
{
	int error;

	/* The lock may have been held by a thread that is not in this child. */
	if (pf_core_is_child())
		return -ECHILD;
	pf_core_lock();
	error = pf_ram_add(start, length_bytes);
	pf_core_unlock();
	if (error == 0)
		pf_core_signal(pf_core.event_fd);
	return error;
}

unsigned pf_core_n_blocks(void)
{
	unsigned n;

	pf_core_lock();
	n = pf_ram_n_blocks();
	pf_core_unlock();
	return n;
}

bool pf_core_touches(const void *start, size_t length_bytes)
{
	return !atomic_load_explicit(&pf_core.forked, memory_order_relaxed) &&
	       pf_ram_touches(start, length_bytes);
}

static int check_store(int store, uint64_t *pages)
{
	int seals = fcntl(store, F_GET_SEALS), flags = fcntl(store, F_GETFL);
	struct stat status;

	if (seals < 0 || !(seals & F_SEAL_SHRINK) || flags < 0 || (flags & O_ACCMODE) != O_RDONLY ||
		fstat(store, &status) < 0)
		return -EINVAL;
	*pages = (uint64_t)status.st_size / PF_PAGE_SIZE;
	return 0;
}

int pf_core_set_store(int store, const uint8_t group_id[16])
{
	uint64_t pages;
	int error = check_store(store, &pages);

	pf_core_lock();
	if (error == 0 && pf_ram_n_fused() > 0)
		error = -EBUSY;
	if (error == 0) {
		if (pf_core.store >= 0)
			close(pf_core.store);
		pf_core.store = store;
		pf_core.store_pages = pages;
		memcpy(pf_core.group_id, group_id, sizeof pf_core.group_id);
	}
	pf_core_unlock();
	if (error)
		close(store);
	return error;
}

int pf_core_get_store(uint8_t group_id[16])
{
	int store;

	pf_core_lock();
	store = pf_core.store;
	memcpy(group_id, pf_core.group_id, sizeof pf_core.group_id);
	pf_core_unlock();
	return store;
}

int pf_core_pagemap(const char *start, size_t n, uint64_t *entries)
{
	size_t size = n * sizeof *entries;
	ssize_t got = pread(pf_core.pagemap, entries, size,
		(off_t)((uintptr_t)start / PF_PAGE_SIZE * sizeof *entries));

	if (got < 0)
		return -errno;
	return (size_t)got == size ? 0 : -EIO;
}

/* Losses */

void pf_core_note_lost(const PfRamBlock *block, size_t page, size_t n, PfShimLoss loss)
{
	uint64_t hva = (uintptr_t)pf_ram_address(block, page), frame = pf_ram_frame(block, page).v;
	PfShimLost *last = n_lost > 0 ? &lost[n_lost - 1] : NULL;

	if (loss == PF_SHIM_LOST_REVOKED)
		pf_core.revoked += n;
	else if (loss == PF_SHIM_LOST_DISCARDED)
		pf_core.discarded += n;
	if (last && last->loss == loss && last->hva + last->n_pages * PF_PAGE_SIZE == hva &&
		last->frame + last->n_pages == frame)
		last->n_pages += (uint32_t)n;
	else if (n_lost < MAX_LOST)
		lost[n_lost++] = (PfShimLost){hva, frame, (uint32_t)n, loss};
	else
		lost_overflow = true;
	pf_core_signal(pf_core.event_fd);
}

size_t pf_core_take_lost(PfShimLost *taken, size_t max, bool *overflow)
{
	size_t n;

	pf_core_lock();
	n = n_lost < max ? n_lost : max;
	memcpy(taken, lost, n * sizeof *lost);
	n_lost -= n;
	memmove(lost, lost + n, n_lost * sizeof *lost);
	*overflow = lost_overflow;
	lost_overflow = false;
	pf_core_unlock();
	return n;
}

/* What is there */

/* The runs in [*page, last), up to max of them; *page moves on. */
PF_NEEDS_LOCK static size_t list_part(
	const PfRamBlock *block, size_t *page, size_t last, PfShimRun *runs, size_t max)
{
	size_t n = 0, length;

	for (; *page < last && n < max; *page += length) {
		length = 1;
		if (!pf_ram_maps_frame(block, *page))
			continue;
		/* At least the page itself, which may be PF_PAGE_BROKEN. */
		if (pf_core_piece(block, *page, 1) > 0)
			length = pf_core_piece(block, *page, last - *page);
		runs[n++] = (PfShimRun){(uintptr_t)pf_ram_address(block, *page),
			pf_ram_frame(block, *page).v, (uint32_t)length, 0};
	}
	return n;
}

size_t pf_core_list(uint64_t *cursor, PfShimRun *runs, size_t max)
{
	char *at = (char *)*cursor;
	size_t n = 0;
	PfRamBlock *block;

	pf_core_lock();
	while (n < max && pf_ram_n_fused() > 0 && (block = pf_ram_next(at))) {
		size_t page = at > block->start ? pf_ram_page(block, at) : 0;
		size_t last = block->n_pages;

		if (last - page > PAGES_A_TURN)
			last = page + PAGES_A_TURN;
		n += list_part(block, &page, last, runs + n, max - n);
		at = pf_ram_address(block, page);
		/* Then the block may be another one. */
		pf_core_give_way();
	}
	*cursor = n < max ? UINT64_MAX : (uintptr_t)at;
	pf_core_unlock();
	return n;
}

void pf_core_state(PfShimState *state, bool recount)
{
	if (recount)
		pf_core_recount_maps();
	pf_core_lock();
	*state = (PfShimState){
		.stopped = pf_core.stopped_error != 0,
		.stopped_error = -pf_core.stopped_error,
		.fused_pages = pf_ram_n_fused(),
		.runs = pf_ram_n_runs(),
		.maps = pf_core.maps,
		.maps_budget = pf_core.maps_budget,
		.revoked_pages = pf_core.revoked,
		.discarded_pages = pf_core.discarded,
		.written_pages = pf_core.written,
		.ways_out = pf_core.ways_out,
		.busy_pages = pf_core.busy,
		.aside = pf_core.aside > 0,
	};
	pf_core_unlock();
	if (pf_core_started())
		state->cpu_ns = pf_faults_cpu_ns();
}
