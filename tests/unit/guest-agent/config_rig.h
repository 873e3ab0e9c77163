/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the tests of the agent's configuration have in common. */
#include "guest-agent/config.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const char *const default_paths[] = {"/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin",
	"/opt", "/var/lib/docker/overlay2", "/var/lib/containers/storage/overlay",
	"/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots", NULL};

static char message[1024];

static inline int parse_bytes(PfAgentConfig *config, const char *text, size_t size)
{
	memset(message, '?', sizeof(message));
	return pf_agent_config_parse(config, "x.conf", text, size, message, sizeof(message));
}

/* What a text says over the defaults. */
static inline PfAgentConfig parse(const char *text)
{
	PfAgentConfig config;

	assert_int_equal(pf_agent_config_init(&config), 0);
	if (parse_bytes(&config, text, strlen(text)) != 0)
		fail_msg("\"%s\": %s", text, message);
	return config;
}

static inline void assert_paths(char *const *paths, const char *const *expected)
{
	size_t i = 0;

	for (; expected[i]; i++) {
		assert_non_null(paths[i]);
		assert_string_equal(paths[i], expected[i]);
	}
	assert_null(paths[i]);
}

static inline void assert_default_values(const PfAgentConfig *config)
{
	assert_int_equal(config->interval_s, 60);
	assert_int_equal(config->slow_interval_s, 600);
	assert_int_equal(config->hash_limit, 128 << 20);
	assert_int_equal(config->cpu_limit_permyriad, 10);
	assert_true(config->classes[PF_CLASS_MAPPED]);
	assert_true(config->classes[PF_CLASS_CACHE]);
	assert_false(config->classes[PF_CLASS_BUFFERS]);
	assert_false(config->classes[PF_CLASS_KERNEL]);
	assert_paths(config->cache_paths, default_paths);
}

static inline void assert_defaults(const PfAgentConfig *config)
{
	assert_default_values(config);
	assert_null(config->port);
}
