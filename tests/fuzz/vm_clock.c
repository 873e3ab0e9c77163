/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/fuzz/vm_clock.h"
#include "tests/fuzz/hostile_qemu.h"
#include <dirent.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FAR_MS       (24u * 60 * 60 * 1000)
#define CLOSE_WAIT_S 10

typedef struct Timer {
	GSource *source; /* a reference */
	int64_t due_us;
} Timer;

static int64_t now_us;
static uint64_t cpu_us, cpu_step_us;
static uid_t peer_uid;
static GArray *timers;

gint64 __wrap_g_get_monotonic_time(void);
int __wrap_clock_gettime(clockid_t clock, struct timespec *time);
int __real_clock_gettime(clockid_t clock, struct timespec *time);
guint __wrap_g_timeout_add_seconds(guint interval, GSourceFunc function, gpointer data);
guint __wrap_g_timeout_add(guint interval, GSourceFunc function, gpointer data);
int __wrap_getsockopt(int fd, int level, int option, void *value, socklen_t *size);
int __real_getsockopt(int fd, int level, int option, void *value, socklen_t *size);

gint64 __wrap_g_get_monotonic_time(void)
{
	return now_us;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *time)
{
	if (clock != CLOCK_THREAD_CPUTIME_ID)
		return __real_clock_gettime(clock, time);
	cpu_us += cpu_step_us;
	*time = (struct timespec){
		.tv_sec = (time_t)(cpu_us / 1000000), .tv_nsec = (long)(cpu_us % 1000000 * 1000)};
	return 0;
}

void vm_clock_set_cost(uint64_t us)
{
	cpu_step_us = us;
}

static guint add_timer(uint64_t interval_ms, GSourceFunc function, gpointer data)
{
	GSource *source = g_timeout_source_new(interval_ms > 0 ? FAR_MS : 0);
	Timer timer = {source, now_us + (int64_t)interval_ms * 1000};
	guint id;

	g_source_set_callback(source, function, data, NULL);
	id = g_source_attach(source, NULL);
	if (interval_ms > 0)
		g_array_append_val(timers, timer);
	else
		g_source_unref(source);
	return id;
}

guint __wrap_g_timeout_add(guint interval, GSourceFunc function, gpointer data)
{
	return add_timer(interval, function, data);
}

guint __wrap_g_timeout_add_seconds(guint interval, GSourceFunc function, gpointer data)
{
	return add_timer((uint64_t)interval * 1000, function, data);
}

int __wrap_getsockopt(int fd, int level, int option, void *value, socklen_t *size)
{
	int r = __real_getsockopt(fd, level, option, value, size);

	if (r == 0 && level == SOL_SOCKET && option == SO_PEERCRED)
		((struct ucred *)value)->uid = peer_uid;
	return r;
}

void vm_clock_init(uid_t peer)
{
	now_us = 1000000000;
	cpu_us = 0;
	cpu_step_us = 1;
	peer_uid = peer;
	timers = g_array_new(FALSE, FALSE, sizeof(Timer));
}

void vm_clock_deinit(void)
{
	for (guint i = 0; i < timers->len; i++) {
		Timer *timer = &g_array_index(timers, Timer, i);

		MUST(g_source_is_destroyed(timer->source));
		g_source_unref(timer->source);
	}
	g_array_unref(timers);
}

int64_t vm_clock_now_us(void)
{
	return now_us;
}

void vm_clock_pass(int64_t us)
{
	now_us += us;
	for (guint i = 0; i < timers->len; i++) {
		Timer *timer = &g_array_index(timers, Timer, i);

		if (!g_source_is_destroyed(timer->source) && timer->due_us <= now_us)
			g_source_set_ready_time(timer->source, 0);
	}
}

unsigned vm_clock_count_fds(void)
{
	DIR *directory = opendir("/proc/self/fd");
	unsigned n = 0;

	MUST(directory);
	while (readdir(directory))
		n++;
	closedir(directory);
	return n;
}

bool vm_clock_wait_for_fds(unsigned n)
{
	for (unsigned i = 0; i < CLOSE_WAIT_S * 10000; i++) {
		if (vm_clock_count_fds() <= n)
			return true;
		nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
	}
	return false;
}
