/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Descriptors that were handed over are systemd's word for it alone: whether one of them is a store is for the service to
 * find out, in its sandbox. Only those go there that have the name of one: of another the service could not speak to us.
 */
#include "host-service/front/systemd.h"
#include "common/log.h"
#include "host-service/wire/front_protocol.h"
#include <stdlib.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

static void clear_kept(gpointer data)
{
	PfKeptStore *kept = data;

	close(kept->fd);
	g_free(kept->name);
}

GArray *pf_systemd_take_stores(void)
{
	GArray *stores = g_array_new(FALSE, FALSE, sizeof(PfKeptStore));
	char **names = NULL;
	int n = sd_listen_fds_with_names(1, &names);

	g_array_set_clear_func(stores, clear_kept);
	if (n < 0)
		pf_warning("what systemd has kept cannot be taken: %s", g_strerror(-n));
	for (int i = 0; i < n; i++) {
		PfKeptStore kept = {g_strdup(names[i]), SD_LISTEN_FDS_START + i};

		if (pf_front_is_store_name(names[i]))
			g_array_append_val(stores, kept);
		else
			clear_kept(&kept);
		free(names[i]);
	}
	free(names);
	return stores;
}

static void keep(void *userdata, const char *name, int fd)
{
	g_autofree char *message = g_strdup_printf("FDSTORE=1\nFDNAME=%s", name);
	int r = sd_pid_notify_with_fds(0, 0, message, &fd, 1);

	if (r < 0)
		pf_warning("systemd does not keep %s: %s", name, g_strerror(-r));
}

static void drop(void *userdata, const char *name)
{
	g_autofree char *message = g_strdup_printf("FDSTOREREMOVE=1\nFDNAME=%s", name);
	int r = sd_notify(0, message);

	if (r < 0)
		pf_warning("systemd cannot be told to drop %s: %s", name, g_strerror(-r));
}

const PfGroupsKeeper pf_systemd_keeper = {.keep = keep, .drop = drop};
