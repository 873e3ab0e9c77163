/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The guest's side of the channel, inside a toy VMM: it listens where QEMU would, and speaks
 * proto/agent.proto.
 */
#include "common/page.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ToyGuest ToyGuest;

typedef struct ToyGuestRange {
	PfGfn first;
	uint64_t n_pages;
} ToyGuestRange;

/* Listens at path; NULL with errno set. ranges must live as long as the guest. */
ToyGuest *toy_guest_new(const char *path, const ToyGuestRange *ranges, size_t n_ranges);
void toy_guest_free(ToyGuest *guest);

/* What it says in its next hello; before, "toy" and 1. version must live as long as the guest. */
void toy_guest_set_agent(ToyGuest *guest, const char *version, uint32_t protocol);

/* What to poll for input: the listener, and the connection or -1. */
int toy_guest_listener(const ToyGuest *guest);
int toy_guest_connection(const ToyGuest *guest);
/* One of them is readable: takes the connection, answers a hello, counts acknowledgements. */
void toy_guest_handle(ToyGuest *guest);

/* A session is open. */
bool toy_guest_has_session(const ToyGuest *guest);
/* Which one; 0: none. */
uint64_t toy_guest_session(const ToyGuest *guest);

/* These wait for room in the window. false: the connection is gone, or 10 s have passed. */
bool toy_guest_module(ToyGuest *guest, uint32_t module_id, const char *name, uint64_t n_pages);
bool toy_guest_hint(ToyGuest *guest, uint32_t module_id, uint64_t file_page, PfGfn gfn,
	const PfDigest *digests, size_t n_pages);

/* Pages of RAM that hold pages of a file. The digests are only read. */
typedef struct ToyGuestRun {
	uint64_t file_page;
	PfGfn gfn;
	const PfDigest *digests;
	size_t n_pages;
} ToyGuestRun;
bool toy_guest_hints(ToyGuest *guest, uint32_t module_id, const ToyGuestRun *runs, size_t n_runs);

bool toy_guest_withdraw(ToyGuest *guest, uint32_t module_id, uint64_t first_page, uint64_t n_pages);

/* Everything was said that there is to say. */
bool toy_guest_end_report(ToyGuest *guest);

/* Asks for a new session; it comes later. */
bool toy_guest_knock(ToyGuest *guest);

/* How many of these can be sent now without waiting; 0 without a session. */
uint64_t toy_guest_room(const ToyGuest *guest);

/* Bytes that are no frame. */
bool toy_guest_send_raw(ToyGuest *guest, const void *data, size_t size);
