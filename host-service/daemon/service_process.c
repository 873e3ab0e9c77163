/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The front executes its own program anew with the number of a descriptor (handover.c), and what is executed finds in it
 * what it is to do. Its environment holds nothing but where its standard error goes, of which the log makes use.
 *
 * What the service needs of the host is opened and loaded while it still is root and has a root directory: OpenSSL reads
 * its configuration, the C library finds what it translates messages with, files of /proc and /sys are opened or read.
 * Then it enters the sandbox. Nothing that a guest, a QEMU or an earlier service has sent is looked at before that.
 */
#include "host-service/daemon/service_process.h"
#include "common/log.h"
#include "host-service/daemon/handover.h"
#include "host-service/daemon/process.h"
#include "host-service/service/service_front.h"
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define NAME  "pf-service"
#define N_FDS 4 /* beside the stores */

/* In the front */

static int *list_fds(const PfServiceProcess *process, int handover_fd)
{
	int *fds = g_new(int, process->n_kept + N_FDS + 1);
	size_t n = 0;

	fds[n++] = handover_fd;
	fds[n++] = process->broker_fd;
	fds[n++] = process->front_fd;
	fds[n++] = process->shim_fd;
	for (size_t i = 0; i < process->n_kept; i++)
		fds[n++] = process->kept[i].fd;
	fds[n] = -1;
	return fds;
}

static pid_t execute(const PfServiceProcess *process, int handover_fd, GError **error)
{
	g_autofree int *fds = list_fds(process, handover_fd);
	const char *stream = g_getenv("JOURNAL_STREAM");
	g_autofree char *journal = stream ? g_strconcat("JOURNAL_STREAM=", stream, NULL) : NULL;
	g_autofree char *number = g_strdup_printf("%d", handover_fd);
	const char *const arguments[] = {
		"pagefusiond", "--" PF_SERVICE_PROCESS_OPTION, number, NULL};
	const char *const environment[] = {journal, NULL};

	/* NOLINTNEXTLINE(*unix.Malloc): g_autofree frees fds */
	return pf_process_execute(NAME, fds, arguments, environment, error);
}

pid_t pf_service_process_start(const PfServiceProcess *process, GError **error)
{
	int handover_fd = pf_handover_write(process, error);
	pid_t pid;

	if (handover_fd < 0)
		return -1;
	pid = execute(process, handover_fd, error);
	close(handover_fd);
	return pid;
}

/* In the service */

static void quit(void *userdata)
{
	g_main_loop_quit(userdata);
}

/* In the sandbox. */
static void serve(const PfServiceProcess *process, PfHasher *hasher, PfPressureFiles pressure)
{
	g_autoptr(GMainLoop) loop = g_main_loop_new(NULL, FALSE);
	g_autoptr(PfServiceFront) front = pf_service_front_new(process->front_fd, quit, loop);
	PfGroupsKeeper keeper = pf_service_front_keeper(front);
	PfServiceConfig config = {
		.config = process->config,
		.fusion = process->fusion,
		/* The other half is for messages on their way, and for everything else. */
		.memory_limit = process->sandbox.memory_limit / 2,
		.shim_fd = process->shim_fd,
		.keeper = &keeper,
		.kept = process->kept,
		.n_kept = process->n_kept,
		.hasher = hasher,
		.pressure = pressure,
	};
	g_autoptr(PfService) service = pf_service_new(&config, process->broker_fd, quit, loop);

	pf_service_front_serve(front, service);
	g_main_loop_run(loop);
	pf_service_front_serve(front, NULL);
}

static int become_service(const PfServiceProcess *process)
{
	g_autoptr(GError) error = NULL;
	PfHasher *hasher = pf_hasher_new();
	PfPressureFiles pressure = pf_pressure_open_host();

	if (!hasher) {
		pf_error("OpenSSL has no SHA-256 here");
		return EXIT_FAILURE;
	}
	pf_store_warn_of_huge_frames();
	(void)g_strerror(EIO);
	if (!pf_sandbox_enter(&process->sandbox, &error)) {
		pf_error("%s", error->message);
		return EXIT_FAILURE;
	}
	serve(process, hasher, pressure);
	pf_hasher_free(hasher);
	return EXIT_SUCCESS;
}

int pf_service_process_run(int handover_fd)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(PfHandover) handover = pf_handover_read(handover_fd, &error);

	if (!handover) {
		pf_error("--" PF_SERVICE_PROCESS_OPTION ": %s", error->message);
		return EXIT_FAILURE;
	}
	close(handover_fd);
	pf_process_resume(NAME, handover->starter);
	if (handover->process.debug)
		pf_log_set_level(PF_LOG_DEBUG);
	return become_service(&handover->process);
}
