// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/elf_id.h"
#include <elf.h>
#include <endian.h>
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

static size_t read_id(const void *bytes, size_t size, uint8_t id[PF_SESSION_MAX_BUILD_ID])
{
	int fd = memfd_create("elf", MFD_CLOEXEC);
	size_t n;

	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, size), size);
	n = pf_elf_id_read(fd, id);
	close(fd);
	return n;
}

static void test_found(void **state)
{
	Image image = image_new();
	uint8_t id[PF_SESSION_MAX_BUILD_ID];

	assert_int_equal(read_id(&image, sizeof(image), id), 20);
	assert_memory_equal(id, image.id, 20);
}

static void test_half_written(void **state)
{
	Image image = image_new();
	uint8_t id[PF_SESSION_MAX_BUILD_ID];

	for (size_t size = 0; size < offsetof(Image, id) + sizeof(image.id); size++)
		assert_int_equal(read_id(&image, size, id), 0);
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
	assert_int_equal(read_id("#!/bin/sh\n", 10, id), 0);
}

static void test_hostile(void **state)
{
	Image image = image_new();
	uint8_t id[PF_SESSION_MAX_BUILD_ID];

	image.note.n_descsz = UINT32_MAX;
	assert_int_equal(read_id(&image, sizeof(image), id), 0);
	image = image_new();
	image.segment.p_filesz = UINT64_MAX;
	assert_int_equal(read_id(&image, sizeof(image), id), 0);
	image = image_new();
	image.segment.p_offset = UINT64_MAX - 8;
	assert_int_equal(read_id(&image, sizeof(image), id), 0);
	image = image_new();
	image.header.e_phnum = PN_XNUM;
	assert_int_equal(read_id(&image, sizeof(image), id), 0);
	image = image_new();
	image.header.e_shoff =
		sizeof(Elf64_Ehdr); /* extended numbering: the count would come from here */
	assert_int_equal(read_id(&image, sizeof(image), id), 0);
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
	assert_int_equal(read_id(&file, sizeof(file), id), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_found),
		cmocka_unit_test(test_half_written),
		cmocka_unit_test(test_other_files),
		cmocka_unit_test(test_hostile),
		cmocka_unit_test(test_long_id),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
