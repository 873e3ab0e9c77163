/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Views become dictionaries and metric values here. The bus refuses text that is not UTF-8, so what
 * comes from elsewhere goes through pf_dbus_text(). Counts of pages become KiB where the interface
 * says KiB, and a result that never occurred is left out of `refused`.
 */
#include "host-service/front/dbus_values.h"
#include <assert.h>

static const char *const refusal_names[] = {
	[PF_SHIM_DONE] = "done", /* never counted */
	[PF_SHIM_DIFFERENT] = "different",
	[PF_SHIM_BUSY] = "busy",
	[PF_SHIM_NOT_PRESENT] = "not-present",
	[PF_SHIM_WRITTEN] = "written",
	[PF_SHIM_NO_MAPS] = "no-maps",
	[PF_SHIM_NOT_RAM] = "not-ram",
	[PF_SHIM_NOT_PRIVATE] = "not-private",
	[PF_SHIM_NO_FRAME] = "no-frame",
	[PF_SHIM_STOPPED] = "stopped",
	[PF_SHIM_FAILED] = "failed",
	[PF_SHIM_HUGE] = "huge",
	[PF_SHIM_ASIDE] = "aside",
};
static_assert(G_N_ELEMENTS(refusal_names) == PF_SHIM_N_RESULTS, "a name for each result");

static const char *const additions_names[] = {
	[PF_ADDITIONS_NEVER_SEEN] = "never seen",
	[PF_ADDITIONS_CONNECTED] = "connected",
	[PF_ADDITIONS_SILENT] = "silent",
	[PF_ADDITIONS_TOO_OLD] = "too old",
};
static_assert(G_N_ELEMENTS(additions_names) == PF_ADDITIONS_TOO_OLD + 1, "a name for each state");

GVariant *pf_dbus_text(const char *string)
{
	return g_variant_new_take_string(g_utf8_make_valid(string, -1));
}

static void put_text(GVariantDict *dict, const char *key, const char *string)
{
	g_variant_dict_insert_value(dict, key, pf_dbus_text(string));
}

static void put_number(GVariantDict *dict, const char *key, uint64_t number)
{
	g_variant_dict_insert_value(dict, key, g_variant_new_uint64(number));
}

static void put_flag(GVariantDict *dict, const char *key, gboolean flag)
{
	g_variant_dict_insert_value(dict, key, g_variant_new_boolean(flag != FALSE));
}

static GVariant *refusals(const PfFusionVmStats *stats)
{
	GVariantBuilder builder;

	g_variant_builder_init(&builder, G_VARIANT_TYPE("a{st}"));
	for (unsigned i = PF_SHIM_DONE + 1; i < PF_SHIM_N_RESULTS; i++) {
		if (stats->refused[i] > 0)
			g_variant_builder_add(
				&builder, "{st}", refusal_names[i], stats->refused[i]);
	}
	return g_variant_builder_end(&builder);
}

GVariant *pf_dbus_describe_vm(const PfVmView *vm)
{
	const PfFusionVmStats *stats = &vm->figures.stats;
	GVariantDict dict;

	g_variant_dict_init(&dict, NULL);
	put_text(&dict, "uuid", vm->domain->uuid);
	put_text(&dict, "name", vm->domain->name);
	put_text(&dict, "group", vm->domain->group);
	put_text(&dict, "state", vm->domain->state);
	put_flag(&dict, "pagefusion", vm->domain->enabled);
	put_text(&dict, "thp", pf_thp_name(vm->figures.thp));
	put_text(&dict, "thp-setting", pf_thp_name(vm->domain->thp));
	put_flag(&dict, "active", vm->domain->active);
	put_number(&dict, "memory-kib", vm->domain->memory_pages * (PF_PAGE_SIZE / 1024));
	put_text(&dict, "reason", vm->reason);
	put_text(&dict, "agent-version", vm->agent_version);
	put_text(&dict, "kernel", vm->kernel);
	put_text(&dict, "additions-state", additions_names[vm->figures.additions]);
	put_number(&dict, "additions-since", vm->figures.additions_since);
	put_flag(&dict, "shim-connected", vm->figures.shim_connected);
	put_number(&dict, "hinted", stats->hinted);
	put_number(&dict, "fused", stats->fused);
	put_number(&dict, "shared-kib", stats->shared * (PF_PAGE_SIZE / 1024));
	put_number(&dict, "runs", stats->runs);
	put_number(&dict, "revoked", stats->revoked);
	put_number(&dict, "over-quota", stats->over_quota);
	put_number(&dict, "maps", vm->figures.shim.maps);
	put_number(&dict, "maps-budget", vm->figures.shim.maps_budget);
	put_number(&dict, "discarded", vm->figures.shim.discarded_pages);
	put_number(&dict, "written", vm->figures.shim.written_pages);
	put_number(&dict, "ways-out", vm->figures.shim.ways_out);
	put_number(&dict, "busy", vm->figures.shim.busy_pages);
	g_variant_dict_insert_value(&dict, "refused", refusals(stats));
	return g_variant_dict_end(&dict);
}

static void add_value(GVariantBuilder *values, const char *object, PfMetricId id, uint64_t value)
{
	const PfMetric *metric = pf_metric_get(id);

	g_variant_builder_add(
		values, "(@ssts)", pf_dbus_text(object), metric->name, value, metric->unit);
}

void pf_dbus_add_host_values(
	GVariantBuilder *values, const PfMetricQuery *query, const PfHostView *host)
{
	uint64_t value;

	for (unsigned id = 0; id < PF_METRIC_FIRST_VM; id++) {
		if ((query->selected & (1u << id)) && pf_metric_host_value(id, host, &value))
			add_value(values, "host", id, value);
	}
}

void pf_dbus_add_vm_values(GVariantBuilder *values, const PfMetricQuery *query, const PfVmView *vm)
{
	uint64_t value;

	for (unsigned id = PF_METRIC_FIRST_VM; id < PF_METRIC_N; id++) {
		if ((query->selected & (1u << id)) && pf_metric_vm_value(id, vm, &value))
			add_value(values, vm->domain->name, id, value);
	}
}
