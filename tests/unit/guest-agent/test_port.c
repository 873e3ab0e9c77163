// SPDX-License-Identifier: LGPL-2.1-or-later
/* The port in made-up trees. */
#include "guest-agent/tell/port.h"
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static char root[32], found[256];

static void make(const char *path, const char *text)
{
	char full[256];
	FILE *file;

	snprintf(full, sizeof(full), "%s%s", root, path);
	for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		assert_true(mkdir(full, 0700) == 0 || errno == EEXIST);
		*slash = '/';
	}
	file = fopen(full, "we");
	assert_non_null(file);
	fputs(text, file);
	assert_int_equal(fclose(file), 0);
}

static int setup(void **state)
{
	strcpy(root, "/tmp/pf-port-XXXXXX");
	return mkdtemp(root) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
	return remove(path);
}

static int teardown(void **state)
{
	return nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void expect(const char *path)
{
	assert_int_equal(pf_port_find_under(root, found, sizeof(found)), 0);
	assert_int_equal(strncmp(found, root, strlen(root)), 0);
	assert_string_equal(found + strlen(root), path);
}

static void expect_none(void)
{
	assert_int_equal(pf_port_find_under(root, found, sizeof(found)), -ENOENT);
}

static void test_link(void **state)
{
	make("/dev/vport2p1", "");
	make("/sys/class/virtio-ports/vport2p1/name", "org.pagefusion.agent.0\n");
	make("/dev/virtio-ports/org.pagefusion.agent.0", "");
	expect("/dev/virtio-ports/org.pagefusion.agent.0");
}

static void test_sysfs(void **state)
{
	make("/sys/class/virtio-ports/vport0p0/name", "org.qemu.guest_agent.0\n");
	make("/sys/class/virtio-ports/vport0p1/nothing", "");
	make("/sys/class/virtio-ports/vport0p2/name", "");
	make("/sys/class/virtio-ports/vport0p3/name", "org.pagefusion.agent.0x\n");
	make("/sys/class/virtio-ports/vport0p4/name", "org.pagefusion.agent.01\n");
	make("/sys/class/virtio-ports/other/name", "org.pagefusion.agent.0\n");
	make("/dev/other", "");
	for (int n = 0; n < 5; n++) {
		char device[] = "/dev/vport0p0";

		device[12] = (char)('0' + n);
		make(device, "");
	}
	expect_none();
	make("/sys/class/virtio-ports/vport1p7/name", "org.pagefusion.agent.0\n");
	/* Without a device node there is nothing to open. */
	expect_none();
	make("/dev/vport1p7", "");
	expect("/dev/vport1p7");
}

static void test_nothing(void **state)
{
	expect_none();
}

static void test_no_room(void **state)
{
	char small[8];

	make("/dev/virtio-ports/org.pagefusion.agent.0", "");
	assert_int_equal(pf_port_find_under(root, small, sizeof(small)), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_link, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sysfs, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_room, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
