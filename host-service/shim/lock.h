/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The core's one lock, and who needs it, in a form that clang checks (-Wthread-safety; `./run check` does). A function
 * marked PF_NEEDS_LOCK is called with the lock only, one marked PF_NO_LOCK without, and a variable marked PF_GUARDED is
 * touched with it only. Whatever has no mark is constant once the threads run, atomic, or of one thread alone.
 *
 * Why one lock is enough, and why nobody waits for ever for it:
 *
 * - Under it: every transaction, every look at the blocks and page states, and the real call behind an interposed one.
 *   So who has the lock finds the page table as our states say.
 * - Who has it never waits for another thread of QEMU or of ours, with two exceptions. mremap() waits until the fault
 *   thread has read its event: that thread takes no lock. pf_core_yield() gives the lock up while it waits.
 * - Who has it never touches guest memory that might be write-protected or MISSING, for that fault would wait for the
 *   revoke thread, which waits for the lock. Guest pages are read in the scratch area, or by the kernel where the page
 *   table says that they are present.
 * - foreign_lock (aside.c) is taken before this one, never after it.
 * - A fork takes it, so that no child is made in the middle of a transaction; the child gives it up.
 *
 * ThreadSanitizer (clang, -DPF_SANITIZE=thread) looks at the same, and at what has no mark, while the mechanism tests
 * run: it knows nothing of userfaultfd, but neither has it to. Not for mechanism/fork, whose children read all of their
 * memory, and so its shadow memory too.
 */
#include <pthread.h>

#ifdef __clang__
#define PF_LOCK_MARK(mark) __attribute__((mark))
#else
#define PF_LOCK_MARK(mark)
#endif

/* A mutex that the compiler knows for one. */
typedef struct PF_LOCK_MARK(capability("mutex")) PfLock {
	pthread_mutex_t mutex;
} PfLock;
#define PF_LOCK_INITIALIZER                                                                        \
	{                                                                                          \
		PTHREAD_MUTEX_INITIALIZER                                                          \
	}

extern PfLock pf_core_mutex;

#define PF_GUARDED    PF_LOCK_MARK(guarded_by(pf_core_mutex))
#define PF_NEEDS_LOCK PF_LOCK_MARK(requires_capability(pf_core_mutex))
#define PF_NO_LOCK    PF_LOCK_MARK(locks_excluded(pf_core_mutex))
#define PF_TAKES_LOCK PF_LOCK_MARK(acquire_capability(pf_core_mutex))
#define PF_GIVES_LOCK PF_LOCK_MARK(release_capability(pf_core_mutex))
/* Of the functions that are the lock. */
#define PF_IS_THE_LOCK PF_LOCK_MARK(no_thread_safety_analysis)

PF_IS_THE_LOCK static inline void pf_lock(PfLock *lock) PF_LOCK_MARK(acquire_capability(*lock))
{
	pthread_mutex_lock(&lock->mutex);
}

PF_IS_THE_LOCK static inline void pf_unlock(PfLock *lock) PF_LOCK_MARK(release_capability(*lock))
{
	pthread_mutex_unlock(&lock->mutex);
}
