// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Scans this very process, which maps a temporary file with known contents. Needs root: page frame
 * numbers and map_files are not for others.
 */
#include "common/digest.h"
#include "guest-agent/guard.h"
#include "guest-agent/scan.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define N_PAGES 40

static PfState files;
static PfScanner *scanner;
static PfFacts facts;
static char path[64];
static int file_fd;

static void write_pages(unsigned first, unsigned n, uint8_t version)
{
	uint8_t page[PF_PAGE_SIZE];

	for (unsigned i = first; i < first + n; i++) {
		memset(page, (int)i, sizeof(page));
		page[0] = version;
		assert_int_equal(pwrite(file_fd, page, sizeof(page), (off_t)(i * PF_PAGE_SIZE)),
			sizeof(page));
	}
}

static int setup(void **state)
{
	pf_state_init(&files);
	if (pf_facts_read(&facts) < 0 || pf_scanner_new(&scanner, &files) < 0) {
		print_message("this test must run as root\n");
		return -1;
	}
	strcpy(path, "/var/tmp/pagefusion-test-XXXXXX");
	file_fd = mkostemp(path, O_CLOEXEC);
	if (file_fd < 0)
		return -1;
	write_pages(0, N_PAGES, 1);
	return 0;
}

static int teardown(void **state)
{
	close(file_fd);
	unlink(path);
	pf_scanner_free(scanner);
	pf_state_deinit(&files);
	return 0;
}

static PfScanStats scan(void)
{
	PfScanStats stats;

	assert_int_equal(pf_scanner_run_one(scanner, getpid(), &facts.ram, &stats), 0);
	return stats;
}

static PfFile *find(void)
{
	struct stat st;

	assert_int_equal(fstat(file_fd, &st), 0);
	for (size_t i = 0; i < files.n; i++) {
		if (files.files[i]->inode == st.st_ino && files.files[i]->device == st.st_dev)
			return files.files[i];
	}
	return NULL;
}

static void assert_digest(const PfFile *file, unsigned number, uint8_t version)
{
	const PfFilePage *page = pf_file_find(file, number);
	PfHasher *hasher = pf_hasher_new();
	uint8_t bytes[PF_PAGE_SIZE];
	PfDigest digest;

	memset(bytes, (int)number, sizeof(bytes));
	bytes[0] = version;
	assert_non_null(hasher);
	assert_int_equal(pf_hasher_page(hasher, bytes, &digest), 0);
	pf_hasher_free(hasher);
	assert_non_null(page);
	assert_true(pf_digest_equal(&page->digest, &digest));
}

/* By another way than the scanner's: this process's own mapping, touched. */
static uint64_t pfn_of(const void *address)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	(void)*(const volatile char *)address;
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &entry, 8, (off_t)((uintptr_t)address / PF_PAGE_SIZE * 8)), 8);
	close(fd);
	return entry & ((1ull << 55) - 1);
}

static uint8_t *map_pages(int prot, int flags, unsigned first, unsigned n)
{
	uint8_t *map =
		mmap(NULL, n * PF_PAGE_SIZE, prot, flags, file_fd, (off_t)(first * PF_PAGE_SIZE));

	assert_ptr_not_equal(map, MAP_FAILED);
	return map;
}

static void unmap(uint8_t *map, unsigned n)
{
	munmap(map, n * PF_PAGE_SIZE);
}

static void test_finds_what_is_mapped(void **state)
{
	uint8_t *low = map_pages(PROT_READ, MAP_PRIVATE, 2, 5),
		*high = map_pages(PROT_READ, MAP_SHARED, 20, 3);
	uint8_t *data = map_pages(PROT_READ | PROT_WRITE, MAP_PRIVATE, 30, 4);
	PfFile *file;

	scan();
	file = find();
	assert_non_null(file);
	assert_int_equal(file->n, 8);
	assert_int_equal(file->n_pages, N_PAGES);
	assert_string_equal(file->name, strrchr(path, '/') + 1);
	assert_int_equal(file->build_id_size, 0);
	for (unsigned i = 0; i < 5; i++) {
		assert_digest(file, 2 + i, 1);
		assert_int_equal(pf_file_find(file, 2 + i)->gfn.v, pfn_of(low + i * PF_PAGE_SIZE));
	}
	for (unsigned i = 0; i < 3; i++) {
		assert_digest(file, 20 + i, 1);
		assert_int_equal(
			pf_file_find(file, 20 + i)->gfn.v, pfn_of(high + i * PF_PAGE_SIZE));
	}
	unmap(low, 5);
	unmap(high, 3);
	unmap(data, 4);
}

static void test_only_resident(void **state)
{
	unsigned char resident[N_PAGES];
	uint8_t *map;
	size_t n = 0;
	PfFile *file;

	assert_int_equal(fsync(file_fd), 0);
	/* Not page 0: looking for a build-id reads that, once for each version of a file. */
	assert_int_equal(
		posix_fadvise(file_fd, PF_PAGE_SIZE, 10 * PF_PAGE_SIZE, POSIX_FADV_DONTNEED), 0);
	map = map_pages(PROT_READ, MAP_SHARED, 0, N_PAGES);
	assert_int_equal(mincore(map, N_PAGES * PF_PAGE_SIZE, resident), 0);
	scan();
	file = find();
	assert_non_null(file);
	for (unsigned i = 0; i < N_PAGES; i++) {
		n += resident[i] & 1;
		assert_int_equal(pf_file_find(file, i) != NULL, resident[i] & 1);
	}
	assert_int_equal(file->n_resident, n);
	assert_true(n < N_PAGES);
	/* The scan itself brought nothing in. */
	assert_int_equal(mincore(map, N_PAGES * PF_PAGE_SIZE, resident), 0);
	for (unsigned i = 0; i < N_PAGES; i++)
		n -= resident[i] & 1;
	assert_int_equal(n, 0);
	unmap(map, N_PAGES);
}

static void test_never_hashed_twice(void **state)
{
	uint8_t *map = map_pages(PROT_READ, MAP_SHARED, 0, 10);
	PfScanStats stats = scan();
	PfFile *file = find();

	assert_true(stats.n_hashed >= 10);
	assert_int_equal(scan().n_hashed, 0);
	unmap(map, 10);
	map = map_pages(PROT_READ, MAP_SHARED, 0, 12);
	assert_int_equal(scan().n_hashed, 2);
	unmap(map, 12);
	scan();
	assert_int_equal(file->n_resident, 0);
	map = map_pages(PROT_READ, MAP_SHARED, 0, 12);
	assert_int_equal(scan().n_hashed, 0);
	assert_int_equal(file->n_resident, 12);
	unmap(map, 12);
}

static void test_changed_file(void **state)
{
	uint8_t *map = map_pages(PROT_READ, MAP_SHARED, 0, 10);
	const struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
	PfFile *file;

	scan();
	file = find();
	assert_non_null(file);
	assert_digest(file, 3, 1);
	file->declared = true;
	write_pages(3, 1, 2);
	/* The clock of the file system is coarse. */
	assert_int_equal(futimens(file_fd, times), 0);
	assert_int_equal(scan().n_hashed, 10);
	assert_true(file->outdated);
	assert_digest(file, 3, 2);
	assert_digest(file, 4, 1);
	unmap(map, 10);
}

static void test_deleted_file(void **state)
{
	uint8_t *map = map_pages(PROT_READ | PROT_EXEC, MAP_PRIVATE, 0, 10);
	PfFile *file;

	assert_int_equal(unlink(path), 0);
	scan();
	file = find();
	assert_non_null(file);
	assert_int_equal(file->n_resident, 10);
	assert_string_equal(file->name, strrchr(path, '/') + 1);
	unmap(map, 10);
}

static void test_truncated_file(void **state)
{
	uint8_t *map = map_pages(PROT_READ, MAP_SHARED, 0, N_PAGES), byte;

	/* The test library has its own handler for each test. */
	assert_int_equal(pf_guard_init(), 0);
	assert_int_equal(ftruncate(file_fd, 5 * PF_PAGE_SIZE), 0);
	scan();
	assert_non_null(find());
	assert_int_equal(find()->n_resident, 5);
	/* What the scan goes by when the file is cut behind its back. */
	assert_int_equal(pf_guard_copy(&byte, map + 4 * PF_PAGE_SIZE, 1), 0);
	assert_int_equal(pf_guard_copy(&byte, map + 5 * PF_PAGE_SIZE, 1), -EFAULT);
	assert_int_equal(pf_guard_copy(&byte, map + 5 * PF_PAGE_SIZE, 1), -EFAULT);
	unmap(map, N_PAGES);
}

/* Outside the guarded copy SIGBUS is what it always was. */
static void test_other_sigbus(void **state)
{
	uint8_t *map = map_pages(PROT_READ, MAP_SHARED, 0, N_PAGES);
	int status;
	pid_t pid;

	assert_int_equal(ftruncate(file_fd, 0), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		signal(SIGBUS, SIG_DFL);
		(void)(pf_guard_init() == 0 && *(volatile uint8_t *)map);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	unmap(map, N_PAGES);
}

static void test_other_ram(void **state)
{
	uint8_t *map = map_pages(PROT_READ, MAP_SHARED, 0, 10);
	PfRam nowhere = {.ranges = {{{1ull << 50}, 1}}, .n = 1};
	PfScanStats stats;

	assert_int_equal(pf_scanner_run_one(scanner, getpid(), &nowhere, &stats), 0);
	assert_non_null(find());
	assert_int_equal(find()->n_resident, 0);
	assert_int_equal(stats.n_hashed, 0);
	unmap(map, 10);
}

static int stop(void *userdata)
{
	return ++*(int *)userdata == 1;
}

static void test_all_processes(void **state)
{
	uint8_t *map = map_pages(PROT_READ, MAP_SHARED, 0, 10);
	PfScanStats stats;
	int calls = 0;

	assert_int_equal(pf_scanner_run(scanner, &facts.ram, stop, &calls, &stats), -ECANCELED);
	assert_int_equal(calls, 1);
	assert_int_equal(stats.n_files, 1);
	assert_int_equal(pf_scanner_run(scanner, &facts.ram, NULL, NULL, &stats), 0);
	assert_non_null(find());
	assert_int_equal(find()->n_resident, 10);
	unmap(map, 10);
}

static void test_unwanted_file_systems(void **state)
{
	int fd = memfd_create("unwanted", MFD_CLOEXEC);
	uint8_t *map;
	struct stat st;

	assert_int_equal(ftruncate(fd, PF_PAGE_SIZE), 0);
	assert_int_equal(fstat(fd, &st), 0);
	map = mmap(NULL, PF_PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(*(volatile uint8_t *)map, 0);
	scan();
	for (size_t i = 0; i < files.n; i++)
		assert_false(
			files.files[i]->inode == st.st_ino && files.files[i]->device == st.st_dev);
	munmap(map, PF_PAGE_SIZE);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_finds_what_is_mapped, setup, teardown),
		cmocka_unit_test_setup_teardown(test_only_resident, setup, teardown),
		cmocka_unit_test_setup_teardown(test_never_hashed_twice, setup, teardown),
		cmocka_unit_test_setup_teardown(test_changed_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_deleted_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_truncated_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_other_sigbus, setup, teardown),
		cmocka_unit_test_setup_teardown(test_other_ram, setup, teardown),
		cmocka_unit_test_setup_teardown(test_all_processes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unwanted_file_systems, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
