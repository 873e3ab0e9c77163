// SPDX-License-Identifier: LGPL-2.1-or-later
/* With more devices than there is room for, the oldest is forgotten, and would be named again. */
#include "guest-agent/find/trouble.h"
#include "common/log.h"
#include <sys/sysmacros.h>

static bool was_named(const PfTrouble *trouble, dev_t device)
{
	for (size_t i = 0; i < trouble->n_devices; i++) {
		if (trouble->devices[i] == device)
			return true;
	}
	return false;
}

void pf_trouble_unreadable(PfTrouble *trouble, dev_t device, const char *name)
{
	if (was_named(trouble, device)) {
		pf_debug("%s cannot be read, either (device %u:%u)", name, major(device),
			minor(device));
		return;
	}
	trouble->devices[trouble->next] = device;
	trouble->next = (trouble->next + 1) % PF_TROUBLE_MAX_DEVICES;
	if (trouble->n_devices < PF_TROUBLE_MAX_DEVICES)
		trouble->n_devices++;
	pf_warning(
		"%s cannot be read (device %u:%u): what cannot be read is left out. See the kernel's "
		"log: the disk may be failing",
		name, major(device), minor(device));
}

void pf_trouble_broken_elf(PfTrouble *trouble, const char *name, const char *why)
{
	if (trouble->broken_elf) {
		pf_debug("%s is a broken ELF file: %s", name, why);
		return;
	}
	trouble->broken_elf = true;
	pf_info("%s is a broken ELF file: %s. It may be half written; its pages are reported all the "
		"same, without a build-id. Others are named with --debug only",
		name, why);
}
