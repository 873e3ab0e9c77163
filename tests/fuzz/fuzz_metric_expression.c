/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What anybody on the bus may ask for: the first line is an object, the rest a list of metrics
 * separated by commas. Either the query is refused with a message, or it selects metrics that exist
 * and that the object has.
 */
#include "host-service/decide/metrics.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autofree char *text = g_strndup((const char *)data, size);
	char *list = strchr(text, '\n');
	g_auto(GStrv) patterns = NULL;
	g_autoptr(GError) error = NULL;
	PfMetricQuery query;

	if (list)
		*list++ = '\0';
	patterns = g_strsplit(list ? list : "", ",", -1);
	if (!pf_metric_query_parse(
		    &query, text, (const char *const *)patterns, g_strv_length(patterns), &error)) {
		g_assert(error && error->message[0] != '\0');
		return 0;
	}
	g_assert(!error);
	g_assert(query.selected != 0);
	g_assert(query.selected < 1u << PF_METRIC_N);
	if (query.object == PF_METRIC_OBJECT_HOST)
		g_assert(query.selected < 1u << PF_METRIC_FIRST_VM);
	if (query.object == PF_METRIC_OBJECT_VM)
		g_assert(query.selected % (1u << PF_METRIC_FIRST_VM) == 0);
	return 0;
}
