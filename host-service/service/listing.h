/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What a shim has fused already, taken over from its list. Frames that nobody here knows are read from the store and
 * hashed, so it is done a slice at a time, beginning with the first that comes.
 */
#include "common/digest.h"
#include "host-service/decide/fusion.h"
#include "host-service/service/guest.h"
#include "host-service/service/store.h"

typedef struct PfListing PfListing;

/* All four must live as long as the listing. */
PfListing *pf_listing_new(PfFusionVm *fusion, PfGuest *guest, PfStore *store, PfHasher *hasher);
void pf_listing_free(PfListing *listing);

/* What the shim says, in the order in which it says it. FALSE: that is more than any VM can have. */
gboolean pf_listing_add(PfListing *listing, const PfShimRun *runs, size_t n);
gboolean pf_listing_add_lost(PfListing *listing, const PfShimLost *lost, size_t n);

/* Nothing should be added before some of it was taken over. */
gboolean pf_listing_is_full(const PfListing *listing);

/* Takes some of it over; FALSE: all is done that was added so far. */
gboolean pf_listing_step(PfListing *listing);

/* Pages that cannot be taken over and have to be released. *n 0: none. NULL: too many for one message. */
const PfShimRange *pf_listing_refused(const PfListing *listing, size_t *n);
