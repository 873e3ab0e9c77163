/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The keys of agent.conf and what their values are: inside of config.c. */
#include "guest-agent/config.h"
#include <stddef.h>

#define PF_CONFIG_BLANKS " \t"

/* A configuration while a file is read. */
typedef struct PfConfigDraft {
	PfAgentConfig values; /* port and cache_paths: NULL where the file says nothing */
	char *paths;          /* of [cache] paths, a 0 behind each; owned */
	size_t paths_size, n_paths;
} PfConfigDraft;

/* The file was read: makes values complete. 0 or -ENOMEM. */
int pf_config_draft_finish(PfConfigDraft *draft);
void pf_config_draft_deinit(PfConfigDraft *draft);

typedef struct PfConfigKey {
	const char *section, *name;
	/* 0; -EINVAL for anything but what `takes` names; -ENOMEM. */
	int (*parse)(const struct PfConfigKey *key, const char *value, PfConfigDraft *draft);
	size_t offset;      /* of the field in PfAgentConfig */
	uint64_t low, high; /* of a number */
	const char *takes;
} PfConfigKey;

/* parse() of [cache] paths, the one key with a list: adds to what the draft has. key may be NULL. */
int pf_config_key_paths(const PfConfigKey *key, const char *value, PfConfigDraft *draft);

bool pf_config_is_section(const char *name);

/* NULL: there is none. */
const PfConfigKey *pf_config_key_find(const char *section, const char *name);

/* Below 64. */
size_t pf_config_key_number(const PfConfigKey *key);

/* "a, b, c": the keys of a section. */
void pf_config_key_names(const char *section, char *names, size_t size);
