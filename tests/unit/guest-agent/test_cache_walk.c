// SPDX-License-Identifier: LGPL-2.1-or-later
/* Walks over a file system of its own, which is in no cache once it was mounted anew: needs root. */
#include "guest-agent/find/cache_walk.h"
#include "loop_disk.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define N_DIRECTORIES 300
#define N_FILES       4 /* in each */
#define MAX_FOUND     N_DIRECTORIES

static PfLoopDisk disk;
static PfMounts *mounts;

static struct {
	char names[MAX_FOUND][256];
	PfFileKey keys[MAX_FOUND];
	size_t n;
	unsigned n_steps;
	int result, step_result;
} seen;

static char *path(const char *name)
{
	static char paths[8][400];
	static unsigned next;
	char *text = paths[next++ % 8];

	snprintf(text, sizeof(paths[0]), "%s%s%s", disk.point, *name ? "/" : "", name);
	return text;
}

static void make_file(const char *name, size_t size)
{
	int fd = open(path(name), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	static char bytes[3 * PF_PAGE_SIZE];

	assert_true(fd >= 0 && size <= sizeof(bytes));
	assert_int_equal(write(fd, bytes, size), size);
	close(fd);
}

static void make_tree(void)
{
	char name[64];

	for (unsigned i = 0; i < N_DIRECTORIES; i++) {
		snprintf(name, sizeof(name), "dir%u", i);
		assert_int_equal(mkdir(path(name), 0755), 0);
		for (unsigned j = 0; j < N_FILES; j++) {
			snprintf(name, sizeof(name), "dir%u/file%u", i, j);
			make_file(name, 5000);
		}
	}
}

static int setup(void **state)
{
	if (pf_loop_disk_init(&disk, 32ul * 1024 * 1024) < 0 || pf_mounts_new(&mounts) < 0)
		return -1;
	make_tree();
	return pf_loop_disk_cool(&disk);
}

static int teardown(void **state)
{
	pf_mounts_free(mounts);
	pf_loop_disk_deinit(&disk);
	return 0;
}

static int on_found(void *userdata, const PfFound *found)
{
	char byte;

	assert_ptr_equal(userdata, &seen);
	assert_true(seen.n < MAX_FOUND && strlen(found->name) < sizeof(seen.names[0]));
	assert_int_equal(found->key.source, PF_SOURCE_FILE);
	assert_int_equal(pread(found->fd, &byte, 1, 0), 1);
	assert_int_equal(
		fcntl(found->fd, F_GETFL) & (O_ACCMODE | O_PATH | O_NOATIME), O_RDONLY | O_NOATIME);
	close(found->fd);
	strcpy(seen.names[seen.n], found->name);
	seen.keys[seen.n++] = found->key;
	return seen.result;
}

static int on_step(void *userdata, uint64_t n_hashed)
{
	assert_ptr_equal(userdata, &seen);
	assert_int_equal(n_hashed, 0);
	seen.n_steps++;
	return seen.step_result;
}

/* Leaves in seen what was found below the paths, which end with NULL. */
static int walk(char *const *paths)
{
	seen.n = seen.n_steps = 0;
	assert_int_equal(pf_mounts_refresh(mounts), 0);
	return pf_cache_walk(paths, mounts, on_found, on_step, &seen);
}

static int walk_disk(void)
{
	char *paths[] = {disk.point, NULL};

	return walk(paths);
}

static unsigned times_seen(const char *name)
{
	unsigned n = 0;

	for (size_t i = 0; i < seen.n; i++)
		n += strcmp(seen.names[i], name) == 0;
	return n;
}

static void read_file(const char *name)
{
	int fd = open(path(name), O_RDONLY | O_CLOEXEC | O_NOATIME);
	char bytes[64];

	assert_true(fd >= 0);
	assert_true(read(fd, bytes, sizeof(bytes)) > 0);
	close(fd);
}

/* A cold tree stays cold: no more is read than the root directory, and a walk after it finds no more. */
static void test_cold(void **state)
{
	uint64_t before = pf_loop_disk_sectors_read(&disk);
	struct stat root;

	assert_int_equal(stat(disk.point, &root), 0);
	assert_null(pf_cache_walk_impossible());
	assert_int_equal(walk_disk(), 0);
	assert_int_equal(seen.n, 0);
	assert_true(pf_loop_disk_sectors_read(&disk) - before <= (uint64_t)root.st_size / 512);
	before = pf_loop_disk_sectors_read(&disk);
	assert_int_equal(walk_disk(), 0);
	assert_int_equal(seen.n, 0);
	assert_true(pf_loop_disk_sectors_read(&disk) == before);
}

/* What was used is found, and nothing but that. */
static void test_warm(void **state)
{
	struct stat st, after;
	uint64_t before;

	read_file("dir7/file3");
	assert_int_equal(stat(path("dir9/file1"), &st), 0);
	assert_int_equal(stat(path("dir7"), &st), 0);
	assert_int_equal(walk_disk(), 0);
	before = pf_loop_disk_sectors_read(&disk);
	assert_int_equal(walk_disk(), 0);
	assert_true(pf_loop_disk_sectors_read(&disk) == before);

	/* Looking is no access, and neither is listing. */
	assert_int_equal(stat(path("dir7"), &after), 0);
	assert_memory_equal(&st.st_atim, &after.st_atim, sizeof(st.st_atim));

	assert_int_equal(seen.n, 1);
	assert_string_equal(seen.names[0], "file3");
	assert_int_equal(stat(path("dir7/file3"), &st), 0);
	assert_true(seen.keys[0].device == st.st_dev && seen.keys[0].inode == st.st_ino);
}

static void test_wanted(void **state)
{
	static const char odd[] = "new\nline\xff", large[] = "large";

	assert_int_equal(mkdir(path("kinds"), 0755), 0);
	make_file("kinds/good", 5000);
	make_file("kinds/empty", 0);
	make_file("kinds/new\nline\xff", 10);
	make_file("kinds/large", 10);
	assert_int_equal(
		truncate(path("kinds/large"), (off_t)(PF_SESSION_MAX_MODULE_PAGES * PF_PAGE_SIZE)),
		0);
	assert_int_equal(mkfifo(path("kinds/fifo"), 0600), 0);
	assert_int_equal(mknod(path("kinds/null"), S_IFCHR | 0600, makedev(1, 3)), 0);
	assert_int_equal(symlink("good", path("kinds/link")), 0);
	assert_int_equal(symlink("..", path("kinds/up")), 0);
	assert_int_equal(link(path("kinds/good"), path("kinds/hard")), 0);
	assert_int_equal(walk_disk(), 0);
	assert_int_equal(times_seen("good"), 1);
	assert_int_equal(times_seen("hard"), 1);
	assert_int_equal(times_seen(odd), 1);
	assert_int_equal(times_seen(large), 1);
	assert_int_equal(seen.n, 4);
	assert_int_equal(truncate(path("kinds/large"),
				 (off_t)(PF_SESSION_MAX_MODULE_PAGES * PF_PAGE_SIZE) + 1),
		0);
	assert_int_equal(walk_disk(), 0);
	assert_int_equal(times_seen(large), 0);
}

/* Roots that lie in each other, also by way of a link, are walked once. */
static void test_roots(void **state)
{
	char *paths[] = {
		disk.point, path("dir1"), path("link"), path("nothing"), path("dir1/file1"), NULL};
	char *link_only[] = {path("link"), NULL};

	read_file("dir1/file1");
	assert_int_equal(symlink("dir1", path("link")), 0);
	assert_int_equal(walk(paths), 0);
	assert_int_equal(seen.n, 1);
	assert_int_equal(walk(link_only), 0);
	assert_int_equal(seen.n, 1);
}

static void test_mounts(void **state)
{
	char merged[400], *paths[] = {disk.point, NULL}, *inner[] = {merged, NULL}, options[900];

	strcpy(merged, path("merged"));
	assert_int_equal(mkdir(path("memory"), 0755), 0);
	assert_int_equal(mkdir(path("bind"), 0755), 0);
	assert_int_equal(mkdir(merged, 0755), 0);
	assert_int_equal(mount("none", path("memory"), "tmpfs", 0, NULL), 0);
	make_file("memory/in_memory", 10);
	read_file("dir1/file1");
	assert_int_equal(mount(disk.point, path("bind"), NULL, MS_BIND, NULL), 0);
	snprintf(options, sizeof(options), "lowerdir=%s:%s", path("dir1"), path("dir2"));
	assert_int_equal(mount("none", path("merged"), "overlay", MS_RDONLY, options), 0);
	read_file("merged/file1");

	assert_int_equal(walk(paths), 0);
	assert_int_equal(times_seen("in_memory"), 1);
	assert_int_equal(times_seen("file1"), 1);
	assert_int_equal(seen.n, 2);
	assert_int_equal(walk(inner), 0);
	assert_int_equal(seen.n, 0);
	assert_int_equal(umount(path("merged")), 0);
	assert_int_equal(umount(path("bind")), 0);
	assert_int_equal(umount(path("memory")), 0);
}

static void set_type(int id, const char *type)
{
	char line[200];
	FILE *file;

	snprintf(line, sizeof(line), "%d 1 7:0 / %s rw - %s source rw\n", id, disk.point, type);
	file = fmemopen(line, strlen(line), "r");
	assert_non_null(file);
	assert_int_equal(pf_mounts_parse(mounts, file), 0);
	fclose(file);
}

/* The disk is not walked when the table says that it is a server's. */
static void test_not_local(void **state)
{
	const PfMount *mount;
	size_t n;
	int id;

	read_file("dir1/file1");
	assert_int_equal(walk_disk(), 0);
	assert_int_equal(seen.n, 1);
	mount = pf_mounts_all(mounts, &n);
	while (n > 0 && strcmp(mount->point, disk.point) != 0)
		mount++, n--;
	assert_true(n > 0);
	id = mount->id;
	set_type(id, "nfs4");
	assert_int_equal(walk_disk(), 0);
	assert_int_equal(seen.n, 0);
	set_type(id, "xfs");
	assert_int_equal(walk_disk(), 0);
	assert_int_equal(seen.n, 1);
	set_type(id + 1, "xfs");
	assert_int_equal(walk_disk(), 0);
	assert_int_equal(seen.n, 0);
}

/* Deeper than the walk goes. */
static void test_deep(void **state)
{
	char name[300] = "d";
	unsigned depth;

	for (depth = 1; depth <= 70; depth++) {
		assert_int_equal(mkdir(path(name), 0755), 0);
		strcat(name, "/d");
		if (depth == 60 || depth == 70) {
			char file[320];

			snprintf(file, sizeof(file), "%.*s/depth%u", (int)strlen(name) - 2, name,
				depth);
			make_file(file, 10);
		}
	}
	assert_int_equal(walk_disk(), 0);
	assert_int_equal(times_seen("depth60"), 1);
	assert_int_equal(times_seen("depth70"), 0);
}

static void test_callbacks(void **state)
{
	char name[32];

	for (unsigned j = 0; j < N_FILES; j++) {
		snprintf(name, sizeof(name), "dir1/file%u", j);
		read_file(name);
	}
	assert_int_equal(walk_disk(), 0);
	assert_int_equal(seen.n, N_FILES);
	/* the entries of the root and of dir1, with two for the directory itself and its parent in each, and lost+found */
	assert_int_equal(seen.n_steps, (N_DIRECTORIES + N_FILES + 5) / 64);
	seen.result = -EIO;
	assert_int_equal(walk_disk(), -EIO);
	assert_int_equal(seen.n, 1);
	seen.result = 0;
	seen.step_result = 7;
	assert_int_equal(walk_disk(), 7);
	assert_int_equal(seen.n_steps, 1);
	seen.step_result = 0;
}

/* The names are still there, the pages are not. */
static void test_evicted(void **state)
{
	int fd = open(path("dir1/file1"), O_RDONLY | O_CLOEXEC);
	char byte;

	assert_int_equal(read(fd, &byte, 1), 1);
	assert_int_equal(walk_disk(), 0);
	assert_int_equal(seen.n, 1);
	assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	close(fd);
	assert_int_equal(walk_disk(), 0);
	assert_int_equal(seen.n, 0);
}

/* The names are still there, the directories' blocks are not: a walk reads some, the next ones more. */
static void test_read_limit(void **state)
{
	size_t found[3] = {0};
	char name[64];

	for (unsigned i = 0; i < N_DIRECTORIES; i++) {
		snprintf(name, sizeof(name), "dir%u/file1", i);
		read_file(name);
	}
	assert_int_equal(ioctl(disk.device_fd, BLKFLSBUF), 0);
	for (unsigned i = 0; i < 3; i++) {
		uint64_t before = pf_loop_disk_sectors_read(&disk);

		assert_int_equal(walk_disk(), 0);
		found[i] = seen.n;
		/* a megabyte, and the block that was one too many */
		assert_true(pf_loop_disk_sectors_read(&disk) - before <= 2048 + 8);
	}
	assert_in_range(found[0], 200, 260);
	assert_int_equal(found[1], N_DIRECTORIES);
	assert_int_equal(found[2], N_DIRECTORIES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_cold, setup, teardown),
		cmocka_unit_test_setup_teardown(test_warm, setup, teardown),
		cmocka_unit_test_setup_teardown(test_wanted, setup, teardown),
		cmocka_unit_test_setup_teardown(test_roots, setup, teardown),
		cmocka_unit_test_setup_teardown(test_mounts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_local, setup, teardown),
		cmocka_unit_test_setup_teardown(test_deep, setup, teardown),
		cmocka_unit_test_setup_teardown(test_callbacks, setup, teardown),
		cmocka_unit_test_setup_teardown(test_evicted, setup, teardown),
		cmocka_unit_test_setup_teardown(test_read_limit, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
