// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The kernel's code and read-only data stay where they are from boot to shutdown, and two guests with the same kernel
 * hold the same bytes but where addresses were relocated. Pages are counted from the first page of the code, so that
 * it does not matter where the kernel was loaded.
 *
 * The bytes are read through /proc/kcore. The code may change (static branches, tracing): so a pass hashes all of it,
 * and pf_file_commit() decides what held still.
 *
 * Opening /proc/kcore needs CAP_SYS_RAWIO and a kernel that is not locked down.
 */
#include "guest-agent/find/kernel_image.h"
#include "common/digest.h"
#include "guest-agent/find/kernel_layout.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define WINDOW_PAGES 128 /* 512 KiB */

struct PfKernelImage {
	int kcore;
	PfHasher *hasher;
	PfKernelLayout layout;
	PfKcoreSegment segments[PF_KERNEL_MAX_RANGES]; /* of the layout's ranges */
	uint8_t build_id[PF_SESSION_MAX_BUILD_ID];
	size_t build_id_size;
};

typedef struct Window {
	uint8_t bytes[WINDOW_PAGES * PF_PAGE_SIZE];
	PfObserved observed[WINDOW_PAGES];
	size_t n;
} Window;

static int find_ranges(PfKernelImage *image, const char *path, const char **impossible)
{
	FILE *iomem = fopen(path, "re");
	int r;

	if (!iomem) {
		*impossible = "/proc/iomem cannot be opened";
		return -errno;
	}
	r = pf_kernel_layout_parse(&image->layout, iomem);
	fclose(iomem);
	if (r < 0)
		*impossible = r == -EPERM ? "/proc/iomem hides its addresses: no CAP_SYS_ADMIN"
					  : "/proc/iomem does not say where the kernel is";
	return r;
}

static const char *why_not_opened(int error)
{
	switch (error) {
	case ENOENT:
		return "the kernel has no /proc/kcore";
	case EPERM:
	case EACCES:
		return "/proc/kcore cannot be opened: no CAP_SYS_RAWIO, or the kernel is locked down";
	default:
		return "/proc/kcore cannot be opened";
	}
}

/* Ranges that /proc/kcore does not show are dropped; without the first there is no image. */
static int find_segments(PfKernelImage *image, const char *path, const char **impossible)
{
	PfKernelLayout *layout = &image->layout;
	size_t kept = 0;
	int r = 0;

	image->kcore = open(path, O_RDONLY | O_CLOEXEC);
	if (image->kcore < 0) {
		r = -errno;
		*impossible = why_not_opened(errno);
		return r;
	}
	for (size_t i = 0; i < layout->n && (r == 0 || r == -ENOENT); i++) {
		r = pf_kcore_find(image->kcore, &layout->ranges[i], &image->segments[kept]);
		if (r == 0)
			layout->ranges[kept++] = layout->ranges[i];
		else if (i == 0)
			break;
	}
	layout->n = kept;
	if (kept > 0)
		return 0;
	*impossible = "/proc/kcore does not show the kernel by its physical address";
	return r;
}

static void read_build_id(PfKernelImage *image, const char *path)
{
	uint8_t notes[4096];
	FILE *file = fopen(path, "re");
	size_t size;

	if (!file)
		return;
	size = fread(notes, 1, sizeof(notes), file);
	fclose(file);
	image->build_id_size = pf_kernel_notes_build_id(notes, size, image->build_id);
}

int pf_kernel_image_new_from(PfKernelImage **image, const char *iomem, const char *kcore,
	const char *notes, const char **impossible)
{
	PfKernelImage *i = calloc(1, sizeof(*i));
	int r;

	*impossible = NULL;
	if (!i)
		return -ENOMEM;
	i->kcore = -1;
	i->hasher = pf_hasher_new();
	r = i->hasher ? find_ranges(i, iomem, impossible) : -EIO;
	if (r == 0)
		r = find_segments(i, kcore, impossible);
	if (r < 0) {
		pf_kernel_image_free(i);
		return r;
	}
	read_build_id(i, notes);
	*image = i;
	return 0;
}

int pf_kernel_image_new(PfKernelImage **image, const char **impossible)
{
	return pf_kernel_image_new_from(
		image, "/proc/iomem", "/proc/kcore", "/sys/kernel/notes", impossible);
}

void pf_kernel_image_free(PfKernelImage *image)
{
	if (!image)
		return;
	if (image->kcore >= 0)
		close(image->kcore);
	pf_hasher_free(image->hasher);
	free(image);
}

void pf_kernel_image_describe(const PfKernelImage *image, PfFound *found)
{
	const PfGuestRange *first = &image->layout.ranges[0],
			   *last = &image->layout.ranges[image->layout.n - 1];
	uint64_t n_pages = last->first.v + last->n_pages - first->first.v;

	*found = (PfFound){.key = {.source = PF_SOURCE_KERNEL},
		.stamp = {.size = (int64_t)(n_pages * PF_PAGE_SIZE)},
		.name = "vmlinux",
		.fd = -1};
}

size_t pf_kernel_image_build_id(const PfKernelImage *image, uint8_t id[PF_SESSION_MAX_BUILD_ID])
{
	memcpy(id, image->build_id, image->build_id_size);
	return image->build_id_size;
}

/* How many whole pages could be read. */
static size_t read_pages(const PfKernelImage *image, uint8_t *bytes, uint64_t offset, size_t n)
{
	size_t size = 0;

	while (size < n * PF_PAGE_SIZE) {
		ssize_t got = pread(image->kcore, bytes + size, n * PF_PAGE_SIZE - size,
			(off_t)(offset + size));

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		size += (size_t)got;
	}
	return size / PF_PAGE_SIZE;
}

static int hash_window(const PfKernelImage *image, Window *window, size_t n, PfGfn first,
	uint64_t file_page, const PfRam *ram)
{
	window->n = 0;
	for (size_t i = 0; i < n; i++) {
		PfObserved *page = &window->observed[window->n];
		int r;

		page->gfn.v = first.v + i;
		page->file_page = (uint32_t)(file_page + i);
		if (!pf_ram_contains(ram, page->gfn))
			continue;
		r = pf_hasher_page(image->hasher, window->bytes + i * PF_PAGE_SIZE, &page->digest);
		if (r < 0)
			return r;
		window->n++;
	}
	return 0;
}

/* n pages of a range, from its page done on. */
static int visit_window(const PfKernelImage *image, Window *window, PfFile *file, size_t range,
	uint64_t done, size_t n, const PfRam *ram)
{
	const PfKcoreSegment *segment = &image->segments[range];
	PfGfn first = {image->layout.ranges[range].first.v + done};
	uint64_t file_page = first.v - image->layout.ranges[0].first.v;
	uint64_t offset = segment->offset + (first.v * PF_PAGE_SIZE - segment->physical);
	size_t n_read = read_pages(image, window->bytes, offset, n);
	int r = hash_window(image, window, n_read, first, file_page, ram);

	return r == 0 ? pf_file_commit(file, file_page, n, window->observed, window->n) : r;
}

int pf_kernel_image_visit(
	PfKernelImage *image, PfFile *file, const PfRam *ram, PfStep step, void *userdata)
{
	Window *window = malloc(sizeof(*window));
	int r = window ? 0 : -ENOMEM;

	for (size_t i = 0; i < image->layout.n && r == 0; i++) {
		uint64_t n_pages = image->layout.ranges[i].n_pages;

		for (uint64_t done = 0; done < n_pages && r == 0; done += WINDOW_PAGES) {
			uint64_t rest = n_pages - done;

			r = visit_window(image, window, file, i, done,
				rest < WINDOW_PAGES ? (size_t)rest : WINDOW_PAGES, ram);
			if (r == 0 && step)
				r = step(userdata, window->n);
		}
	}
	free(window);
	return r;
}
