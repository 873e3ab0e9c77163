/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The path at which shims find the service, made by root before the service has given up its rights. */
#include <glib.h>

typedef struct PfShimSocket PfShimSocket;

/*
 * Listens at path; beside it lies a lock, PATH.lock. A service that is just dying has a second to let go of it. NULL with error set: G_IO_ERROR_BUSY
 * when another process's service has the socket, which is left alone.
 */
PfShimSocket *pf_shim_socket_new(const char *path, GError **error);

/* Removes the path. The lock is held until the last process that has its descriptor has closed it: as long as somebody
 * may write to a store, nobody else begins to. */
void pf_shim_socket_free(PfShimSocket *socket);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PfShimSocket, pf_shim_socket_free)

/* Both stay the socket's: what connections come from (nonblocking), and what a process that serves them has to keep open. */
int pf_shim_socket_fd(const PfShimSocket *socket);
int pf_shim_socket_lock(const PfShimSocket *socket);
