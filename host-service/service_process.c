/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the service needs of the host is opened and loaded while it still is root and has a root directory: OpenSSL reads
 * its configuration, the C library finds what it translates messages with, files of /proc and /sys are opened or read.
 * Then it enters the sandbox. Nothing that a guest, a QEMU or an earlier service has sent is looked at before that.
 */
#include "host-service/service_process.h"
#include "common/log.h"
#include "host-service/process.h"
#include "host-service/service_front.h"
#include <errno.h>
#include <stdlib.h>

#define N_FDS 4 /* beside the stores */

static int *list_fds(const PfServiceProcess *process)
{
	int *fds = g_new(int, process->n_kept + N_FDS + 1);
	size_t n = 0;

	fds[n++] = process->broker_fd;
	fds[n++] = process->front_fd;
	fds[n++] = process->shim_fd;
	fds[n++] = process->lock_fd;
	for (size_t i = 0; i < process->n_kept; i++)
		fds[n++] = process->kept[i].fd;
	fds[n] = -1;
	return fds;
}

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

static int run(void *userdata)
{
	const PfServiceProcess *process = userdata;
	g_autoptr(GError) error = NULL;
	PfHasher *hasher = pf_hasher_new();
	PfPressureFiles pressure = pf_pressure_open_host();

	if (!hasher) {
		pf_error("OpenSSL has no SHA-256 here");
		return EXIT_FAILURE;
	}
	pf_store_warn_of_huge_frames();
	(void)g_strerror(EIO);
	/* From now on it has its seed, of /dev/urandom and not of the time: tables of what guests send hash with it. */
	(void)g_random_int();
	if (!pf_sandbox_enter(&process->sandbox, &error)) {
		pf_error("%s", error->message);
		return EXIT_FAILURE;
	}
	serve(process, hasher, pressure);
	pf_hasher_free(hasher);
	return EXIT_SUCCESS;
}

pid_t pf_service_process_start(const PfServiceProcess *process, GError **error)
{
	g_autofree int *fds = list_fds(process);

	return pf_process_start("pf-service", fds, run, (void *)process, error);
}
