/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Whether the host is short of memory. */
#include <glib.h>

typedef struct PfPressure PfPressure;

/* What is looked at, opened by whoever may. */
typedef struct PfPressureFiles {
	int trigger; /* of the kernel's; -1: that cannot be done here, so meminfo is looked at */
	int meminfo; /* -1: nothing is known */
} PfPressureFiles;

/* The host's. The descriptors are the caller's. */
PfPressureFiles pf_pressure_open_host(void);
/* Others, for tests: where a trigger is set, and where it cannot be. */
PfPressureFiles pf_pressure_open(const char *psi, const char *meminfo);

/*
 * changed() is called from the main loop whenever that changes, and not before pf_pressure_new() has returned. It
 * begins with FALSE. The files are consumed.
 */
PfPressure *pf_pressure_new(
	PfPressureFiles files, void (*changed)(void *userdata, gboolean pressure), void *userdata);
void pf_pressure_free(PfPressure *pressure);

/* How often; others than the host's are for tests. */
typedef struct PfPressureConfig {
	guint quiet_ms; /* pressure lasts until so long after the trigger's last event */
	guint look_ms;  /* between looks at meminfo */
} PfPressureConfig;
PfPressure *pf_pressure_new_with(const PfPressureConfig *config, PfPressureFiles files,
	void (*changed)(void *userdata, gboolean pressure), void *userdata);
