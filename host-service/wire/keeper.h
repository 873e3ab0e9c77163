/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Stores outlive the service where somebody keeps them: systemd does, and between it and the service is the front. */

/* Whoever keeps stores over a restart of the service, by name; the descriptor stays the caller's. */
typedef struct PfGroupsKeeper {
	void (*keep)(void *userdata, const char *name, int fd);
	void (*drop)(void *userdata, const char *name);
	void *userdata;
} PfGroupsKeeper;

/* What an earlier service has had kept; it may be anything. */
typedef struct PfKeptStore {
	char *name;
	int fd;
} PfKeptStore;
