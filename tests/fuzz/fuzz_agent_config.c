// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The agent's configuration: either it is refused with one short line that names the file and changes nothing, or
 * every value that comes of it is in the bounds that the agent counts on.
 */
#include "guest-agent/config.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
	if (!holds)
		abort();
}

static void check_config(const PfAgentConfig *config)
{
	size_t n_paths = 0;

	require(!config->port || config->port[0] == '/');
	require(config->interval_s >= 1 && config->interval_s <= PF_AGENT_MAX_INTERVAL_S);
	require(config->slow_interval_s >= 10 &&
		config->slow_interval_s <= PF_AGENT_MAX_INTERVAL_S);
	require(config->hash_limit >= 1 << 20 && config->hash_limit <= UINT64_C(1) << 40);
	require(config->cpu_limit_permyriad >= 1 && config->cpu_limit_permyriad <= 10000);
	while (config->cache_paths[n_paths])
		require(config->cache_paths[n_paths++][0] == '/');
	require(n_paths >= 1 && n_paths <= 256);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char message[1024] = "";
	PfAgentConfig config;
	char **paths;
	int r;

	if (pf_agent_config_init(&config) < 0)
		return 0;
	paths = config.cache_paths;
	r = pf_agent_config_parse(
		&config, "x.conf", (const char *)data, size, message, sizeof(message));
	require(r == 0 || r == -EINVAL);
	if (r < 0) {
		require(strncmp(message, "x.conf:", 7) == 0 && !strchr(message, '\n'));
		require(strlen(message) < 700);
		require(config.cache_paths == paths && !config.port && config.interval_s == 60);
	}
	check_config(&config);
	pf_agent_config_deinit(&config);
	return 0;
}
