/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* pagefusion-agent --check: can it work here, and if not, why and what to do. */
#include "guest-agent/config.h"

/* The configuration as it was read, of which nothing is owned. */
typedef struct PfConfigChecked {
	const PfAgentConfig *config; /* what holds */
	const char *path;            /* of the file; NULL: there is none */
	const char *wrong;           /* what is wrong with it, or NULL */
} PfConfigChecked;

/*
 * Writes one line a check, for people or as JSON (an array of objects). Exit status: 0 mapped files can be looked at
 * and there is a port to tell of them, 1 not, with what to do.
 */
int pf_check(FILE *out, const PfConfigChecked *checked, bool json);
