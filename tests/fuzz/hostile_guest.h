/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The agent of a VM, in the fuzzer: what it says is well-formed or is not, and need not be true. */
#include "common/frame.h"
#include "common/page.h"
#include <stddef.h>
#include <stdint.h>

typedef struct HostileGuest {
	int channel; /* -1: not open */
	PfFrameReader reader;
	uint64_t session_id; /* of the newest hello; 0: none yet */
	uint64_t n_hellos;
} HostileGuest;

void guest_init(HostileGuest *guest);
void guest_deinit(HostileGuest *guest);

/* A channel that was opened; the guest owns it. */
void guest_attach(HostileGuest *guest, int channel);
void guest_close(HostileGuest *guest);

/* Reads what the host says; it says hello and how much it has read, and nothing else. */
void guest_receive(HostileGuest *guest);

void guest_raw(HostileGuest *guest, const uint8_t *bytes, size_t size);
/* The body of a message, with the session's id before it. */
void guest_body(HostileGuest *guest, const uint8_t *bytes, size_t size);

/* It has just started: asks for a hello. */
void guest_knock(HostileGuest *guest);
void guest_hello(HostileGuest *guest, uint32_t page_size, const PfGuestRange *ram, size_t n_ram);
void guest_module(HostileGuest *guest, uint32_t id, uint8_t build_id, uint64_t n_pages);
void guest_hints(HostileGuest *guest, uint32_t id, uint64_t file_page, uint64_t gfn,
	const PfDigest *digests, size_t n);
void guest_withdraws(HostileGuest *guest, uint32_t id, uint64_t first_page, uint64_t n_pages);
void guest_report_end(HostileGuest *guest);
