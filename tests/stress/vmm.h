/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The toy VMM's parts. Pages go by number (shared.h). */
#include "tests/stress/shared.h"
#include "tests/vmm/toy_guest.h"
#include <pthread.h>

/* What a page must hold. Who changes either has taken the page; the hints' thread reads at any moment. */
typedef struct Page {
	atomic_bool taken;
	atomic_bool dirty; /* to be hinted */
	atomic_bool
		pinned; /* in a registered buffer: not to be discarded, the device would go on with the old page */
	atomic_bool renew; /* the shim will not fuse it again before it was discarded */
	atomic_ushort salt;
	atomic_uchar state; /* not of the vCPU's pages: those are counted in its memory */
} Page;

extern Page pages[STRESS_PAGES];
extern StressShared *shared;
extern StressVm *me;
extern unsigned vm_index;
extern StressRole role;
extern atomic_bool stopping;

/* pages.c */
int pages_map_blocks(void); /* 0 or -errno */
/* fixed: MAP_FIXED, or MAP_FIXED_NOREPLACE. */
int pages_map_block(uint8_t *start, size_t size, int fixed);
uint8_t *page_address(unsigned i);
uint64_t page_gfn(unsigned i);
/* The page's number, or -1. */
int page_of_address(const void *address);
unsigned page_salt_at_first(unsigned i);
unsigned page_state(unsigned i);
bool page_take(unsigned i);
void page_take_wait(unsigned i);
void page_give(unsigned i);
/* These want the page taken. */
void page_fill(unsigned i, unsigned salt, unsigned state);
void page_check(unsigned i);                 /* counts and says what is wrong, and puts it right */
void page_visit(unsigned i, unsigned state); /* checks all of it, writes what makes it that state */
void page_wrong(unsigned i, bool lost_write, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* threads.c */
typedef void (*Work)(StressThread *thread, StressRandom *random);
void thread_start(const char *name, Work work);
void threads_join(void);
static inline void beat(StressThread *thread)
{
	atomic_fetch_add_explicit(&thread->beats, 1, memory_order_relaxed);
}
void sleep_us(unsigned us);
uint64_t now_ns(void);
/*
 * Sleeps for a random time, a shorter one while the VM has fewer cycles than it is to make a second: the stress should
 * not be faster than it must, because what waits for a processor then proves nothing.
 */
void pace(StressRandom *random, uint64_t cycles, unsigned wanted, unsigned limit_us);
#define VCPU_CYCLES_A_SECOND 1500u
#define VM_CYCLES_A_SECOND   1350u

/* writers.c */
void writers_start(void);
/* The link's thread is about to fuse these pages; n 0: it has done so. */
void writers_target(const void *start, unsigned n);

/* vcpu.c: the vCPU's pages want vcpu_lock instead of being taken. */
void vcpu_start(int kvm);
void vcpu_lock(void);
void vcpu_unlock(void);
unsigned vcpu_state(unsigned i);
void vcpu_set_state(unsigned i, unsigned state);
void vcpu_target(unsigned i);
static inline bool is_vcpu_page(unsigned i)
{
	return role == STRESS_ROLE_VCPU && i >= STRESS_RING && i < STRESS_VCPU_END;
}

/* direct.c */
void direct_start(const char *path);

/* frames.c: the link's thread has fused something to this frame, and not yet said so. */
void frames_note(uint64_t frame);

/* churn.c */
void churn_start(void);

/* reports.c: what the guest says, from the main thread */
void reports_say(ToyGuest *guest, StressRandom *random);

/* ballast.c: takes all maps that the process can have, and gives them back */
bool ballast_fill(void);
void ballast_drop(void);
