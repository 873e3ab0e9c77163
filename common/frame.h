/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * Framing of the guest channel (proto/PROTOCOL.md): magic, length, CRC-32C, payload. No I/O: bytes
 * in, payloads out.
 */
#include <stddef.h>
#include <stdint.h>

#define PF_FRAME_MAGIC       0x31474650u /* "PFG1" as little-endian bytes */
#define PF_FRAME_HEADER_SIZE 12u
#define PF_FRAME_MAX_PAYLOAD (1024u * 1024u - PF_FRAME_HEADER_SIZE)

enum {
	PF_FRAME_OK = 0,
	PF_FRAME_E_MORE, /* no whole frame yet: feed more bytes */
	PF_FRAME_E_SIZE, /* payload empty, or longer than PF_FRAME_MAX_PAYLOAD */
};

/*
 * Collects bytes and gives whole payloads back. Rubbish (a wrong magic, an absurd length, a wrong
 * CRC) is skipped up to the next magic and counted; it is never an error, because a guest may
 * reboot in mid-frame.
 */
typedef struct PfFrameReader {
	uint8_t *data;          /* capacity bytes, owned */
	size_t capacity;        /* grows on demand to one maximal frame and never beyond */
	size_t start, end;      /* unread bytes are data[start..end) */
	uint64_t skipped_bytes; /* rubbish so far */
	uint64_t n_frames;      /* whole frames so far */
	size_t rescan_bytes;    /* summed in vain and not yet paid for: bounds the work for hostile
				   input, see frame.c */
} PfFrameReader;

void pf_frame_reader_init(PfFrameReader *reader);
void pf_frame_reader_deinit(PfFrameReader *reader);

/* Forgets unread bytes; counters stay. */
void pf_frame_reader_reset(PfFrameReader *reader);

/*
 * Room for new bytes: *buffer points to at least one and *size bytes, valid until the next call on
 * this reader. Call pf_frame_reader_next() until it says PF_FRAME_E_MORE before asking for room, or
 * the reader may be full. Returns 0 or -ENOMEM (also when it is full).
 */
int pf_frame_reader_reserve(PfFrameReader *reader, uint8_t **buffer, size_t *size);

/* Says that n bytes of the reserved room were filled. */
void pf_frame_reader_commit(PfFrameReader *reader, size_t n);

/*
 * The next whole payload: PF_FRAME_OK with *payload and *size, valid until the next reserve, or
 * PF_FRAME_E_MORE.
 */
int pf_frame_reader_next(PfFrameReader *reader, const uint8_t **payload, size_t *size);

/* Writes the header for a payload of size bytes. PF_FRAME_OK or PF_FRAME_E_SIZE. */
int pf_frame_write_header(
	uint8_t header[PF_FRAME_HEADER_SIZE], const uint8_t *payload, size_t size);
