/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the agent says of its guest. */
#include "common/page.h"
#include "proto/limits.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* System RAM: ascending, disjoint, not adjacent, none empty. */
typedef struct PfRam {
	PfGuestRange ranges[PF_SESSION_MAX_RAM_RANGES];
	size_t n;
} PfRam;

typedef struct PfFacts {
	uint8_t boot_id[16];
	char boot_id_text[37]; /* the same as the kernel writes it */
	char kernel[65];       /* uname -r */
	PfRam ram;
} PfFacts;

/*
 * Collects the facts. 0; -EPERM when /proc/iomem hides its addresses (no CAP_SYS_ADMIN); -ENOTSUP
 * when pages are not 4 KiB; another -errno.
 */
int pf_facts_read(PfFacts *facts);

/* Reads the RAM ranges anew: memory can be plugged in. 0, -EPERM or -errno; ram is unchanged on
 * error. */
int pf_facts_read_ram(PfRam *ram);

/* System RAM out of the text of /proc/iomem; what is malformed is skipped. */
void pf_ram_parse(PfRam *ram, FILE *iomem);

bool pf_ram_equal(const PfRam *a, const PfRam *b);
bool pf_ram_contains(const PfRam *ram, PfGfn gfn);

/* 16 bytes out of a UUID's text, a newline may follow. 0 or -EINVAL. */
int pf_boot_id_parse(const char *text, uint8_t id[16]);
