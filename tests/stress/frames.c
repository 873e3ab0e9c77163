/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The number of a frame has one meaning for ever, whatever services come and go: the contents of each frame that a page
 * was fused to are kept, in memory that all VMMs share, and compared when it comes again.
 */
#include "host-service/shim/core.h"
#include "tests/stress/vmm.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A number for the words that tell contents from each other. 0: the frame cannot be read. */
static uint64_t signature(int store, uint64_t frame)
{
	uint64_t words[PF_PAGE_SIZE / sizeof(uint64_t)], sum = 0;

	if (pread(store, words, sizeof words, (off_t)(frame * PF_PAGE_SIZE)) != sizeof words)
		return 0;
	for (unsigned k = 0; k < STRESS_WORDS; k++)
		sum = (sum ^ words[(STRESS_WORD_OFFSET + k * STRESS_WORD_DISTANCE) /
				     sizeof *words]) *
		      0x9e3779b97f4a7c15ull;
	return sum | 1;
}

void frames_note(uint64_t frame)
{
	uint8_t group_id[16];
	int store = pf_core_get_store(group_id);
	uint64_t key, found = signature(store, frame), known;
	unsigned at;

	/* Not a frame number, a hash of the store and it, but never the same for two. */
	memcpy(&key, group_id, sizeof key);
	key = (key ^ frame) | 1ull << 63;
	at = (unsigned)(key * 0x9e3779b97f4a7c15ull >> 40) % STRESS_FRAMES;
	for (;; at = (at + 1) % STRESS_FRAMES) {
		unsigned long long empty = 0;
		StressFrame *slot = &shared->frames[at];

		if (slot->key == key || atomic_compare_exchange_strong(&slot->key, &empty, key) ||
			empty == key)
			break;
	}
	known = atomic_exchange(&shared->frames[at].signature, found);
	if (known == found)
		return;
	if (known == 0) {
		atomic_fetch_add(&me->frames, 1);
		return;
	}
	if (atomic_fetch_add(&me->frames_reused, 1) == 0)
		fprintf(stderr, "VM %u: frame %llu has other bytes than before\n", vm_index,
			(unsigned long long)frame);
}
