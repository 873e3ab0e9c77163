/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Whatever it sends, it spends no time on it that the service might need: digests are numbers that count up. */
#include "tests/vmm/toy_flood.h"
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define MODULE      77u
#define MODULE_SIZE 1024u
#define WITHDRAWN   64u
#define RUBBISH     65536u

static void make_digests(PfDigest *digests, size_t n)
{
	static uint64_t count;

	for (size_t i = 0; i < n; i++, count++)
		memcpy(&digests[i], &count, sizeof(count));
}

static bool hint(ToyGuest *guest, size_t n)
{
	static PfDigest digests[MODULE_SIZE];

	make_digests(digests, n);
	return toy_guest_hint(guest, MODULE, 0, (PfGfn){0}, digests, n);
}

static bool declare(ToyGuest *guest)
{
	static uint64_t declared;

	if (declared == toy_guest_session(guest) && declared != 0)
		return true;
	if (!toy_guest_module(guest, MODULE, "flood", MODULE_SIZE))
		return false;
	declared = toy_guest_session(guest);
	return true;
}

static void flood_hints(ToyGuest *guest)
{
	if (declare(guest))
		hint(guest, MODULE_SIZE);
}

static void flood_withdrawn(ToyGuest *guest)
{
	bool good = declare(guest) && hint(guest, WITHDRAWN);

	for (uint64_t i = 0; good && i < WITHDRAWN; i++)
		good = toy_guest_withdraw(guest, MODULE, i, 1);
}

static void flood_sessions(ToyGuest *guest)
{
	uint64_t session = toy_guest_session(guest);

	toy_guest_knock(guest);
	for (int i = 0; i < 100 && toy_guest_session(guest) == session; i++) {
		struct pollfd events[] = {{toy_guest_listener(guest), POLLIN, 0},
			{toy_guest_connection(guest), POLLIN, 0}};

		poll(events, 2, 100);
		toy_guest_handle(guest);
	}
}

static void flood_rubbish(ToyGuest *guest)
{
	static uint8_t rubbish[RUBBISH];

	/* Headers that announce much and keep nothing. */
	for (size_t i = 0; i + 8 <= sizeof(rubbish); i += 64)
		memcpy(rubbish + i, "PFG1\x00\x00\x01\x00", 8);
	if (!toy_guest_send_raw(guest, rubbish, sizeof(rubbish)))
		poll(NULL, 0, 100);
	toy_guest_handle(guest);
}

void toy_flood(ToyGuest *guest, const char *kind, uint64_t n)
{
	static const struct {
		const char *name;
		void (*flood)(ToyGuest *guest);
	} kinds[] = {{"hints", flood_hints}, {"withdrawn", flood_withdrawn},
		{"sessions", flood_sessions}, {"rubbish", flood_rubbish}};

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		for (uint64_t k = 0; k < n && strcmp(kinds[i].name, kind) == 0; k++)
			kinds[i].flood(guest);
}
