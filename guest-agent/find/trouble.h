/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What is wrong with files of the guest: said once, however often it is met. */
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define PF_TROUBLE_MAX_DEVICES 16

typedef struct PfTrouble {
	dev_t devices[PF_TROUBLE_MAX_DEVICES]; /* that were named, as far back as there is room */
	size_t n_devices, next;
	bool broken_elf; /* one was named */
} PfTrouble;

/* Pages of the file that are within its length cannot be read: a warning, once a device. name is text. */
void pf_trouble_unreadable(PfTrouble *trouble, dev_t device, const char *name);

/* An ELF file that is not sound, and why: the first one is named, the others at debug level. name is text. */
void pf_trouble_broken_elf(PfTrouble *trouble, const char *name, const char *why);
