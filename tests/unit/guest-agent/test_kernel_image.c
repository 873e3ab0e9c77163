// SPDX-License-Identifier: LGPL-2.1-or-later
/* With made-up files in the place of /proc/iomem, /proc/kcore and /sys/kernel/notes. */
#include "guest-agent/find/kernel_image.h"
#include "common/digest.h"
#include "guest-agent/find/kernel_layout.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define CODE_PAGES   200 /* from page 0x1000 on */
#define GAP_PAGES    56
#define RODATA_PAGES 10
#define N_PAGES      (CODE_PAGES + GAP_PAGES + RODATA_PAGES)
#define FIRST_GFN    0x1000u
#define RAM_FIRST    0x100u /* where the segment begins */
#define DATA_OFFSET  0x3000u

#define IOMEM                                                                                      \
	"00000000-00000fff : Reserved\n"                                                           \
	"00100000-3fffffff : System RAM\n"                                                         \
	"  01000000-010c7003 : Kernel code\n"                                                      \
	"  01100000-01109fff : Kernel rodata\n"                                                    \
	"  01200000-012fffff : Kernel data\n"                                                      \
	"  01300000-013fffff : Kernel bss\n"

static const PfRam all_ram = {{{{RAM_FIRST}, 0x10000}}, 1};
static int iomem_fd, kcore_fd, notes_fd;
static uint64_t n_hashed;
static unsigned n_steps;

static void put(int fd, const void *bytes, size_t size, uint64_t offset)
{
	assert_int_equal(pwrite(fd, bytes, size, (off_t)offset), size);
}

static uint64_t page_offset(unsigned page)
{
	return DATA_OFFSET + (uint64_t)(FIRST_GFN - RAM_FIRST + page) * PF_PAGE_SIZE;
}

static void fill(uint8_t bytes[PF_PAGE_SIZE], unsigned page)
{
	memset(bytes, 0, PF_PAGE_SIZE);
	memcpy(bytes, &page, sizeof(page));
}

static void put_header(unsigned n_segments, const Elf64_Phdr *segments)
{
	Elf64_Ehdr header = {.e_ident = ELFMAG,
		.e_type = ET_CORE,
		.e_machine = EM_X86_64,
		.e_phoff = sizeof(header),
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = (uint16_t)n_segments};

	header.e_ident[EI_CLASS] = ELFCLASS64;
	header.e_ident[EI_DATA] = ELFDATA2LSB;
	put(kcore_fd, &header, sizeof(header), 0);
	put(kcore_fd, segments, n_segments * sizeof(*segments), sizeof(header));
}

static void make_kcore(uint64_t physical)
{
	const Elf64_Phdr segments[] = {{.p_type = PT_NOTE, .p_filesz = 100},
		{.p_type = PT_LOAD,
			.p_paddr = UINT64_MAX,
			.p_filesz = INT64_MAX,
			.p_offset = 0x1000},
		{.p_type = PT_LOAD, .p_filesz = INT64_MAX / 2, .p_offset = 0x1000},
		{.p_type = PT_LOAD, .p_paddr = 0x1000, .p_filesz = 0x9e000, .p_offset = 0x1000},
		{.p_type = PT_LOAD,
			.p_paddr = physical,
			.p_filesz = 0x3ff00000,
			.p_memsz = 0x3ff00000,
			.p_offset = DATA_OFFSET}};
	uint8_t bytes[PF_PAGE_SIZE];

	put_header(5, segments);
	for (unsigned i = 0; i < N_PAGES; i++) {
		fill(bytes, i);
		put(kcore_fd, bytes, sizeof(bytes), page_offset(i));
	}
}

static int setup(void **state)
{
	static const uint8_t notes[] = {6, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 'L', 'i', 'n', 'u', 'x',
		0, 0, 0, 9, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 3, 0, 0, 0, 'G', 'N', 'U', 0, 1, 2, 3,
		4, 5, 0, 0, 0};

	iomem_fd = memfd_create("iomem", MFD_CLOEXEC);
	kcore_fd = memfd_create("kcore", MFD_CLOEXEC);
	notes_fd = memfd_create("notes", MFD_CLOEXEC);
	if (iomem_fd < 0 || kcore_fd < 0 || notes_fd < 0)
		return -1;
	put(iomem_fd, IOMEM, strlen(IOMEM), 0);
	put(notes_fd, notes, sizeof(notes), 0);
	make_kcore(0x100000);
	return 0;
}

static int teardown(void **state)
{
	close(iomem_fd);
	close(kcore_fd);
	close(notes_fd);
	return 0;
}

static const char *fd_path(char path[32], int fd)
{
	snprintf(path, 32, "/proc/self/fd/%d", fd);
	return path;
}

static int open_image(PfKernelImage **image, const char **impossible)
{
	char iomem[32], kcore[32], notes[32];

	return pf_kernel_image_new_from(image, fd_path(iomem, iomem_fd), fd_path(kcore, kcore_fd),
		fd_path(notes, notes_fd), impossible);
}

static PfKernelImage *image_new(void)
{
	PfKernelImage *image = NULL;
	const char *impossible;

	assert_int_equal(open_image(&image, &impossible), 0);
	assert_null(impossible);
	return image;
}

static PfFile *file_new(const PfKernelImage *image)
{
	PfFound found;
	PfFile *file;

	pf_kernel_image_describe(image, &found);
	assert_int_equal(found.fd, -1);
	assert_int_equal(found.key.source, PF_SOURCE_KERNEL);
	assert_true(found.stamp.size == N_PAGES * PF_PAGE_SIZE);
	assert_string_equal(found.name, "vmlinux");
	file = pf_file_new(&found.key);
	assert_non_null(file);
	assert_int_equal(pf_file_renew(file, &found.stamp, found.name), 0);
	return file;
}

static int on_step(void *userdata, uint64_t n)
{
	n_steps++;
	n_hashed += n;
	return userdata ? *(int *)userdata : 0;
}

/* A pass; what it hashed is in n_hashed. */
static void visit(PfKernelImage *image, PfFile *file, const PfRam *ram, uint32_t pass)
{
	n_hashed = n_steps = 0;
	pf_file_join(file, PF_CLASS_KERNEL, pass);
	assert_int_equal(pf_kernel_image_visit(image, file, ram, on_step, NULL), 0);
}

static void check_page(const PfFile *file, unsigned page)
{
	const PfFilePage *known = pf_file_find(file, page);
	PfHasher *hasher = pf_hasher_new();
	uint8_t bytes[PF_PAGE_SIZE];
	PfDigest digest;

	fill(bytes, page);
	assert_non_null(hasher);
	assert_int_equal(pf_hasher_page(hasher, bytes, &digest), 0);
	pf_hasher_free(hasher);
	assert_non_null(known);
	assert_true(known->gfn == FIRST_GFN + page);
	assert_true(pf_digest_equal(&known->digest, &digest));
}

static void test_visit(void **state)
{
	PfKernelImage *image = image_new();
	PfFile *file = file_new(image);
	uint8_t id[PF_SESSION_MAX_BUILD_ID], changed[PF_PAGE_SIZE] = {77};

	assert_int_equal(pf_kernel_image_build_id(image, id), 5);
	assert_memory_equal(id, "\1\2\3\4\5", 5);

	visit(image, file, &all_ram, 1);
	assert_int_equal(n_hashed, CODE_PAGES + RODATA_PAGES);
	assert_int_equal(file->n, CODE_PAGES + RODATA_PAGES);
	assert_int_equal(file->n_reportable, 0);
	for (unsigned i = 0; i < N_PAGES; i++) {
		if (i < CODE_PAGES || i >= CODE_PAGES + GAP_PAGES)
			check_page(file, i);
		else
			assert_null(pf_file_find(file, i));
	}

	put(kcore_fd, changed, sizeof(changed), page_offset(130));
	visit(image, file, &all_ram, 2);
	assert_int_equal(n_hashed, CODE_PAGES + RODATA_PAGES);
	assert_int_equal(file->n_reportable, CODE_PAGES + RODATA_PAGES - 1);
	assert_false(pf_file_page_reportable(pf_file_find(file, 130)));
	visit(image, file, &all_ram, 3);
	assert_int_equal(file->n_reportable, CODE_PAGES + RODATA_PAGES);
	pf_file_free(file);
	pf_kernel_image_free(image);
}

static void test_outside_ram(void **state)
{
	const PfRam some = {{{{RAM_FIRST}, FIRST_GFN - RAM_FIRST + 5}}, 1};
	PfKernelImage *image = image_new();
	PfFile *file = file_new(image);

	visit(image, file, &some, 1);
	assert_int_equal(n_hashed, 5);
	assert_int_equal(file->n, 5);
	pf_file_free(file);
	pf_kernel_image_free(image);
}

/* It ends in the middle of a page: what could be read counts. */
static void test_short(void **state)
{
	PfKernelImage *image = image_new();
	PfFile *file = file_new(image);

	assert_int_equal(ftruncate(kcore_fd, (off_t)page_offset(150) + 100), 0);
	visit(image, file, &all_ram, 1);
	assert_int_equal(file->n, 150);
	check_page(file, 149);
	pf_file_free(file);
	pf_kernel_image_free(image);
}

static void test_given_up(void **state)
{
	PfKernelImage *image = image_new();
	PfFile *file = file_new(image);
	int result = -ECANCELED;

	n_steps = 0;
	pf_file_join(file, PF_CLASS_KERNEL, 1);
	assert_int_equal(pf_kernel_image_visit(image, file, &all_ram, on_step, &result), result);
	assert_int_equal(n_steps, 1);
	pf_file_free(file);
	pf_kernel_image_free(image);
}

static void expect_impossible(int error, const char *part)
{
	PfKernelImage *image = NULL;
	const char *impossible = NULL;

	assert_int_equal(open_image(&image, &impossible), error);
	assert_null(image);
	assert_non_null(impossible);
	assert_non_null(strstr(impossible, part));
}

static void set_iomem(const char *text)
{
	assert_int_equal(ftruncate(iomem_fd, 0), 0);
	put(iomem_fd, text, strlen(text), 0);
}

static void test_impossible(void **state)
{
	const Elf64_Phdr end = {.p_type = PT_LOAD, .p_paddr = 0x100000, .p_filesz = 0xfc7000};
	PfKernelImage *image = NULL;
	const char *why = NULL;
	char path[32];

	make_kcore(0);
	expect_impossible(-ENOENT, "physical address");
	make_kcore(UINT64_MAX);
	expect_impossible(-ENOENT, "physical address");
	/* the last page of the code is not in it */
	put_header(1, &end);
	expect_impossible(-ENOENT, "physical address");
	put(kcore_fd, "\177ELG", 4, 0);
	expect_impossible(-EINVAL, "physical address");
	assert_int_equal(ftruncate(kcore_fd, 20), 0);
	expect_impossible(-EINVAL, "physical address");

	set_iomem("00000000-00000000 : System RAM\n  00000000-00000000 : Kernel code\n");
	expect_impossible(-EPERM, "CAP_SYS_ADMIN");
	set_iomem("00100000-3fffffff : System RAM\n01000000-010c7003 : Kernel code\n");
	expect_impossible(-ENOENT, "where the kernel is");

	set_iomem(IOMEM);
	assert_int_equal(pf_kernel_image_new_from(&image, fd_path(path, iomem_fd), "/proc/nothing",
				 "/proc/nothing", &why),
		-ENOENT);
	assert_string_equal(why, "the kernel has no /proc/kcore");
	assert_int_equal(pf_kernel_image_new_from(
				 &image, "/proc/nothing", "/proc/nothing", "/proc/nothing", &why),
		-ENOENT);
	assert_string_equal(why, "/proc/iomem cannot be opened");
}

/* Kernels before 5.6 do not name their rodata; and a segment may end before it. */
static void test_code_only(void **state)
{
	const Elf64_Phdr code = {.p_type = PT_LOAD,
		.p_paddr = 0x100000,
		.p_filesz = 0xfc8000,
		.p_offset = DATA_OFFSET};
	PfKernelImage *image;
	PfFound found;

	put_header(1, &code);
	image = image_new();
	pf_kernel_image_describe(image, &found);
	assert_true(found.stamp.size == CODE_PAGES * PF_PAGE_SIZE);
	pf_kernel_image_free(image);

	set_iomem("00100000-3fffffff : System RAM\n  01000000-010c7fff : Kernel code\n");
	image = image_new();
	pf_kernel_image_describe(image, &found);
	assert_true(found.stamp.size == CODE_PAGES * PF_PAGE_SIZE);
	pf_kernel_image_free(image);
}

static void parse(PfKernelLayout *layout, const char *text, int result)
{
	FILE *file = fmemopen((void *)text, strlen(text), "r");

	assert_non_null(file);
	assert_int_equal(pf_kernel_layout_parse(layout, file), result);
	fclose(file);
}

static void test_layout(void **state)
{
	PfKernelLayout layout;

	/* sections that share a page, that overlap, that are the wrong way round or beyond all memory */
	parse(&layout,
		"  01000000-01000fff : Kernel code\n"
		"  01000800-01002fff : Kernel rodata\n"
		"  01001000-01001fff : Kernel rodata\n"
		"  01005000-01004fff : Kernel rodata\n"
		"  2000000000000000-2000000000000fff : Kernel rodata\n"
		"  ffffffffffffff00-ffffffffffffffff : Kernel rodata\n"
		"  10100000000-10100000fff : Kernel rodata\n",
		0);
	assert_int_equal(layout.n, 2);
	assert_int_equal(layout.ranges[0].first.v, 0x1000);
	assert_int_equal(layout.ranges[0].n_pages, 1);
	assert_int_equal(layout.ranges[1].first.v, 0x1001);
	assert_int_equal(layout.ranges[1].n_pages, 2);
	parse(&layout, "  10000000000000-10000000000fff : Kernel code\n", -ENOENT);
	parse(&layout, "  01000000-10001000fff : Kernel code\n", -ENOENT);
	parse(&layout, "", -ENOENT);
}

static void test_notes(void **state)
{
	static const uint8_t whole[] = {
		4, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 'G', 'N', 'U', 0, 7, 8, 9};
	static const uint8_t long_id[12 + 4 + 65] = {
		4, 0, 0, 0, 65, 0, 0, 0, 3, 0, 0, 0, 'G', 'N', 'U'};
	static const uint8_t absurd[] = {
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 1, 1};
	uint8_t id[PF_SESSION_MAX_BUILD_ID];

	assert_int_equal(pf_kernel_notes_build_id(whole, sizeof(whole), id), 3);
	assert_memory_equal(id, "\7\10\11", 3);
	for (size_t size = 0; size < sizeof(whole); size++)
		assert_int_equal(pf_kernel_notes_build_id(whole, size, id), 0);
	assert_int_equal(pf_kernel_notes_build_id(long_id, sizeof(long_id), id), 0);
	assert_int_equal(pf_kernel_notes_build_id(absurd, sizeof(absurd), id), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_visit, setup, teardown),
		cmocka_unit_test_setup_teardown(test_outside_ram, setup, teardown),
		cmocka_unit_test_setup_teardown(test_short, setup, teardown),
		cmocka_unit_test_setup_teardown(test_given_up, setup, teardown),
		cmocka_unit_test_setup_teardown(test_impossible, setup, teardown),
		cmocka_unit_test_setup_teardown(test_code_only, setup, teardown),
		cmocka_unit_test(test_layout),
		cmocka_unit_test(test_notes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
