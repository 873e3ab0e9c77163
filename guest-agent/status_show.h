/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The other end of status_server.h. */
#include <stdbool.h>
#include <stdio.h>

/* Whether an agent runs that has a socket there: 0; -ENOENT or -ECONNREFUSED when none does; another
 * -errno. */
int pf_status_probe(const char *path);

/* pagefusion-agent --status: asks the agent that runs and writes its answer, as JSON or for people.
 * An exit status; says on standard error what is wrong. */
int pf_status_show(FILE *out, const char *path, bool json);
