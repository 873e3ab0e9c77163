/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
#include "guest-agent/find/scan.h"
#include <stdio.h>

/* Writes what a report would say as one JSON object and a newline. 0 or -EIO. */
int pf_dump_write(FILE *out, const PfFacts *facts, const PfState *state, const PfScanStats *stats,
	bool with_digests);
