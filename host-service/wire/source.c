/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/wire/source.h"

GSource *pf_source_start(GSource *source, GSourceFunc callback, void *userdata)
{
	g_source_set_callback(source, callback, userdata, NULL);
	g_source_attach(source, g_main_context_get_thread_default());
	return source;
}

void pf_source_drop(GSource **source)
{
	if (*source)
		g_source_destroy(*source);
	g_clear_pointer(source, g_source_unref);
}
