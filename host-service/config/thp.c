/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/config/thp.h"
#include <string.h>

static const char *const names[] = {
	[PF_THP_DEFAULT] = "default",
	[PF_THP_PRESERVE] = "preserve",
	[PF_THP_BALANCED] = "balanced",
	[PF_THP_ALL] = "all",
};

const char *pf_thp_name(PfThp thp)
{
	return names[thp];
}

gboolean pf_thp_parse(const char *name, PfThp *thp)
{
	for (guint i = 0; i < G_N_ELEMENTS(names); i++)
		if (strcmp(names[i], name) == 0) {
			*thp = (PfThp)i;
			return TRUE;
		}
	return FALSE;
}
