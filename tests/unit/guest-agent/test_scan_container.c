// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A process in a mount and process namespace of its own, chrooted onto an overlay: it maps what was copied up, what is
 * in the lower layer, what only its namespace shows and what was deleted since. It finds by itself which frames its
 * pages are in and what their digests are; a full pass from outside must know each of them. Needs root.
 */
#include "common/digest.h"
#include "guest-agent/find/scan.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define N_PAGES 12

/* What the process maps, by the path that it has there. */
static const struct {
	const char *path;
	bool before;        /* made in the lower layer, else by the process */
	bool written;       /* by the process: copied up */
	bool deleted;       /* when it is mapped */
	const char *report; /* name that the host is told */
} mapped[] = {
	{"/lower.so", .before = true, .report = "lower.so"},
	{"/copied.so", .before = true, .written = true, .report = "copied.so"},
	{"/upper.so", .report = "upper.so"},
	{"/gone.so", .deleted = true, .report = "gone.so"},
	{"/lower-gone.so", .before = true, .deleted = true, .report = "lower-gone.so"},
	{"/private/only.so", .report = "only.so"},
};

#define N_MAPPED (sizeof(mapped) / sizeof(mapped[0]))

/* A page as the process sees it. */
typedef struct Page {
	uint64_t gfn;
	PfDigest digest;
} Page;

/* In memory that both share. */
typedef struct Seen {
	char error[128]; /* empty: all is well */
	Page pages[N_MAPPED][N_PAGES];
} Seen;

static PfState files;
static PfScanner *scanner;
static PfFacts facts;
static char directory[64];
static Seen *seen;

static void make_path(char *path, size_t size, const char *name)
{
	snprintf(path, size, "%s/%s", directory, name);
}

static bool fill(const char *path, unsigned number)
{
	uint8_t page[PF_PAGE_SIZE];
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
	bool written = fd >= 0;

	for (unsigned i = 0; i < N_PAGES && written; i++) {
		memset(page, (int)(number * N_PAGES + i), sizeof(page));
		written = write(fd, page, sizeof(page)) == sizeof(page);
	}
	if (fd >= 0)
		close(fd);
	return written;
}

static int setup(void **state)
{
	static const char *const parts[] = {"lower", "upper", "work", "root", "lower/private"};
	char path[128];

	pf_state_init(&files);
	seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	/* So that nothing that is mounted here outlives this process. */
	if (seen == MAP_FAILED || unshare(CLONE_NEWNS) < 0 ||
		mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return -1;
	strcpy(directory, "/tmp/pagefusion-test-XXXXXX");
	if (!mkdtemp(directory) || mount("none", directory, "tmpfs", 0, NULL) < 0)
		return -1;
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		make_path(path, sizeof(path), parts[i]);
		if (mkdir(path, 0755) < 0)
			return -1;
	}
	if (pf_facts_read(&facts) < 0 || pf_scanner_new(&scanner, &files) < 0) {
		print_message("this test must run as root\n");
		return -1;
	}
	for (unsigned i = 0; i < N_MAPPED; i++) {
		snprintf(path, sizeof(path), "%s/lower%s", directory, mapped[i].path);
		if (mapped[i].before && !fill(path, i))
			return -1;
	}
	return 0;
}

static int teardown(void **state)
{
	pf_scanner_free(scanner);
	pf_state_deinit(&files);
	umount2(directory, MNT_DETACH);
	rmdir(directory);
	munmap(seen, sizeof(*seen));
	return 0;
}

/* --- the process --- */

static bool enter(void)
{
	char layers[512], root[128], private[160];

	snprintf(layers, sizeof(layers), "lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work",
		directory, directory, directory);
	make_path(root, sizeof(root), "root");
	snprintf(private, sizeof(private), "%s/private", root);
	return mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
	       mount("overlay", root, "overlay", 0, layers) == 0 &&
	       mount("none", private, "tmpfs", 0, NULL) == 0 && chroot(root) == 0 &&
	       chdir("/") == 0;
}

/* Its frame and its digest, as its own page table and its own eyes have it. */
static bool see_page(int pagemap, PfHasher *hasher, const uint8_t *bytes, Page *page)
{
	uint64_t entry = 0;
	uint8_t copy[PF_PAGE_SIZE];

	memcpy(copy, bytes, sizeof(copy));
	if (pread(pagemap, &entry, sizeof(entry), (off_t)((uintptr_t)bytes / PF_PAGE_SIZE * 8)) !=
		sizeof(entry))
		return false;
	page->gfn = entry & ((1ull << 55) - 1);
	return page->gfn != 0 && pf_hasher_page(hasher, copy, &page->digest) == 0;
}

/* Page 3 is written over, through the overlay. */
static bool copy_up(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	bool written = fd >= 0 && pwrite(fd, "copied up", 9, 3 * PF_PAGE_SIZE) == 9;

	if (fd >= 0)
		close(fd);
	return written;
}

static bool map(int pagemap, PfHasher *hasher, unsigned i)
{
	const char *path = mapped[i].path;
	uint8_t *bytes;
	int fd;

	if ((!mapped[i].before && !fill(path, i)) || (mapped[i].written && !copy_up(path)))
		return false;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || (mapped[i].deleted && unlink(path) < 0))
		return false;
	bytes = mmap(NULL, N_PAGES * PF_PAGE_SIZE, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (bytes == MAP_FAILED)
		return false;
	for (unsigned page = 0; page < N_PAGES; page++) {
		if (!see_page(pagemap, hasher, bytes + page * PF_PAGE_SIZE, &seen->pages[i][page]))
			return false;
	}
	return true;
}

/* The exit status. */
static int live(int ready, int hold)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	PfHasher *hasher = pf_hasher_new();
	char byte = 0;

	if (getpid() != 1 || pagemap < 0 || !hasher || !enter())
		snprintf(seen->error, sizeof(seen->error), "cannot enter: %s", strerror(errno));
	for (unsigned i = 0; i < N_MAPPED && !seen->error[0]; i++) {
		if (!map(pagemap, hasher, i))
			snprintf(seen->error, sizeof(seen->error), "%s: %s", mapped[i].path,
				strerror(errno));
	}
	if (write(ready, &byte, 1) != 1)
		return 1;
	return (int)read(hold, &byte, 1);
}

/* The first of the children of one that has asked for a process namespace is its init. */
static pid_t start(int *hold)
{
	int ready[2], held[2], old = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
	char byte;
	pid_t pid;

	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	assert_int_equal(pipe2(held, O_CLOEXEC), 0);
	assert_int_equal(unshare(CLONE_NEWPID), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		close(held[1]);
		_exit(unshare(CLONE_NEWNS) < 0 ? 1 : live(ready[1], held[0]));
	}
	assert_int_equal(setns(old, CLONE_NEWPID), 0);
	close(old);
	close(ready[1]);
	close(held[0]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	*hold = held[1];
	assert_string_equal(seen->error, "");
	return pid;
}

/* --- the pass --- */

static const PfFilePage *find_frame(uint64_t gfn, const PfFile **file)
{
	for (size_t i = 0; i < files.n; i++) {
		for (uint32_t page = 0; page < files.files[i]->n; page++) {
			*file = files.files[i];
			if ((*file)->pages[page].gfn == gfn)
				return &(*file)->pages[page];
		}
	}
	return NULL;
}

static void assert_found(unsigned i, unsigned number)
{
	const Page *page = &seen->pages[i][number];
	const PfFile *file = NULL;
	const PfFilePage *found = find_frame(page->gfn, &file);

	if (!found) {
		fail_msg("page %u of %s was not found", number, mapped[i].path);
		return;
	}
	assert_true(pf_file_page_reportable(found));
	assert_int_equal(found->file_page, number);
	assert_true(pf_digest_equal(&found->digest, &page->digest));
	assert_string_equal(file->name, mapped[i].report);
	assert_int_equal(file->n_reportable, N_PAGES);
}

static void test_all_is_found(void **state)
{
	static const PfAgentConfig config;
	PfScanStats stats;
	int hold, status;
	pid_t pid = start(&hold);
	int r = pf_scanner_pass(scanner, PF_CLASS_MAPPED, &config, &facts.ram, NULL, NULL, &stats);

	close(hold);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(r, 0);
	for (unsigned i = 0; i < N_MAPPED; i++) {
		for (unsigned page = 0; page < N_PAGES; page++)
			assert_found(i, page);
	}
	assert_false(pf_digest_equal(&seen->pages[0][3].digest, &seen->pages[1][3].digest));
	assert_int_equal(pf_scanner_left_behind(scanner), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_all_is_found, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
