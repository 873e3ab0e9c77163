/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Sources of the thread-default main context, each held by whoever will drop it. */
#include <glib.h>

/* Sets the source's callback and attaches it. Returns the source, which is the caller's still. */
GSource *pf_source_start(GSource *source, GSourceFunc callback, void *userdata);

/* Ends and releases it; *source, which may be NULL, is NULL then. */
void pf_source_drop(GSource **source);
