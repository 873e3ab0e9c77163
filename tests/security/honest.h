/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* VMs with the real shim that mean no harm, and hold the same module: what is done to them is what the tests are about. */
#include "tests/vmm/lab.h"

#define HONEST_PAGES 64u  /* of the module */
#define HONEST_FIRST 100u /* their gfn */
#define HONEST_SEED  5000u

/* Announced, and its guest can report. */
LabVm *honest_start(Lab *lab, const char *name, const char *group);
/* Its guest names the pages, or those of a VM without the shim. */
void honest_report(LabVm *vm);
/* They hold what they held. */
void honest_check(LabVm *vm);
/* Each of them is the same frame in both. */
bool honest_share(LabVm *a, LabVm *b);

/* With the service in this process. */
PfFusionStats honest_stats(Lab *lab);
void honest_wait_for_shared(Lab *lab, uint64_t n_pages);
/* Two new VMs of group "default" are fused, where nobody else is. */
void honest_expect_two_share(Lab *lab);
