/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The path at which shims find the service, made by root before the service has given up its rights. */
#include <glib.h>
#include <sys/types.h>

typedef struct PfShimSocket PfShimSocket;

/*
 * Listens at path; beside it lies a lock, PATH.lock. A service that is just dying has a second to end. NULL with
 * error set: G_IO_ERROR_BUSY when another process's service has the socket, which is left alone.
 */
PfShimSocket *pf_shim_socket_new(const char *path, GError **error);

/* The process that serves it from now on, a child of the caller: as long as it lives nobody else takes the socket,
 * also when the caller has ended. FALSE with error set: this cannot be written down. */
gboolean pf_shim_socket_serve(PfShimSocket *socket, pid_t service, GError **error);

/* Removes the path and gives the lock up. */
void pf_shim_socket_free(PfShimSocket *socket);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PfShimSocket, pf_shim_socket_free)

/* Stays the socket's: what connections come from (nonblocking). */
int pf_shim_socket_fd(const PfShimSocket *socket);
