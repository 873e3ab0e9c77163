/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the guest says: the digest of each page that has changed, as soon as there is room in the session's window. By
 * the time it is heard the page may hold something else: the session is as late as a real one. The liar also says what
 * is not so, and what no agent would say.
 */
#include "tests/stress/vmm.h"
#include <stdio.h>
#include <string.h>

#define MODULE    1u
#define LIES      2u /* another module */
#define MAX_RUNS  256u
#define MAX_PAGES 1024u

static PfDigest digests[MAX_PAGES];
static ToyGuestRun runs[MAX_RUNS];
static size_t n_runs, n_digests;

static const PfDigest *digest_of(unsigned salt, unsigned state)
{
	return &shared->digests[salt % STRESS_SALTS][state % STRESS_STATES];
}

/* Appends page i, to the run before it where that ends there. */
static void add(unsigned i)
{
	ToyGuestRun *last = n_runs > 0 ? &runs[n_runs - 1] : NULL;

	digests[n_digests] = *digest_of(pages[i].salt, page_state(i));
	if (last && last->file_page + last->n_pages == i && i != STRESS_HIGH)
		last->n_pages++;
	else
		runs[n_runs++] = (ToyGuestRun){i, {page_gfn(i)}, &digests[n_digests], 1};
	n_digests++;
}

static void hint_changed(ToyGuest *guest)
{
	static unsigned next = STRESS_RING;

	n_runs = n_digests = 0;
	for (unsigned n = STRESS_RING;
		n < STRESS_PAGES && n_runs < MAX_RUNS && n_digests < MAX_PAGES; n++) {
		unsigned i = next;

		next = i + 1 < STRESS_PAGES ? i + 1 : STRESS_RING;
		/* Taken back first: what changes from now on is said again. */
		if (atomic_exchange(&pages[i].dirty, false))
			add(i);
	}
	if (n_runs > 0 && toy_guest_hints(guest, MODULE, runs, n_runs))
		atomic_fetch_add(&me->hints, n_digests);
}

/* Pages hold what others of their kind hold. */
static void lie_about_pages(ToyGuest *guest, StressRandom *random)
{
	n_runs = n_digests = 0;
	for (unsigned n = 16; n > 0; n--) {
		unsigned i = STRESS_RING + stress_below(random, STRESS_PAGES - STRESS_RING);

		digests[n_digests] =
			*digest_of(pages[i].salt, page_state(i) + 1 + stress_below(random, 3));
		runs[n_runs++] = (ToyGuestRun){i, {page_gfn(i)}, &digests[n_digests++], 1};
		pages[i].dirty = true;
	}
	toy_guest_hints(guest, MODULE, runs, n_runs);
}

/* Pages that are no RAM, or reach out of it, or out of the file. */
static void lie_about_places(ToyGuest *guest, StressRandom *random)
{
	const uint64_t gfns[] = {STRESS_LOW_PAGES - 2, STRESS_LOW_PAGES + 5, STRESS_HIGH_GFN - 3,
		STRESS_HIGH_GFN + STRESS_HIGH_PAGES - 2, 1ull << 39, UINT64_MAX - 3};

	for (unsigned k = 0; k < 8; k++)
		digests[k] = *digest_of(stress_below(random, STRESS_SALTS), 0);
	for (unsigned k = 0; k < sizeof gfns / sizeof gfns[0]; k++)
		toy_guest_hint(guest, MODULE, stress_below(random, STRESS_PAGES + 20),
			(PfGfn){gfns[k]}, digests, 8);
}

/* The file is another one now, or another file is in the same memory. Whatever it was is said again. */
static void change_modules(ToyGuest *guest, StressRandom *random)
{
	bool same = stress_below(random, 2) == 0;
	char name[32];

	snprintf(name, sizeof name, "module-%u", stress_below(random, 4));
	toy_guest_module(guest, same ? MODULE : LIES, name, STRESS_PAGES);
	if (!same)
		toy_guest_hint(
			guest, LIES, 0, (PfGfn){STRESS_RUN}, digest_of(STRESS_RUN_SALT, 0), 32);
	for (unsigned i = STRESS_RING; i < STRESS_PAGES; i++)
		pages[i].dirty = true;
}

static void send_rubbish(ToyGuest *guest, StressRandom *random)
{
	/* What an agent says that has just started: a new session follows. */
	static const uint8_t knock[] = {
		0x50, 0x46, 0x47, 0x31, 2, 0, 0, 0, 0x26, 0x1d, 0x26, 0x94, 0x12, 0};
	uint64_t data[64];

	for (size_t k = 0; k < 64; k++)
		data[k] = stress_next(random);
	toy_guest_send_raw(guest, data, 1 + stress_below(random, sizeof data));
	if (stress_below(random, 4) == 0)
		toy_guest_send_raw(guest, knock, sizeof knock);
}

static void lie(ToyGuest *guest, StressRandom *random)
{
	switch (stress_below(random, 600)) {
	case 0:
		send_rubbish(guest, random);
		break;
	case 1:
	case 2:
		change_modules(guest, random);
		break;
	case 3 ... 20:
		lie_about_places(guest, random);
		break;
	case 21 ... 200:
		lie_about_pages(guest, random);
		break;
	default:
		return;
	}
	atomic_fetch_add(&me->lies, 1);
}

void reports_say(ToyGuest *guest, StressRandom *random)
{
	static uint64_t said_ns;
	uint64_t session = toy_guest_session(guest);
	static uint64_t known;

	if (session == 0)
		return;
	if (session != known && toy_guest_room(guest) > 0) {
		known = session;
		if (!toy_guest_module(guest, MODULE, "stress", STRESS_PAGES))
			known = 0;
		for (unsigned i = STRESS_RING; i < STRESS_PAGES; i++)
			pages[i].dirty = true;
		atomic_fetch_add(&me->sessions, 1);
	}
	if (now_ns() - said_ns < 3000000)
		return;
	if (role == STRESS_ROLE_LIAR && toy_guest_room(guest) == 8)
		lie(guest, random);
	while (toy_guest_room(guest) > 2) {
		hint_changed(guest);
		if (n_runs < MAX_RUNS)
			break;
	}
	said_ns = now_ns();
}
