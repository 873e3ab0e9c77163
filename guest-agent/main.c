// SPDX-License-Identifier: LGPL-2.1-or-later
/* pagefusion-agent: tells the host which of this guest's pages hold code and read-only data of
 * files. */
#include "common/log.h"
#include "guest-agent/agent.h"
#include "guest-agent/check.h"
#include "guest-agent/status_server.h"
#include "guest-agent/status_show.h"
#include "pagefusion-version.h"
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIT_MISUSED 2

enum {
	OPTION_CONFIG = 1,
	OPTION_PORT,
	OPTION_INTERVAL,
	OPTION_WAIT,
	OPTION_DUMP,
	OPTION_STATUS,
	OPTION_CHECK,
	OPTION_JSON,
	OPTION_DEBUG,
	OPTION_VERSION,
	OPTION_HELP,
};

typedef enum Action { RUN, DUMP, STATUS, CHECK, VERSION, HELP } Action;

#define BIT(option) (1u << (option))

/* What may stand beside what is asked for, because it changes something. */
static const unsigned goes_with[] = {
	[RUN] = BIT(OPTION_CONFIG) | BIT(OPTION_PORT) | BIT(OPTION_INTERVAL) | BIT(OPTION_WAIT) |
		BIT(OPTION_DEBUG),
	[DUMP] = BIT(OPTION_DUMP) | BIT(OPTION_CONFIG) | BIT(OPTION_JSON) | BIT(OPTION_DEBUG),
	[STATUS] = BIT(OPTION_STATUS) | BIT(OPTION_JSON),
	[CHECK] = BIT(OPTION_CHECK) | BIT(OPTION_CONFIG) | BIT(OPTION_PORT) | BIT(OPTION_JSON) |
		  BIT(OPTION_DEBUG),
};

typedef struct Arguments {
	Action action;
	const char *config; /* NULL: the one that may be missing */
	const char *port;
	unsigned interval_s;
	bool wait, digests, json;
	unsigned given; /* options, a bit each */
} Arguments;

static const char usage[] =
	"Usage: pagefusion-agent [OPTION...]\n"
	"Tells the host which pages of this guest hold code and read-only data of files.\n"
	"\n"
	"  --config FILE       configuration (" PF_AGENT_CONFIG_FILE ")\n"
	"  --port PATH         virtio-serial port, in place of the configuration's\n"
	"  --interval SECONDS  between two passes, 1 to 86400, in place of the configuration's\n"
	"  --wait              wait for the port where there is none, also when it goes away\n"
	"  --status            show what the agent that runs has found and what it cost\n"
	"  --check             say whether it can work here, and if not why and what to do\n"
	"  --dump[=digests]    print what would be reported as JSON, and exit\n"
	"  --json              write --status or --check as JSON, as --dump always is\n"
	"  --debug             log more\n"
	"  --version           print the version\n"
	"  --help              print this\n"
	"\n"
	"SIGHUP makes it read the configuration again and look at everything at once.\n";

static const struct option options[] = {
	{"config", required_argument, NULL, OPTION_CONFIG},
	{"port", required_argument, NULL, OPTION_PORT},
	{"interval", required_argument, NULL, OPTION_INTERVAL},
	{"wait", no_argument, NULL, OPTION_WAIT},
	{"dump", optional_argument, NULL, OPTION_DUMP},
	{"status", no_argument, NULL, OPTION_STATUS},
	{"check", no_argument, NULL, OPTION_CHECK},
	{"json", no_argument, NULL, OPTION_JSON},
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
	if (errno || end == text || *end || text[0] == '-' || value < 1 ||
		value > PF_AGENT_MAX_INTERVAL_S)
		return false;
	*seconds = (unsigned)value;
	return true;
}

/* false, for the caller to return. */
static bool misused(const char *what, const char *argument)
{
	pf_error("%s%s; see pagefusion-agent --help", what, argument);
	return false;
}

/* Nothing is taken that would have no effect. */
static bool check_options(const Arguments *arguments)
{
	unsigned idle = arguments->given & ~goes_with[arguments->action];
	char name[32];

	for (const struct option *option = options; option->name; option++) {
		if (!(idle & BIT(option->val)))
			continue;
		snprintf(name, sizeof(name), "--%s", option->name);
		return misused(name, arguments->action == STATUS  ? " has no effect on --status"
				     : arguments->action == CHECK ? " has no effect on --check"
				     : arguments->action == DUMP
					     ? " has no effect on --dump"
					     : " goes with --status, --check or --dump");
	}
	return true;
}

static bool set_action(Arguments *arguments, Action action)
{
	if (arguments->action != RUN && arguments->action != action)
		return misused("one thing at a time: --status, --check or --dump", "");
	arguments->action = action;
	return true;
}

static bool take_option(Arguments *arguments, int option)
{
	switch (option) {
	case OPTION_CONFIG:
		arguments->config = optarg;
		return true;
	case OPTION_PORT:
		arguments->port = optarg;
		return true;
	case OPTION_INTERVAL:
		return parse_interval(optarg, &arguments->interval_s) ||
		       misused("--interval must be 1 to 86400 seconds, not ", optarg);
	case OPTION_WAIT:
		arguments->wait = true;
		return true;
	case OPTION_DUMP:
		arguments->digests = optarg && strcmp(optarg, "digests") == 0;
		if (optarg && !arguments->digests)
			return misused("--dump knows only =digests, not =", optarg);
		return set_action(arguments, DUMP);
	case OPTION_STATUS:
		return set_action(arguments, STATUS);
	case OPTION_CHECK:
		return set_action(arguments, CHECK);
	case OPTION_JSON:
		arguments->json = true;
		return true;
	case OPTION_DEBUG:
		pf_log_set_level(PF_LOG_DEBUG);
		return true;
	default:
		return false; /* getopt has said why */
	}
}

static bool parse(Arguments *arguments, int argc, char **argv)
{
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == OPTION_VERSION || option == OPTION_HELP) {
			arguments->action = option == OPTION_HELP ? HELP : VERSION;
			return true;
		}
		if (!take_option(arguments, option))
			return false;
		arguments->given |= BIT(option);
	}
	if (optind < argc)
		return misused("unexpected argument ", argv[optind]);
	return check_options(arguments);
}

static int print(const char *text)
{
	return fputs(text, stdout) >= 0 && fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* A file that is missing is a mistake only when it was named. */
static PfConfigChecked read_config(PfAgentConfig *config, const Arguments *arguments)
{
	PfConfigChecked checked = {.config = config,
		.path = arguments->config ? arguments->config : PF_AGENT_CONFIG_FILE};
	static char message[1024];
	int r = pf_agent_config_init(config);

	if (r < 0) {
		checked.wrong = strerror(-r);
		return checked;
	}
	r = pf_agent_config_read(config, checked.path, message, sizeof(message));
	if (r == -ENOENT && !arguments->config)
		checked.path = NULL;
	else if (r < 0)
		checked.wrong = message;
	return checked;
}

static int check(PfAgentConfig *config, const PfConfigChecked *checked, const Arguments *arguments)
{
	char *port = arguments->port ? strdup(arguments->port) : NULL;

	if (arguments->port && !port) {
		pf_error("%s", strerror(ENOMEM));
		return EXIT_FAILURE;
	}
	if (port) {
		free(config->port);
		config->port = port;
	}
	return pf_check(stdout, checked, arguments->json);
}

/* What needs the configuration. */
static int act(const Arguments *arguments)
{
	PfAgentConfig config;
	const PfConfigChecked checked = read_config(&config, arguments);
	const PfAgentOptions agent = {.config = &config,
		.config_path = arguments->config ? arguments->config : PF_AGENT_CONFIG_FILE,
		.config_named = arguments->config != NULL,
		.port = arguments->port,
		.interval_s = arguments->interval_s,
		.wait = arguments->wait};
	int status = EXIT_MISUSED;

	if (arguments->action == CHECK)
		status = check(&config, &checked, arguments);
	else if (checked.wrong)
		pf_error("%s", checked.wrong);
	else if (arguments->action == DUMP)
		status = pf_agent_dump(&config, arguments->digests);
	else
		status = pf_agent_run(&agent);
	pf_agent_config_deinit(&config);
	return status;
}

int main(int argc, char **argv)
{
	Arguments arguments = {.action = RUN};

	pf_log_init("pagefusion-agent");
	signal(SIGPIPE, SIG_IGN);
	if (!parse(&arguments, argc, argv))
		return EXIT_MISUSED;
	switch (arguments.action) {
	case VERSION:
		return print("pagefusion-agent " PF_VERSION "\n");
	case HELP:
		return print(usage);
	case STATUS:
		return pf_status_show(stdout, PF_AGENT_STATUS_SOCKET, arguments.json);
	default:
		return act(&arguments);
	}
}
