// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Devices that answer and others, without any: what opens, closes, looks and works is the test's
 * own (the linker puts it in the place of the real ones).
 */
#include "common/log.h"
#include "guest-agent/find/reach.h"
#include <errno.h>
#include <fcntl.h>
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

int __wrap_pf_opening_open(PfWorker *worker, const char *path, PfFound *found);
int __wrap_pf_opening_build_id(PfWorker *worker, int fd, uint8_t id[PF_SESSION_MAX_BUILD_ID]);
int __wrap_pf_opening_close(PfWorker *worker, int fd);
int __wrap_pf_visitor_visit(PfVisitor *visitor, PfWorker *worker, PfFile *file, int fd,
	const PfRam *ram, PfStep step, void *userdata);
size_t __wrap_pf_worker_left(const PfWorker *worker);
bool __wrap_pf_mounts_is_local(const PfMounts *mounts, dev_t device);
void __wrap_pf_log(PfLogLevel level, const char *format, ...);

static PfReach *reach;
static int result;        /* of what is done next */
static unsigned n_done;   /* how often anything was */
static bool by_worker;    /* the last of them */
static unsigned n_closed; /* descriptors that were closed */
static unsigned n_warnings;
static size_t n_left;

static int do_it(const PfWorker *worker)
{
	n_done++;
	by_worker = worker != NULL;
	return result;
}

int __wrap_pf_opening_open(PfWorker *worker, const char *path, PfFound *found)
{
	return do_it(worker);
}

int __wrap_pf_opening_build_id(PfWorker *worker, int fd, uint8_t id[PF_SESSION_MAX_BUILD_ID])
{
	int r = do_it(worker);

	memset(id, 7, PF_SESSION_MAX_BUILD_ID);
	return r == 0 ? 20 : r;
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

bool __wrap_pf_mounts_is_local(const PfMounts *mounts, dev_t device)
{
	return device == LOCAL;
}

void __wrap_pf_log(PfLogLevel level, const char *format, ...)
{
	n_warnings += level == PF_LOG_WARNING;
}

static int setup(void **state)
{
	result = 0;
	n_done = n_closed = n_warnings = 0;
	n_left = 0;
	/* Nobody looks into it but the test's own pf_mounts_is_local(). */
	if (pf_reach_new(&reach, (const PfMounts *)&reach, 1000) < 0)
		return -1;
	pf_reach_begin(reach, 1000);
	return 0;
}

static int teardown(void **state)
{
	pf_reach_free(reach);
	return 0;
}

static int open_on(dev_t device)
{
	PfFound found;

	return pf_reach_open(reach, device, "/path", "name", &found);
}

static int visit_on(dev_t device)
{
	PfFile file = {.key = {.device = device}, .name = (char *)"name"};

	return pf_reach_visit(reach, NULL, &file, 5, NULL, NULL, NULL);
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
	pf_reach_free(reach);
	/* Where no table of mounts can be had, nothing is local. */
	assert_int_equal(pf_reach_new(&reach, NULL, 1000), 0);
	assert_int_equal(open_on(LOCAL), PF_REACH_OK);
	assert_true(by_worker);
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
	const PfFileKey key = {PF_SOURCE_FILE, REMOTE, 1};
	PfFile *file = pf_file_new(&key);

	assert_non_null(file);
	file->name = strdup("name");
	assert_int_equal(pf_reach_identify(reach, file, 5), 0);
	assert_int_equal(file->build_id_size, 20);
	assert_int_equal(file->build_id[19], 7);
	/* One that cannot be read is none. */
	result = -EIO;
	assert_int_equal(pf_file_set_build_id(file, NULL, 0), 0);
	assert_int_equal(pf_reach_identify(reach, file, 5), 0);
	assert_int_equal(file->build_id_size, 0);
	result = -ETIMEDOUT;
	assert_int_equal(pf_reach_identify(reach, file, 5), 0);
	assert_int_equal(n_warnings, 1);
	n_done = 0;
	assert_int_equal(pf_reach_identify(reach, file, 5), 0);
	assert_int_equal(n_done, 0);
	pf_file_free(file);
}

/* What is open on a device that does not answer is closed when it does. */
static void test_close(void **state)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	pf_reach_close(reach, LOCAL, fd);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	assert_int_equal(n_done, 0);
	pf_reach_close(reach, REMOTE, 100);
	assert_int_equal(n_closed, 1);
	/* Left behind with its thread, which will close it. */
	result = -ETIMEDOUT;
	n_left = 1;
	pf_reach_close(reach, REMOTE, 101);
	result = 0;
	n_done = 0;
	for (int i = 0; i < 100; i++)
		pf_reach_close(reach, REMOTE, 200 + i);
	assert_int_equal(n_done, 0);
	result = -EBUSY;
	pf_reach_close(reach, OTHER, 300);
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
		pf_reach_close(reach, REMOTE, 200 + i);
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
		cmocka_unit_test_setup_teardown(test_other_results, setup, teardown),
		cmocka_unit_test_setup_teardown(test_silent, setup, teardown),
		cmocka_unit_test_setup_teardown(test_busy, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many_silent, setup, teardown),
		cmocka_unit_test_setup_teardown(test_identify, setup, teardown),
		cmocka_unit_test_setup_teardown(test_close, setup, teardown),
		cmocka_unit_test_setup_teardown(test_close_in_vain, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
