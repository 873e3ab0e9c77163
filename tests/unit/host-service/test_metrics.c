/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/decide/metrics.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

static const char *const names[PF_METRIC_N] = {
	"RAM/VMM/Shared",
	"RAM/VMM/Frames",
	"RAM/VMM/FramesFreed",
	"RAM/VMM/Revoked",
	"RAM/VMM/Candidates",
	"RAM/VMM/HintToFused",
	"RAM/VMM/StoreAllocated",
	"RAM/VMM/StoreSwapped",
	"RAM/VMM/Pressure",
	"Guest/RAM/Usage/Shared",
	"Guest/PageFusion/Hinted",
	"Guest/PageFusion/Fused",
	"Guest/PageFusion/Revoked",
	"Guest/PageFusion/Refused",
	"Guest/PageFusion/OverQuota",
	"Guest/PageFusion/Paused",
	"Guest/PageFusion/Busy",
	"Guest/PageFusion/Discarded",
	"Guest/PageFusion/Written",
	"Guest/PageFusion/WaysOut",
	"Guest/PageFusion/Runs",
	"Guest/PageFusion/Maps",
	"Guest/PageFusion/MapsBudget",
};

#define HOST_BITS 0x1ffu
#define VM_BITS   0x7ffe00u

static void table_is_complete(void **state)
{
	for (unsigned id = 0; id < PF_METRIC_N; id++) {
		assert_string_equal(pf_metric_get(id)->name, names[id]);
		assert_true(strlen(pf_metric_get(id)->unit) > 0);
	}
	assert_string_equal(pf_metric_get(PF_METRIC_HOST_SHARED)->unit, "kB");
	assert_string_equal(pf_metric_get(PF_METRIC_HOST_REVOKED)->unit, "pages");
	assert_string_equal(pf_metric_get(PF_METRIC_HOST_FRAMES_FREED)->unit, "frames");
	assert_string_equal(pf_metric_get(PF_METRIC_HOST_STORE_SWAPPED)->unit, "kB");
	assert_string_equal(pf_metric_get(PF_METRIC_VM_RUNS)->unit, "pieces");
	assert_string_equal(pf_metric_get(PF_METRIC_VM_WAYS_OUT)->unit, "times");
}

static void every_name_selects_itself(void **state)
{
	for (unsigned id = 0; id < PF_METRIC_N; id++) {
		PfMetricQuery query;

		assert_true(pf_metric_query_parse(&query, "*", &names[id], 1, NULL));
		assert_int_equal(query.selected, 1u << id);
	}
}

static void queries_select(void **state)
{
	static const struct {
		const char *object;
		const char *patterns[3];
		PfMetricObject kind;
		uint32_t selected;
	} cases[] = {
		{"*", {NULL}, PF_METRIC_OBJECT_ALL, HOST_BITS | VM_BITS},
		{"*", {"*"}, PF_METRIC_OBJECT_ALL, HOST_BITS | VM_BITS},
		{"*", {"RAM/VMM/*"}, PF_METRIC_OBJECT_ALL, HOST_BITS},
		{"*", {"Guest/*"}, PF_METRIC_OBJECT_ALL, VM_BITS},
		{"*", {"Guest/*", "RAM/*"}, PF_METRIC_OBJECT_ALL, HOST_BITS | VM_BITS},
		{"*", {"Guest/RAM/*"}, PF_METRIC_OBJECT_ALL, 1u << PF_METRIC_VM_SHARED},
		{"host", {NULL}, PF_METRIC_OBJECT_HOST, HOST_BITS},
		{"host", {"*"}, PF_METRIC_OBJECT_HOST, HOST_BITS},
		{"host", {"RAM/VMM/Shared", "RAM/VMM/Revoked"}, PF_METRIC_OBJECT_HOST,
			1u << PF_METRIC_HOST_SHARED | 1u << PF_METRIC_HOST_REVOKED},
		{"web", {NULL}, PF_METRIC_OBJECT_VM, VM_BITS},
		{"web", {"Guest/PageFusion/Fused", "RAM/VMM/Shared"}, PF_METRIC_OBJECT_VM,
			1u << PF_METRIC_VM_FUSED},
		{"Host", {"*"}, PF_METRIC_OBJECT_VM, VM_BITS},
		{"**", {"*"}, PF_METRIC_OBJECT_VM, VM_BITS},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		PfMetricQuery query;
		size_t n = 0;

		while (cases[i].patterns[n])
			n++;
		assert_true(
			pf_metric_query_parse(&query, cases[i].object, cases[i].patterns, n, NULL));
		assert_int_equal(query.object, cases[i].kind);
		assert_int_equal(query.selected, cases[i].selected);
	}
}

static void assert_refused(
	const char *object, const char *const *patterns, size_t n, const char *says)
{
	PfMetricQuery query = {.selected = 0x77};
	g_autoptr(GError) error = NULL;

	assert_false(pf_metric_query_parse(&query, object, patterns, n, &error));
	assert_true(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT));
	assert_non_null(strstr(error->message, says));
	assert_int_equal(query.selected, 0x77);
}

static void wrong_patterns_are_named(void **state)
{
	static const struct {
		const char *object;
		const char *pattern;
		const char *says;
	} cases[] = {
		{"*", "RAM/VMM/Shard",
			"there is no metric 'RAM/VMM/Shard': the nearest name is RAM/VMM/Shared"},
		{"*", "guest/ram/usage/shared", "the nearest name is Guest/RAM/Usage/Shared"},
		{"*", "PageFusion/Maps", "the nearest name is Guest/PageFusion/Maps"},
		{"*", "", "empty"},
		{"*", "RAM/VMM/", "no metric"},
		{"*", "RAM/VMM", "no metric"},
		{"*", "RAM/V*", "no metric 'RAM/V*'"},
		{"*", "/*", "no metric"},
		{"*", "**", "no metric"},
		{"*", "*/Shared", "no metric"},
		{"*", "CPU/*", "no metric 'CPU/*'"},
		{"*", "RAM/VMM/Shared ", "no metric"},
		{"", "*", "the object is empty"},
		{"host", "Guest/*", "the host has no metric 'Guest/*': it is one of VMs"},
		{"web", "RAM/VMM/Shared",
			"a VM has no metric 'RAM/VMM/Shared': it is one of the host"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
		assert_refused(cases[i].object, &cases[i].pattern, 1, cases[i].says);
}

static void one_wrong_pattern_is_enough(void **state)
{
	const char *const patterns[] = {"*", "RAM/VMM/Nothing", "Guest/*"};

	assert_refused("*", patterns, 3, "'RAM/VMM/Nothing'");
}

static void sizes_are_limited(void **state)
{
	g_autofree char *at_limit = g_strnfill(PF_METRIC_MAX_NAME, 'x');
	g_autofree char *beyond = g_strnfill(PF_METRIC_MAX_NAME + 1, 'x');
	g_autofree char *vm = g_strnfill(PF_METRIC_MAX_OBJECT, 'v');
	g_autofree char *long_vm = g_strnfill(PF_METRIC_MAX_OBJECT + 1, 'v');
	const char *many[PF_METRIC_MAX_PATTERNS + 1];
	const char *pattern = at_limit;
	PfMetricQuery query;

	assert_refused("*", &pattern, 1, "there is no metric 'xxx");
	pattern = beyond;
	assert_refused("*", &pattern, 1, "longer than 128 bytes");
	assert_true(pf_metric_query_parse(&query, vm, NULL, 0, NULL));
	assert_refused(long_vm, NULL, 0, "too long");
	for (size_t i = 0; i < G_N_ELEMENTS(many); i++)
		many[i] = "*";
	assert_true(pf_metric_query_parse(&query, "*", many, PF_METRIC_MAX_PATTERNS, NULL));
	assert_refused("*", many, PF_METRIC_MAX_PATTERNS + 1, "more than 64");
}

static void host_values(void **state)
{
	PfHostView host = {
		.stats = {.shared = 10,
			.frames = 20,
			.freed = 21,
			.revoked = 30,
			.candidates = 40,
			.hint_to_fused_us_p90 = 50},
		.store_allocated_kib = 60,
		.store_swapped_kib = 70,
		.pressure = 2, /* any that is not zero */
	};
	static const uint64_t expected[] = {40, 80, 21, 30, 160, 50, 60, 70, 1};
	uint64_t value;

	for (unsigned id = 0; id < PF_METRIC_FIRST_VM; id++) {
		assert_true(pf_metric_host_value(id, &host, &value));
		assert_int_equal(value, expected[id]);
	}
	assert_false(pf_metric_host_value(PF_METRIC_VM_SHARED, &host, &value));
	host.stats.hint_to_fused_us_p90 = -1;
	assert_false(pf_metric_host_value(PF_METRIC_HOST_HINT_TO_FUSED, &host, &value));
	host.stats.hint_to_fused_us_p90 = 0;
	assert_true(pf_metric_host_value(PF_METRIC_HOST_HINT_TO_FUSED, &host, &value));
	assert_int_equal(value, 0);
	host.pressure = FALSE;
	assert_true(pf_metric_host_value(PF_METRIC_HOST_PRESSURE, &host, &value));
	assert_int_equal(value, 0);
}

static void vm_values(void **state)
{
	PfDomain domain = {.name = "web", .active = TRUE};
	PfVmView vm = {
		.domain = &domain,
		.figures.shim_connected = TRUE,
		.figures.stats = {.hinted = 1,
			.fused = 2,
			.shared = 3,
			.runs = 4,
			.revoked = 5,
			.over_quota = 14,
			.refused =
				{[PF_SHIM_DONE] = 1000, [PF_SHIM_BUSY] = 6, [PF_SHIM_FAILED] = 7}},
		.figures.shim = {.maps = 8,
			.maps_budget = 9,
			.busy_pages = 10,
			.discarded_pages = 11,
			.written_pages = 12,
			.ways_out = 13},
		.figures.paused_ms = 15,
	};
	static const uint64_t expected[] = {12, 1, 2, 5, 13, 14, 15, 10, 11, 12, 13, 4, 8, 9};
	static const PfMetricId of_the_shim[] = {PF_METRIC_VM_BUSY, PF_METRIC_VM_DISCARDED,
		PF_METRIC_VM_WRITTEN, PF_METRIC_VM_WAYS_OUT, PF_METRIC_VM_MAPS,
		PF_METRIC_VM_MAPS_BUDGET};
	uint64_t value;

	for (unsigned id = PF_METRIC_FIRST_VM; id < PF_METRIC_N; id++) {
		assert_true(pf_metric_vm_value(id, &vm, &value));
		assert_int_equal(value, expected[id - PF_METRIC_FIRST_VM]);
	}
	assert_false(pf_metric_vm_value(PF_METRIC_HOST_SHARED, &vm, &value));
	vm.figures.shim_connected = FALSE;
	for (size_t i = 0; i < G_N_ELEMENTS(of_the_shim); i++)
		assert_false(pf_metric_vm_value(of_the_shim[i], &vm, &value));
	assert_true(pf_metric_vm_value(PF_METRIC_VM_SHARED, &vm, &value));
	domain.active = FALSE;
	for (unsigned id = PF_METRIC_FIRST_VM; id < PF_METRIC_N; id++)
		assert_false(pf_metric_vm_value(id, &vm, &value));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(table_is_complete),
		cmocka_unit_test(every_name_selects_itself),
		cmocka_unit_test(queries_select),
		cmocka_unit_test(wrong_patterns_are_named),
		cmocka_unit_test(one_wrong_pattern_is_enough),
		cmocka_unit_test(sizes_are_limited),
		cmocka_unit_test(host_values),
		cmocka_unit_test(vm_values),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
