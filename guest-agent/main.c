// SPDX-License-Identifier: LGPL-2.1-or-later
/* pagefusion-agent: tells the host which of this guest's pages hold code and read-only data of
 * files. */
#include "common/log.h"
#include "guest-agent/agent.h"
#include "pagefusion-version.h"
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_PORT       "/dev/virtio-ports/org.pagefusion.agent.0"
#define DEFAULT_INTERVAL_S 60
#define MAX_INTERVAL_S     86400

enum { OPTION_PORT = 1, OPTION_INTERVAL, OPTION_DUMP, OPTION_DEBUG, OPTION_VERSION, OPTION_HELP };

static const char usage[] =
	"Usage: pagefusion-agent [OPTION...]\n"
	"Tells the host which pages of this guest hold code and read-only data of files.\n"
	"\n"
	"  --port PATH         virtio-serial port (" DEFAULT_PORT ")\n"
	"  --interval SECONDS  time between two scans, 1 to 86400 (60)\n"
	"  --dump[=digests]    print what would be reported as JSON, and exit\n"
	"  --debug             log more\n"
	"  --version           print the version\n"
	"  --help              print this\n"
	"\n"
	"SIGHUP makes it scan at once.\n";

static const struct option options[] = {
	{"port", required_argument, NULL, OPTION_PORT},
	{"interval", required_argument, NULL, OPTION_INTERVAL},
	{"dump", optional_argument, NULL, OPTION_DUMP},
	{"debug", no_argument, NULL, OPTION_DEBUG},
	{"version", no_argument, NULL, OPTION_VERSION},
	{"help", no_argument, NULL, OPTION_HELP},
	{0},
};

static bool parse_interval(const char *text, unsigned *seconds)
{
	char *end;
	unsigned long value;

	errno = 0;
	/* NOLINTNEXTLINE(*NonNullParamChecker): the option has an argument */
	value = strtoul(text, &end, 10);
	if (errno || end == text || *end || text[0] == '-' || value < 1 || value > MAX_INTERVAL_S)
		return false;
	*seconds = (unsigned)value;
	return true;
}

static int misused(const char *what, const char *argument)
{
	pf_error("%s%s; see pagefusion-agent --help", what, argument);
	return 2;
}

static int print(const char *text)
{
	return fputs(text, stdout) >= 0 && fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
	PfAgentOptions agent = {.port = DEFAULT_PORT, .interval_s = DEFAULT_INTERVAL_S};
	bool dump = false, digests = false;
	int option;

	pf_log_init("pagefusion-agent");
	signal(SIGPIPE, SIG_IGN);
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case OPTION_PORT:
			agent.port = optarg;
			break;
		case OPTION_INTERVAL:
			if (!parse_interval(optarg, &agent.interval_s))
				return misused(
					"--interval must be 1 to 86400 seconds, not ", optarg);
			break;
		case OPTION_DUMP:
			dump = true;
			digests = optarg && strcmp(optarg, "digests") == 0;
			if (optarg && !digests)
				return misused("--dump knows only =digests, not =", optarg);
			break;
		case OPTION_DEBUG:
			pf_log_set_level(PF_LOG_DEBUG);
			break;
		case OPTION_VERSION:
			return print("pagefusion-agent " PF_VERSION "\n");
		case OPTION_HELP:
			return print(usage);
		default:
			return 2; /* getopt has said why */
		}
	}
	if (optind < argc)
		return misused("unexpected argument ", argv[optind]);
	return dump ? pf_agent_dump(digests) : pf_agent_run(&agent);
}
