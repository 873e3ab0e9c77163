/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/config/group_name.h"
#include <string.h>

gboolean pf_group_name_is_valid(const char *name)
{
	if (!g_ascii_isalnum(name[0]) || strlen(name) > PF_GROUP_NAME_MAX)
		return FALSE;
	for (const char *p = name; *p; p++)
		if (!g_ascii_isalnum(*p) && !strchr("-_.", *p))
			return FALSE;
	return TRUE;
}
