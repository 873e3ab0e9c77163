/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Losses stand in one queue with the runs that were listed: a page may be lost as soon as it has been listed, and must
 * not be taken as fused after that. The queue is worked off while it comes, and when it is full the shim is not read from
 * until there is room again: so a list costs the same memory whatever its length, and no VM has to wait for another's.
 */
#include "host-service/service/listing.h"
#include <string.h>

#define PAGES_A_STEP 1024u
#define FULL_EVENTS  8192u  /* 768 KiB, with one message more and what was worked off before */
#define SPARE_PAGES  65536u /* beside all pages of the guest, each listed and lost */
#define MAX_REFUSED  ((PF_SHIM_MAX_MESSAGE - sizeof(PfShimHeader)) / sizeof(PfShimRange))

typedef struct Event {
	uint64_t hva, frame;
	uint32_t n_pages;
	int32_t loss; /* -1: listed */
} Event;

struct PfListing {
	PfFusionVm *fusion;
	PfGuest *guest;
	PfStore *store;
	PfHasher *hasher;
	GArray *events;  /* of Event */
	guint next;      /* the first that is not worked off */
	uint32_t done;   /* pages of it that are */
	uint64_t room;   /* pages that may still be added */
	GArray *refused; /* of PfShimRange */
};

PfListing *pf_listing_new(PfFusionVm *fusion, PfGuest *guest, PfStore *store, PfHasher *hasher)
{
	PfListing *listing = g_new0(PfListing, 1);

	*listing = (PfListing){
		.fusion = fusion,
		.guest = guest,
		.store = store,
		.hasher = hasher,
		.room = 2 * pf_guest_n_pages(guest) + SPARE_PAGES,
		.events = g_array_new(FALSE, FALSE, sizeof(Event)),
		.refused = g_array_new(FALSE, FALSE, sizeof(PfShimRange)),
	};
	return listing;
}

void pf_listing_free(PfListing *listing)
{
	if (!listing)
		return;
	g_array_unref(listing->events);
	g_array_unref(listing->refused);
	g_free(listing);
}

static gboolean add(
	PfListing *listing, uint64_t hva, uint64_t frame, uint32_t n_pages, int32_t loss)
{
	Event event = {hva, frame, n_pages, loss};

	if (n_pages > listing->room)
		return FALSE;
	listing->room -= n_pages;
	g_array_append_val(listing->events, event);
	return TRUE;
}

gboolean pf_listing_add(PfListing *listing, const PfShimRun *runs, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!add(listing, runs[i].hva, runs[i].frame, runs[i].n_pages, -1))
			return FALSE;
	return TRUE;
}

gboolean pf_listing_add_lost(PfListing *listing, const PfShimLost *lost, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!add(listing, lost[i].hva, lost[i].frame, lost[i].n_pages,
			    (int32_t)lost[i].loss))
			return FALSE;
	return TRUE;
}

static bool digest_of(void *userdata, PfFrame frame, PfDigest *digest)
{
	const PfListing *listing = userdata;
	uint8_t page[PF_PAGE_SIZE];

	return pf_store_read(listing->store, frame, page) == 0 &&
	       pf_hasher_page(listing->hasher, page, digest) == 0;
}

static void refuse(PfListing *listing, uint64_t hva)
{
	PfShimRange *last =
		listing->refused->len > 0
			? &g_array_index(listing->refused, PfShimRange, listing->refused->len - 1)
			: NULL;
	PfShimRange range = {hva, 1};

	if (last && last->hva + last->n_pages * PF_PAGE_SIZE == hva)
		last->n_pages++;
	else if (listing->refused->len <= MAX_REFUSED) /* one more than fit says: too many */
		g_array_append_val(listing->refused, range);
}

static void take_page(PfListing *listing, const Event *event, uint32_t page, int64_t now_us)
{
	PfHva hva = {event->hva + page * PF_PAGE_SIZE};
	PfFrame frame = {event->frame + page};
	PfGfn gfn;

	if (pf_guest_gfn(listing->guest, hva, &gfn) > 0 &&
		pf_fusion_listed(listing->fusion, gfn, frame, digest_of, listing, now_us) == 0)
		pf_store_claim(listing->store, frame);
	else
		refuse(listing, hva.v);
}

static void lose_page(PfListing *listing, const Event *event, uint32_t page, int64_t now_us)
{
	PfHva hva = {event->hva + page * PF_PAGE_SIZE};
	PfFrame frame = {event->frame + page};
	PfGfn gfn;

	/* It may have been lost before the list came to it: then it was not listed, and nothing is to be done. */
	if (pf_guest_gfn(listing->guest, hva, &gfn) > 0)
		pf_fusion_lost(listing->fusion, gfn, frame, 1, (PfShimLoss)event->loss, now_us);
}

gboolean pf_listing_is_full(const PfListing *listing)
{
	return listing->events->len - listing->next >= FULL_EVENTS;
}

/* The queue gets shorter by half at least, so each event is moved twice at most. */
static void forget_done(PfListing *listing)
{
	if (listing->next < listing->events->len - listing->next)
		return;
	g_array_remove_range(listing->events, 0, listing->next);
	listing->next = 0;
}

gboolean pf_listing_step(PfListing *listing)
{
	int64_t now_us = g_get_monotonic_time();

	for (uint32_t n = 0; n < PAGES_A_STEP && listing->next < listing->events->len; n++) {
		const Event *event = &g_array_index(listing->events, Event, listing->next);

		if (event->loss < 0)
			take_page(listing, event, listing->done, now_us);
		else
			lose_page(listing, event, listing->done, now_us);
		if (++listing->done == event->n_pages) {
			listing->next++;
			listing->done = 0;
		}
	}
	forget_done(listing);
	return listing->events->len > 0;
}

const PfShimRange *pf_listing_refused(const PfListing *listing, size_t *n)
{
	*n = listing->refused->len;
	return *n > MAX_REFUSED ? NULL : (const PfShimRange *)listing->refused->data;
}
