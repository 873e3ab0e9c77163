/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The kernel knows best when memory is short: pressure stall information says how long tasks waited
 * for memory. A trigger, written to the file, makes its descriptor say POLLPRI when in two seconds
 * some task waited for 300 ms, at most once in that time while it goes on. (Windows that are no
 * multiple of two seconds are for CAP_SYS_RESOURCE alone, which the service need not have.) Nothing
 * says that it is over, so it is when no event has come for a while.
 *
 * Where the kernel was built or started without it, or does not let us, MemAvailable is looked at
 * now and then. Pressure begins below one share of MemTotal and ends above a larger one, so that it
 * does not come and go with every page. What cannot be read changes nothing.
 *
 * Both files are opened before the service enters its sandbox, where there are none.
 */
#include "host-service/service/pressure.h"
#include "common/log.h"
#include "host-service/wire/source.h"
#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TRIGGER       "some 300000 2000000" /* us of waiting in us */
#define BEGIN_PERCENT 5u
#define END_PERCENT   10u
#define MEMINFO_SIZE  4096 /* what is looked for are the first lines */

struct PfPressure {
	PfPressureConfig config;
	void (*changed)(void *userdata, gboolean pressure);
	void *userdata;
	gboolean pressure;
	int trigger;     /* -1: none, meminfo is looked at instead */
	int meminfo;     /* -1: nothing to look at */
	GSource *events; /* of the trigger */
	GSource *timer;  /* with a trigger: until pressure ends; else: until the next look */
};

static void start_timer(PfPressure *pressure, guint ms, GSourceFunc callback)
{
	pf_source_drop(&pressure->timer);
	pressure->timer = pf_source_start(g_timeout_source_new(ms), callback, pressure);
}

/* The last thing that a source does: changed() may free the pressure. */
static void set_pressure(PfPressure *pressure, gboolean now)
{
	if (now == pressure->pressure)
		return;
	pressure->pressure = now;
	pressure->changed(pressure->userdata, now);
}

/* The number behind a name like "MemTotal:"; FALSE when it is not there. */
static gboolean read_kib(const char *meminfo, const char *name, guint64 *kib)
{
	const char *line = strstr(meminfo, name);
	char *end;

	if (!line)
		return FALSE;
	line += strlen(name);
	errno = 0;
	*kib = strtoull(line, &end, 10);
	return end != line && errno == 0;
}

static gboolean on_look(gpointer data)
{
	PfPressure *pressure = data;
	char meminfo[MEMINFO_SIZE];
	ssize_t n = pread(pressure->meminfo, meminfo, sizeof meminfo - 1, 0);
	guint64 total, available;

	if (n < 0)
		return G_SOURCE_CONTINUE;
	meminfo[n] = 0;
	if (!read_kib(meminfo, "MemTotal:", &total) ||
		!read_kib(meminfo, "MemAvailable:", &available))
		return G_SOURCE_CONTINUE;
	if (available < total / 100 * BEGIN_PERCENT)
		set_pressure(pressure, TRUE);
	else if (available > total / 100 * END_PERCENT)
		set_pressure(pressure, FALSE);
	return G_SOURCE_CONTINUE;
}

static gboolean on_quiet(gpointer data)
{
	PfPressure *pressure = data;

	pf_source_drop(&pressure->timer);
	set_pressure(pressure, FALSE);
	return G_SOURCE_REMOVE;
}

static void drop_trigger(PfPressure *pressure)
{
	pf_source_drop(&pressure->events);
	if (pressure->trigger >= 0)
		close(pressure->trigger);
	pressure->trigger = -1;
}

static gboolean on_event(gint fd, GIOCondition condition, gpointer data)
{
	PfPressure *pressure = data;

	if (condition & (G_IO_ERR | G_IO_HUP | G_IO_NVAL)) {
		pf_warning("the kernel has ended its watch for memory pressure: MemAvailable is "
			   "looked at instead");
		drop_trigger(pressure);
		start_timer(pressure, pressure->config.look_ms, on_look);
		return G_SOURCE_REMOVE;
	}
	start_timer(pressure, pressure->config.quiet_ms, on_quiet);
	set_pressure(pressure, TRUE);
	return G_SOURCE_CONTINUE;
}

/* The descriptor of a trigger, or -1 with errno. */
static int open_trigger(const char *path)
{
	int fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC), code;

	if (fd < 0 || write(fd, TRIGGER, sizeof(TRIGGER)) == sizeof(TRIGGER))
		return fd;
	code = errno;
	close(fd);
	errno = code;
	return -1;
}

PfPressureFiles pf_pressure_open(const char *psi, const char *meminfo)
{
	PfPressureFiles files = {.trigger = open_trigger(psi)};

	if (files.trigger < 0)
		pf_info("no trigger for memory pressure on %s (%s): MemAvailable is looked at "
			"instead",
			psi, g_strerror(errno));
	files.meminfo = open(meminfo, O_RDONLY | O_NOCTTY | O_CLOEXEC);
	return files;
}

PfPressureFiles pf_pressure_open_host(void)
{
	return pf_pressure_open("/proc/pressure/memory", "/proc/meminfo");
}

PfPressure *pf_pressure_new_with(const PfPressureConfig *config, PfPressureFiles files,
	void (*changed)(void *userdata, gboolean pressure), void *userdata)
{
	PfPressure *pressure = g_new0(PfPressure, 1);

	pressure->config = *config;
	pressure->changed = changed;
	pressure->userdata = userdata;
	pressure->trigger = files.trigger;
	pressure->meminfo = files.meminfo;
	if (pressure->trigger < 0) {
		start_timer(pressure, config->look_ms, on_look);
		return pressure;
	}
	pressure->events =
		pf_source_start(g_unix_fd_source_new(pressure->trigger, G_IO_PRI | G_IO_ERR),
			G_SOURCE_FUNC(on_event), pressure);
	return pressure;
}

PfPressure *pf_pressure_new(
	PfPressureFiles files, void (*changed)(void *userdata, gboolean pressure), void *userdata)
{
	static const PfPressureConfig host = {.quiet_ms = 10000, .look_ms = 2000};

	return pf_pressure_new_with(&host, files, changed, userdata);
}

void pf_pressure_free(PfPressure *pressure)
{
	if (!pressure)
		return;
	drop_trigger(pressure);
	pf_source_drop(&pressure->timer);
	if (pressure->meminfo >= 0)
		close(pressure->meminfo);
	g_free(pressure);
}
