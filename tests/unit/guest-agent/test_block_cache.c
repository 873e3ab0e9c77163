// SPDX-License-Identifier: LGPL-2.1-or-later
/* Mounts a file system of its own: needs root. */
#include "guest-agent/find/block_cache.h"
#include "loop_disk.h"
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define DISK_SIZE (16ul * 1024 * 1024)

static PfLoopDisk disk, other = {.device_fd = -1};
static PfMounts *mounts;
static unsigned n_found, n_all;

static int setup(void **state)
{
	return pf_loop_disk_init(&disk, DISK_SIZE) < 0 || pf_mounts_new(&mounts) < 0 ? -1 : 0;
}

static int teardown(void **state)
{
	pf_mounts_free(mounts);
	pf_loop_disk_deinit(&other);
	pf_loop_disk_deinit(&disk);
	return 0;
}

static int on_found(void *userdata, const PfFound *found)
{
	struct stat st;
	char name[64];

	n_all++;
	assert_int_equal(fstat(found->fd, &st), 0);
	assert_true(S_ISBLK(st.st_mode));
	assert_true(st.st_rdev == found->key.device);
	assert_int_equal(fcntl(found->fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(found->key.source, PF_SOURCE_BLOCK_DEVICE);
	close(found->fd);
	if (found->key.device != disk.device)
		return 0;
	n_found++;
	snprintf(name, sizeof(name), "block:%s", disk.name);
	assert_string_equal(found->name, name);
	assert_true(found->stamp.size == DISK_SIZE);
	assert_true(found->key.inode == 0 && found->stamp.mtime.tv_sec == 0);
	return userdata ? *(int *)userdata : 0;
}

static void walk(int result)
{
	n_found = n_all = 0;
	assert_int_equal(pf_mounts_refresh(mounts), 0);
	assert_int_equal(pf_block_cache_walk(mounts, on_found, &result), result);
}

static void test_mounted(void **state)
{
	char bind[100];

	walk(0);
	assert_int_equal(n_found, 1);
	walk(-5);
	assert_int_equal(n_found, 1);

	snprintf(bind, sizeof(bind), "%s/bind", disk.point);
	assert_int_equal(mkdir(bind, 0755), 0);
	assert_int_equal(mount(disk.point, bind, NULL, MS_BIND, NULL), 0);
	walk(0);
	assert_int_equal(n_found, 1);
	assert_int_equal(umount(bind), 0);

	assert_int_equal(umount(disk.point), 0);
	walk(0);
	assert_int_equal(n_found, 0);
}

/* A table that is not true: no such device, one that is no block device (1:3 is /dev/null), a made up number. */
static void test_nothing_to_open(void **state)
{
	char text[] = "27 1 4000:1 / / rw - ext4 /dev/nothing rw\n"
		      "28 1 1:3 / / rw - ext4 /dev/null rw\n"
		      "29 1 0:5 / / rw - btrfs /dev/null rw\n";
	FILE *file = fmemopen(text, strlen(text), "r");

	assert_non_null(file);
	assert_int_equal(pf_mounts_parse(mounts, file), 0);
	fclose(file);
	n_all = 0;
	assert_int_equal(pf_block_cache_walk(mounts, on_found, NULL), 0);
	assert_int_equal(n_all, 0);
}

/* Another device stands in /dev under the name. */
static void test_wrong_node(void **state)
{
	char path[40], other_path[40];

	assert_int_equal(pf_loop_disk_init(&other, DISK_SIZE), 0);
	snprintf(path, sizeof(path), "/dev/%s", disk.name);
	snprintf(other_path, sizeof(other_path), "/dev/%s", other.name);
	assert_int_equal(mount(other_path, path, NULL, MS_BIND, NULL), 0);
	walk(0);
	assert_int_equal(n_found, 0);
	assert_int_equal(umount(path), 0);
	walk(0);
	assert_int_equal(n_found, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_mounted, setup, teardown),
		cmocka_unit_test_setup_teardown(test_wrong_node, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nothing_to_open, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
