// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A file that nobody named need not be there, now as at the start. One that was named on the command
 * line must be: that it is missing is a mistake, and not the wish that nothing of it holds any more.
 */
#include "guest-agent/settings.h"
#include <errno.h>
#include <string.h>

void pf_settings_init(PfSettings *settings, const PfAgentOptions *options)
{
	*settings = (PfSettings){.config = *options->config, .options = options};
	*options->config = (PfAgentConfig){0};
}

void pf_settings_deinit(PfSettings *settings)
{
	pf_agent_config_deinit(&settings->config);
}

unsigned pf_settings_interval_s(const PfSettings *settings)
{
	unsigned interval_s = settings->options->interval_s;

	return interval_s ? interval_s : settings->config.interval_s;
}

const char *pf_settings_port(const PfSettings *settings, const PfAgentConfig *config)
{
	const char *port = settings->options->port;

	return port ? port : config->port;
}

int pf_settings_read(const PfSettings *settings, PfAgentConfig *new, char *message, size_t size)
{
	const PfAgentOptions *options = settings->options;
	int r = pf_agent_config_init(new);

	if (r < 0) {
		snprintf(message, size, "%s: %s", options->config_path, strerror(-r));
		return r;
	}
	r = pf_agent_config_read(new, options->config_path, message, size);
	return r == -ENOENT && !options->config_named ? 0 : r;
}
