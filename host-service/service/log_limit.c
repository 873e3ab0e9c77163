/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/service/log_limit.h"
#include <glib.h>

#define MINUTE_US (60 * G_USEC_PER_SEC)

void pf_log_limit_init(PfLogLimit *limit, const char *name, int64_t now_us)
{
	*limit = (PfLogLimit){.name = name, .since_us = now_us};
}

static void begin_minute(PfLogLimit *limit, int64_t now_us)
{
	limit->since_us = now_us;
	limit->n = 0;
	if (limit->left_out > 0)
		pf_info("%s: %" G_GUINT64_FORMAT " lines about it were left out", limit->name,
			(guint64)limit->left_out);
	limit->left_out = 0;
}

bool pf_log_limit_take(PfLogLimit *limit, int64_t now_us)
{
	if (now_us - limit->since_us >= MINUTE_US)
		begin_minute(limit, now_us);
	if (limit->n < PF_LOG_LIMIT_LINES) {
		limit->n++;
		return true;
	}
	if (limit->left_out++ == 0)
		pf_warning("%s: more about it is left out for a minute", limit->name);
	return false;
}

void pf_log_limited(PfLogLimit *limit, PfLogLevel level, const char *format, ...)
{
	g_autofree char *text = NULL;
	va_list arguments;

	if (level < PF_LOG_DEBUG && !pf_log_limit_take(limit, g_get_monotonic_time()))
		return;
	va_start(arguments, format);
	text = g_strdup_vprintf(format, arguments);
	va_end(arguments);
	pf_log(level, "%s: %s", limit->name, text);
}
