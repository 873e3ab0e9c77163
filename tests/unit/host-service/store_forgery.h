/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Memory files that look like a store of the group "forged", in all but what a test changes. */
#include "common/page.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define FORGED_GROUP "forged"

/* The label as version 2 of it stands at the start of every store. */
typedef struct ForgedLabel {
	char magic[8];
	uint32_t version, reserved;
	uint64_t mark;
	uint8_t id[16];
	char group[256];
} ForgedLabel;

typedef struct Forgery {
	ForgedLabel label;
	off_t size;
	unsigned seals;
	mode_t mode;
	uid_t owner;
} Forgery;

static inline Forgery forgery(void)
{
	Forgery plan = {.label = {.magic = "pfstore",
				.version = 2,
				.mark = 1024,
				.id = {0xf0, 1, 2, 3},
				.group = FORGED_GROUP},
		.size = (off_t)1 << 44,
		.seals = F_SEAL_SHRINK | F_SEAL_GROW,
		.mode = 0600,
		.owner = geteuid()};

	return plan;
}

static inline int forge(const Forgery *plan)
{
	int fd = memfd_create("forged", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, plan->size), 0);
	if (plan->size >= (off_t)sizeof plan->label)
		assert_int_equal(
			pwrite(fd, &plan->label, sizeof plan->label, 0), sizeof plan->label);
	assert_int_equal(fchmod(fd, plan->mode), 0);
	if (plan->owner != geteuid())
		assert_int_equal(fchown(fd, plan->owner, (gid_t)-1), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, plan->seals), 0);
	return fd;
}
