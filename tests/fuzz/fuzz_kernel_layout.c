// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Where the kernel is: the text of /proc/iomem, the headers of /proc/kcore and the kernel's notes. The first byte says
 * which.
 */
#include "guest-agent/find/kernel_layout.h"
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
	if (!holds)
		abort();
}

static void parse_iomem(const uint8_t *text, size_t size)
{
	FILE *file = fmemopen((void *)text, size, "r");
	PfKernelLayout layout;
	uint64_t end = 0;
	int r;

	require(file != NULL);
	r = pf_kernel_layout_parse(&layout, file);
	fclose(file);
	require((r == 0) == (layout.n > 0) && layout.n <= PF_KERNEL_MAX_RANGES);
	for (size_t i = 0; i < layout.n; i++) {
		const PfGuestRange *range = &layout.ranges[i];

		require(range->n_pages > 0 && range->first.v >= end);
		end = range->first.v + range->n_pages;
		require(end - layout.ranges[0].first.v <= PF_SESSION_MAX_MODULE_PAGES &&
			end <= 1ull << 40);
	}
}

static void parse_kcore(const uint8_t *bytes, size_t size)
{
	const PfGuestRange range = {{0x1000}, 0x10};
	int fd = memfd_create("kcore", MFD_CLOEXEC);
	PfKcoreSegment segment;

	require(fd >= 0 && write(fd, bytes, size) == (ssize_t)size);
	if (pf_kcore_find(fd, &range, &segment) == 0) {
		require(segment.physical <= 0x1000000);
		require(segment.offset <= INT64_MAX - (0x1000000 - segment.physical) - 0x10000);
	}
	close(fd);
}

static void parse_notes(const uint8_t *bytes, size_t size)
{
	uint8_t *notes = malloc(size), id[PF_SESSION_MAX_BUILD_ID];

	require(notes != NULL);
	memcpy(notes, bytes, size);
	require(pf_kernel_notes_build_id(notes, size, id) <= sizeof(id));
	free(notes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;
	switch (data[0] % 3) {
	case 0:
		parse_iomem(data + 1, size - 1);
		break;
	case 1:
		parse_kcore(data + 1, size - 1);
		break;
	default:
		parse_notes(data + 1, size - 1);
		break;
	}
	return 0;
}
