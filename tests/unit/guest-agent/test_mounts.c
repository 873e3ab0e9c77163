// SPDX-License-Identifier: LGPL-2.1-or-later
/* One test mounts something, in a mount namespace of its own: that needs root. */
#include "guest-agent/find/mounts.h"
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

static PfMounts *mounts;

static int setup(void **state)
{
	return pf_mounts_new(&mounts);
}

static int teardown(void **state)
{
	pf_mounts_free(mounts);
	return 0;
}

static void parse(const char *text)
{
	FILE *file = fmemopen((void *)text, strlen(text), "r");

	assert_non_null(file);
	assert_int_equal(pf_mounts_parse(mounts, file), 0);
	fclose(file);
}

static const PfMount *find(const char *point)
{
	size_t n;
	const PfMount *mount = pf_mounts_all(mounts, &n);

	for (; n > 0; n--, mount++) {
		if (strcmp(mount->point, point) == 0)
			return mount;
	}
	return NULL;
}

static void test_lines(void **state)
{
	const PfMount *mount;
	size_t n;

	parse("22 27 0:21 / /proc rw,relatime - proc proc rw\n"
	      "27 1 254:1 / / rw shared:1 - ext4 /dev/vda1 rw\n"
	      "30 27 8:17 /data /mnt/a\\040b\\011\\012\\134 rw shared:2 master:3 - xfs /dev/sdb1 rw\n"
	      "31 27 0:40 / /home rw - nfs4 server:/home rw\n"
	      "32 27 0:41 /@ /srv rw - btrfs /dev/vdb rw\n"
	      "33 27 8:33 / /media rw - fuseblk /dev/sdc1 rw\n"
	      "34 27 0:50 / /merged rw - overlay overlay rw,lowerdir=/a\n"
	      "35 27 0:51 / /end rw - tmpfs none");
	pf_mounts_all(mounts, &n);
	assert_int_equal(n, 8);

	mount = find("/mnt/a b\t\n\\");
	assert_non_null(mount);
	assert_int_equal(mount->id, 30);
	assert_string_equal(mount->type, "xfs");
	assert_string_equal(mount->root, "/data");
	assert_true(mount->device == makedev(8, 17));
	assert_true(mount->block == makedev(8, 17));
	assert_true(mount->local);
	assert_ptr_equal(pf_mounts_find(mounts, 30), mount);
	assert_null(pf_mounts_find(mounts, 36));
	assert_true(find("/srv")->block == 0);

	assert_true(pf_mounts_is_local(mounts, makedev(254, 1)));
	assert_true(pf_mounts_is_local(mounts, makedev(0, 41)));
	assert_true(pf_mounts_is_local(mounts, makedev(0, 51)));
	assert_false(pf_mounts_is_local(mounts, makedev(0, 21)));
	assert_false(pf_mounts_is_local(mounts, makedev(0, 40)));
	assert_false(pf_mounts_is_local(mounts, makedev(8, 33)));
	assert_false(pf_mounts_is_local(mounts, makedev(0, 50)));
	assert_false(pf_mounts_is_local(mounts, makedev(0, 99)));
}

static void test_malformed(void **state)
{
	size_t n;

	parse("\n"
	      "rubbish\n"
	      "27 1 254:1 / / rw shared:1 ext4 /dev/vda1 rw\n"
	      "27 1 254:1 / / rw shared:1 -\n"
	      "27 1 254 / / rw - ext4 /dev/vda1 rw\n"
	      "27 1 254: / / rw - ext4 /dev/vda1 rw\n"
	      "27 1 4096:1 / / rw - ext4 /dev/vda1 rw\n"
	      "27 1 254:1048576 / / rw - ext4 /dev/vda1 rw\n"
	      "-27 1 254:1 / / rw - ext4 /dev/vda1 rw\n"
	      "99999999999999999999 1 254:1 / / rw - ext4 /dev/vda1 rw\n"
	      "27 1 254:1 / relative rw - ext4 /dev/vda1 rw\n"
	      "27  1 254:1 / / rw - ext4 /dev/vda1 rw\n"
	      "27 1 254:1 / /\\04 rw - ext4 /dev/vda1 rw\n");
	pf_mounts_all(mounts, &n);
	assert_int_equal(n, 1);
	assert_non_null(find("/\\04"));
	parse("");
	pf_mounts_all(mounts, &n);
	assert_int_equal(n, 0);
	assert_false(pf_mounts_is_local(mounts, makedev(254, 1)));
}

static void test_long_line(void **state)
{
	size_t length = 300000;
	char *text = malloc(length + 200), *end = text;

	assert_non_null(text);
	end += sprintf(end, "27 1 254:1 / / rw - overlay overlay lowerdir=");
	memset(end, 'x', length);
	sprintf(end + length, "\n28 1 254:2 / /after rw - ext4 /dev/vda2 rw\n");
	parse(text);
	free(text);
	assert_non_null(find("/"));
	assert_non_null(find("/after"));
}

/* The same part of a file system at several places: the first of them is the one that counts. */
static void test_again(void **state)
{
	parse("90 1 254:1 / / rw - ext4 /dev/vda1 rw\n"
	      "31 90 254:1 / /bind rw - ext4 /dev/vda1 rw\n"
	      "32 90 254:1 /usr /bind2 rw - ext4 /dev/vda1 rw\n"
	      "33 90 254:2 / /other rw - ext4 /dev/vda2 rw\n"
	      "34 90 254:1 /usr /bind3 rw - ext4 /dev/vda1 rw\n");
	assert_false(find("/")->again);
	assert_true(find("/bind")->again);
	assert_false(find("/bind2")->again);
	assert_false(find("/other")->again);
	assert_true(find("/bind3")->again);
}

/* What the kernel says is what stat() says, and a change is noticed. */
static void test_refresh(void **state)
{
	char directory[] = "/tmp/pagefusion-test-XXXXXX";
	const PfMount *before, *after;
	struct stat st;
	size_t n;

	assert_non_null(mkdtemp(directory));
	assert_int_equal(unshare(CLONE_NEWNS), 0);
	assert_int_equal(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
	pf_mounts_free(mounts);
	assert_int_equal(pf_mounts_new(&mounts), 0);
	before = pf_mounts_all(mounts, &n);
	assert_int_equal(pf_mounts_refresh(mounts), 0);
	after = pf_mounts_all(mounts, &n);
	assert_ptr_equal(before, after);

	assert_int_equal(mount("none", directory, "tmpfs", 0, NULL), 0);
	assert_null(find(directory));
	assert_int_equal(pf_mounts_refresh(mounts), 0);
	assert_non_null(find(directory));
	assert_int_equal(stat(directory, &st), 0);
	assert_true(find(directory)->device == st.st_dev);
	assert_true(pf_mounts_is_local(mounts, st.st_dev));

	assert_int_equal(umount(directory), 0);
	assert_int_equal(rmdir(directory), 0);
	assert_int_equal(pf_mounts_refresh(mounts), 0);
	assert_null(find(directory));
	assert_false(pf_mounts_is_local(mounts, st.st_dev));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_lines, setup, teardown),
		cmocka_unit_test_setup_teardown(test_malformed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_long_line, setup, teardown),
		cmocka_unit_test_setup_teardown(test_again, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refresh, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
