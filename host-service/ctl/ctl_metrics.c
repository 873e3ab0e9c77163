/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * metrics query: a table of object, metric and value, as wide as what stands in it. Which metrics
 * there are only the service knows, so that a newer service has its metrics here too.
 */
#include "host-service/ctl/client.h"
#include "host-service/ctl/output.h"
#include <inttypes.h>

enum { OBJECT, METRIC, VALUE, N_COLUMNS };

static const char *const titles[N_COLUMNS] = {"Object", "Metric", "Value"};

typedef struct Row {
	char *cells[N_COLUMNS]; /* escaped, owned */
} Row;

static void row_free(Row *row)
{
	for (unsigned i = 0; i < N_COLUMNS; i++)
		g_free(row->cells[i]);
	g_free(row);
}

static Row *make_row(const char *object, const char *metric, guint64 value, const char *unit)
{
	Row *row = g_new0(Row, 1);
	g_autofree char *number = g_strdup_printf("%" PRIu64 " %s", value, unit);

	row->cells[OBJECT] = pf_ctl_escape(object, PF_CTL_PLAIN);
	row->cells[METRIC] = pf_ctl_escape(metric, PF_CTL_PLAIN);
	row->cells[VALUE] = pf_ctl_escape(number, PF_CTL_PLAIN);
	return row;
}

static void print_row(FILE *out, const char *const cells[N_COLUMNS], const size_t widths[N_COLUMNS])
{
	for (unsigned i = 0; i < VALUE; i++) {
		pf_ctl_write_padded(out, cells[i], widths[i]);
		fputs("  ", out);
	}
	fprintf(out, "%s\n", cells[VALUE]);
}

static void print_rule(FILE *out, const size_t widths[N_COLUMNS])
{
	for (unsigned i = 0; i < N_COLUMNS; i++) {
		for (size_t n = 0; n < widths[i]; n++)
			fputc('-', out);
		fputs(i == VALUE ? "\n" : "  ", out);
	}
}

static void print_table(FILE *out, GPtrArray *rows)
{
	size_t widths[N_COLUMNS];

	for (unsigned i = 0; i < N_COLUMNS; i++) {
		widths[i] = pf_ctl_width(titles[i]);
		for (guint n = 0; n < rows->len; n++) {
			const Row *row = g_ptr_array_index(rows, n);

			widths[i] = MAX(widths[i], pf_ctl_width(row->cells[i]));
		}
	}
	print_row(out, titles, widths);
	print_rule(out, widths);
	for (guint n = 0; n < rows->len; n++) {
		const Row *row = g_ptr_array_index(rows, n);

		print_row(out, (const char *const *)row->cells, widths);
	}
}

static void print_values(FILE *out, GVariant *values)
{
	g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func((GDestroyNotify)row_free);
	GVariantIter iter;
	const char *object;
	const char *metric;
	const char *unit;
	guint64 value;

	g_variant_iter_init(&iter, values);
	while (g_variant_iter_next(&iter, "(&s&st&s)", &object, &metric, &value, &unit))
		g_ptr_array_add(rows, make_row(object, metric, value, unit));
	print_table(out, rows);
}

static void add_member(JsonBuilder *builder, const char *name, const char *value)
{
	json_builder_set_member_name(builder, name);
	json_builder_add_string_value(builder, value);
}

static void print_json(FILE *out, GVariant *values)
{
	g_autoptr(JsonBuilder) builder = json_builder_new();
	GVariantIter iter;
	const char *object;
	const char *metric;
	const char *unit;
	guint64 value;

	json_builder_begin_array(builder);
	g_variant_iter_init(&iter, values);
	while (g_variant_iter_next(&iter, "(&s&st&s)", &object, &metric, &value, &unit)) {
		json_builder_begin_object(builder);
		add_member(builder, "object", object);
		add_member(builder, "metric", metric);
		json_builder_set_member_name(builder, "value");
		json_builder_add_int_value(builder, (gint64)value);
		add_member(builder, "unit", unit);
		json_builder_end_object(builder);
	}
	json_builder_end_array(builder);
	pf_ctl_write_json(out, json_builder_get_root(builder));
}

PfCtlExit pf_ctl_metrics_query(PfCtl *ctl)
{
	const char *object = ctl->n_args > 0 ? ctl->args[0] : "*";
	g_auto(GStrv) metrics =
		ctl->n_args > 1 ? g_strsplit(ctl->args[1], ",", -1) : g_new0(char *, 1);
	PfCtlExit code = PF_CTL_OK;
	g_autoptr(PfDbusManager) manager = NULL;
	g_autoptr(GVariant) values = NULL;
	g_autoptr(GError) error = NULL;

	if (ctl->n_args > 1 && ctl->args[1][0] == '\0')
		return pf_ctl_fail(ctl, PF_CTL_USAGE,
			"the list of metrics is empty: leave it out, or see pagefusion-metrics(7)");
	manager = pf_ctl_connect(ctl, &code);
	if (!manager)
		return code; /* NOLINT(*unix.Malloc): g_auto frees metrics */
	if (!pf_dbus_manager_call_query_metrics_sync(manager, object, (const char *const *)metrics,
		    pf_ctl_no_options(), &values, NULL, &error))
		return pf_ctl_call_failed(ctl, error);
	if (ctl->options.json)
		print_json(ctl->out, values);
	else
		print_values(ctl->out, values);
	return PF_CTL_OK;
}
