// SPDX-License-Identifier: LGPL-2.1-or-later
/* Tables of mounts. */
#include "guest-agent/find/mounts.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
	if (!holds)
		abort();
}

static void check(const PfMounts *mounts, const PfMount *all, size_t n, size_t size)
{
	for (size_t i = 0; i < n; i++) {
		const PfMount *mount = &all[i], *found = pf_mounts_find(mounts, mount->id);

		require(mount->point[0] == '/' && mount->root[0] != '\0');
		require(strlen(mount->root) + strlen(mount->point) < size);
		require(mount->block == (major(mount->device) ? mount->device : 0));
		require(found && found->id == mount->id);
		require(i == 0 || all[i - 1].device <= mount->device);
		require(!mount->again || (all[i - 1].device == mount->device &&
						 strcmp(all[i - 1].root, mount->root) == 0 &&
						 all[i - 1].line < mount->line));
		if (n == 1)
			require(pf_mounts_find_device(mounts, mount->device) == mount);
		require(pf_mounts_judge(mounts, mount, true) != PF_FS_OVERLAY);
		require(pf_mounts_judge(mounts, mount, false) == mount->kind ||
			pf_mounts_judge(mounts, mount, false) == PF_FS_ANYBODYS);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static PfMounts *mounts; /* of this process at first, then of the input before */
	const PfMount *all;
	FILE *file;
	size_t n;

	if (size == 0)
		return 0;
	if (!mounts)
		require(pf_mounts_new(&mounts) == 0);
	file = fmemopen((void *)data, size, "r");
	require(file != NULL);
	require(pf_mounts_parse(mounts, file) == 0);
	fclose(file);
	all = pf_mounts_all(mounts, &n);
	check(mounts, all, n, size);
	return 0;
}
