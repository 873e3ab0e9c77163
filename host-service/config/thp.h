/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* When fusing may break a transparent huge page of a guest. */
#include <glib.h>

typedef enum PfThp {
	PF_THP_DEFAULT,  /* of a VM: as its trust group has it */
	PF_THP_PRESERVE, /* never */
	PF_THP_BALANCED, /* for at least PF_THP_BALANCED_PAGES fusable pages in it, or under memory pressure */
	PF_THP_ALL, /* always */
} PfThp;

#define PF_THP_BALANCED_PAGES 64u /* of 512: an eighth of the huge page comes back at least */

/* "preserve", "balanced", "all"; "default". */
const char *pf_thp_name(PfThp thp);

/* FALSE: no such name. */
gboolean pf_thp_parse(const char *name, PfThp *thp);
