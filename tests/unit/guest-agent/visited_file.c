// SPDX-License-Identifier: LGPL-2.1-or-later
#include "visited_file.h"
#include "common/digest.h"
#include "guest-agent/find/guard.h"
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

void visited_file_renew(VisitedFile *v)
{
	PfFileStamp stamp = {0};
	struct stat st;

	assert_int_equal(fstat(v->fd, &st), 0);
	stamp.size = st.st_size;
	assert_int_equal(pf_file_renew(v->file, &stamp, "visited"), 0);
}

int visited_file_open(VisitedFile *v, PfSource source, unsigned n_pages)
{
	PfFileKey key = {.source = source};

	*v = (VisitedFile){.path = "/var/tmp/pagefusion-test-XXXXXX"};
	if (pf_facts_read(&v->facts) < 0 || pf_visitor_new(&v->visitor) < 0) {
		print_message("this test must run as root\n");
		return -1;
	}
	v->fd = mkostemp(v->path, O_CLOEXEC);
	v->file = pf_file_new(&key);
	if (v->fd < 0 || !v->file)
		return -1;
	visited_file_write(v, 0, n_pages, 1);
	visited_file_renew(v);
	return 0;
}

void visited_file_close(VisitedFile *v)
{
	close(v->fd);
	unlink(v->path);
	pf_visitor_free(v->visitor);
	pf_file_free(v->file);
}

static void fill(uint8_t *page, unsigned number, uint8_t version)
{
	memset(page, (int)number, PF_PAGE_SIZE);
	page[0] = version;
}

void visited_file_write(const VisitedFile *v, unsigned first, unsigned n, uint8_t version)
{
	uint8_t page[PF_PAGE_SIZE];

	for (unsigned i = first; i < first + n; i++) {
		fill(page, i, version);
		assert_int_equal(
			pwrite(v->fd, page, sizeof(page), (off_t)(i * PF_PAGE_SIZE)), sizeof(page));
	}
}

static int count_step(void *userdata, uint64_t n_hashed)
{
	VisitedFile *v = userdata;

	v->n_hashed += n_hashed;
	v->n_steps++;
	return 0;
}

int visited_file_visit(VisitedFile *v, PfWorker *worker)
{
	/* The test library has its own handler for each test. */
	assert_int_equal(pf_guard_init(), 0);
	v->n_hashed = v->n_steps = 0;
	pf_file_join(v->file, PF_CLASS_CACHE, ++v->pass);
	return pf_visitor_visit(v->visitor, worker, v->file, v->fd, &v->facts.ram, count_step, v);
}

void visited_file_evict(const VisitedFile *v, unsigned first, unsigned n)
{
	assert_int_equal(fsync(v->fd), 0);
	assert_int_equal(posix_fadvise(v->fd, (off_t)(first * PF_PAGE_SIZE),
				 (off_t)(n * PF_PAGE_SIZE), POSIX_FADV_DONTNEED),
		0);
}

void visited_file_map_resident(const VisitedFile *v, uint8_t *resident, unsigned n)
{
	void *map = mmap(NULL, n * PF_PAGE_SIZE, PROT_READ, MAP_SHARED, v->fd, 0);

	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(mincore(map, n * PF_PAGE_SIZE, resident), 0);
	munmap(map, n * PF_PAGE_SIZE);
	for (unsigned i = 0; i < n; i++)
		resident[i] &= 1;
}

unsigned visited_file_count_resident(const VisitedFile *v, unsigned n)
{
	uint8_t *resident = malloc(n);
	unsigned count = 0;

	assert_non_null(resident);
	visited_file_map_resident(v, resident, n);
	for (unsigned i = 0; i < n; i++)
		count += resident[i];
	free(resident);
	return count;
}

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

void visited_file_assert_page(const VisitedFile *v, unsigned number, uint8_t version)
{
	const PfFilePage *page = pf_file_find(v->file, number);
	PfHasher *hasher = pf_hasher_new();
	uint8_t bytes[PF_PAGE_SIZE];
	PfDigest digest;
	void *map = mmap(
		NULL, PF_PAGE_SIZE, PROT_READ, MAP_SHARED, v->fd, (off_t)(number * PF_PAGE_SIZE));

	fill(bytes, number, version);
	assert_non_null(hasher);
	assert_int_equal(pf_hasher_page(hasher, bytes, &digest), 0);
	pf_hasher_free(hasher);
	assert_non_null(page);
	assert_memory_equal(&page->digest, &digest, sizeof(digest));
	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(page->gfn, pfn_of(map));
	munmap(map, PF_PAGE_SIZE);
}
