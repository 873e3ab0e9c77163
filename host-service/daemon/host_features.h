/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What page fusion needs of the host's kernel, probed by feature. */
#include <gio/gio.h>

/* Names of the userfaultfd features (UFFD_FEATURE_*, a bit mask), for people; free with g_free(). */
char *pf_host_feature_names(guint64 features);

/*
 * Whether the kernel behind device (/dev/userfaultfd) has all that is needed. FALSE with G_IO_ERROR_NOT_SUPPORTED and
 * one sentence that names what is missing and the package that brings it, or another error that says what to do.
 */
gboolean pf_host_features_check(const char *device, GError **error);
