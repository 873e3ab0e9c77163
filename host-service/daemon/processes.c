/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Three processes: the first, and two that it forks, of which the broker goes on as it is and the service executes the
 * program anew (process.c says why). Both are there before the first one has a main loop (its eventfd would be the
 * broker's too) or a thread. What belongs to a child is closed here as soon as it runs.
 *
 * All of them or none: when one ends, so do the others, and whoever has started us (systemd) starts all anew. They end in
 * order when their sockets are closed. One that hangs (the broker in a call of libvirt's that does not return) gets a
 * moment, for a definition on its way; then the first process ends, and the kernel kills what is left of its children.
 * It could not do that itself, for want of the right to signal another user's process.
 */
#include "host-service/daemon/processes.h"
#include "common/log.h"
#include "host-service/daemon/process.h"
#include "host-service/daemon/service_process.h"
#include "host-service/front/dbus.h"
#include "host-service/front/front.h"
#include "host-service/front/shim_socket.h"
#include "host-service/front/systemd.h"
#include <errno.h>
#include <glib-unix.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define GRACE_MS 2000

typedef struct Child {
	const char *name;
	pid_t pid; /* 0: there is none */
	int fd;    /* a pidfd */
} Child;

typedef struct Run {
	const PfProcesses *config;
	GMainLoop *loop;
	Child broker, service;
	const Child *ended; /* the first that did, or seems to have, while all were to serve */
	char *failure;      /* of another kind; NULL: none */
	PfBroker *editor;   /* NULL: a test has a broker of its own */
	PfFront *front;
	PfDbusFront *bus;
} Run;

static gboolean on_signal(gpointer userdata)
{
	Run *run = userdata;

	g_main_loop_quit(run->loop);
	return G_SOURCE_CONTINUE;
}

/* When they are being ended it is no news. */
static void note_ended(Run *run, const Child *child)
{
	if (!g_main_loop_is_running(run->loop))
		return;
	run->ended = child;
	g_main_loop_quit(run->loop);
}

static gboolean on_broker_ended(gint fd, GIOCondition condition, gpointer userdata)
{
	Run *run = userdata;

	note_ended(run, &run->broker);
	return G_SOURCE_REMOVE;
}

static gboolean on_service_ended(gint fd, GIOCondition condition, gpointer userdata)
{
	Run *run = userdata;

	note_ended(run, &run->service);
	return G_SOURCE_REMOVE;
}

static void on_broker_closed(void *userdata)
{
	Run *run = userdata;

	note_ended(run, &run->broker);
}

static void on_service_closed(void *userdata)
{
	Run *run = userdata;

	note_ended(run, &run->service);
}

static void on_bus_failed(const char *message, void *userdata)
{
	Run *run = userdata;

	g_free(run->failure);
	run->failure = g_strdup(message);
	g_main_loop_quit(run->loop);
}

static const PfBrokerEvents editor_events = {.closed = on_broker_closed};

/* Starting */

static gboolean watch(Child *child, const char *name, pid_t pid, GError **error)
{
	if (pid < 0)
		return FALSE;
	*child = (Child){name, pid, pidfd_open(pid, 0)};
	if (child->fd >= 0)
		return TRUE;
	g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
		"the %s process cannot be watched: %s", name, g_strerror(errno));
	return FALSE;
}

static gboolean start_broker(Run *run, PfBrokerSockets *sockets, GError **error)
{
	*sockets = (PfBrokerSockets){.service = run->config->broker_fd, .front = -1};
	if (sockets->service >= 0)
		return TRUE;
	return watch(&run->broker, "broker", pf_broker_spawn(&run->config->broker, sockets, error),
		error);
}

static gboolean choose_sandbox(const PfConfig *config, PfSandbox *sandbox, GError **error)
{
	guint64 limit = pf_config_memory_limit(config);

	sandbox->memory_limit = limit > 0 ? limit : pf_sandbox_default_memory();
	return pf_sandbox_find_user(pf_config_user(config), &sandbox->uid, &sandbox->gid, error);
}

/* The front's end of its socket in *front_fd. */
static gboolean start_service(
	Run *run, PfShimSocket *shims, int broker_fd, int *front_fd, GError **error)
{
	g_autoptr(GArray) kept = pf_systemd_take_stores();
	PfServiceProcess process = {
		.config = run->config->config,
		.debug = run->config->debug,
		.fusion = run->config->fusion,
		.broker_fd = broker_fd,
		.shim_fd = pf_shim_socket_fd(shims),
		.kept = (const PfKeptStore *)(void *)kept->data,
		.n_kept = kept->len,
	};
	int fds[2];
	gboolean started;

	if (!choose_sandbox(process.config, &process.sandbox, error) ||
		!pf_process_socket_pair(fds, error))
		return FALSE;
	process.front_fd = fds[1];
	started =
		watch(&run->service, "service", pf_service_process_start(&process, error), error) &&
		pf_shim_socket_serve(shims, run->service.pid, error);
	close(fds[1]);
	close(broker_fd);
	*front_fd = fds[0];
	return started;
}

/* Serving */

/* Signals that come before somebody can deal with them wait, so that also a short life ends in order. */
static void hold_signals(int how)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	pthread_sigmask(how, &signals, NULL);
}

static void serve(Run *run, int front_fd, int editor_fd)
{
	run->loop = g_main_loop_new(NULL, FALSE);
	g_unix_signal_add(SIGTERM, on_signal, run);
	g_unix_signal_add(SIGINT, on_signal, run);
	hold_signals(SIG_UNBLOCK);
	run->front = pf_front_new(front_fd, &pf_systemd_keeper, on_service_closed, run);
	if (editor_fd >= 0) {
		run->editor = pf_broker_new(editor_fd, &editor_events, run);
		g_unix_fd_add(run->broker.fd, G_IO_IN, on_broker_ended, run);
	}
	g_unix_fd_add(run->service.fd, G_IO_IN, on_service_ended, run);
	if (run->editor && !run->config->no_bus)
		run->bus = pf_dbus_front_new(run->front, run->editor, on_bus_failed, run);
	g_main_loop_run(run->loop);
}

/* Ending */

static char *describe_end(const char *name, int status)
{
	if (WIFSIGNALED(status))
		return g_strdup_printf("the %s process was ended by signal %d (%s)", name,
			WTERMSIG(status), strsignal(WTERMSIG(status)));
	return g_strdup_printf(
		"the %s process has ended with status %d", name, WEXITSTATUS(status));
}

/* How it ended, or 0 where it hangs (in that place). */
static int wait_for(const Child *child, const char *place, gint64 deadline_us)
{
	struct pollfd event = {.fd = child->fd, .events = POLLIN};
	int status = 0, n;

	if (child->pid == 0)
		return 0;
	/* Another signal that asks us to end does not shorten it. */
	do {
		gint64 wait_us = deadline_us - g_get_monotonic_time();

		n = poll(&event, 1, (int)(MAX(wait_us, 0) / 1000));
	} while (n < 0 && errno == EINTR);
	if (n > 0)
		waitpid(child->pid, &status, 0);
	else
		pf_warning("the %s process hangs%s: it is killed", child->name, place);
	close(child->fd);
	return status;
}

/* Sets error when it was not a signal of ours that ended them: who has ended first, and how. */
static gboolean end_children(Run *run, GError **error)
{
	gint64 deadline = g_get_monotonic_time() + GRACE_MS * 1000;
	int broker = wait_for(&run->broker, " in libvirt", deadline);
	int service = wait_for(&run->service, "", deadline);
	g_autofree char *end = NULL;

	if (run->failure) {
		g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_FAILED, run->failure);
		return FALSE;
	}
	if (!run->ended)
		return TRUE;
	/* Each ends with the other, but in order: what did not is the cause. */
	if (broker != 0 && service == 0)
		run->ended = &run->broker;
	else if (service != 0 && broker == 0)
		run->ended = &run->service;
	end = describe_end(run->ended->name, run->ended == &run->broker ? broker : service);
	g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED,
		"%s: the others end too, to be started anew", end);
	return FALSE;
}

static gboolean start_and_serve(Run *run, PfShimSocket *shims, GError **error)
{
	static const int no_capabilities[] = {-1};
	PfBrokerSockets sockets;
	int front_fd;

	if (!start_broker(run, &sockets, error) ||
		!start_service(run, shims, sockets.service, &front_fd, error) ||
		!pf_sandbox_keep_capabilities(no_capabilities, error))
		return FALSE;
	serve(run, front_fd, sockets.front);
	return TRUE;
}

gboolean pf_processes_run(const PfProcesses *processes, GError **error)
{
	g_autoptr(PfShimSocket) shims = NULL;
	Run run = {.config = processes};
	gboolean done;

	hold_signals(SIG_BLOCK);
	shims = pf_shim_socket_new(processes->broker.shim_socket, error);
	done = shims && start_and_serve(&run, shims, error);
	/* Calls that were begun are answered still. */
	g_clear_pointer(&run.bus, pf_dbus_front_free);
	g_clear_pointer(&run.front, pf_front_free);
	g_clear_pointer(&run.editor, pf_broker_free);
	while (g_main_context_iteration(NULL, FALSE))
		;
	if (done)
		done = end_children(&run, error);
	g_clear_pointer(&run.loop, g_main_loop_unref);
	g_free(run.failure);
	return done;
}
