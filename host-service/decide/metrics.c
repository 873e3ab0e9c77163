/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The table of metrics, and how a query selects from it. What they count, pagefusion-metrics(7)
 * says.
 *
 * A pattern is a name as it stands in the table, "*", or whole parts of a name followed by a star
 * ("Guest/" and the star). Names are case sensitive. A pattern that selects nothing is an error and
 * never an empty answer: somebody who mistypes a name must not read "no such memory is shared" from
 * it. For the same reason a query for one object whose patterns select only metrics of the other
 * kind is an error.
 *
 * Everybody may ask, so sizes are checked before anything is done with the text; only the first
 * pattern that is wrong is compared with the table to find the nearest name.
 */
#include "host-service/decide/metrics.h"
#include <assert.h>
#include <string.h>

#define KIB_PER_PAGE (PF_PAGE_SIZE / 1024)
#define HOST_MASK    ((1u << PF_METRIC_FIRST_VM) - 1)
#define ALL_MASK     ((1u << PF_METRIC_N) - 1)

static const PfMetric table[] = {
	[PF_METRIC_HOST_SHARED] = {"RAM/VMM/Shared", "kB"},
	[PF_METRIC_HOST_FRAMES] = {"RAM/VMM/Frames", "kB"},
	[PF_METRIC_HOST_FRAMES_FREED] = {"RAM/VMM/FramesFreed", "frames"},
	[PF_METRIC_HOST_REVOKED] = {"RAM/VMM/Revoked", "pages"},
	[PF_METRIC_HOST_CANDIDATES] = {"RAM/VMM/Candidates", "kB"},
	[PF_METRIC_HOST_HINT_TO_FUSED] = {"RAM/VMM/HintToFused", "us"},
	[PF_METRIC_HOST_STORE_ALLOCATED] = {"RAM/VMM/StoreAllocated", "kB"},
	[PF_METRIC_HOST_STORE_SWAPPED] = {"RAM/VMM/StoreSwapped", "kB"},
	[PF_METRIC_HOST_PRESSURE] = {"RAM/VMM/Pressure", "bool"},
	[PF_METRIC_VM_SHARED] = {"Guest/RAM/Usage/Shared", "kB"},
	[PF_METRIC_VM_HINTED] = {"Guest/PageFusion/Hinted", "pages"},
	[PF_METRIC_VM_FUSED] = {"Guest/PageFusion/Fused", "pages"},
	[PF_METRIC_VM_REVOKED] = {"Guest/PageFusion/Revoked", "pages"},
	[PF_METRIC_VM_REFUSED] = {"Guest/PageFusion/Refused", "pages"},
	[PF_METRIC_VM_OVER_QUOTA] = {"Guest/PageFusion/OverQuota", "pages"},
	[PF_METRIC_VM_PAUSED] = {"Guest/PageFusion/Paused", "ms"},
	[PF_METRIC_VM_BUSY] = {"Guest/PageFusion/Busy", "pages"},
	[PF_METRIC_VM_DISCARDED] = {"Guest/PageFusion/Discarded", "pages"},
	[PF_METRIC_VM_WRITTEN] = {"Guest/PageFusion/Written", "pages"},
	[PF_METRIC_VM_WAYS_OUT] = {"Guest/PageFusion/WaysOut", "times"},
	[PF_METRIC_VM_RUNS] = {"Guest/PageFusion/Runs", "pieces"},
	[PF_METRIC_VM_MAPS] = {"Guest/PageFusion/Maps", "maps"},
	[PF_METRIC_VM_MAPS_BUDGET] = {"Guest/PageFusion/MapsBudget", "maps"},
};
static_assert(G_N_ELEMENTS(table) == PF_METRIC_N, "a line for each metric");
static_assert(PF_METRIC_N < 32, "selected is a mask of 32 bits");

const PfMetric *pf_metric_get(PfMetricId id)
{
	g_assert(id < PF_METRIC_N);
	return &table[id];
}

static gboolean pattern_matches(const char *pattern, size_t length, const char *name)
{
	gboolean wildcard = length > 0 && pattern[length - 1] == '*' &&
			    (length == 1 || pattern[length - 2] == '/');

	if (wildcard)
		return strncmp(pattern, name, length - 1) == 0;
	return strcmp(pattern, name) == 0;
}

static uint32_t select_metrics(const char *pattern, size_t length)
{
	uint32_t selected = 0;

	for (unsigned id = 0; id < PF_METRIC_N; id++) {
		if (pattern_matches(pattern, length, table[id].name))
			selected |= 1u << id;
	}
	return selected;
}

/* Edits (a byte inserted, deleted or replaced) that make b of a; neither is longer than
 * PF_METRIC_MAX_NAME. */
static unsigned edit_distance(const char *a, const char *b)
{
	unsigned row[PF_METRIC_MAX_NAME + 1];
	size_t columns = strlen(b);

	for (size_t j = 0; j <= columns; j++)
		row[j] = (unsigned)j;
	for (size_t i = 1; a[i - 1] != '\0'; i++) {
		unsigned diagonal = row[0];

		row[0] = (unsigned)i;
		for (size_t j = 1; j <= columns; j++) {
			unsigned replaced =
				diagonal + (g_ascii_tolower(a[i - 1]) != g_ascii_tolower(b[j - 1]));

			diagonal = row[j];
			row[j] = MIN(replaced, MIN(row[j], row[j - 1]) + 1);
		}
	}
	return row[columns];
}

static const char *nearest_name(const char *pattern)
{
	unsigned best = 0;
	unsigned best_distance = G_MAXUINT;

	for (unsigned id = 0; id < PF_METRIC_N; id++) {
		unsigned distance = edit_distance(pattern, table[id].name);

		if (distance < best_distance) {
			best = id;
			best_distance = distance;
		}
	}
	return table[best].name;
}

/* The metrics that one pattern selects; 0 with error set when it selects none. */
static uint32_t parse_pattern(const char *pattern, GError **error)
{
	size_t length = strnlen(pattern, PF_METRIC_MAX_NAME + 1);
	uint32_t selected;

	if (length == 0) {
		g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
			"a metric name is empty: separate names by single commas");
		return 0;
	}
	if (length > PF_METRIC_MAX_NAME) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
			"a metric name is longer than %d bytes: see pagefusion-metrics(7)",
			PF_METRIC_MAX_NAME);
		return 0;
	}
	selected = select_metrics(pattern, length);
	if (selected == 0)
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
			"there is no metric '%s': the nearest name is %s", pattern,
			nearest_name(pattern));
	return selected;
}

static gboolean parse_patterns(
	uint32_t *selected, const char *const *patterns, size_t n_patterns, GError **error)
{
	if (n_patterns > PF_METRIC_MAX_PATTERNS) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
			"more than %d metrics were asked for: use a wildcard",
			PF_METRIC_MAX_PATTERNS);
		return FALSE;
	}
	*selected = n_patterns == 0 ? ALL_MASK : 0;
	for (size_t i = 0; i < n_patterns; i++) {
		uint32_t bits = parse_pattern(patterns[i], error);

		if (bits == 0)
			return FALSE;
		*selected |= bits;
	}
	return TRUE;
}

static gboolean parse_object(PfMetricObject *kind, const char *object, GError **error)
{
	size_t length = strnlen(object, PF_METRIC_MAX_OBJECT + 1);

	if (length == 0 || length > PF_METRIC_MAX_OBJECT) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
			"the object is %s: it is '*', 'host', or the name or UUID of a VM",
			length == 0 ? "empty" : "too long");
		return FALSE;
	}
	if (strcmp(object, "*") == 0)
		*kind = PF_METRIC_OBJECT_ALL;
	else if (strcmp(object, "host") == 0)
		*kind = PF_METRIC_OBJECT_HOST;
	else
		*kind = PF_METRIC_OBJECT_VM;
	return TRUE;
}

static uint32_t mask_of(PfMetricObject kind)
{
	switch (kind) {
	case PF_METRIC_OBJECT_HOST:
		return HOST_MASK;
	case PF_METRIC_OBJECT_VM:
		return ALL_MASK & ~HOST_MASK;
	case PF_METRIC_OBJECT_ALL:
		break;
	}
	return ALL_MASK;
}

gboolean pf_metric_query_parse(PfMetricQuery *query, const char *object,
	const char *const *patterns, size_t n_patterns, GError **error)
{
	PfMetricQuery parsed;

	if (!parse_object(&parsed.object, object, error) ||
		!parse_patterns(&parsed.selected, patterns, n_patterns, error))
		return FALSE;
	parsed.selected &= mask_of(parsed.object);
	if (parsed.selected == 0) {
		gboolean host = parsed.object == PF_METRIC_OBJECT_HOST;

		g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
			"%s has no metric '%s': it is one of %s", host ? "the host" : "a VM",
			patterns[0], host ? "VMs" : "the host");
		return FALSE;
	}
	*query = parsed;
	return TRUE;
}

gboolean pf_metric_host_value(PfMetricId id, const PfHostView *host, uint64_t *value)
{
	switch (id) {
	case PF_METRIC_HOST_SHARED:
		*value = host->stats.shared * KIB_PER_PAGE;
		return TRUE;
	case PF_METRIC_HOST_FRAMES:
		*value = host->stats.frames * KIB_PER_PAGE;
		return TRUE;
	case PF_METRIC_HOST_FRAMES_FREED:
		*value = host->stats.freed;
		return TRUE;
	case PF_METRIC_HOST_REVOKED:
		*value = host->stats.revoked;
		return TRUE;
	case PF_METRIC_HOST_CANDIDATES:
		*value = host->stats.candidates * KIB_PER_PAGE;
		return TRUE;
	case PF_METRIC_HOST_HINT_TO_FUSED:
		if (host->stats.hint_to_fused_us_p90 < 0)
			return FALSE;
		*value = (uint64_t)host->stats.hint_to_fused_us_p90;
		return TRUE;
	case PF_METRIC_HOST_STORE_ALLOCATED:
		*value = host->store_allocated_kib;
		return TRUE;
	case PF_METRIC_HOST_STORE_SWAPPED:
		*value = host->store_swapped_kib;
		return TRUE;
	case PF_METRIC_HOST_PRESSURE:
		*value = host->pressure ? 1 : 0;
		return TRUE;
	default:
		return FALSE;
	}
}

static uint64_t sum_refused(const PfFusionVmStats *stats)
{
	uint64_t sum = 0;

	for (unsigned i = PF_SHIM_DONE + 1; i < PF_SHIM_N_RESULTS; i++)
		sum += stats->refused[i];
	return sum;
}

/* What the shim counts: without one that is connected nobody does. */
static gboolean shim_value(PfMetricId id, const PfVmView *vm, uint64_t *value)
{
	if (!vm->figures.shim_connected)
		return FALSE;
	switch (id) {
	case PF_METRIC_VM_BUSY:
		*value = vm->figures.shim.busy_pages;
		return TRUE;
	case PF_METRIC_VM_DISCARDED:
		*value = vm->figures.shim.discarded_pages;
		return TRUE;
	case PF_METRIC_VM_WRITTEN:
		*value = vm->figures.shim.written_pages;
		return TRUE;
	case PF_METRIC_VM_WAYS_OUT:
		*value = vm->figures.shim.ways_out;
		return TRUE;
	case PF_METRIC_VM_MAPS:
		*value = vm->figures.shim.maps;
		return TRUE;
	case PF_METRIC_VM_MAPS_BUDGET:
		*value = vm->figures.shim.maps_budget;
		return TRUE;
	default:
		return FALSE;
	}
}

gboolean pf_metric_vm_value(PfMetricId id, const PfVmView *vm, uint64_t *value)
{
	if (!vm->domain->active)
		return FALSE;
	switch (id) {
	case PF_METRIC_VM_SHARED:
		*value = vm->figures.stats.shared * KIB_PER_PAGE;
		return TRUE;
	case PF_METRIC_VM_HINTED:
		*value = vm->figures.stats.hinted;
		return TRUE;
	case PF_METRIC_VM_FUSED:
		*value = vm->figures.stats.fused;
		return TRUE;
	case PF_METRIC_VM_REVOKED:
		*value = vm->figures.stats.revoked;
		return TRUE;
	case PF_METRIC_VM_REFUSED:
		*value = sum_refused(&vm->figures.stats);
		return TRUE;
	case PF_METRIC_VM_OVER_QUOTA:
		*value = vm->figures.stats.over_quota;
		return TRUE;
	case PF_METRIC_VM_PAUSED:
		*value = vm->figures.paused_ms;
		return TRUE;
	case PF_METRIC_VM_RUNS:
		*value = vm->figures.stats.runs;
		return TRUE;
	default:
		return shim_value(id, vm, value);
	}
}
