/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The program behind main(): both functions log what went wrong and return an exit status. */
#include <stdbool.h>

typedef struct PfAgentOptions {
	const char *port;
	unsigned interval_s; /* between scans; not 0 */
} PfAgentOptions;

/* Reports to the host until SIGTERM or SIGINT. */
int pf_agent_run(const PfAgentOptions *options);

/* Scans once and prints what would be reported. */
int pf_agent_dump(bool with_digests);
