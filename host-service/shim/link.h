/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The shim's connection to the service (proto/PROTOCOL.md). */

/* Starts the link's thread, once; path of the service's socket, copied. Failing to start means that
 * nothing is fused. */
void pf_link_start(const char *path);
