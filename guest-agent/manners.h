/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Low priority for CPU and disks, for this thread and those it starts. What the kernel refuses is
 * left as it is. */
void pf_manners_set(void);
