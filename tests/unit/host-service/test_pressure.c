/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory pressure from a meminfo file of the test's, whose reads inotify counts, and from a
 * trigger: a pseudo terminal stands in for the kernel's file, because it can be written, says
 * POLLPRI in packet mode, and POLLHUP when its other end is closed.
 */
#include "host-service/service/pressure.h"
#include <fcntl.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>
#include <cmocka.h>

#define PSI     "/proc/pressure/memory"
#define WAIT_US (30 * G_USEC_PER_SEC)

typedef struct Rig {
	PfPressureConfig config;
	char *directory, *meminfo;
	int watch; /* inotify: meminfo was read */
	PfPressure *pressure;
	gboolean now;
	unsigned n_changes;
	gboolean free_at_once;
} Rig;

static void changed(void *userdata, gboolean pressure)
{
	Rig *rig = userdata;

	assert_non_null(rig->pressure);
	assert_int_equal(pressure, !rig->now);
	rig->now = pressure;
	rig->n_changes++;
	if (rig->free_at_once)
		g_clear_pointer(&rig->pressure, pf_pressure_free);
}

static void write_file(const Rig *rig, const char *text)
{
	FILE *file = fopen(rig->meminfo, "we");

	assert_non_null(file);
	assert_true(fputs(text, file) >= 0);
	assert_int_equal(fclose(file), 0);
}

/* Of 1,000,000 kB. */
static void set_available(const Rig *rig, unsigned kib)
{
	g_autofree char *text = g_strdup_printf("MemTotal:        1000000 kB\nMemFree:  1 kB\n"
						"MemAvailable:    %u kB\nBuffers: 0 kB\n",
		kib);

	write_file(rig, text);
}

static void rig_init(Rig *rig, const char *psi)
{
	*rig = (Rig){.directory = g_dir_make_tmp("pf-pressure-XXXXXX", NULL)};
	assert_non_null(rig->directory);
	rig->meminfo = g_build_filename(rig->directory, "meminfo", NULL);
	set_available(rig, 500000);
	rig->watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	assert_true(inotify_add_watch(rig->watch, rig->meminfo, IN_ACCESS) >= 0);
	rig->config = (PfPressureConfig){.quiet_ms = 50, .look_ms = 5};
	rig->pressure = pf_pressure_new_with(
		&rig->config, pf_pressure_open(psi, rig->meminfo), changed, rig);
}

static void rig_deinit(Rig *rig)
{
	g_clear_pointer(&rig->pressure, pf_pressure_free);
	close(rig->watch);
	g_unlink(rig->meminfo);
	g_rmdir(rig->directory);
	g_free(rig->meminfo);
	g_free(rig->directory);
}

static gboolean was_read(Rig *rig)
{
	struct inotify_event event;

	return read(rig->watch, &event, sizeof(event)) > 0;
}

static gboolean is_pressed(Rig *rig)
{
	return rig->now;
}

static gboolean is_free(Rig *rig)
{
	return !rig->now;
}

static void turn_until(Rig *rig, gboolean (*condition)(Rig *rig))
{
	gint64 deadline = g_get_monotonic_time() + WAIT_US;

	while (!condition(rig)) {
		if (g_get_monotonic_time() > deadline)
			fail_msg("what the test waits for did not come");
		if (!g_main_context_iteration(NULL, FALSE))
			g_usleep(1000);
	}
}

/* Returns after meminfo was read as it is now, and what that changes has been said. */
static void turn_until_looked(Rig *rig)
{
	while (was_read(rig))
		;
	turn_until(rig, was_read);
}

static void meminfo_is_looked_at(void **state)
{
	Rig rig;

	rig_init(&rig, "/nonexistent/pressure");
	assert_int_equal(rig.n_changes, 0);
	turn_until_looked(&rig);
	set_available(&rig, 50000);
	turn_until_looked(&rig);
	assert_int_equal(rig.n_changes, 0);
	set_available(&rig, 49999);
	turn_until(&rig, is_pressed);
	/* Between the two it stays what it was. */
	set_available(&rig, 100000);
	turn_until_looked(&rig);
	assert_int_equal(rig.n_changes, 1);
	set_available(&rig, 100001);
	turn_until(&rig, is_free);
	set_available(&rig, 50001);
	turn_until_looked(&rig);
	assert_int_equal(rig.n_changes, 2);
	set_available(&rig, 0);
	turn_until(&rig, is_pressed);
	rig_deinit(&rig);
}

static void what_cannot_be_read_changes_nothing(void **state)
{
	static const char *const texts[] = {"\n", "MemTotal:\nMemAvailable:\n",
		"MemTotal: 1000000 kB\n", "MemAvailable: 1000000 kB\n",
		"MemTotal: 1000000 kB\nMemAvailable: 99999999999999999999999999 kB\n",
		"MemTotal: some kB\nMemAvailable: 1000000 kB\n"};
	Rig rig;

	rig_init(&rig, "/nonexistent/pressure");
	set_available(&rig, 1000);
	turn_until(&rig, is_pressed);
	for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
		write_file(&rig, texts[i]);
		turn_until_looked(&rig);
		assert_int_equal(rig.n_changes, 1);
	}
	set_available(&rig, 900000);
	turn_until(&rig, is_free);
	rig_deinit(&rig);
}

/* A file that is there but takes no trigger. */
static void refused_trigger_is_no_trigger(void **state)
{
	Rig rig;

	rig_init(&rig, "/proc/self/stat");
	set_available(&rig, 1000);
	turn_until(&rig, is_pressed);
	rig_deinit(&rig);
}

/* The descriptor of this process that is open on path, or -1. */
static int find_open(const char *path)
{
	for (int fd = 0; fd < 256; fd++) {
		g_autofree char *link = g_strdup_printf("/proc/self/fd/%d", fd);
		g_autofree char *target = g_file_read_link(link, NULL);

		if (g_strcmp0(target, path) == 0)
			return fd;
	}
	return -1;
}

typedef struct Terminal {
	int trigger; /* the rig's */
	int other_end;
} Terminal;

static void terminal_init(Terminal *terminal)
{
	terminal->trigger = find_open("/dev/ptmx");
	assert_true(terminal->trigger >= 0);
	assert_int_equal(ioctl(terminal->trigger, TIOCSPTLCK, &(int){0}), 0);
	assert_int_equal(ioctl(terminal->trigger, TIOCPKT, &(int){1}), 0);
	terminal->other_end = ioctl(terminal->trigger, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	assert_true(terminal->other_end >= 0);
}

static void terminal_begin(const Terminal *terminal)
{
	struct pollfd event = {terminal->trigger, POLLPRI, 0};

	assert_int_equal(tcflush(terminal->other_end, TCIOFLUSH), 0);
	assert_int_equal(poll(&event, 1, 0), 1);
}

/* The kernel's own file says each event once; here it is said until it is read. */
static void terminal_end(const Terminal *terminal)
{
	struct pollfd event = {terminal->trigger, POLLPRI, 0};
	char said;

	while (poll(&event, 1, 0) > 0)
		assert_int_equal(read(terminal->trigger, &said, 1), 1);
}

static void trigger_begins_and_quiet_ends(void **state)
{
	Terminal terminal;
	Rig rig;

	rig_init(&rig, "/dev/ptmx");
	terminal_init(&terminal);
	set_available(&rig, 0); /* not looked at */
	assert_int_equal(rig.n_changes, 0);
	for (unsigned i = 0; i < 2; i++) {
		gint64 end = g_get_monotonic_time() + 3000 * rig.config.quiet_ms;

		terminal_begin(&terminal);
		turn_until(&rig, is_pressed);
		/* As long as it goes on, it does not end. */
		while (g_get_monotonic_time() < end)
			g_main_context_iteration(NULL, FALSE);
		assert_int_equal(rig.n_changes, 2 * i + 1);
		terminal_end(&terminal);
		turn_until(&rig, is_free);
		assert_int_equal(rig.n_changes, 2 * i + 2);
	}
	assert_false(was_read(&rig));
	close(terminal.other_end);
	rig_deinit(&rig);
	assert_int_equal(find_open("/dev/ptmx"), -1);
}

static void trigger_that_ends_is_replaced(void **state)
{
	Terminal terminal;
	Rig rig;

	rig_init(&rig, "/dev/ptmx");
	terminal_init(&terminal);
	close(terminal.other_end);
	turn_until_looked(&rig);
	assert_int_equal(find_open("/dev/ptmx"), -1);
	set_available(&rig, 1000);
	turn_until(&rig, is_pressed);
	rig_deinit(&rig);
}

static gboolean is_gone(Rig *rig)
{
	return !rig->pressure;
}

static void may_be_freed_when_it_says_so(void **state)
{
	Terminal terminal;
	Rig rig;

	rig_init(&rig, "/nonexistent/pressure");
	rig.free_at_once = TRUE;
	set_available(&rig, 1000);
	turn_until(&rig, is_gone);
	rig_deinit(&rig);
	rig_init(&rig, "/dev/ptmx");
	terminal_init(&terminal);
	rig.free_at_once = TRUE;
	terminal_begin(&terminal);
	turn_until(&rig, is_gone);
	close(terminal.other_end);
	assert_false(g_main_context_iteration(NULL, FALSE));
	rig_deinit(&rig);
}

/* All that is needed is open: where there are no files any more, nothing changes. */
static void needs_no_files(void **state)
{
	Rig rig;
	g_autofree char *away = NULL;

	rig_init(&rig, "/nonexistent/pressure");
	away = g_strconcat(rig.directory, "/away", NULL);
	assert_int_equal(g_rename(rig.meminfo, away), 0);
	g_free(rig.meminfo);
	rig.meminfo = g_steal_pointer(&away);
	set_available(&rig, 1000);
	turn_until(&rig, is_pressed);
	rig_deinit(&rig);
}

static void takes_the_trigger_of_this_host(void **state)
{
	int fd = open(PSI, O_RDWR | O_CLOEXEC);
	Rig rig = {0};

	/* Without PSI, or the right to it, there is nothing to test. */
	if (fd < 0)
		skip();
	close(fd);
	rig.pressure = pf_pressure_new(pf_pressure_open_host(), changed, &rig);
	fd = find_open(PSI);
	assert_true(fd >= 0);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	pf_pressure_free(rig.pressure);
	assert_int_equal(find_open(PSI), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(meminfo_is_looked_at),
		cmocka_unit_test(what_cannot_be_read_changes_nothing),
		cmocka_unit_test(refused_trigger_is_no_trigger),
		cmocka_unit_test(trigger_begins_and_quiet_ends),
		cmocka_unit_test(trigger_that_ends_is_replaced),
		cmocka_unit_test(may_be_freed_when_it_says_so),
		cmocka_unit_test(needs_no_files),
		cmocka_unit_test(takes_the_trigger_of_this_host),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
