/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* systemd keeps stores between two starts of the program: its descriptor store (FDSTORE). Without systemd it is nobody. */
#include "host-service/wire/keeper.h"
#include <glib.h>

/*
 * Takes the stores that systemd has kept for us (sd_listen_fds_with_names), and nothing else of what it hands over; once.
 * An array of PfKeptStore, which owns the names and the descriptors, so that both go with it.
 */
GArray *pf_systemd_take_stores(void);

/* Has stores kept, and dropped. */
extern const PfGroupsKeeper pf_systemd_keeper;
