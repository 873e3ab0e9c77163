// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/wake.h"
#include <errno.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

static int block_signals(void)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int pf_wake_init(PfWake *wake)
{
	*wake = (PfWake){.timer = -1, .timer_ms = INT64_MAX, .signals = block_signals()};
	if (wake->signals < 0)
		return wake->signals;
	wake->timer = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC);
	return wake->timer < 0 ? -errno : 0;
}

void pf_wake_deinit(PfWake *wake)
{
	if (wake->signals >= 0)
		close(wake->signals);
	if (wake->timer >= 0)
		close(wake->timer);
	wake->signals = wake->timer = -1;
}

void pf_wake_set(PfWake *wake, int64_t until_ms)
{
	struct itimerspec when = {0};

	if (until_ms == wake->timer_ms)
		return;
	if (until_ms != INT64_MAX) {
		when.it_value.tv_sec = until_ms / 1000;
		when.it_value.tv_nsec = until_ms % 1000 * 1000000;
	}
	if (timerfd_settime(wake->timer, TFD_TIMER_ABSTIME, &when, NULL) == 0)
		wake->timer_ms = until_ms;
}

void pf_wake_read_signals(PfWake *wake)
{
	struct signalfd_siginfo info;

	while (read(wake->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		if (info.ssi_signo == SIGHUP)
			wake->hangup = true;
		else
			wake->stop = true;
	}
}
