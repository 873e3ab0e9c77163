// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Whatever else wants to run goes first. Batch scheduling keeps the agent from preempting others
 * when it wakes up. It reads nothing from disks on purpose; should a page be evicted while it is
 * looked at, its reading waits for everybody else's.
 */
#include "guest-agent/manners.h"
#include "common/log.h"
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NICE 10

/* The C library has no ioprio_set(); linux/ioprio.h is newer than some headers. */
#define IO_WHO_PROCESS 1
#define IO_CLASS_IDLE  3
#define IO_CLASS_SHIFT 13

static void note(const char *what, long r)
{
	if (r < 0)
		pf_debug("%s: %s", what, strerror(errno));
}

void pf_manners_set(void)
{
	const struct sched_param none = {0};

	note("nice", setpriority(PRIO_PROCESS, 0, NICE));
	note("batch scheduling", sched_setscheduler(0, SCHED_BATCH, &none));
	note("idle disk priority",
		syscall(SYS_ioprio_set, IO_WHO_PROCESS, 0, IO_CLASS_IDLE << IO_CLASS_SHIFT));
}
