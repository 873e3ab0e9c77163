/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Names of trust groups: they stand in definitions, in the configuration, in the names of stores and on terminals. */
#include <glib.h>

#define PF_GROUP_DEFAULT  "default"
#define PF_GROUP_NAME_MAX 63 /* bytes */
#define PF_GROUP_NAME_RULE                                                                         \
	"1 to 63 letters, digits, '-', '_' or '.', of which the first is a letter or a digit"

/* Whether PF_GROUP_NAME_RULE holds (ASCII). */
gboolean pf_group_name_is_valid(const char *name);
