/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What the values of the configuration may be. Each writes to the field that it is for; FALSE: it is anything else, and
 * nothing was written.
 */
#include <glib.h>

/* guint: 2 to PF_POLICY_MAX_ADMISSION, or 1 for "any". */
gboolean pf_config_value_admission(const char *value, void *field);

/* PfThp, but not PF_THP_DEFAULT. */
gboolean pf_config_value_thp(const char *value, void *field);

/* guint: 1 to 100. */
gboolean pf_config_value_percent(const char *value, void *field);

/* guint64: 1000 to 1000000000. */
gboolean pf_config_value_hints(const char *value, void *field);

/* guint64: 64 KiB to 16 GiB, in bytes or with the suffix K, M or G. */
gboolean pf_config_value_bytes(const char *value, void *field);

/* guint64: 64 to 16777216 MiB, written in bytes. */
gboolean pf_config_value_mebibytes(const char *value, void *field);

/* char *, which is freed: the name or the number of a user, who may exist or not, but is not root. */
gboolean pf_config_value_user(const char *value, void *field);

/* char *, which is freed: an absolute path, of something that may be there or not. */
gboolean pf_config_value_path(const char *value, void *field);
