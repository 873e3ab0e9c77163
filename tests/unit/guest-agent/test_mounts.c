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

/* Of no table: as the kernel's own. */
static PfFsKind judge(dev_t device, bool by_root)
{
	const PfMount *mount = pf_mounts_find_device(mounts, device);

	return mount ? pf_mounts_judge(mounts, mount, by_root) : PF_FS_OTHER;
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
	assert_string_equal(mount->root, "/data");
	assert_true(mount->device == makedev(8, 17));
	assert_true(mount->block == makedev(8, 17));
	assert_int_equal(mount->kind, PF_FS_LOCAL);
	assert_ptr_equal(pf_mounts_find(mounts, 30), mount);
	assert_null(pf_mounts_find(mounts, 36));
	assert_true(find("/srv")->block == 0);

	assert_int_equal(judge(makedev(254, 1), false), PF_FS_LOCAL);
	assert_int_equal(judge(makedev(0, 41), false), PF_FS_LOCAL);
	assert_int_equal(judge(makedev(0, 51), false), PF_FS_LOCAL);
	assert_true(judge(makedev(0, 21), true) != PF_FS_LOCAL);
	assert_true(judge(makedev(0, 40), true) != PF_FS_LOCAL);
	assert_true(judge(makedev(8, 33), true) != PF_FS_LOCAL);
	assert_true(judge(makedev(0, 50), false) != PF_FS_LOCAL);
	assert_true(judge(makedev(0, 99), true) != PF_FS_LOCAL);
}

/* A table, an overlay in it, and what it is when root has made it. */
static void test_overlays(void **state)
{
	static const struct {
		const char *options;
		PfFsKind kind;
	} cases[] = {
		{"rw,lowerdir=/usr", PF_FS_LOCAL},
		{"rw,lowerdir=/usr:/tmp/b,upperdir=/tmp/up,workdir=/tmp/w", PF_FS_LOCAL},
		{"rw,lowerdir+=/usr,lowerdir+=/tmp/b,datadir+=/d", PF_FS_LOCAL},
		{"rw,lowerdir=/usr::/tmp/data", PF_FS_LOCAL},
		{"rw,lowerdir=/nfs/a:/usr", PF_FS_REMOTE},
		{"rw,lowerdir=/usr,upperdir=/nfs/up,workdir=/nfs/w", PF_FS_REMOTE},
		{"rw,lowerdir=/usr:/fuse/a", PF_FS_ANYBODYS},
		{"rw,lowerdir=/nfs/a:/fuse/a", PF_FS_ANYBODYS},
		{"rw,lowerdir=/usr,upperdir=/fuse", PF_FS_ANYBODYS},
		{"rw,lowerdir+=/usr,lowerdir+=/fuse", PF_FS_ANYBODYS},
		{"rw,lowerdir+=/usr,datadir+=/fuse/x", PF_FS_ANYBODYS},
		{"rw,lowerdir=/fusel", PF_FS_LOCAL},
		{"rw,lowerdir=/proc/x", PF_FS_ANYBODYS},
		{"rw,lowerdir=usr", PF_FS_ANYBODYS},
		{"rw,lowerdir=/usr:l/ABC", PF_FS_ANYBODYS},
		{"rw,lowerdir=/usr/../fuse", PF_FS_ANYBODYS},
		{"rw,upperdir=/usr", PF_FS_LOCAL},
		{"rw", PF_FS_ANYBODYS},
		{"rw,lowerdir", PF_FS_ANYBODYS},
		/* Colons, commas and blanks in names. */
		{"rw,lowerdir=/mnt/a\\134:b/x", PF_FS_REMOTE},
		{"rw,lowerdir=/mnt/a\\054\\040b/x", PF_FS_REMOTE},
		{"rw,lowerdir+=/mnt/a:b/x", PF_FS_REMOTE},
		/* What is mounted later at the same place hides what was there. */
		{"rw,lowerdir=/twice/x", PF_FS_ANYBODYS},
		/* On another overlay, and on itself. */
		{"rw,lowerdir=/merged/x", PF_FS_LOCAL},
		{"rw,lowerdir=/test", PF_FS_ANYBODYS},
	};
	char text[2048];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		snprintf(text, sizeof(text),
			"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
			"2 1 0:30 / /tmp rw - tmpfs none rw\n"
			"3 1 0:31 / /nfs rw - nfs server:/ rw\n"
			"4 1 0:32 / /fuse rw - fuse none rw\n"
			"5 1 0:33 / /proc rw - proc proc rw\n"
			"6 1 0:34 / /mnt/a:b rw - 9p host rw\n"
			"7 1 0:35 / /mnt/a,\\040b rw - virtiofs host rw\n"
			"8 1 0:36 / /twice rw - tmpfs none rw\n"
			"9 1 0:37 / /twice rw - fuse.x none rw\n"
			"10 1 0:38 / /merged rw - overlay  rw,lowerdir=/usr:/tmp\n"
			"11 1 0:50 / /test rw - overlay overlay %s\n",
			cases[i].options);
		parse(text);
		if (judge(makedev(0, 50), true) != cases[i].kind)
			fail_msg("%s: %d", cases[i].options, judge(makedev(0, 50), true));
		/* Made in a user namespace it is anybody's. */
		assert_int_equal(judge(makedev(0, 50), false), PF_FS_ANYBODYS);
	}
	assert_int_equal(judge(makedev(0, 30), false), PF_FS_LOCAL);
	assert_int_equal(judge(makedev(0, 31), true), PF_FS_REMOTE);
	assert_int_equal(judge(makedev(0, 31), false), PF_FS_ANYBODYS);
	assert_int_equal(judge(makedev(0, 32), true), PF_FS_ANYBODYS);
	assert_int_equal(judge(makedev(0, 33), true), PF_FS_OTHER);
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
	assert_true(judge(makedev(254, 1), true) != PF_FS_LOCAL);
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
	assert_int_equal(judge(st.st_dev, false), PF_FS_LOCAL);

	assert_int_equal(umount(directory), 0);
	assert_int_equal(rmdir(directory), 0);
	assert_int_equal(pf_mounts_refresh(mounts), 0);
	assert_null(find(directory));
	assert_true(judge(st.st_dev, true) != PF_FS_LOCAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_lines, setup, teardown),
		cmocka_unit_test_setup_teardown(test_overlays, setup, teardown),
		cmocka_unit_test_setup_teardown(test_malformed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_long_line, setup, teardown),
		cmocka_unit_test_setup_teardown(test_again, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refresh, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
