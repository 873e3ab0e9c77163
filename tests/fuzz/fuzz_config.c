/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The configuration: either it is refused with one short line, or every policy that comes of it is in the bounds that the
 * service's quotas count on, for trust groups that have a section and for those that have none.
 */
#include "host-service/config/config.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(gboolean holds)
{
	if (!holds)
		abort();
}

static gboolean is_percent(guint value)
{
	return value >= 1 && value <= 100;
}

static void check_policy(const PfConfig *config, const char *group)
{
	const PfPolicy *policy = pf_config_policy(config, group);

	require(policy->admission >= 1 && policy->admission <= PF_POLICY_MAX_ADMISSION);
	require(policy->thp > PF_THP_DEFAULT && policy->thp <= PF_THP_ALL);
	require(policy->bytes_per_s >= 1 << 16 && policy->bytes_per_s <= UINT64_C(1) << 34);
	require(policy->hints_per_s >= 1000 && policy->hints_per_s <= 1000000000);
	require(is_percent(policy->cpu_percent) && is_percent(policy->candidates_percent));
	require(is_percent(policy->frames_percent) && is_percent(policy->index_memory_percent));
}

static void check_config(PfConfig *config)
{
	static const char *const groups[] = {"default", "tenant-1", "g", ""};
	guint64 limit = pf_config_memory_limit(config);

	require(*pf_config_user(config) && strcmp(pf_config_user(config), "root") != 0);
	require(limit == 0 || (limit >= 64 << 20 && limit <= UINT64_C(1) << 44));
	for (size_t i = 0; i < G_N_ELEMENTS(groups); i++)
		check_policy(config, groups[i]);
	pf_config_set_thp(config, PF_THP_ALL);
	require(pf_config_policy(config, "")->thp == PF_THP_ALL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(PfConfig) config = pf_config_parse("x.conf", (const char *)data, size, &error);

	require(!config == !!error);
	if (config) {
		check_config(config);
		return 0;
	}
	require(g_str_has_prefix(error->message, "x.conf") &&
		g_utf8_validate(error->message, -1, NULL));
	require(!strchr(error->message, '\n') && strlen(error->message) < 700);
	return 0;
}
