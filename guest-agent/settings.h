/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What holds: the configuration, and over it what the command line says. */
#include "guest-agent/agent.h"

typedef struct PfSettings {
	PfAgentConfig config;          /* owned */
	const PfAgentOptions *options; /* not owned; their config is empty */
} PfSettings;

/* Takes what options->config holds; options must live as long as the settings. */
void pf_settings_init(PfSettings *settings, const PfAgentOptions *options);
void pf_settings_deinit(PfSettings *settings);

unsigned pf_settings_interval_s(const PfSettings *settings);

/* The port that is wanted when the configuration is that one; NULL: found by its name. */
const char *pf_settings_port(const PfSettings *settings, const PfAgentConfig *config);

/* Reads the file again into new, which is the caller's and is to be deinitialized also on an error. 0 or -errno with a
 * message. The settings stay as they are. */
int pf_settings_read(const PfSettings *settings, PfAgentConfig *new, char *message, size_t size);
