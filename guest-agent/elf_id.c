// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The build-id is a note that the linker puts into a segment of type PT_NOTE, so the ELF header,
 * the program headers and the notes are all that is read; section headers are not needed. The file
 * may be anything, also half written or made to hurt. libelf checks against the file's size, but a
 * sparse file can be as large as it likes: so what makes libelf allocate by a number out of the
 * file (extended section numbering, many program headers, huge notes) is refused before libelf sees
 * it. libelf reads with pread() here and maps nothing: a file that is truncated meanwhile gives an
 * error and no signal.
 */
#include "guest-agent/elf_id.h"
#include <elf.h>
#include <endian.h>
#include <fcntl.h>
#include <gelf.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#define MAX_PROGRAM_HEADERS 256
#define MAX_NOTES_SIZE      (64 * 1024)
#define NATIVE_ORDER        (__BYTE_ORDER == __LITTLE_ENDIAN ? ELFDATA2LSB : ELFDATA2MSB)

static bool sound_counts(uint64_t phnum, uint64_t shoff, uint64_t shnum)
{
	return phnum > 0 && phnum <= MAX_PROGRAM_HEADERS && (shnum > 0 || shoff == 0);
}

static bool sound_header(int fd)
{
	union {
		unsigned char ident[EI_NIDENT];
		Elf32_Ehdr e32;
		Elf64_Ehdr e64;
	} header = {{0}};
	ssize_t n = pread(fd, &header, sizeof(header), 0);

	if (n < (ssize_t)sizeof(header.e32) || memcmp(header.ident, ELFMAG, SELFMAG) != 0 ||
		header.ident[EI_DATA] != NATIVE_ORDER)
		return false;
	if (header.ident[EI_CLASS] == ELFCLASS32)
		return sound_counts(header.e32.e_phnum, header.e32.e_shoff, header.e32.e_shnum);
	return header.ident[EI_CLASS] == ELFCLASS64 && n == (ssize_t)sizeof(header.e64) &&
	       sound_counts(header.e64.e_phnum, header.e64.e_shoff, header.e64.e_shnum);
}

static size_t find_in_notes(Elf_Data *notes, uint8_t id[PF_SESSION_MAX_BUILD_ID])
{
	size_t offset = 0, name, desc, next;
	GElf_Nhdr note;

	while ((next = gelf_getnote(notes, offset, &note, &name, &desc)) > 0) {
		const char *bytes = notes->d_buf;

		if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == sizeof(ELF_NOTE_GNU) &&
			memcmp(bytes + name, ELF_NOTE_GNU, sizeof(ELF_NOTE_GNU)) == 0) {
			if (note.n_descsz > PF_SESSION_MAX_BUILD_ID)
				return 0;
			memcpy(id, bytes + desc, note.n_descsz);
			return note.n_descsz;
		}
		offset = next;
	}
	return 0;
}

static size_t find_in_segments(Elf *elf, uint8_t id[PF_SESSION_MAX_BUILD_ID])
{
	size_t n_headers, size = 0;
	GElf_Phdr header;

	if (elf_kind(elf) != ELF_K_ELF || elf_getphdrnum(elf, &n_headers) != 0)
		return 0;
	for (size_t i = 0; i < n_headers && size == 0; i++) {
		Elf_Data *notes;

		if (!gelf_getphdr(elf, (int)i, &header))
			return 0;
		if (header.p_type != PT_NOTE || header.p_filesz > MAX_NOTES_SIZE ||
			header.p_offset > INT64_MAX)
			continue;
		notes = elf_getdata_rawchunk(elf, (int64_t)header.p_offset, header.p_filesz,
			header.p_align == 8 ? ELF_T_NHDR8 : ELF_T_NHDR);
		if (notes)
			size = find_in_notes(notes, id);
	}
	return size;
}

size_t pf_elf_id_read(int fd, uint8_t id[PF_SESSION_MAX_BUILD_ID])
{
	size_t size = 0;
	Elf *elf;

	/* Only an advice: what is read here shall not pull its neighbours into the page cache. */
	(void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	if (!sound_header(fd) || elf_version(EV_CURRENT) == EV_NONE)
		return 0;
	elf = elf_begin(fd, ELF_C_READ, NULL);
	if (elf) {
		size = find_in_segments(elf, id);
		elf_end(elf);
	}
	return size;
}
