/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* pagefusiond: options, the broker's process, the service, its name on the bus, and the main loop.
 */
#include "common/log.h"
#include "host-service/dbus.h"
#include "host-service/host_features.h"
#include "host-service/service.h"
#include <errno.h>
#include <glib-unix.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <signal.h>
#include <pagefusion-version.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define BROKER_GRACE_MS 2000

static struct {
	char *uri, *run_dir, *shim;
	PfThp thp;
	int broker_fd, revoke_delay_ms;
	gboolean debug, no_bus, version;
} options = {.thp = PF_THP_BALANCED, .broker_fd = -1, .revoke_delay_ms = -1};

static gboolean parse_thp(const char *option, const char *name, gpointer data, GError **error)
{
	if (pf_thp_parse(name, &options.thp) && options.thp != PF_THP_DEFAULT)
		return TRUE;
	g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
		"%s cannot be '%s': give it preserve, balanced or all", option, name);
	return FALSE;
}

static const GOptionEntry entries[] = {
	{"connect", 'c', 0, G_OPTION_ARG_STRING, &options.uri,
		"libvirt to connect to (qemu:///system)", "URI"},
	{"run-dir", 0, 0, G_OPTION_ARG_FILENAME, &options.run_dir,
		"directory of the socket for shims (" PF_DEFAULT_RUN_DIR ")", "DIR"},
	{"shim", 0, 0, G_OPTION_ARG_FILENAME, &options.shim,
		"the library that VMs preload (" PF_SHIM_PATH ")", "FILE"},
	{"thp", 0, 0, G_OPTION_ARG_CALLBACK, parse_thp,
		"when huge pages of VMs may be broken: preserve, balanced or all (balanced)",
		"POLICY"},
	{"debug", 0, 0, G_OPTION_ARG_NONE, &options.debug, "log more", NULL},
	{"version", 0, 0, G_OPTION_ARG_NONE, &options.version, "print the version and exit", NULL},
	/* For tests: a broker that runs already, no name on the bus, and another wait after a
	 * revoke. */
	{"broker-fd", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_INT, &options.broker_fd, NULL, "FD"},
	{"no-bus", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_NONE, &options.no_bus, NULL, NULL},
	{"revoke-delay-ms", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_INT, &options.revoke_delay_ms,
		NULL, "N"},
	{0},
};

typedef struct Run {
	GMainLoop *loop;
	int status;
} Run;

static void end(Run *run, int status)
{
	if (status != EXIT_SUCCESS)
		run->status = status;
	g_main_loop_quit(run->loop);
}

static gboolean on_signal(gpointer userdata)
{
	end(userdata, EXIT_SUCCESS);
	return G_SOURCE_CONTINUE;
}

static void on_broker_closed(void *userdata)
{
	pf_error("the broker process has ended: the service ends too, to be started anew");
	end(userdata, EXIT_FAILURE);
}

static void on_bus_failed(const char *message, void *userdata)
{
	pf_error("%s", message);
	end(userdata, EXIT_FAILURE);
}

static gboolean serve(Run *run, const char *socket_path, int broker_fd, GError **error)
{
	PfServiceConfig config = {
		.shim_socket = socket_path, .thp = options.thp, .fusion = PF_FUSION_DEFAULTS};
	g_autoptr(PfService) service = NULL;
	PfDbusFront *front;

	if (options.revoke_delay_ms >= 0)
		config.fusion.revoke_delay_us = INT64_C(1000) * options.revoke_delay_ms;
	service = pf_service_new(&config, broker_fd, on_broker_closed, run, error);
	if (!service)
		return FALSE;
	front = options.no_bus ? NULL : pf_dbus_front_new(service, on_bus_failed, run);
	g_main_loop_run(run->loop);
	if (front)
		pf_dbus_front_free(front);
	return TRUE;
}

/*
 * The broker ends with our end of its socket, which the service has closed, but not while a call of
 * libvirt's hangs, and it ignores the signals that end us. A definition on its way gets a moment,
 * unless another signal shows that nobody wants to wait.
 */
static void end_broker(GPid broker)
{
	struct pollfd process = {.fd = pidfd_open(broker, 0), .events = POLLIN};

	if (process.fd < 0 || poll(&process, 1, BROKER_GRACE_MS) <= 0) {
		pf_warning("the broker process hangs in libvirt: it is killed");
		kill(broker, SIGKILL);
	}
	waitpid(broker, NULL, 0);
	if (process.fd >= 0)
		close(process.fd);
}

static gboolean run_service(Run *run, GError **error)
{
	g_autofree char *run_dir = g_canonicalize_filename(
		options.run_dir ? options.run_dir : PF_DEFAULT_RUN_DIR, NULL);
	g_autofree char *socket_path = g_build_filename(run_dir, "shim.sock", NULL);
	g_autofree char *shim =
		g_canonicalize_filename(options.shim ? options.shim : PF_SHIM_PATH, NULL);
	PfBrokerConfig config = {options.uri ? options.uri : "qemu:///system", shim, socket_path};
	int fd = options.broker_fd;
	GPid broker = 0;
	gboolean done;

	if (!pf_host_features_check("/dev/userfaultfd", error))
		return FALSE;
	if (g_mkdir_with_parents(run_dir, 0755) < 0) {
		g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno),
			"cannot make %s: %s: run as root, or choose another --run-dir", run_dir,
			g_strerror(errno));
		return FALSE;
	}
	if (fd < 0)
		fd = pf_broker_spawn(&config, &broker, error);
	if (fd < 0)
		return FALSE;
	/* Not before the fork: the broker would share the main context's eventfd, and take our
	 * wake-ups. */
	run->loop = g_main_loop_new(NULL, FALSE);
	g_unix_signal_add(SIGTERM, on_signal, run);
	g_unix_signal_add(SIGINT, on_signal, run);
	done = serve(run, socket_path, fd, error);
	if (broker > 0)
		end_broker(broker);
	return done;
}

int main(int argc, char **argv)
{
	g_autoptr(GOptionContext) context = g_option_context_new(NULL);
	g_autoptr(GError) error = NULL;
	Run run = {.status = EXIT_SUCCESS};

	pf_log_init("pagefusiond");
	/* A channel or a bus whose other end has gone is an error there, no end of ours. */
	signal(SIGPIPE, SIG_IGN);
	g_option_context_set_summary(
		context, "Shares identical pages of Linux guests under libvirt and QEMU.");
	g_option_context_add_main_entries(context, entries, NULL);
	if (!g_option_context_parse(context, &argc, &argv, &error) || argc > 1) {
		pf_error("%s (see --help)", error ? error->message : "it takes no arguments");
		return 2;
	}
	if (options.version) {
		puts("pagefusiond " PF_VERSION);
		return EXIT_SUCCESS;
	}
	if (options.debug)
		pf_log_set_level(PF_LOG_DEBUG);
	if (!run_service(&run, &error)) {
		pf_error("%s", error->message);
		run.status = EXIT_FAILURE;
	}
	g_clear_pointer(&run.loop, g_main_loop_unref);
	return run.status;
}
