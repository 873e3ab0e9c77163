// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * systemd says by a directory that it runs. Elsewhere the installer puts a script for OpenRC and for sysvinit where both
 * want it, and init itself starts the agent where there is neither.
 */
#include "guest-agent/service.h"
#include <stdbool.h>
#include <unistd.h>

#define SCRIPT "/etc/init.d/pagefusion-agent"

static bool has_systemd(void)
{
	return access("/run/systemd/system", F_OK) == 0;
}

static bool has_script(void)
{
	return access(SCRIPT, F_OK) == 0;
}

const char *pf_service_start(void)
{
	if (has_systemd())
		return "systemctl start pagefusion-agent";
	return has_script() ? SCRIPT " start" : "start it as this system starts its services";
}

const char *pf_service_restart(void)
{
	if (has_systemd())
		return "systemctl restart pagefusion-agent";
	return has_script() ? SCRIPT " restart" : "end it, and init starts it again";
}

const char *pf_service_log(void)
{
	return has_systemd() ? "journalctl -u pagefusion-agent"
			     : "/var/log/pagefusion-agent.log, or the system's log";
}
