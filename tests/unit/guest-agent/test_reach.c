// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Devices that answer and others, without any: what opens, closes, looks and works is the test's
 * own (the linker puts it in the place of the real ones).
 */
#include "common/log.h"
#include "guest-agent/find/namespaces.h"
#include "guest-agent/find/reach.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define LOCAL  makedev(8, 1)
#define REMOTE makedev(0, 40)
#define OTHER  makedev(0, 41)
#define HOUR   3600000

#define FOREIGN_PID 77

int __wrap_pf_opening_open_checked(
	PfWorker *worker, const char *path, PfOpeningCheck check, void *userdata, PfFound *found);
int __wrap_pf_opening_build_id(
	PfWorker *worker, int fd, uint8_t id[PF_SESSION_MAX_BUILD_ID], const char **why);
int __wrap_pf_opening_close(PfWorker *worker, int fd);
int __wrap_pf_visitor_visit(PfVisitor *visitor, PfWorker *worker, PfFile *file, int fd,
	const PfRam *ram, PfStep step, void *userdata);
size_t __wrap_pf_worker_left(const PfWorker *worker);
int64_t __wrap_pf_worker_waited_us(const PfWorker *worker);
int __wrap_pf_mounts_refresh(PfMounts *table);
int __wrap_pf_mounts_id(int fd);
const PfMounts *__wrap_pf_namespaces_table(PfNamespaces *namespaces, pid_t pid, bool *by_root);
void __wrap_pf_log(PfLogLevel level, const char *format, ...) __attribute__((format(printf, 2, 3)));

static PfReach *reach;
static int result;        /* of what is done next */
static unsigned n_done;   /* how often anything was */
static bool by_worker;    /* the last of them */
static unsigned n_closed; /* descriptors that were closed */
static unsigned n_warnings;
static size_t n_left;
static int64_t waited_us, each_us; /* for the worker, and for each of its jobs */
static int mount_id;               /* of what is opened next; 0: it is not checked */
static PfMounts *mounts, *foreign;
static bool foreign_by_root;
static const char *broken;              /* why the next file is */
static char informed[256], warned[256]; /* the last of them */
static unsigned n_informed;

static int do_it(const PfWorker *worker)
{
	n_done++;
	by_worker = worker != NULL;
	waited_us += worker ? each_us : 0;
	return result;
}

int __wrap_pf_opening_open_checked(
	PfWorker *worker, const char *path, PfOpeningCheck check, void *userdata, PfFound *found)
{
	if (mount_id != 0 && !check(userdata, 5))
		return PF_OPENING_E_REFUSED;
	return do_it(worker);
}

int __wrap_pf_opening_build_id(
	PfWorker *worker, int fd, uint8_t id[PF_SESSION_MAX_BUILD_ID], const char **why)
{
	int r = do_it(worker);

	*why = broken;
	memset(id, 7, PF_SESSION_MAX_BUILD_ID);
	return r != 0 ? r : broken ? 0 : 20;
}

int __wrap_pf_opening_close(PfWorker *worker, int fd)
{
	int r = do_it(worker);

	n_closed += r == 0;
	return r;
}

int __wrap_pf_visitor_visit(PfVisitor *visitor, PfWorker *worker, PfFile *file, int fd,
	const PfRam *ram, PfStep step, void *userdata)
{
	return do_it(worker);
}

size_t __wrap_pf_worker_left(const PfWorker *worker)
{
	return n_left;
}

int64_t __wrap_pf_worker_waited_us(const PfWorker *worker)
{
	return waited_us;
}

int __wrap_pf_mounts_refresh(PfMounts *table)
{
	return 0;
}

int __wrap_pf_mounts_id(int fd)
{
	return mount_id;
}

const PfMounts *__wrap_pf_namespaces_table(PfNamespaces *namespaces, pid_t pid, bool *by_root)
{
	*by_root = foreign_by_root;
	return pid == FOREIGN_PID ? foreign : NULL;
}

void __wrap_pf_log(PfLogLevel level, const char *format, ...)
{
	va_list arguments;

	char *last = level == PF_LOG_WARNING ? warned : informed;

	if (level != PF_LOG_WARNING && level != PF_LOG_INFO)
		return;
	n_warnings += level == PF_LOG_WARNING;
	n_informed += level == PF_LOG_INFO;
	va_start(arguments, format);
	vsnprintf(last, sizeof(informed), format, arguments);
	va_end(arguments);
}

static void parse(PfMounts *table, const char *text)
{
	FILE *file = fmemopen((void *)text, strlen(text), "r");

	assert_non_null(file);
	assert_int_equal(pf_mounts_parse(table, file), 0);
	fclose(file);
}

static int setup(void **state)
{
	result = 0;
	n_done = n_closed = n_warnings = n_informed = 0;
	broken = NULL;
	n_left = 0;
	waited_us = each_us = 0;
	mount_id = 0;
	if (pf_mounts_new(&mounts) < 0 || pf_mounts_new(&foreign) < 0 ||
		pf_reach_new(&reach, mounts, 1000) < 0)
		return -1;
	parse(mounts, "10 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
		      "11 10 0:40 / /remote rw - nfs4 server:/ rw\n"
		      "12 10 0:60 / /over rw - overlay none rw,lowerdir=/remote/a\n"
		      "13 10 0:61 / /fuse rw - fuse.sshfs user rw\n");
	pf_reach_begin(reach, 1000);
	return 0;
}

static int teardown(void **state)
{
	pf_reach_free(reach);
	pf_mounts_free(mounts);
	pf_mounts_free(foreign);
	return 0;
}

static PfPlace place_on(dev_t device)
{
	return (PfPlace){1, device, device == LOCAL};
}

static int open_on(dev_t device)
{
	PfPlace place = place_on(device);
	PfFound found;

	return pf_reach_open(reach, &place, "/map", "/a/path", &found);
}

static int visit_on(dev_t device)
{
	const PfPlace place = place_on(device);
	PfFile file = {.name = (char *)"name"};

	return pf_reach_visit(reach, &place, NULL, &file, 5, NULL, NULL, NULL);
}

static void close_on(dev_t device, int fd)
{
	const PfPlace place = place_on(device);

	pf_reach_close(reach, &place, fd);
}

static void test_who_does_it(void **state)
{
	assert_int_equal(open_on(LOCAL), PF_REACH_OK);
	assert_false(by_worker);
	assert_int_equal(open_on(REMOTE), PF_REACH_OK);
	assert_true(by_worker);
	assert_int_equal(visit_on(LOCAL), PF_REACH_OK);
	assert_false(by_worker);
	assert_int_equal(visit_on(REMOTE), PF_REACH_OK);
	assert_true(by_worker);
}

static bool is_placed(pid_t pid, dev_t device, bool local)
{
	PfPlace place;

	if (!pf_reach_place(reach, pid, device, "/a/path", &place))
		return false;
	assert_true(place.device == device && place.pid == pid);
	assert_int_equal(place.local, local);
	return true;
}

/* Our own table comes first, whatever that of the process says. */
static void test_places(void **state)
{
	parse(foreign, "20 1 8:1 / / rw - fuse evil rw\n"
		       "21 20 0:70 / /tmp rw - tmpfs none rw\n"
		       "22 20 0:71 / /nfs rw - nfs server:/ rw\n"
		       "23 20 0:72 / /over rw - overlay none rw,lowerdir=/tmp\n"
		       "25 20 0:74 / /fuse rw - fuse evil rw\n"
		       "26 20 0:75 / /proc rw - proc none rw\n");
	for (int by_root = 0; by_root < 2; by_root++) {
		foreign_by_root = by_root;
		assert_true(is_placed(FOREIGN_PID, LOCAL, true));
		assert_true(is_placed(FOREIGN_PID, REMOTE, false));
		assert_true(is_placed(FOREIGN_PID, makedev(0, 60), false));
		assert_false(is_placed(FOREIGN_PID, makedev(0, 61), false));
		assert_true(is_placed(FOREIGN_PID, makedev(0, 70), true));
		assert_int_equal(is_placed(FOREIGN_PID, makedev(0, 71), false), by_root);
		assert_int_equal(is_placed(FOREIGN_PID, makedev(0, 72), true), by_root);
		assert_false(is_placed(FOREIGN_PID, makedev(0, 74), false));
		assert_false(is_placed(FOREIGN_PID, makedev(0, 75), false));
		assert_false(is_placed(FOREIGN_PID, makedev(0, 99), false));
		assert_false(is_placed(1, makedev(0, 70), false));
	}
	/* Layers as they are seen from here. */
	parse(foreign, "24 20 0:73 / / rw - overlay none rw,lowerdir=/remote/b:/usr\n");
	assert_true(is_placed(FOREIGN_PID, makedev(0, 73), false));
	foreign_by_root = false;
	assert_false(is_placed(FOREIGN_PID, makedev(0, 73), false));
	assert_true(pf_reach_left_alone(reach) > 0);
	assert_int_equal(n_done, 0);
	assert_int_equal(n_informed, 1);
	assert_non_null(strstr(informed, "/a/path"));
}

/* The device was right, and what is found at last is something else. */
static void test_mount_of_what_is_found(void **state)
{
	PfPlace place = {FOREIGN_PID, LOCAL, true};
	PfFound found;

	parse(foreign, "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
		       "25 20 0:74 / /fuse rw - fuse evil rw\n");
	foreign_by_root = false;
	mount_id = 10;
	assert_int_equal(pf_reach_open(reach, &place, "/map", "/path", &found), PF_REACH_OK);
	mount_id = 20;
	assert_int_equal(pf_reach_open(reach, &place, "/map", "/path", &found), PF_REACH_OK);
	assert_false(by_worker);
	n_done = 0;
	for (size_t i = 0; i < 4; i++) {
		mount_id = (const int[]){25, 13, 99, -1}[i];
		assert_int_equal(
			pf_reach_open(reach, &place, "/map", "/path", &found), PF_REACH_E_REFUSED);
	}
	assert_int_equal(n_done, 0);
	/* Less local than it looked: then by the worker. */
	mount_id = 12;
	assert_int_equal(pf_reach_open(reach, &place, "/map", "/path", &found), PF_REACH_OK);
	assert_true(by_worker);
	assert_false(place.local);
	assert_int_equal(n_done, 1);
}

/* Never silent, and too slow: it is out for the rest of the pass, and said once. */
static void test_slow(void **state)
{
	each_us = 400 * 1000;
	for (int pass = 0; pass < 3; pass++) {
		pf_reach_begin(reach, 2000 + pass);
		n_done = 0;
		assert_int_equal(open_on(REMOTE), PF_REACH_OK);
		assert_int_equal(open_on(REMOTE), PF_REACH_OK);
		assert_int_equal(visit_on(REMOTE), PF_REACH_OK);
		assert_int_equal(open_on(REMOTE), PF_REACH_E_SILENT);
		assert_int_equal(visit_on(REMOTE), PF_REACH_E_SILENT);
		assert_int_equal(n_done, 3);
		assert_int_equal(open_on(OTHER), PF_REACH_OK);
		assert_int_equal(open_on(LOCAL), PF_REACH_OK);
	}
	assert_int_equal(n_warnings, 1);
	assert_int_equal(pf_reach_left_behind(reach), 0);
	/* A person is told where it is mounted. */
	assert_non_null(strstr(warned, "/remote "));
}

static void test_other_results(void **state)
{
	static const int results[] = {PF_OPENING_E_UNWANTED, -EIO, -EPERM, -ENOMEM};

	for (size_t i = 0; i < sizeof(results) / sizeof(results[0]); i++) {
		result = results[i];
		assert_int_equal(open_on(REMOTE), results[i]);
	}
	assert_int_equal(n_warnings, 0);
	result = 0;
	assert_int_equal(open_on(REMOTE), PF_REACH_OK);
}

static void test_silent(void **state)
{
	result = -ETIMEDOUT;
	n_left = 1;
	assert_int_equal(open_on(REMOTE), PF_REACH_E_SILENT);
	assert_int_equal(n_warnings, 1);
	assert_int_equal(pf_reach_left_behind(reach), 1);
	/* The others of its device are not tried; those of other devices are. */
	result = 0;
	n_done = 0;
	assert_int_equal(open_on(REMOTE), PF_REACH_E_SILENT);
	assert_int_equal(visit_on(REMOTE), PF_REACH_E_SILENT);
	assert_int_equal(n_done, 0);
	assert_int_equal(open_on(OTHER), PF_REACH_OK);
	/* Nor in the next passes, for an hour. */
	pf_reach_begin(reach, 1000 + HOUR - 1);
	assert_int_equal(open_on(REMOTE), PF_REACH_E_SILENT);
	pf_reach_begin(reach, 1000 + HOUR);
	result = -ETIMEDOUT;
	assert_int_equal(visit_on(REMOTE), PF_REACH_E_SILENT);
	assert_int_equal(pf_reach_left_behind(reach), 2);
	/* It is silent again: that was said. */
	assert_int_equal(n_warnings, 1);
	result = 0;
	pf_reach_begin(reach, 1000 + HOUR + 1000);
	assert_int_equal(open_on(REMOTE), PF_REACH_E_SILENT);
	/* All that was left behind has come back. */
	n_left = 0;
	pf_reach_begin(reach, 1000 + HOUR + 2000);
	assert_int_equal(open_on(REMOTE), PF_REACH_OK);
}

/* Too many others are silent already: that says nothing of this device. */
static void test_busy(void **state)
{
	result = -EBUSY;
	assert_int_equal(open_on(REMOTE), PF_REACH_E_SILENT);
	assert_int_equal(n_warnings, 0);
	assert_int_equal(pf_reach_left_behind(reach), 0);
	result = 0;
	assert_int_equal(open_on(REMOTE), PF_REACH_OK);
}

static void test_many_silent(void **state)
{
	n_left = 1;
	for (unsigned i = 0; i < 100; i++) {
		result = -ETIMEDOUT;
		assert_int_equal(open_on(makedev(1, i)), PF_REACH_E_SILENT);
		result = 0;
		assert_int_equal(open_on(makedev(1, i)), PF_REACH_E_SILENT);
	}
	assert_int_equal(n_warnings, 100);
	assert_int_equal(pf_reach_left_behind(reach), 100);
}

static void test_identify(void **state)
{
	const PfFileKey key = {PF_SOURCE_FILE, OTHER, 1};
	const PfPlace remote = place_on(REMOTE);
	PfFile *file = pf_file_new(&key);

	assert_non_null(file);
	file->name = strdup("name");
	assert_int_equal(pf_reach_identify(reach, &remote, file, 5), 0);
	assert_int_equal(file->build_id_size, 20);
	assert_int_equal(file->build_id[19], 7);
	/* One that cannot be read is none. */
	result = -EIO;
	assert_int_equal(pf_file_set_build_id(file, NULL, 0), 0);
	assert_int_equal(pf_reach_identify(reach, &remote, file, 5), 0);
	assert_int_equal(file->build_id_size, 0);
	result = -ETIMEDOUT;
	assert_int_equal(pf_reach_identify(reach, &remote, file, 5), 0);
	assert_int_equal(n_warnings, 1);
	n_done = 0;
	assert_int_equal(pf_reach_identify(reach, &remote, file, 5), 0);
	assert_int_equal(n_done, 0);
	pf_file_free(file);
}

/* The first one is named; it has no build-id, which is no error. */
static void test_broken_elf(void **state)
{
	const PfPlace local = place_on(LOCAL);
	PfFile files[] = {{.key.device = LOCAL, .name = (char *)"half.so"},
		{.key.device = OTHER, .name = (char *)"other.so"}};

	broken = "it ends before its notes do";
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(pf_reach_identify(reach, &local, &files[i % 2], 5), 0);
		assert_int_equal(files[i % 2].build_id_size, 0);
		assert_int_equal(n_informed, 1);
	}
	assert_int_equal(n_warnings, 0);
	assert_memory_equal(
		informed, "half.so is a broken ELF file: it ends before its notes do. ", 59);
}

/* What is open on a device that does not answer is closed when it does. */
static void test_close(void **state)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	close_on(LOCAL, fd);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	assert_int_equal(n_done, 0);
	close_on(REMOTE, 100);
	assert_int_equal(n_closed, 1);
	/* Left behind with its thread, which will close it. */
	result = -ETIMEDOUT;
	n_left = 1;
	close_on(REMOTE, 101);
	result = 0;
	n_done = 0;
	for (int i = 0; i < 100; i++)
		close_on(REMOTE, 200 + i);
	assert_int_equal(n_done, 0);
	result = -EBUSY;
	close_on(OTHER, 300);
	result = 0;
	pf_reach_begin(reach, 2000);
	assert_int_equal(n_closed, 1);
	n_left = 0;
	pf_reach_begin(reach, 3000);
	assert_int_equal(n_closed, 1 + 101);
	pf_reach_begin(reach, 4000);
	assert_int_equal(n_closed, 1 + 101);
}

static void test_close_in_vain(void **state)
{
	result = -EBUSY;
	for (int i = 0; i < 10; i++)
		close_on(REMOTE, 200 + i);
	/* Still busy: later. */
	pf_reach_begin(reach, 2000);
	/* The first is left behind, the others have to wait again. */
	result = -ETIMEDOUT;
	n_done = 0;
	pf_reach_begin(reach, 3000);
	assert_int_equal(n_done, 1);
	result = 0;
	pf_reach_begin(reach, 4000);
	assert_int_equal(n_closed, 9);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_who_does_it, setup, teardown),
		cmocka_unit_test_setup_teardown(test_places, setup, teardown),
		cmocka_unit_test_setup_teardown(test_mount_of_what_is_found, setup, teardown),
		cmocka_unit_test_setup_teardown(test_slow, setup, teardown),
		cmocka_unit_test_setup_teardown(test_other_results, setup, teardown),
		cmocka_unit_test_setup_teardown(test_silent, setup, teardown),
		cmocka_unit_test_setup_teardown(test_busy, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many_silent, setup, teardown),
		cmocka_unit_test_setup_teardown(test_identify, setup, teardown),
		cmocka_unit_test_setup_teardown(test_broken_elf, setup, teardown),
		cmocka_unit_test_setup_teardown(test_close, setup, teardown),
		cmocka_unit_test_setup_teardown(test_close_in_vain, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
