/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
#include "host-service/service/store.h"

/* All of it at once; returns the KiB that went back to the host. */
static inline uint64_t sweep(PfStore *store)
{
	uint64_t freed_kib;

	pf_store_start_sweep(store);
	while (pf_store_sweep(store, G_USEC_PER_SEC, &freed_kib))
		;
	return freed_kib;
}
