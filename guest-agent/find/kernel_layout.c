// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * /proc/iomem names the kernel's sections, indented below the RAM in which they lie: "Kernel code", and "Kernel rodata"
 * where the kernel is young enough (Linux 5.6). The last page of a section may be partly used; it belongs to it. The
 * sections are where the kernel is, so without them, or with addresses of zero for who may not see them, there is
 * nothing to look at.
 *
 * /proc/kcore is an ELF file made up by the kernel, a core of its own memory: each stretch of the direct map of physical
 * memory is a segment that says its physical address. Other segments say -1 there, or 0, as all do of a kernel that
 * does not fill it in (before Linux 4.11).
 */
#include "guest-agent/find/kernel_layout.h"
#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define MAX_SEGMENTS 4096
#define MAX_GFN      (1ull << 40)

static bool is_section(const char *name)
{
	return strcmp(name, "Kernel code\n") == 0 || strcmp(name, "Kernel rodata\n") == 0;
}

static void add_range(PfKernelLayout *layout, uint64_t first, uint64_t end)
{
	const PfGuestRange *last = layout->n > 0 ? &layout->ranges[layout->n - 1] : NULL;

	if (layout->n == PF_KERNEL_MAX_RANGES || end > MAX_GFN ||
		(layout->n > 0 && end > layout->ranges[0].first.v + PF_SESSION_MAX_MODULE_PAGES))
		return;
	if (last && first < last->first.v + last->n_pages)
		first = last->first.v + last->n_pages;
	if (first < end && end - first <= PF_SESSION_MAX_MODULE_PAGES)
		layout->ranges[layout->n++] = (PfGuestRange){{first}, end - first};
}

int pf_kernel_layout_parse(PfKernelLayout *layout, FILE *iomem)
{
	bool hidden = false;
	char line[256];

	*layout = (PfKernelLayout){0};
	while (fgets(line, sizeof(line), iomem)) {
		uint64_t first, last;
		int name = 0;

		if (sscanf(line, " %16" SCNx64 "-%16" SCNx64 " : %n", &first, &last, &name) != 2 ||
			name == 0 || line[0] != ' ' || !is_section(line + name))
			continue;
		hidden |= last == 0;
		if (last > first && last < UINT64_MAX)
			add_range(layout, first / PF_PAGE_SIZE, last / PF_PAGE_SIZE + 1);
	}
	if (layout->n > 0)
		return 0;
	return hidden ? -EPERM : -ENOENT;
}

static int read_exactly(int fd, void *buffer, size_t size, uint64_t offset)
{
	ssize_t n = offset <= INT64_MAX ? pread(fd, buffer, size, (off_t)offset) : 0;

	if (n < 0)
		return -errno;
	return (size_t)n == size ? 0 : -EINVAL;
}

static bool is_core(const Elf64_Ehdr *header)
{
	return memcmp(header->e_ident, ELFMAG, SELFMAG) == 0 &&
	       header->e_ident[EI_CLASS] == ELFCLASS64 &&
	       header->e_ident[EI_DATA] ==
		       (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? ELFDATA2LSB : ELFDATA2MSB) &&
	       header->e_type == ET_CORE && header->e_phentsize == sizeof(Elf64_Phdr) &&
	       header->e_phnum <= MAX_SEGMENTS;
}

static bool holds(const Elf64_Phdr *segment, const PfGuestRange *range)
{
	uint64_t first = range->first.v * PF_PAGE_SIZE, size = range->n_pages * PF_PAGE_SIZE;

	return segment->p_type == PT_LOAD && segment->p_paddr != 0 && segment->p_paddr <= first &&
	       first - segment->p_paddr <= segment->p_filesz &&
	       segment->p_filesz - (first - segment->p_paddr) >= size &&
	       segment->p_offset <= INT64_MAX && segment->p_filesz <= INT64_MAX - segment->p_offset;
}

int pf_kcore_find(int kcore, const PfGuestRange *range, PfKcoreSegment *segment)
{
	Elf64_Ehdr header;
	int r = read_exactly(kcore, &header, sizeof(header), 0);

	if (r == 0 && !is_core(&header))
		r = -EINVAL;
	for (unsigned i = 0; r == 0 && i < header.e_phnum; i++) {
		Elf64_Phdr found;

		if (header.e_phoff > INT64_MAX / 2)
			return -EINVAL;
		r = read_exactly(kcore, &found, sizeof(found), header.e_phoff + i * sizeof(found));
		if (r == 0 && holds(&found, range)) {
			*segment = (PfKcoreSegment){found.p_paddr, found.p_offset};
			return 0;
		}
	}
	return r < 0 ? r : -ENOENT;
}

static size_t padded(uint32_t size)
{
	return ((size_t)size + 3) & ~(size_t)3;
}

size_t pf_kernel_notes_build_id(
	const uint8_t *notes, size_t size, uint8_t id[PF_SESSION_MAX_BUILD_ID])
{
	Elf64_Nhdr note;

	for (size_t at = 0; size - at >= sizeof(note);) {
		size_t name, desc;

		memcpy(&note, notes + at, sizeof(note));
		name = at + sizeof(note);
		if (padded(note.n_namesz) > size - name)
			return 0;
		desc = name + padded(note.n_namesz);
		if (note.n_descsz > size - desc)
			return 0;
		if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == sizeof(ELF_NOTE_GNU) &&
			memcmp(notes + name, ELF_NOTE_GNU, sizeof(ELF_NOTE_GNU)) == 0) {
			if (note.n_descsz > PF_SESSION_MAX_BUILD_ID)
				return 0;
			memcpy(id, notes + desc, note.n_descsz);
			return note.n_descsz;
		}
		if (padded(note.n_descsz) > size - desc)
			return 0;
		at = desc + padded(note.n_descsz);
	}
	return 0;
}
