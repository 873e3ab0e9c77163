// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/find/elf_id.h"
#include "guest-agent/find/residency.h"
#include <elf.h>
#include <endian.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

/* A smallest file with a build-id: header, one program header, one note of 20 bytes. */
typedef struct Image {
	Elf64_Ehdr header;
	Elf64_Phdr segment;
	Elf64_Nhdr note;
	char name[4];
	uint8_t id[20];
} Image;

static Image image_new(void)
{
	Image image = {
		.header = {.e_type = ET_DYN,
			.e_machine = EM_X86_64,
			.e_version = EV_CURRENT,
			.e_phoff = sizeof(Elf64_Ehdr),
			.e_ehsize = sizeof(Elf64_Ehdr),
			.e_phentsize = sizeof(Elf64_Phdr),
			.e_phnum = 1},
		.segment = {.p_type = PT_NOTE,
			.p_offset = offsetof(Image, note),
			.p_filesz = 12 + 4 + 20,
			.p_align = 4},
		.note = {.n_namesz = 4, .n_descsz = 20, .n_type = NT_GNU_BUILD_ID},
		.name = "GNU",
	};

	memcpy(image.header.e_ident, ELFMAG, SELFMAG);
	image.header.e_ident[EI_CLASS] = ELFCLASS64;
	image.header.e_ident[EI_DATA] = __BYTE_ORDER == __LITTLE_ENDIAN ? ELFDATA2LSB : ELFDATA2MSB;
	image.header.e_ident[EI_VERSION] = EV_CURRENT;
	for (size_t i = 0; i < sizeof(image.id); i++)
		image.id[i] = (uint8_t)(0xa0 + i);
	return image;
}

static const char *broken; /* said of the file that was read last */

static size_t read_id(const void *bytes, size_t size, uint8_t id[PF_SESSION_MAX_BUILD_ID])
{
	int fd = memfd_create("elf", MFD_CLOEXEC);
	size_t n;

	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, size), size);
	n = pf_elf_id_read(fd, id, &broken);
	close(fd);
	return n;
}

static void test_found(void **state)
{
	Image image = image_new();
	uint8_t id[PF_SESSION_MAX_BUILD_ID];

	assert_int_equal(read_id(&image, sizeof(image), id), 20);
	assert_memory_equal(id, image.id, 20);
	assert_null(broken);
}

static void test_half_written(void **state)
{
	Image image = image_new();
	uint8_t id[PF_SESSION_MAX_BUILD_ID];

	for (size_t size = 0; size < offsetof(Image, id) + sizeof(image.id); size++) {
		assert_int_equal(read_id(&image, size, id), 0);
		if (size < sizeof(Elf64_Ehdr))
			continue;
		assert_non_null(broken);
		assert_string_equal(broken, size < offsetof(Image, note)
						    ? "it ends before its program headers do"
						    : "it ends before its notes do");
	}
}

static void test_other_files(void **state)
{
	Image image = image_new();
	uint8_t id[PF_SESSION_MAX_BUILD_ID];

	image.name[0] = 'X';
	assert_int_equal(read_id(&image, sizeof(image), id), 0);
	image = image_new();
	image.note.n_type = NT_GNU_ABI_TAG;
	assert_int_equal(read_id(&image, sizeof(image), id), 0);
	image = image_new();
	image.header.e_ident[EI_DATA] ^= ELFDATA2LSB ^ ELFDATA2MSB;
	assert_int_equal(read_id(&image, sizeof(image), id), 0);
	assert_null(broken);
	assert_int_equal(read_id("#!/bin/sh\n", 10, id), 0);
	assert_null(broken);
	/* Which may have no program headers, or many. */
	image = image_new();
	image.header.e_type = ET_REL;
	image.header.e_phnum = 0;
	assert_int_equal(read_id(&image, sizeof(image), id), 0);
	assert_null(broken);
	image.header.e_type = ET_CORE;
	image.header.e_phnum = PN_XNUM;
	assert_int_equal(read_id(&image, sizeof(image), id), 0);
	assert_null(broken);
}

static void assert_broken(const void *bytes, size_t size, const char *why)
{
	uint8_t id[PF_SESSION_MAX_BUILD_ID];

	assert_int_equal(read_id(bytes, size, id), 0);
	assert_non_null(broken);
	assert_string_equal(broken, why);
}

static void test_hostile(void **state)
{
	struct {
		Image image;
		uint8_t more[20000];
	} file = {.image = image_new()};
	Image image = image_new();

	image.note.n_descsz = UINT32_MAX;
	assert_broken(&image, sizeof(image), "a note of it is longer than all its notes");
	image = image_new();
	image.segment.p_filesz = UINT64_MAX;
	assert_broken(&image, sizeof(image), "it ends before its notes do");
	image = image_new();
	image.segment.p_offset = UINT64_MAX - 8;
	assert_broken(&image, sizeof(image), "it ends before its notes do");
	image = image_new();
	image.header.e_phnum = PN_XNUM;
	assert_broken(&image, sizeof(image), "it has no program headers, or too many");
	image = image_new();
	image.header.e_phoff = UINT64_MAX - 8;
	assert_broken(&image, sizeof(image), "it ends before its program headers do");
	file.image.segment.p_filesz = sizeof(file.more);
	assert_broken(&file, sizeof(file), "its notes are too long");
}

/* Only so many program headers are looked at: here the last one is the note's. */
static void test_many_program_headers(void **state)
{
	struct ManySegments {
		Elf64_Ehdr header;
		Elf64_Phdr segments[65];
		Elf64_Nhdr note;
		char name[4];
		uint8_t id[20];
	} file = {.header = image_new().header, .name = "GNU"};
	uint8_t id[PF_SESSION_MAX_BUILD_ID];

	file.note = image_new().note;
	file.segments[64] = file.segments[63] = image_new().segment;
	file.segments[64].p_offset = file.segments[63].p_offset =
		offsetof(struct ManySegments, note);
	file.header.e_phnum = 64;
	assert_int_equal(read_id(&file, sizeof(file), id), 20);
	file.header.e_phnum = 65;
	assert_int_equal(read_id(&file, sizeof(file), id), 0);
}

/* Section headers are not looked at, wherever the file says that they are. */
static void test_section_headers(void **state)
{
	Image image = image_new();
	uint8_t id[PF_SESSION_MAX_BUILD_ID];

	image.header.e_shoff = sizeof(Elf64_Ehdr);
	assert_int_equal(read_id(&image, sizeof(image), id), 20);
	image.header.e_shoff = UINT64_MAX - 8;
	image.header.e_shnum = UINT16_MAX;
	image.header.e_shentsize = sizeof(Elf64_Shdr);
	image.header.e_shstrndx = 17;
	assert_int_equal(read_id(&image, sizeof(image), id), 20);
	assert_memory_equal(id, image.id, 20);
}

static void test_long_id(void **state)
{
	struct {
		Image image;
		uint8_t more[80];
	} file = {.image = image_new()};
	uint8_t id[PF_SESSION_MAX_BUILD_ID];

	file.image.note.n_descsz = PF_SESSION_MAX_BUILD_ID;
	file.image.segment.p_filesz = 16 + PF_SESSION_MAX_BUILD_ID;
	assert_int_equal(read_id(&file, sizeof(file), id), PF_SESSION_MAX_BUILD_ID);
	file.image.note.n_descsz = PF_SESSION_MAX_BUILD_ID + 4;
	file.image.segment.p_filesz = 16 + PF_SESSION_MAX_BUILD_ID + 4;
	assert_broken(&file, sizeof(file), "its build-id is too long");
}

/* A file of which some pages were evicted: nothing is brought in, and no id is made up of what is left. */
static void test_only_resident(void **state)
{
	struct {
		Image image;
		uint8_t more[2 * 4096 - sizeof(Image)];
	} file = {.image = image_new()};
	char path[] = "/var/tmp/pagefusion-test-XXXXXX";
	uint8_t id[PF_SESSION_MAX_BUILD_ID];
	int fd = mkostemp(path, O_CLOEXEC);

	assert_true(fd >= 0);
	unlink(path);
	/* The note lies over the edge of the first page. */
	file.image.segment.p_offset = 4096 - 24;
	memcpy((uint8_t *)&file + 4096 - 24, &file.image.note, 12 + 4 + 20);
	assert_int_equal(write(fd, &file, sizeof(file)), sizeof(file));
	assert_int_equal(pf_elf_id_read(fd, id, &broken), 20);
	assert_int_equal(fsync(fd), 0);
	assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM), 0);
	assert_int_equal(pread(fd, id, 1, 0), 1);
	assert_true(pf_residency_possible(fd, 0, 1));
	assert_false(pf_residency_possible(fd, 1, 1));
	assert_int_equal(pf_elf_id_read(fd, id, &broken), 0);
	assert_null(broken);
	assert_false(pf_residency_possible(fd, 1, 1));
	assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	assert_int_equal(pf_elf_id_read(fd, id, &broken), 0);
	assert_false(pf_residency_possible(fd, 0, 2));
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_found),
		cmocka_unit_test(test_half_written),
		cmocka_unit_test(test_other_files),
		cmocka_unit_test(test_hostile),
		cmocka_unit_test(test_many_program_headers),
		cmocka_unit_test(test_section_headers),
		cmocka_unit_test(test_long_id),
		cmocka_unit_test(test_only_resident),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
