/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Whether the host is short of memory. */
#include <glib.h>

typedef struct PfPressure PfPressure;

/*
 * changed() is called from the main loop whenever that changes, and not before pf_pressure_new() has returned. It
 * begins with FALSE.
 */
PfPressure *pf_pressure_new(void (*changed)(void *userdata, gboolean pressure), void *userdata);
void pf_pressure_free(PfPressure *pressure);

/* What is looked at, and how often; others than the host's are for tests. */
typedef struct PfPressureConfig {
	const char *psi;     /* where a trigger of the kernel's is set */
	const char *meminfo; /* where that cannot be done; must live as long as the PfPressure */
	guint quiet_ms;      /* pressure lasts until so long after the trigger's last event */
	guint look_ms;       /* between looks at meminfo */
} PfPressureConfig;
PfPressure *pf_pressure_new_with(const PfPressureConfig *config,
	void (*changed)(void *userdata, gboolean pressure), void *userdata);
