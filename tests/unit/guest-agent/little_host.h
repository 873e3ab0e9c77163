/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Reads an agent's frames and keeps what they say. Fails the running test on whatever a host would
 * refuse. */
#include "common/frame.h"
#include "common/page.h"
#include <stdbool.h>
#include <stddef.h>

#define LITTLE_HOST_MODULES 8
#define LITTLE_HOST_PAGES   16384
#define LITTLE_HOST_RAM     (1u << 18) /* pages */

typedef struct LittleModule {
	bool declared;
	char name[256];
	size_t build_id_size;
	uint64_t n_pages;
	PfGfn gfns[LITTLE_HOST_PAGES]; /* 0: not hinted */
	PfDigest digests[LITTLE_HOST_PAGES];
	size_t n_declarations;
} LittleModule;

typedef struct LittleHost {
	PfFrameReader reader;
	uint64_t session_id; /* of the frames that count; others are dropped */
	uint64_t n_frames;   /* of this session */
	size_t n_knocks, n_hellos, n_ends, n_stale, n_hint_frames, n_withdrawals;
	size_t biggest_frame;
	LittleModule modules[LITTLE_HOST_MODULES];
	PfGfn *owners[LITTLE_HOST_RAM]; /* which of the modules' gfns was said last for each gfn */
} LittleHost;

void little_host_init(LittleHost *host);
void little_host_deinit(LittleHost *host);

void little_host_feed(LittleHost *host, const uint8_t *data, size_t size);

/* Begins a session: forgets everything and gives the frame of its hello, to be freed. */
uint8_t *little_host_hello(LittleHost *host, uint64_t session_id, uint32_t window, size_t *size);

/* The frame of an acknowledgement, to be freed. */
uint8_t *little_host_ack(uint64_t session_id, uint64_t frames, size_t *size);

/* Pages that are hinted now. */
size_t little_host_pages(const LittleHost *host);
