// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The build-id is a note that the linker puts into a segment of type PT_NOTE, near the start of the file. What is
 * looked at is a copy of the file's first pages, as many as are in memory, at most MAX_IMAGE_PAGES of them:
 * nothing is brought in for it, and nothing looks used because of it (window.c says how). Without the first page there
 * is no build-id; a file that is executed has it in memory, because the loader read it.
 *
 * The file may be anything, also half written or made to hurt. The image is all that libelf knows of, so no number
 * of the file makes it read elsewhere; those that would make it allocate are refused before (many program
 * headers, long notes) or not shown to it (section headers, which are not needed here).
 */
#include "guest-agent/find/elf_id.h"
#include "common/page.h"
#include "guest-agent/find/guard.h"
#include "guest-agent/find/window.h"
#include <elf.h>
#include <endian.h>
#include <gelf.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_IMAGE_PAGES     16u
#define MAX_PROGRAM_HEADERS 64
#define MAX_NOTES_SIZE      (16 * 1024)
#define NATIVE_ORDER        (__BYTE_ORDER == __LITTLE_ENDIAN ? ELFDATA2LSB : ELFDATA2MSB)

typedef struct Image {
	char *bytes; /* owned */
	size_t size;
	uint64_t file_size;
	const char *broken; /* why the file is not sound, or NULL */
} Image;

/* Copies the pages from the start of the file that are in memory. */
static void copy_start(int fd, Image *image)
{
	uint8_t resident[MAX_IMAGE_PAGES];
	PfWindow window;
	struct stat st;

	if (fstat(fd, &st) < 0 || pf_window_open(&window, fd, 0, MAX_IMAGE_PAGES, resident) < 0)
		return;
	for (size_t i = 0; i < MAX_IMAGE_PAGES && resident[i] & 1; i++) {
		if (pf_guard_copy(image->bytes + image->size, window.bytes + image->size,
			    PF_PAGE_SIZE) < 0)
			break;
		image->size += PF_PAGE_SIZE;
	}
	pf_window_close(&window);
	image->file_size = (uint64_t)st.st_size;
	if (image->file_size < image->size)
		image->size = (size_t)image->file_size;
}

/* Of a file that may be run or loaded; others (core dumps, objects) may well have none or too many headers. */
static bool is_program(const Image *image)
{
	const Elf64_Ehdr *header =
		(const Elf64_Ehdr *)image->bytes; /* as that of 32 bits until there */

	return header->e_type == ET_EXEC || header->e_type == ET_DYN;
}

static bool check_headers(Image *image, uint64_t offset, uint64_t phnum, size_t phentsize)
{
	if (phnum == 0 || phnum > MAX_PROGRAM_HEADERS)
		image->broken = "it has no program headers, or too many";
	else if (offset > image->file_size || phnum * phentsize > image->file_size - offset)
		image->broken = "it ends before its program headers do";
	return !image->broken;
}

/* Whether libelf may look at the image, from which the section headers are taken out. */
static bool make_sound(Image *image)
{
	Elf32_Ehdr *e32 = (Elf32_Ehdr *)image->bytes;
	Elf64_Ehdr *e64 = (Elf64_Ehdr *)image->bytes;

	if (image->size < sizeof(*e32) || memcmp(e32->e_ident, ELFMAG, SELFMAG) != 0 ||
		e32->e_ident[EI_DATA] != NATIVE_ORDER)
		return false;
	if (e32->e_ident[EI_CLASS] == ELFCLASS32) {
		e32->e_shoff = 0;
		e32->e_shnum = e32->e_shstrndx = 0;
		return check_headers(image, e32->e_phoff, e32->e_phnum, sizeof(Elf32_Phdr));
	}
	if (image->size < sizeof(*e64) || e64->e_ident[EI_CLASS] != ELFCLASS64)
		return false;
	e64->e_shoff = 0;
	e64->e_shnum = e64->e_shstrndx = 0;
	return check_headers(image, e64->e_phoff, e64->e_phnum, sizeof(Elf64_Phdr));
}

static size_t find_in_notes(Image *image, Elf_Data *notes, uint8_t id[PF_SESSION_MAX_BUILD_ID])
{
	size_t offset = 0, name, desc, next;
	GElf_Nhdr note;

	while ((next = gelf_getnote(notes, offset, &note, &name, &desc)) > 0) {
		const char *bytes = notes->d_buf;

		if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == sizeof(ELF_NOTE_GNU) &&
			memcmp(bytes + name, ELF_NOTE_GNU, sizeof(ELF_NOTE_GNU)) == 0) {
			if (note.n_descsz <= PF_SESSION_MAX_BUILD_ID) {
				memcpy(id, bytes + desc, note.n_descsz);
				return note.n_descsz;
			}
			image->broken = "its build-id is too long";
			return 0;
		}
		offset = next;
	}
	if (offset < notes->d_size && notes->d_size - offset >= sizeof(Elf64_Nhdr))
		image->broken = "a note of it is longer than all its notes";
	return 0;
}

/* The segment's notes, when they are sound and in the image, or NULL. */
static Elf_Data *get_notes(Image *image, Elf *elf, const GElf_Phdr *header)
{
	if (header->p_offset > image->file_size ||
		header->p_filesz > image->file_size - header->p_offset)
		image->broken = "it ends before its notes do";
	else if (header->p_filesz > MAX_NOTES_SIZE)
		image->broken = "its notes are too long";
	else if (header->p_offset <= image->size &&
		 header->p_filesz <= image->size - header->p_offset)
		return elf_getdata_rawchunk(elf, (int64_t)header->p_offset, header->p_filesz,
			header->p_align == 8 ? ELF_T_NHDR8 : ELF_T_NHDR);
	return NULL;
}

static size_t find_in_segments(Image *image, Elf *elf, uint8_t id[PF_SESSION_MAX_BUILD_ID])
{
	size_t n_headers, size = 0;
	GElf_Phdr header;

	if (elf_kind(elf) != ELF_K_ELF || elf_getphdrnum(elf, &n_headers) != 0)
		return 0;
	for (size_t i = 0; i < n_headers && size == 0; i++) {
		Elf_Data *notes;

		if (!gelf_getphdr(elf, (int)i, &header))
			return 0;
		notes = header.p_type == PT_NOTE ? get_notes(image, elf, &header) : NULL;
		if (notes)
			size = find_in_notes(image, notes, id);
	}
	return size;
}

static size_t find_in_image(Image *image, uint8_t id[PF_SESSION_MAX_BUILD_ID])
{
	size_t size = 0;
	Elf *elf;

	if (!make_sound(image) || elf_version(EV_CURRENT) == EV_NONE)
		return 0;
	elf = elf_memory(image->bytes, image->size);
	if (elf) {
		size = find_in_segments(image, elf, id);
		elf_end(elf);
	}
	return size;
}

size_t pf_elf_id_read(int fd, uint8_t id[PF_SESSION_MAX_BUILD_ID], const char **broken)
{
	Image image = {.bytes = malloc(MAX_IMAGE_PAGES * PF_PAGE_SIZE)};
	size_t size = 0;

	*broken = NULL;
	if (image.bytes) {
		copy_start(fd, &image);
		size = find_in_image(&image, id);
	}
	if (size == 0 && image.broken && is_program(&image))
		*broken = image.broken;
	free(image.bytes);
	return size;
}
