/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What a QEMU may say in the shim's place, whose process it is: it says that it is ready, and is no use then. */
#include <stdbool.h>

/*
 * Connects, in a thread, as often as the service ends the connection:
 *   silent   never answers an order
 *   flood    sends STATE and LOST, of nothing, as fast as they are taken
 *   comes    goes as soon as it is connected, and comes again
 */
bool toy_shim_start(const char *kind);

/* Orders that have come so far. */
unsigned toy_shim_orders(void);

/* A connection on which nothing is said; by_child: its peer is a child of this process, that ends with it. -1: none. */
int toy_shim_connect(bool by_child);
