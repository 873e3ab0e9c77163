/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The service's configuration, a key file (pagefusiond.conf(5)): [service], [defaults] for every trust group, and
 * [group NAME] for one, whose keys are those of [defaults]. No I/O but reading the file.
 */
#include "host-service/config/policy.h"

typedef struct PfConfig PfConfig;

/* From the build: PF_CONFIG_PATH, where packaging installs it, and PF_CONFIG_ADDITIONS_ISO. */
#define PF_CONFIG_USER "pagefusion"

/* All defaults. */
PfConfig *pf_config_new(void);
void pf_config_free(PfConfig *config);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PfConfig, pf_config_free)

/*
 * Reads a file. required: it must be there; else one that is missing means all defaults. NULL with error set, one line
 * that names the file, the section, the key and what it may be: also for a section or a key that there is not.
 */
PfConfig *pf_config_load(const char *path, gboolean required, GError **error);

/* The same of text; path is for messages. size bytes, which need not end with a 0. */
PfConfig *pf_config_parse(const char *path, const char *text, gsize size, GError **error);

/* The policy of a trust group: its own section's, and what that does not say, the defaults'. Valid as long as config. */
const PfPolicy *pf_config_policy(const PfConfig *config, const char *group);

/* From the command line: the defaults' policy for huge pages. Groups that say otherwise keep theirs. */
void pf_config_set_thp(PfConfig *config, PfThp thp);
PfThp pf_config_thp(const PfConfig *config);

/*
 * What it was parsed from, for a process that parses it once more; "" when there was no file. What the command line has
 * changed is not in it.
 */
const char *pf_config_text(const PfConfig *config);

/* The user that the service runs as, a name or a number. */
const char *pf_config_user(const PfConfig *config);
void pf_config_set_user(PfConfig *config, const char *user);

/* The image with the guest additions, by its absolute path. */
const char *pf_config_additions_iso(const PfConfig *config);
void pf_config_set_additions_iso(PfConfig *config, const char *path);

/* Bytes that the service may use beside the frames (RLIMIT_DATA); 0: not said, see pf_sandbox_default_memory(). */
guint64 pf_config_memory_limit(const PfConfig *config);
