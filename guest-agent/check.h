/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* pagefusion-agent --check: can it work here, and if not, why and what to do. */
#include "guest-agent/config.h"

/*
 * Writes one line a check, for people or as JSON (an array of objects). wrong is what is wrong with the
 * configuration's file, or NULL: then config is what it says. Exit status: 0 mapped files can be looked at and there is
 * a port to tell of them, 1 not, with what to do.
 */
int pf_check(FILE *out, const PfAgentConfig *config, const char *wrong, bool json);
