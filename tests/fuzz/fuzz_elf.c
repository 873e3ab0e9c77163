// SPDX-License-Identifier: LGPL-2.1-or-later
/* Files that a build-id is looked for in. */
#include "guest-agent/find/elf_id.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	uint8_t id[PF_SESSION_MAX_BUILD_ID];
	const char *broken;

	if (fd < 0)
		fd = memfd_create("fuzz", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, 0) < 0 || pwrite(fd, data, size, 0) != (ssize_t)size)
		abort();
	if (pf_elf_id_read(fd, id, &broken) > PF_SESSION_MAX_BUILD_ID)
		abort();
	return 0;
}
