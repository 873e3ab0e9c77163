/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pagefusionctl: from arguments to commands.
 *
 * A command is one or two words, then arguments and options in any order. Every command has a table
 * of the options it knows; anything else is an error before the bus is even looked for, so a
 * mistyped command changes nothing. A failure is one line on standard error that says what is wrong
 * and what to do, and an exit code of ctl.h.
 */
#include "host-service/ctl/commands.h"
#include "host-service/ctl/output.h"
#include "pagefusion-version.h"
#include <gio/gio.h>
#include <stdarg.h>
#include <string.h>

static const char help_text[] =
	"Usage: pagefusionctl COMMAND\n"
	"\n"
	"  list vms [--long] [--json]\n"
	"        the VMs that libvirt knows\n"
	"  showvminfo VM [--machinereadable | --json]\n"
	"        what the service knows of one VM\n"
	"  modifyvm VM [--pagefusion on|off] [--group NAME] [--thp preserve|balanced|all|default]\n"
	"        turn page fusion on or off for a VM that is shut off; say with whom it may share,\n"
	"        and when its huge pages may be broken\n"
	"  metrics query [OBJECT [METRIC[,METRIC...]]] [--json]\n"
	"        how much is shared; OBJECT is '*' (the default), 'host' or a VM\n"
	"  additions insert VM\n"
	"        put the CD with the guest additions into the VM's drive\n"
	"  additions eject VM [--force]\n"
	"        take it out again; by force also while the guest uses it\n"
	"  --version, --help\n"
	"\n"
	"VM is a name or a UUID. Numbers: man pagefusion-metrics. Exit codes: man pagefusionctl.\n";

PfCtlExit pf_ctl_fail(PfCtl *ctl, PfCtlExit code, const char *format, ...)
{
	g_autofree char *message = NULL;
	g_autofree char *escaped = NULL;
	va_list args;

	va_start(args, format);
	message = g_strdup_vprintf(format, args);
	va_end(args);
	escaped = pf_ctl_escape(message, PF_CTL_PLAIN);
	fprintf(ctl->err, "pagefusionctl: %s\n", escaped);
	return code;
}

enum {
	TAKES_JSON = 1 << 0,
	TAKES_LONG = 1 << 1,
	TAKES_MACHINE_READABLE = 1 << 2,
	TAKES_PAGEFUSION = 1 << 3,
	TAKES_THP = 1 << 4,
	TAKES_GROUP = 1 << 5,
	TAKES_FORCE = 1 << 6,
};

static const struct Command {
	const char *words[2];
	PfCtlExit (*run)(PfCtl *ctl);
	unsigned takes;
	unsigned min_args, max_args;
	const char *usage; /* of the arguments, for messages */
} commands[] = {
	{{"list", "vms"}, pf_ctl_list_vms, TAKES_JSON | TAKES_LONG, 0, 0,
		"list vms [--long] [--json]"},
	{{"showvminfo"}, pf_ctl_show_vm_info, TAKES_JSON | TAKES_MACHINE_READABLE, 1, 1,
		"showvminfo VM [--machinereadable | --json]"},
	{{"modifyvm"}, pf_ctl_modify_vm, TAKES_PAGEFUSION | TAKES_THP | TAKES_GROUP, 1, 1,
		PF_CTL_MODIFY_USAGE},
	{{"metrics", "query"}, pf_ctl_metrics_query, TAKES_JSON, 0, 2,
		"metrics query [OBJECT [METRIC[,METRIC...]]] [--json]"},
	{{"additions", "insert"}, pf_ctl_insert_additions, 0, 1, 1, "additions insert VM"},
	{{"additions", "eject"}, pf_ctl_eject_additions, TAKES_FORCE, 1, 1,
		"additions eject VM [--force]"},
};

static unsigned n_words(const struct Command *command)
{
	return command->words[1] ? 2 : 1;
}

static PfCtlExit unknown_command(PfCtl *ctl, char **argv)
{
	g_autoptr(GString) words = g_string_new(NULL);
	g_autoptr(GString) usage = g_string_new(NULL);

	for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
		if (strcmp(argv[0], commands[i].words[0]) != 0)
			continue;
		g_string_append_printf(
			words, "%s'%s'", words->len ? " or " : "", commands[i].words[1]);
		g_string_append_printf(usage, "%s%s", usage->len ? ", or " : "", commands[i].usage);
	}
	if (words->len)
		return pf_ctl_fail(ctl, PF_CTL_USAGE, "after '%s' comes %s: use %s", argv[0],
			words->str, usage->str);
	return pf_ctl_fail(
		ctl, PF_CTL_USAGE, "there is no command '%s': see 'pagefusionctl --help'", argv[0]);
}

static const struct Command *find_command(char **argv)
{
	for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
		const struct Command *command = &commands[i];

		if (strcmp(argv[0], command->words[0]) == 0 &&
			(!command->words[1] || g_strcmp0(argv[1], command->words[1]) == 0))
			return command;
	}
	return NULL;
}

static void add_option(GOptionContext *context, const GOptionEntry *entry)
{
	const GOptionEntry entries[] = {*entry, {NULL}};

	g_option_context_add_main_entries(context, entries, NULL);
}

static void add_options(GOptionContext *context, PfCtl *ctl, unsigned takes)
{
	PfCtlOptions *options = &ctl->options;
	const GOptionEntry always[] = {
		{"help", 'h', 0, G_OPTION_ARG_NONE, &options->help, NULL, NULL},
		{G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &ctl->args, NULL, NULL},
		{NULL},
	};
	/* In the order of TAKES_*. */
	const GOptionEntry some[] = {
		{"json", 0, 0, G_OPTION_ARG_NONE, &options->json, NULL, NULL},
		{"long", 'l', 0, G_OPTION_ARG_NONE, &options->long_list, NULL, NULL},
		{"machinereadable", 0, 0, G_OPTION_ARG_NONE, &options->machine_readable, NULL,
			NULL},
		{"pagefusion", 0, 0, G_OPTION_ARG_FILENAME, &options->pagefusion, NULL, NULL},
		{"thp", 0, 0, G_OPTION_ARG_FILENAME, &options->thp, NULL, NULL},
		{"group", 0, 0, G_OPTION_ARG_FILENAME, &options->group, NULL, NULL},
		{"force", 0, 0, G_OPTION_ARG_NONE, &options->force, NULL, NULL},
	};

	g_option_context_add_main_entries(context, always, NULL);
	for (size_t i = 0; i < G_N_ELEMENTS(some); i++) {
		if (takes & (1u << i))
			add_option(context, &some[i]);
	}
}

static PfCtlExit check_arguments(PfCtl *ctl, const struct Command *command)
{
	ctl->n_args = ctl->args ? g_strv_length(ctl->args) : 0;
	if (ctl->n_args < command->min_args)
		return pf_ctl_fail(ctl, PF_CTL_USAGE, "a VM is missing: use %s", command->usage);
	if (ctl->n_args > command->max_args)
		return pf_ctl_fail(ctl, PF_CTL_USAGE, "'%s' is one argument too many: use %s",
			ctl->args[command->max_args], command->usage);
	for (unsigned i = 0; i < ctl->n_args; i++) {
		if (!g_utf8_validate(ctl->args[i], -1, NULL))
			return pf_ctl_fail(ctl, PF_CTL_USAGE, "'%s' is not valid UTF-8: use %s",
				ctl->args[i], command->usage);
	}
	if (ctl->options.json && ctl->options.machine_readable)
		return pf_ctl_fail(ctl, PF_CTL_USAGE,
			"--json and --machinereadable exclude each other: use %s", command->usage);
	return PF_CTL_OK;
}

static PfCtlExit print_help(PfCtl *ctl)
{
	fputs(help_text, ctl->out);
	return PF_CTL_OK;
}

/* argv starts with the command's last word, which is a program name to GLib. */
static PfCtlExit run_command(PfCtl *ctl, const struct Command *command, char **argv)
{
	g_autoptr(GOptionContext) context = g_option_context_new(NULL);
	g_auto(GStrv) rest = g_strdupv(argv);
	g_autoptr(GError) error = NULL;
	PfCtlExit code;

	g_option_context_set_help_enabled(context, FALSE);
	add_options(context, ctl, command->takes);
	if (!g_option_context_parse_strv(context, &rest, &error))
		return pf_ctl_fail(ctl, PF_CTL_USAGE, "%s: use %s", error->message, command->usage);
	if (ctl->options.help)
		return print_help(ctl);
	code = check_arguments(ctl, command);
	return code == PF_CTL_OK ? command->run(ctl) : code;
}

static PfCtlExit dispatch(PfCtl *ctl, char **argv)
{
	const struct Command *command;

	if (!argv[0])
		return pf_ctl_fail(
			ctl, PF_CTL_USAGE, "no command was given: see 'pagefusionctl --help'");
	if (strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0 ||
		strcmp(argv[0], "help") == 0)
		return print_help(ctl);
	if (strcmp(argv[0], "--version") == 0) {
		fprintf(ctl->out, "pagefusionctl %s\n", PF_VERSION);
		return PF_CTL_OK;
	}
	command = find_command(argv);
	if (!command)
		return unknown_command(ctl, argv);
	return run_command(ctl, command, argv + n_words(command) - 1);
}

PfCtlExit pf_ctl_run(int argc, char **argv, FILE *out, FILE *err)
{
	PfCtl ctl = {.out = out, .err = err};
	PfCtlExit code = argc > 0 ? dispatch(&ctl, argv + 1) : PF_CTL_USAGE;

	if ((fflush(out) != 0 || ferror(out)) && code == PF_CTL_OK)
		code = pf_ctl_fail(&ctl, PF_CTL_FAILED,
			"the output could not be written: is there room where it goes?");
	g_strfreev(ctl.args);
	g_free(ctl.options.pagefusion);
	g_free(ctl.options.thp);
	g_free(ctl.options.group);
	return code;
}
