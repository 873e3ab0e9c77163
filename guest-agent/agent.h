/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The program behind main(): both functions log what went wrong and return an exit status. */
#include "guest-agent/config.h"

typedef struct PfAgentOptions {
	PfAgentConfig
		*config; /* what holds at start; the agent takes it over and leaves it empty */
	const char *config_path; /* read again on SIGHUP */
	bool config_named;       /* on the command line: then it must be there */
	const char *port;        /* of the command line, holds over the file's; or NULL */
	unsigned interval_s;     /* of the command line, holds over the file's; or 0 */
	bool wait;               /* for a port, also for the next one when it goes away */
} PfAgentOptions;

/* Reports to the host until SIGTERM or SIGINT. */
int pf_agent_run(const PfAgentOptions *options);

/* Looks at everything once and prints what would be reported. */
int pf_agent_dump(const PfAgentConfig *config, bool with_digests);
