/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* /etc/pagefusion/agent.conf: pagefusion-agent.conf(5) explains each key. */
#include "guest-agent/file.h"
#include <stdio.h>

#define PF_AGENT_CONFIG_FILE "/etc/pagefusion/agent.conf"

#define PF_AGENT_MAX_INTERVAL_S 86400

typedef struct PfAgentConfig {
	char *port;                   /* owned; NULL: found by its name */
	unsigned interval_s;          /* between two complete passes over the mappings */
	unsigned slow_interval_s;     /* between two passes of another class */
	uint64_t hash_limit;          /* bytes a second */
	unsigned cpu_limit_permyriad; /* of one CPU, while no program starts or ends: 10 is 0.1 % */
	bool classes[PF_N_CLASSES];
	char **cache_paths; /* directories with system files, NULL-terminated; owned, in one piece */
} PfAgentConfig;

/* What holds without a file. 0 or -ENOMEM. */
int pf_agent_config_init(PfAgentConfig *config);
void pf_agent_config_deinit(PfAgentConfig *config);

/*
 * Reads a file over what config holds. 0; -EINVAL when something in it is wrong, with a message
 * that names file, line and key; another -errno with a message, -ENOENT when there is no such file.
 * message is at most size bytes with its end. config is unchanged on error.
 */
int pf_agent_config_read(PfAgentConfig *config, const char *path, char *message, size_t size);

/* The same with the file's text, which path is only the name of: 0, -EINVAL or -ENOMEM. */
int pf_agent_config_parse(PfAgentConfig *config, const char *path, const char *text,
	size_t text_size, char *message, size_t size);
