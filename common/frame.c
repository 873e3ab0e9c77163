/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Finding frames in a stream that may be torn.
 *
 * A guest that reboots leaves the first part of a frame behind, and the next bytes are those of the
 * agent's next life. The header at hand then announces a payload that never comes. Nothing in the
 * stream marks that place, so the reader waits for the announced length, newer bytes fill it up,
 * the checksum fails, and the search goes on one byte behind the false magic: a frame that begins
 * inside the torn one is found. (Who cannot wait for that much, because the newer bytes are few,
 * must look himself; the session does it for knocks.)
 *
 * Such a second look makes bytes be summed more than once, and a sender who fills the stream with
 * headers that announce a megabyte would buy a megabyte of work with every few bytes. Hence the
 * account rescan_bytes: a failed check adds the length that it summed, and each byte that leaves
 * the reader takes one off. When the account would exceed RESCAN_MAX, the whole announced frame is
 * thrown away instead of one byte. So n bytes of input cost at most 2 n + RESCAN_MAX bytes of
 * summing for failed checks and n for good ones, whatever they are. An honest stream never comes
 * near: a torn frame is summed once and then left.
 *
 * Moving unread bytes to the front of the buffer is paid in the same way: it happens at most once
 * for each announced frame that is waited for, and moves no more than its length.
 */
#include "common/frame.h"
#include "common/crc32c.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CAPACITY ((size_t)PF_FRAME_HEADER_SIZE + PF_FRAME_MAX_PAYLOAD)
#define MIN_CAPACITY ((size_t)4096)
#define RESCAN_MAX   (8 * MAX_CAPACITY)

static const uint8_t magic_bytes[4] = {'P', 'F', 'G', '1'};

static uint32_t load_le32(const uint8_t *p)
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void store_le32(uint8_t *p, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t checksum(const uint8_t *length_field, const uint8_t *payload, size_t size)
{
	return pf_crc32c(pf_crc32c(0, length_field, 4), payload, size);
}

void pf_frame_reader_init(PfFrameReader *reader)
{
	*reader = (PfFrameReader){0};
}

void pf_frame_reader_deinit(PfFrameReader *reader)
{
	free(reader->data);
	*reader = (PfFrameReader){0};
}

void pf_frame_reader_reset(PfFrameReader *reader)
{
	reader->start = reader->end = 0;
}

static int grow(PfFrameReader *reader)
{
	size_t capacity = reader->capacity ? 2 * reader->capacity : MIN_CAPACITY;
	uint8_t *data;

	if (capacity > MAX_CAPACITY)
		capacity = MAX_CAPACITY;
	if (capacity == reader->capacity)
		return -ENOMEM;
	data = realloc(reader->data, capacity);
	if (!data)
		return -ENOMEM;
	reader->data = data;
	reader->capacity = capacity;
	return 0;
}

int pf_frame_reader_reserve(PfFrameReader *reader, uint8_t **buffer, size_t *size)
{
	if (reader->start == reader->end)
		reader->start = reader->end = 0;
	if (reader->end == reader->capacity && reader->start > 0) {
		memmove(reader->data, reader->data + reader->start, reader->end - reader->start);
		reader->end -= reader->start;
		reader->start = 0;
	}
	if (reader->end == reader->capacity) {
		int r = grow(reader);

		if (r < 0)
			return r;
	}
	*buffer = reader->data + reader->end;
	*size = reader->capacity - reader->end;
	return 0;
}

void pf_frame_reader_commit(PfFrameReader *reader, size_t n)
{
	assert(n <= reader->capacity - reader->end);
	reader->end += n;
}

static void consume(PfFrameReader *reader, size_t n)
{
	reader->start += n;
	reader->rescan_bytes -= n < reader->rescan_bytes ? n : reader->rescan_bytes;
}

static void skip(PfFrameReader *reader, size_t n)
{
	consume(reader, n);
	reader->skipped_bytes += n;
}

/* Skips to the next magic, or to what may become one with more bytes. */
static void skip_to_magic(PfFrameReader *reader)
{
	while (reader->start < reader->end) {
		const uint8_t *from = reader->data + reader->start;
		size_t left = reader->end - reader->start;
		const uint8_t *first = memchr(from, magic_bytes[0], left);

		if (!first) {
			skip(reader, left);
			return;
		}
		skip(reader, (size_t)(first - from));
		left = reader->end - reader->start;
		if (memcmp(first, magic_bytes, left < 4 ? left : 4) == 0)
			return;
		skip(reader, 1);
	}
}

/* The frame at hand has a wrong checksum. */
static void reject(PfFrameReader *reader, size_t payload_size)
{
	if (reader->rescan_bytes + payload_size > RESCAN_MAX) {
		skip(reader, PF_FRAME_HEADER_SIZE + payload_size);
		return;
	}
	reader->rescan_bytes += payload_size;
	skip(reader, 1);
}

int pf_frame_reader_next(PfFrameReader *reader, const uint8_t **payload, size_t *size)
{
	for (;;) {
		const uint8_t *header;
		size_t left, length;

		skip_to_magic(reader);
		left = reader->end - reader->start;
		if (left < PF_FRAME_HEADER_SIZE)
			return PF_FRAME_E_MORE;
		header = reader->data + reader->start;
		length = load_le32(header + 4);
		if (length == 0 || length > PF_FRAME_MAX_PAYLOAD) {
			skip(reader, 1);
			continue;
		}
		if (left - PF_FRAME_HEADER_SIZE < length)
			return PF_FRAME_E_MORE;
		*payload = header + PF_FRAME_HEADER_SIZE;
		*size = length;
		if (load_le32(header + 8) == checksum(header + 4, *payload, length)) {
			consume(reader, PF_FRAME_HEADER_SIZE + length);
			reader->n_frames++;
			return PF_FRAME_OK;
		}
		reject(reader, length);
	}
}

int pf_frame_write_header(uint8_t header[PF_FRAME_HEADER_SIZE], const uint8_t *payload, size_t size)
{
	if (size == 0 || size > PF_FRAME_MAX_PAYLOAD)
		return PF_FRAME_E_SIZE;
	memcpy(header, magic_bytes, 4);
	store_le32(header + 4, (uint32_t)size);
	store_le32(header + 8, checksum(header + 4, payload, size));
	return PF_FRAME_OK;
}
