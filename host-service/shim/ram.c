/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/shim/ram.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/*
 * Blocks stand in one array, ascending by address. A block that is cut keeps its part of the page
 * array, which is given back with the last of its parts. Page arrays are sparse: eight bytes a page that was ever
 * fused.
 */
typedef struct PfPageArray {
	size_t size;    /* bytes of the mapping, this header included */
	size_t n_parts; /* blocks that have one */
	uint64_t pages[];
} PfPageArray;

static PfRamBlock blocks[PF_RAM_MAX_BLOCKS] PF_GUARDED;
static unsigned n_blocks PF_GUARDED;
static uint64_t n_fused PF_GUARDED, n_runs PF_GUARDED, n_broken PF_GUARDED;

/* Bounds of all blocks that ever were, for the fast path. */
static _Atomic uintptr_t lowest = UINTPTR_MAX, highest;

PF_NEEDS_LOCK static char *block_end(const PfRamBlock *block)
{
	return block->start + block->n_pages * PF_PAGE_SIZE;
}

static bool has_flag(const char *line, const char *flag)
{
	const char *found = strstr(line, flag);

	return found && found[-1] == ' ' && (found[2] == ' ' || found[2] == '\n');
}

/* Reads one line from a descriptor through a small buffer; libc's streams would allocate. */
typedef struct LineReader {
	int fd;
	char data[4096];
	size_t start, end;
} LineReader;

static bool read_line(LineReader *reader, char *line, size_t size)
{
	size_t n = 0;

	for (;;) {
		if (reader->start == reader->end) {
			ssize_t got = read(reader->fd, reader->data, sizeof reader->data);

			if (got <= 0)
				return false;
			reader->start = 0;
			reader->end = (size_t)got;
		}
		char c = reader->data[reader->start++];

		if (n + 1 < size)
			line[n++] = c;
		if (c == '\n') {
			line[n] = 0;
			return true;
		}
	}
}

static bool is_private_anonymous(const char *line)
{
	char perms[5], path[2] = "";
	unsigned long inode;

	if (sscanf(line, "%*x-%*x %4s %*x %*x:%*x %lu %1s", perms, &inode, path) < 2)
		return false;
	return strncmp(perms, "rw", 2) == 0 && perms[3] == 'p' && inode == 0 && path[0] != '/';
}

/* The kernel's view of the VMA around the range (/proc/self/smaps): is it anonymous, private, and
 * how advised. */
static int read_flags(const char *start, size_t length, PfVmFlags *flags)
{
	LineReader reader = {.fd = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC)};
	bool inside = false, found = false;
	char line[256];

	if (reader.fd < 0)
		return -errno;
	while (!found && read_line(&reader, line, sizeof line)) {
		unsigned long from, to;
		char space;

		if (sscanf(line, "%lx-%lx%c", &from, &to, &space) == 3 && space == ' ')
			inside = from <= (uintptr_t)start && (uintptr_t)start + length <= to &&
				 is_private_anonymous(line);
		else if (inside && strncmp(line, "VmFlags:", 8) == 0)
			found = true;
	}
	close(reader.fd);
	if (!found)
		return -EINVAL;
	*flags = (PfVmFlags){
		.dont_fork = has_flag(line, "dc"),
		.dont_dump = has_flag(line, "dd"),
		.no_reserve = has_flag(line, "nr"),
		.mergeable = has_flag(line, "mg"),
		.huge = has_flag(line, "hg"),
		.no_huge = has_flag(line, "nh"),
	};
	return 0;
}

PF_NEEDS_LOCK static void insert_block(unsigned at, const PfRamBlock *block)
{
	memmove(&blocks[at + 1], &blocks[at], (n_blocks - at) * sizeof blocks[0]);
	blocks[at] = *block;
	n_blocks++;
}

PF_NEEDS_LOCK static void remove_block(unsigned at)
{
	if (--blocks[at].array->n_parts == 0)
		pf_sys_munmap(blocks[at].array, blocks[at].array->size);
	n_blocks--;
	memmove(&blocks[at], &blocks[at + 1], (n_blocks - at) * sizeof blocks[0]);
}

PF_NEEDS_LOCK static int map_page_array(PfRamBlock *block)
{
	size_t size = sizeof *block->array + block->n_pages * sizeof *block->pages;
	int error;

	block->array = pf_sys_mmap(NULL, size, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &error);
	if (!block->array)
		return error;
	*block->array = (PfPageArray){.size = size, .n_parts = 1};
	block->pages = block->array->pages;
	return 0;
}

int pf_ram_add(void *start, size_t length)
{
	PfRamBlock block = {.start = start, .n_pages = length / PF_PAGE_SIZE};
	unsigned at = 0;
	int error;

	if ((uintptr_t)start % PF_PAGE_SIZE || length == 0 || length % PF_PAGE_SIZE)
		return -EINVAL;
	while (at < n_blocks && block_end(&blocks[at]) <= block.start)
		at++;
	if (at < n_blocks && blocks[at].start < block_end(&block))
		return -EEXIST;
	if (n_blocks == PF_RAM_MAX_BLOCKS)
		return -ENOSPC;
	error = read_flags(start, length, &block.flags);
	if (error)
		return error;
	error = map_page_array(&block);
	if (error)
		return error;
	insert_block(at, &block);
	if ((uintptr_t)start < atomic_load(&lowest))
		atomic_store(&lowest, (uintptr_t)start);
	if ((uintptr_t)block_end(&block) > atomic_load(&highest))
		atomic_store(&highest, (uintptr_t)block_end(&block));
	return 0;
}

/* Whether two neighbours belong to one piece: both fused, frames consecutive. */
PF_NEEDS_LOCK static bool joined(const PfRamBlock *block, size_t left)
{
	return left + 1 < block->n_pages && pf_ram_state(block, left) == PF_PAGE_FUSED &&
	       pf_ram_state(block, left + 1) == PF_PAGE_FUSED &&
	       pf_ram_frame(block, left + 1).v == pf_ram_frame(block, left).v + 1;
}

/* Makes address a border between blocks. false: the array is full. */
PF_NEEDS_LOCK static bool split_at(char *address)
{
	for (unsigned i = 0; i < n_blocks; i++) {
		PfRamBlock *block = &blocks[i];

		if (block->start < address && address < block_end(block)) {
			PfRamBlock right = *block;

			if (n_blocks == PF_RAM_MAX_BLOCKS)
				return false;
			right.n_pages = (size_t)(block_end(block) - address) / PF_PAGE_SIZE;
			right.pages += block->n_pages - right.n_pages;
			n_runs += joined(block, block->n_pages - right.n_pages - 1);
			right.start = address;
			block->n_pages -= right.n_pages;
			right.array->n_parts++;
			insert_block(i + 1, &right);
			return true;
		}
	}
	return true;
}

PF_NEEDS_LOCK static bool overlaps(const PfRamBlock *block, const char *start, const char *end)
{
	return block->start < end && start < block_end(block);
}

void pf_ram_remove(void *start, size_t length)
{
	char *from = start, *to = from + length;

	for (unsigned i = 0; i < n_blocks;) {
		PfRamBlock *block = &blocks[i];

		if (from <= block->start && block_end(block) <= to) {
			remove_block(i);
			continue;
		}
		if (overlaps(block, from, to)) {
			size_t page = from > block->start ? pf_ram_page(block, from) : 0;

			for (; page < block->n_pages && pf_ram_address(block, page) < to; page++)
				pf_ram_set(block, page, PF_PAGE_GONE, (PfFrame){0});
		}
		i++;
	}
}

PfRamBlock *pf_ram_find(const void *start, size_t length)
{
	PfRamBlock *block = pf_ram_next(start);

	if (!block || (const char *)start < block->start ||
		length > (size_t)(block_end(block) - (const char *)start))
		return NULL;
	return block;
}

PfRamBlock *pf_ram_next(const void *address)
{
	unsigned low = 0, high = n_blocks;

	while (low < high) {
		unsigned middle = (low + high) / 2;

		if ((const char *)address < block_end(&blocks[middle]))
			high = middle;
		else
			low = middle + 1;
	}
	return low < n_blocks ? &blocks[low] : NULL;
}

unsigned pf_ram_n_blocks(void)
{
	return n_blocks;
}

bool pf_ram_was_used(void)
{
	return atomic_load(&highest) != 0;
}

bool pf_ram_touches(const void *start, size_t length)
{
	uintptr_t from = (uintptr_t)start;

	return from < atomic_load_explicit(&highest, memory_order_relaxed) && length > 0 &&
	       from + (length - 1) >= atomic_load_explicit(&lowest, memory_order_relaxed);
}

static bool apply_advice(PfVmFlags *flags, int advice)
{
	switch (advice) {
	case MADV_DONTFORK:
	case MADV_DOFORK:
		flags->dont_fork = advice == MADV_DONTFORK;
		return true;
	case MADV_DONTDUMP:
	case MADV_DODUMP:
		flags->dont_dump = advice == MADV_DONTDUMP;
		return true;
	case MADV_MERGEABLE:
	case MADV_UNMERGEABLE:
		flags->mergeable = advice == MADV_MERGEABLE;
		return true;
	case MADV_HUGEPAGE:
	case MADV_NOHUGEPAGE:
		flags->huge = advice == MADV_HUGEPAGE;
		flags->no_huge = advice == MADV_NOHUGEPAGE;
		return true;
	default:
		return false;
	}
}

/* Whether some page of the range does not have what the advice gives. */
PF_NEEDS_LOCK static bool is_news(char *start, char *end, int advice)
{
	for (unsigned i = 0; i < n_blocks; i++) {
		PfVmFlags flags = blocks[i].flags;

		if (!overlaps(&blocks[i], start, end) || !apply_advice(&flags, advice))
			continue;
		if (memcmp(&flags, &blocks[i].flags, sizeof flags) != 0)
			return true;
	}
	return false;
}

void pf_ram_advised(void *start, size_t length, int advice)
{
	char *end = (char *)start + length;

	if (!is_news(start, end, advice) || !split_at(start) || !split_at(end))
		return;
	for (unsigned i = 0; i < n_blocks; i++)
		if (overlaps(&blocks[i], start, end))
			apply_advice(&blocks[i].flags, advice);
}

/* Pieces = fused pages - joints between them; a page takes part in two joints. */
PF_NEEDS_LOCK static int64_t pieces_of(const PfRamBlock *block, size_t page)
{
	int64_t n = pf_ram_maps_frame(block, page);

	if (page > 0)
		n -= joined(block, page - 1);
	return n - joined(block, page);
}

void pf_ram_set(PfRamBlock *block, size_t page, PfPageState state, PfFrame frame)
{
	int64_t before = pieces_of(block, page);

	n_fused -= pf_ram_maps_frame(block, page);
	n_broken -= pf_ram_state(block, page) == PF_PAGE_BROKEN;
	block->pages[page] = state;
	if (state == PF_PAGE_FUSED || state == PF_PAGE_BROKEN)
		block->pages[page] |= frame.v << 3;
	n_fused += pf_ram_maps_frame(block, page);
	n_broken += state == PF_PAGE_BROKEN;
	n_runs += (uint64_t)(pieces_of(block, page) - before);
}

uint64_t pf_ram_n_fused(void)
{
	return n_fused;
}

uint64_t pf_ram_n_broken(void)
{
	return n_broken;
}

uint64_t pf_ram_n_runs(void)
{
	return n_runs;
}
