/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* pagefusiond: options and configuration. */
#include "common/log.h"
#include "host-service/config/config.h"
#include "host-service/daemon/host_features.h"
#include "host-service/daemon/processes.h"
#include "host-service/daemon/service_process.h"
#include <errno.h>
#include <glib/gstdio.h>
#include <pagefusion-version.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#define PF_DEFAULT_RUN_DIR "/run/pagefusion"
#define EXIT_MISTAKE       2 /* in what an administrator has written: systemd does not try again */

static struct {
	char *config, *user, *uri, *run_dir, *shim, *additions_iso;
	PfThp thp; /* PF_THP_DEFAULT: as the configuration says */
	int service_fd, broker_fd, revoke_delay_ms;
	gboolean debug, no_bus, version;
} options = {.thp = PF_THP_DEFAULT, .service_fd = -1, .broker_fd = -1, .revoke_delay_ms = -1};

static gboolean parse_thp(const char *option, const char *name, gpointer data, GError **error)
{
	if (pf_thp_parse(name, &options.thp) && options.thp != PF_THP_DEFAULT)
		return TRUE;
	g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
		"%s cannot be '%s': give it preserve, balanced or all", option, name);
	return FALSE;
}

static const GOptionEntry entries[] = {
	{"config", 0, 0, G_OPTION_ARG_FILENAME, &options.config,
		"read this configuration (" PF_CONFIG_PATH ", if it is there)", "FILE"},
	{"user", 0, 0, G_OPTION_ARG_STRING, &options.user,
		"user that the service's process runs as (" PF_CONFIG_USER ")", "NAME"},
	{"connect", 'c', 0, G_OPTION_ARG_STRING, &options.uri,
		"libvirt to connect to (qemu:///system)", "URI"},
	{"run-dir", 0, 0, G_OPTION_ARG_FILENAME, &options.run_dir,
		"directory of the socket for shims (" PF_DEFAULT_RUN_DIR ")", "DIR"},
	{"shim", 0, 0, G_OPTION_ARG_FILENAME, &options.shim,
		"the library that VMs preload (" PF_SHIM_PATH ")", "FILE"},
	{"additions-iso", 0, 0, G_OPTION_ARG_FILENAME, &options.additions_iso,
		"the image with the guest additions (" PF_CONFIG_ADDITIONS_ISO ")", "FILE"},
	{"thp", 0, 0, G_OPTION_ARG_CALLBACK, parse_thp,
		"when huge pages of VMs may be broken: preserve, balanced or all (balanced)",
		"POLICY"},
	{"debug", 0, 0, G_OPTION_ARG_NONE, &options.debug, "log more", NULL},
	{"version", 0, 0, G_OPTION_ARG_NONE, &options.version, "print the version and exit", NULL},
	/* How this program starts itself as the service's process. */
	{PF_SERVICE_PROCESS_OPTION, 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_INT, &options.service_fd,
		NULL, "FD"},
	/* For tests: a broker that runs already, no name on the bus, and another wait after a
	 * revoke. */
	{"broker-fd", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_INT, &options.broker_fd, NULL, "FD"},
	{"no-bus", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_NONE, &options.no_bus, NULL, NULL},
	{"revoke-delay-ms", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_INT, &options.revoke_delay_ms,
		NULL, "N"},
	{0},
};

static PfConfig *load_config(GError **error)
{
	PfConfig *config = pf_config_load(
		options.config ? options.config : PF_CONFIG_PATH, options.config != NULL, error);

	if (config && options.user)
		pf_config_set_user(config, options.user);
	if (config && options.additions_iso) {
		g_autofree char *path = g_canonicalize_filename(options.additions_iso, NULL);

		pf_config_set_additions_iso(config, path);
	}
	if (config && options.thp != PF_THP_DEFAULT)
		pf_config_set_thp(config, options.thp);
	return config;
}

static gboolean make_run_dir(const char *path, GError **error)
{
	if (g_mkdir_with_parents(path, 0755) == 0)
		return TRUE;
	g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno),
		"cannot make %s: %s: run as root, or choose another --run-dir", path,
		g_strerror(errno));
	return FALSE;
}

static gboolean run(PfConfig *config, GError **error)
{
	g_autofree char *run_dir = g_canonicalize_filename(
		options.run_dir ? options.run_dir : PF_DEFAULT_RUN_DIR, NULL);
	g_autofree char *socket_path = g_build_filename(run_dir, "shim.sock", NULL);
	g_autofree char *shim =
		g_canonicalize_filename(options.shim ? options.shim : PF_SHIM_PATH, NULL);
	PfProcesses processes = {
		.broker = {options.uri ? options.uri : "qemu:///system", shim, socket_path,
			pf_config_additions_iso(config)},
		.config = config,
		.fusion = PF_FUSION_DEFAULTS,
		.debug = options.debug,
		.broker_fd = options.broker_fd,
		.no_bus = options.no_bus,
	};

	if (options.revoke_delay_ms >= 0)
		processes.fusion.revoke_delay_us = INT64_C(1000) * options.revoke_delay_ms;
	return pf_host_features_check("/dev/userfaultfd", error) && make_run_dir(run_dir, error) &&
	       pf_processes_run(&processes, error);
}

int main(int argc, char **argv)
{
	g_autoptr(GOptionContext) context = g_option_context_new(NULL);
	g_autoptr(PfConfig) config = NULL;
	g_autoptr(GError) error = NULL;

	pf_log_init("pagefusiond");
	/* A channel or a bus whose other end has gone is an error there, no end of ours. */
	signal(SIGPIPE, SIG_IGN);
	g_option_context_set_summary(
		context, "Shares identical pages of Linux guests under libvirt and QEMU.");
	g_option_context_add_main_entries(context, entries, NULL);
	if (!g_option_context_parse(context, &argc, &argv, &error) || argc > 1) {
		pf_error("%s (see --help)", error ? error->message : "it takes no arguments");
		return EXIT_MISTAKE;
	}
	if (options.version) {
		puts("pagefusiond " PF_VERSION);
		return EXIT_SUCCESS;
	}
	if (options.service_fd >= 0)
		return pf_service_process_run(options.service_fd);
	if (options.debug)
		pf_log_set_level(PF_LOG_DEBUG);
	config = load_config(&error);
	if (config && run(config, &error))
		return EXIT_SUCCESS;
	pf_error("%s", error->message);
	return config ? EXIT_FAILURE : EXIT_MISTAKE;
}
