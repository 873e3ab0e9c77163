/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The surroundings of the core in a test: what pagefusiond does for it (the userfaultfd device, the
 * store) and what QEMU does (RAM blocks). A page's contents are made of a seed, so that a test can
 * say which page it expects to see.
 *
 * Losses are reported by the core in an order of its own. What is taken while waiting for one page
 * is kept for whoever waits for another one.
 */
#include "tests/mechanism/mech.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HUGE_PAGE    (2ul << 20)
#define STORE_FRAMES (1ul << 22) /* sparse: only what is published takes memory */
#define MAX_KEPT     4096

static int store = -1;
static int pagemap = -1;
static uint64_t next_frame;
static PfShimLost kept[MAX_KEPT];
static size_t n_kept;

__attribute__((noreturn)) static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

double mech_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

int mech_store_fd(void)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", store);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die(path);
	return fd;
}

static void make_store(void)
{
	static const uint8_t id[16] = "mechanism tests";
	int r;

	store = memfd_create("pagefusion-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (store < 0 || ftruncate(store, STORE_FRAMES * PF_PAGE_SIZE) < 0 ||
		fcntl(store, F_ADD_SEALS, F_SEAL_SHRINK) < 0)
		die("store");
	r = pf_core_set_store(mech_store_fd(), id);
	if (r < 0) {
		errno = -r;
		die("pf_core_set_store");
	}
}

void mech_start(void)
{
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	uint64_t missing = 0;
	int r;

	if (device < 0 && errno == ENOENT) {
		fprintf(stderr, "skipped: this kernel has no /dev/userfaultfd\n");
		exit(MECH_SKIP);
	}
	if (device < 0)
		die("/dev/userfaultfd");
	r = pf_core_start(device, &missing);
	close(device);
	if (r < 0) {
		fprintf(stderr, "missing features %#llx\n", (unsigned long long)missing);
		errno = -r;
		die("pf_core_start");
	}
	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap < 0)
		die("/proc/self/pagemap");
	make_store();
}

uint8_t *mech_block(size_t n_pages)
{
	size_t size = n_pages * PF_PAGE_SIZE, reserve = size + HUGE_PAGE + PF_PAGE_SIZE;
	uint8_t *area, *start;
	int r;

	area = mmap(NULL, reserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		die("mmap");
	start = (uint8_t *)(((uintptr_t)area + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	if (mmap(start, size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
		die("mmap");
	if (start > area)
		munmap(area, (size_t)(start - area));
	/* One page of the reserve stays behind the block as its guard. */
	munmap(start + size + PF_PAGE_SIZE,
		(size_t)(area + reserve - (start + size + PF_PAGE_SIZE)));
	madvise(start, size, MADV_MERGEABLE);
	madvise(start, size, MADV_DONTDUMP);
	madvise(start, size, MADV_HUGEPAGE);
	if (madvise(start, size, MADV_DONTFORK) < 0)
		die("madvise");
	r = pf_core_add_block(start, size);
	if (r < 0) {
		errno = -r;
		die("pf_core_add_block");
	}
	return start;
}

void mech_block_free(uint8_t *block, size_t n_pages)
{
	if (pf_core_munmap(block, (n_pages + 1) * PF_PAGE_SIZE) < 0)
		die("munmap");
}

bool mech_map_into_hole(uint8_t *start, size_t length)
{
	while (pf_core_mmap(start, length, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1,
		       0) != start)
		if (errno != EEXIST)
			return false;
	return true;
}

static uint64_t word_of(uint64_t seed, size_t i)
{
	return seed * 0x9e3779b97f4a7c15ull + i;
}

void mech_fill(void *page, uint64_t seed)
{
	uint64_t *words = page;

	for (size_t i = 0; i < PF_PAGE_SIZE / sizeof(*words); i++)
		words[i] = word_of(seed, i);
}

bool mech_holds(const void *page, uint64_t seed)
{
	const uint64_t *words = page;

	for (size_t i = 0; i < PF_PAGE_SIZE / sizeof(*words); i++)
		if (words[i] != word_of(seed, i))
			return false;
	return true;
}

bool mech_is_zero(const void *page)
{
	const uint64_t *words = page;

	for (size_t i = 0; i < PF_PAGE_SIZE / sizeof(*words); i++)
		if (words[i] != 0)
			return false;
	return true;
}

PfFrame mech_publish(const void *page)
{
	PfFrame frame = {next_frame++};

	if (pwrite(store, page, PF_PAGE_SIZE, (off_t)(frame.v * PF_PAGE_SIZE)) !=
		(ssize_t)PF_PAGE_SIZE)
		die("store");
	return frame;
}

PfFrame mech_publish_seed(uint64_t seed)
{
	uint64_t page[PF_PAGE_SIZE / sizeof(uint64_t)];

	mech_fill(page, seed);
	return mech_publish(page);
}

void mech_skip_frames(uint64_t n)
{
	next_frame += n;
}

void mech_punch(PfFrame frame)
{
	if (fallocate(store, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		    (off_t)(frame.v * PF_PAGE_SIZE), PF_PAGE_SIZE) < 0)
		die("fallocate");
}

uint64_t mech_store_frames(void)
{
	struct stat st;

	if (fstat(store, &st) < 0)
		die("fstat");
	return (uint64_t)st.st_size / PF_PAGE_SIZE;
}

void mech_fuse(const void *page, PfFrame frame, uint32_t n_pages, uint8_t *results)
{
	PfShimRun run = {.hva = (uintptr_t)page,
		.frame = frame.v,
		.n_pages = n_pages,
		.flags = PF_SHIM_RUN_MAY_BREAK_HUGE};

	memset(results, 0xee, n_pages);
	pf_core_fuse(&run, results);
}

PfShimResult mech_fuse_page(const void *page, PfFrame frame)
{
	uint8_t result;

	mech_fuse(page, frame, 1, &result);
	return (PfShimResult)result;
}

static uint64_t pagemap_entry(const void *page)
{
	uint64_t entry;

	if (pread(pagemap, &entry, sizeof(entry),
		    (off_t)((uintptr_t)page / PF_PAGE_SIZE * sizeof(entry))) != sizeof(entry))
		die("/proc/self/pagemap");
	return entry;
}

bool mech_is_present(const void *page)
{
	return pagemap_entry(page) >> 63 & 1;
}

bool mech_is_file_page(const void *page)
{
	uint64_t entry = pagemap_entry(page);

	return (entry >> 63 & 1) && (entry >> 61 & 1);
}

uint64_t mech_pfn(const void *page)
{
	uint64_t entry = pagemap_entry(page);

	return entry >> 63 & 1 ? entry & ((1ull << 55) - 1) : 0;
}

size_t mech_n_maps(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	size_t n = 0;
	int c;

	if (!maps)
		die("/proc/self/maps");
	while ((c = getc(maps)) != EOF)
		n += c == '\n';
	fclose(maps);
	return n;
}

size_t mech_max_maps(void)
{
	FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
	size_t value = 0;

	if (!file || fscanf(file, "%zu", &value) != 1)
		die("/proc/sys/vm/max_map_count");
	fclose(file);
	return value;
}

/* A large area whose pages alternate between two protections has a map a page; all are gone when the area is. */
static char *filler;
static size_t filler_pages;

void mech_fill_maps(size_t left)
{
	size_t limit = mech_max_maps(), used = mech_n_maps(),
	       room = limit > used ? limit - used : 0;

	filler_pages = room + 64;
	filler = mmap(NULL, filler_pages * PF_PAGE_SIZE, PROT_NONE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (filler == MAP_FAILED)
		die("mmap");
	for (size_t i = 1, n = 1; i + 1 < filler_pages && n + left < room; i += 2, n += 2)
		if (mprotect(filler + i * PF_PAGE_SIZE, PF_PAGE_SIZE, PROT_READ) < 0) {
			if (errno != ENOMEM)
				die("mprotect");
			return;
		}
}

void mech_free_maps(void)
{
	/* In one piece: an munmap that would split a map can itself be refused. */
	if (munmap(filler, filler_pages * PF_PAGE_SIZE) < 0)
		die("munmap");
}

/* The head line of the VMA that the address is in, and the rest of the stream is what belongs to
 * it. */
static FILE *find_vma(const void *page, char *line, size_t size)
{
	FILE *smaps = fopen("/proc/self/smaps", "re");
	unsigned long start, end;

	if (!smaps)
		die("/proc/self/smaps");
	while (fgets(line, (int)size, smaps))
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2 && (uintptr_t)page >= start &&
			(uintptr_t)page < end)
			return smaps;
	fclose(smaps);
	return NULL;
}

void mech_vm_flags(const void *page, char flags[256])
{
	char line[4352];
	FILE *smaps = find_vma(page, line, sizeof(line));

	flags[0] = 0;
	if (!smaps)
		return;
	while (fgets(line, sizeof(line), smaps))
		if (strncmp(line, "VmFlags:", 8) == 0) {
			snprintf(flags, 256, "%.250s", line);
			break;
		}
	fclose(smaps);
}

size_t mech_huge_kib(const void *page)
{
	char line[4352];
	FILE *smaps = find_vma(page, line, sizeof(line));
	size_t kib = 0;

	if (!smaps)
		return 0;
	while (fgets(line, sizeof(line), smaps))
		if (sscanf(line, "AnonHugePages: %zu kB", &kib) == 1)
			break;
	fclose(smaps);
	return kib;
}

bool mech_in_file_vma(const void *page)
{
	char line[4352];
	FILE *smaps = find_vma(page, line, sizeof(line));
	unsigned long inode = 0;

	if (!smaps)
		return false;
	fclose(smaps);
	return sscanf(line, "%*s %*s %*s %*s %lu", &inode) == 1 && inode != 0;
}

static bool find_kept(uint64_t hva, PfShimLost *lost)
{
	for (size_t i = 0; i < n_kept; i++)
		if (hva >= kept[i].hva && hva < kept[i].hva + kept[i].n_pages * PF_PAGE_SIZE) {
			*lost = kept[i];
			return true;
		}
	return false;
}

static void take_lost(void)
{
	bool overflow = false;

	n_kept += pf_core_take_lost(kept + n_kept, MAX_KEPT - n_kept, &overflow);
	if (overflow || n_kept == MAX_KEPT) {
		fprintf(stderr, "more losses than a test ought to make\n");
		exit(1);
	}
}

bool mech_wait_lost(const void *page, PfShimLost *lost)
{
	struct pollfd event = {.fd = pf_core_event_fd(), .events = POLLIN};
	double deadline = mech_now() + 10;

	for (;;) {
		take_lost();
		if (find_kept((uintptr_t)page, lost))
			return true;
		if (mech_now() > deadline)
			return false;
		poll(&event, 1, 20);
	}
}

void mech_drop_lost(void)
{
	take_lost();
	n_kept = 0;
}
