// SPDX-License-Identifier: LGPL-2.1-or-later
/* Whose files find room in the state. */
#include "common/log.h"
#include "guest-agent/state.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define USER  1000u
#define OTHER 1001u

static PfState files;
static unsigned n_warnings;
static char warning[512];

void __wrap_pf_log(PfLogLevel level, const char *format, ...);

void __wrap_pf_log(PfLogLevel level, const char *format, ...)
{
	va_list args;

	assert_int_equal(level, PF_LOG_WARNING);
	va_start(args, format);
	vsnprintf(warning, sizeof(warning), format, args);
	va_end(args);
	n_warnings++;
}

static int setup(void **state)
{
	pf_state_init(&files);
	n_warnings = 0;
	return 0;
}

/* What is counted is what is there. */
static void check_counts(void)
{
	uint32_t n_others = 0, n_counted = 0;

	for (size_t i = 0; i < files.n; i++)
		n_others += files.files[i]->owner != 0;
	for (size_t i = 0; i < files.owners.n; i++) {
		assert_true(files.owners.items[i].n_files > 0);
		assert_true(i == 0 || files.owners.items[i - 1].uid < files.owners.items[i].uid);
		n_counted += files.owners.items[i].n_files;
	}
	assert_int_equal(n_others, n_counted);
	assert_int_equal(files.owners.n_files, n_counted);
}

static int teardown(void **state)
{
	check_counts();
	pf_state_deinit(&files);
	return 0;
}

static void begin(bool complete)
{
	pf_state_begin(&files, PF_CLASS_MAPPED, complete);
}

static uint64_t n_left_out(void)
{
	PfStateCount count;

	pf_state_count(&files, &count);
	return count.n_left_out;
}

static int see_at(ino_t inode, uid_t owner, time_t mtime, PfFile **file)
{
	const PfFileKey key = {.device = 7, .inode = inode};
	const PfFileStamp stamp = {.size = 4096, .mtime = {.tv_sec = mtime}};
	bool fresh;

	return pf_state_see(&files, &key, &stamp, owner, "file", file, &fresh);
}

static int see(ino_t inode, uid_t owner)
{
	PfFile *file;

	return see_at(inode, owner, 1, &file);
}

/* Files of an owner, as many as there are from inode on. */
static void see_many(ino_t inode, uid_t owner, size_t n)
{
	for (size_t i = 0; i < n; i++)
		assert_int_equal(see(inode + i, owner), PF_STATE_OK);
}

static void test_one_owner(void **state)
{
	PfFile *file = NULL;

	begin(true);
	see_many(1, USER, 8192);
	assert_int_equal(n_warnings, 0);
	assert_int_equal(see_at(8193, USER, 1, &file), PF_STATE_E_FULL);
	assert_null(file);
	assert_int_equal(see(8194, USER), PF_STATE_E_FULL);
	assert_int_equal(files.n, 8192);
	/* It is known once and for all who; others find room, and what is known stays known. */
	assert_int_equal(n_warnings, 1);
	assert_non_null(strstr(warning, "user 1000 has 8192 files"));
	see_many(10001, OTHER, 8192);
	assert_int_equal(see(20001, OTHER), PF_STATE_E_FULL);
	assert_int_equal(n_warnings, 1);
	see_many(30001, 0, 8193);
	assert_int_equal(see(1, USER), PF_STATE_OK);
	pf_state_end(&files);
	assert_int_equal(n_left_out(), 3);
}

/* All but root together; many user ids are of no use to one user. */
static void test_all_owners(void **state)
{
	begin(true);
	see_many(1, USER, 8000);
	for (uid_t i = 0; i < 32768 - 8000; i++)
		assert_int_equal(see(10001 + i, 1000000 - i), PF_STATE_OK);
	assert_int_equal(files.owners.n_files, 32768);
	assert_int_equal(see(50001, USER), PF_STATE_E_FULL);
	assert_int_equal(see(50002, 2000000), PF_STATE_E_FULL);
	assert_int_equal(n_warnings, 1);
	see_many(60001, 0, 32768);
	check_counts();
}

/* Room is free again when the files are gone and the host knows. */
static void test_room_again(void **state)
{
	PfFile *file;

	begin(true);
	see_many(1, USER, 8191);
	assert_int_equal(see_at(8192, USER, 1, &file), PF_STATE_OK);
	pf_state_end(&files);
	file->declared = true;
	begin(true);
	see_many(1, USER, 8190);
	assert_int_equal(see(8193, USER), PF_STATE_E_FULL);
	pf_state_end(&files);
	assert_int_equal(files.n, 8191);
	file->declared = false;
	begin(true);
	see_many(1, USER, 8190);
	assert_int_equal(see(8193, USER), PF_STATE_OK);
	pf_state_end(&files);
	assert_int_equal(files.n, 8191);
	assert_int_equal(see(8194, USER), PF_STATE_OK);
	assert_int_equal(see(8195, USER), PF_STATE_E_FULL);
}

/* A file counts for whom it belongs to now. */
static void test_other_hands(void **state)
{
	PfFile *file;

	begin(true);
	assert_int_equal(see(1, USER), PF_STATE_OK);
	/* The same file, where a mount shows its owner as another. */
	assert_int_equal(see_at(1, OTHER, 1, &file), PF_STATE_OK);
	assert_int_equal(file->owner, USER);
	check_counts();
	assert_int_equal(see_at(1, OTHER, 2, &file), PF_STATE_OK);
	assert_int_equal(file->owner, OTHER);
	assert_int_equal(files.owners.n, 1);
	assert_int_equal(files.owners.items[0].uid, OTHER);
	check_counts();
	assert_int_equal(see_at(1, 0, 3, &file), PF_STATE_OK);
	assert_int_equal(files.owners.n_files, 0);
	see_many(11, USER, 8192);
	/* It is not put out for that. */
	assert_int_equal(see_at(1, USER, 4, &file), PF_STATE_OK);
	assert_int_equal(files.owners.n_files, 8193);
}

/* What the last complete pass left out counts, and not what each look leaves out once more. */
static void test_left_out(void **state)
{
	begin(true);
	see_many(1, USER, 8192);
	assert_int_equal(see(9001, USER), PF_STATE_E_FULL);
	assert_int_equal(see(9002, USER), PF_STATE_E_FULL);
	pf_state_end(&files);
	assert_int_equal(n_left_out(), 2);
	begin(false);
	assert_int_equal(see(9001, USER), PF_STATE_E_FULL);
	pf_state_end(&files);
	assert_int_equal(n_left_out(), 2);
	begin(true);
	pf_state_cancel(&files);
	assert_int_equal(n_left_out(), 2);
	begin(true);
	see_many(1, USER, 8192);
	assert_int_equal(see(9001, USER), PF_STATE_E_FULL);
	pf_state_end(&files);
	assert_int_equal(n_left_out(), 1);
	pf_state_drop_class(&files, PF_CLASS_MAPPED);
	assert_int_equal(n_left_out(), 0);
	assert_int_equal(n_warnings, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_one_owner, setup, teardown),
		cmocka_unit_test_setup_teardown(test_all_owners, setup, teardown),
		cmocka_unit_test_setup_teardown(test_room_again, setup, teardown),
		cmocka_unit_test_setup_teardown(test_other_hands, setup, teardown),
		cmocka_unit_test_setup_teardown(test_left_out, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
