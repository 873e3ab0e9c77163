/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The two threads that answer faults. The first only reads the userfaultfd: it must never wait,
 * since mremap() in a revoke returns only after its event was read. The second takes the faults one
 * by one, under the core's lock.
 */
#include "host-service/shim/core_internal.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

/*
 * Faults on their way from the fault thread to the revoke thread: one writer, one reader. A thread
 * has at most one fault outstanding, so this holds more than a QEMU has threads.
 */
#define QUEUE_SIZE 65536u
static uint64_t queue[QUEUE_SIZE]; /* page address, lowest bit set for a write-protect fault */
static atomic_uint queue_head, queue_tail;
static int queue_event = -1;

static pthread_t fault_thread_id, revoke_thread_id;

/* The fault thread */

static void enqueue(const struct uffd_msg *message)
{
	uint64_t flags = message->arg.pagefault.flags;
	uint64_t page = message->arg.pagefault.address & ~(PF_PAGE_SIZE - 1);
	unsigned tail = atomic_load(&queue_tail);

	if (tail - atomic_load(&queue_head) == QUEUE_SIZE) {
		/* No room: let him fault again later. */
		pf_uffd_wake(pf_core.uffd, (void *)page, PF_PAGE_SIZE);
		return;
	}
	queue[tail % QUEUE_SIZE] = page | !!(flags & UFFD_PAGEFAULT_FLAG_WP);
	atomic_fetch_add(&pf_core.pending, 1);
	atomic_store(&queue_tail, tail + 1);
}

static void *fault_thread(void *unused)
{
	struct uffd_msg messages[16];

	prctl(PR_SET_NAME, "pf-fault");
	for (;;) {
		struct pollfd p = {.fd = pf_core.uffd, .events = POLLIN};
		ssize_t n;

		poll(&p, 1, -1);
		n = read(pf_core.uffd, messages, sizeof messages);
		if (n < (ssize_t)sizeof messages[0])
			continue;
		for (size_t i = 0; i < (size_t)n / sizeof messages[0]; i++)
			if (messages[i].event == UFFD_EVENT_PAGEFAULT)
				enqueue(&messages[i]);
		/* An EVENT_REMAP is answered by having been read. */
		pf_core_signal(queue_event);
	}
	return NULL;
}

/* The revoke thread */

static void resolve_queued(void)
{
	unsigned head = atomic_load(&queue_head);

	while (head != atomic_load(&queue_tail)) {
		uint64_t entry = queue[head % QUEUE_SIZE];

		pf_core_lock();
		pf_core_resolve_fault((char *)(entry & ~(PF_PAGE_SIZE - 1)), entry & 1);
		atomic_store(&queue_head, ++head);
		pf_core_served();
		pf_core_unlock();
	}
}

static void *revoke_thread(void *unused)
{
	uint64_t count;

	prctl(PR_SET_NAME, "pf-revoke");
	for (;;) {
		if (read(queue_event, &count, sizeof count) < 0 && errno != EINTR)
			poll(NULL, 0, 1);
		resolve_queued();
	}
	return NULL;
}

static int start_thread(pthread_t *thread, void *(*run)(void *))
{
	sigset_t all, old;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	error = -pthread_create(thread, NULL, run, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return error;
}

int pf_faults_start(void)
{
	int error;

	if (queue_event < 0)
		queue_event = eventfd(0, EFD_CLOEXEC);
	if (queue_event < 0)
		return -errno;
	/* The revoke thread first: alone it only waits, while faults that are read and not answered
	 * would hang a guest. */
	error = start_thread(&revoke_thread_id, revoke_thread);
	return error ? error : start_thread(&fault_thread_id, fault_thread);
}

static uint64_t thread_cpu_ns(pthread_t thread)
{
	clockid_t clock;
	struct timespec t;

	if (pthread_getcpuclockid(thread, &clock) != 0 || clock_gettime(clock, &t) != 0)
		return 0;
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

uint64_t pf_faults_cpu_ns(void)
{
	return thread_cpu_ns(fault_thread_id) + thread_cpu_ns(revoke_thread_id);
}
