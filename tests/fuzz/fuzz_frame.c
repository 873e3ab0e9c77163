/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Makes a stream of raw bytes and of valid frames from the input's records, reads it whole and in
 * pieces, and checks that both readings agree and that no byte is lost or counted twice.
 */
#include "common/crc32c.h"
#include "common/frame.h"
#include "records.h"

#include <stdlib.h>
#include <string.h>

enum {
	OP_FRAME = 1, /* the low bit; the other bits say how long the pieces are */
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct Reading {
	uint64_t n_frames, frame_bytes, skipped_bytes, left_bytes;
	uint32_t crc; /* of all payloads and their lengths */
} Reading;

static void check(bool holds)
{
	if (!holds)
		abort();
}

static void drain(PfFrameReader *reader, Reading *reading)
{
	const uint8_t *payload;
	size_t size;

	while (pf_frame_reader_next(reader, &payload, &size) == PF_FRAME_OK) {
		check(size > 0 && size <= PF_FRAME_MAX_PAYLOAD);
		reading->n_frames++;
		reading->frame_bytes += PF_FRAME_HEADER_SIZE + size;
		reading->crc = pf_crc32c(reading->crc, &size, sizeof(size));
		reading->crc = pf_crc32c(reading->crc, payload, size);
	}
}

static Reading read_stream(const uint8_t *stream, size_t size, size_t piece)
{
	PfFrameReader reader;
	Reading reading = {0};

	pf_frame_reader_init(&reader);
	for (size_t done = 0; done < size;) {
		uint8_t *room;
		size_t n;

		check(pf_frame_reader_reserve(&reader, &room, &n) == 0 && n > 0);
		n = n < piece ? n : piece;
		n = n < size - done ? n : size - done;
		memcpy(room, stream + done, n);
		pf_frame_reader_commit(&reader, n);
		done += n;
		drain(&reader, &reading);
	}
	check(reading.n_frames == reader.n_frames);
	reading.skipped_bytes = reader.skipped_bytes;
	reading.left_bytes = reader.end - reader.start;
	pf_frame_reader_reset(&reader);
	check(reader.end == reader.start && reader.skipped_bytes == reading.skipped_bytes);
	check(reading.frame_bytes + reading.skipped_bytes + reading.left_bytes == size);
	pf_frame_reader_deinit(&reader);
	return reading;
}

/* The stream, at most four times as long as the input. */
static size_t make_stream(uint8_t *stream, const uint8_t *data, size_t size, size_t *piece)
{
	Record record;
	size_t length = 0;

	*piece = 1;
	while (next_record(&data, &size, &record)) {
		*piece += record.operation >> 1;
		if ((record.operation & OP_FRAME) && record.size > 0) {
			check(pf_frame_write_header(stream + length, record.bytes, record.size) ==
				PF_FRAME_OK);
			length += PF_FRAME_HEADER_SIZE;
		}
		memcpy(stream + length, record.bytes, record.size);
		length += record.size;
	}
	return length;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *stream = malloc(4 * size + PF_FRAME_HEADER_SIZE);
	size_t piece, length;
	Reading whole, pieces;

	check(stream != NULL && pf_frame_write_header(stream, data, 0) == PF_FRAME_E_SIZE);
	length = make_stream(stream, data, size, &piece);
	whole = read_stream(stream, length, length);
	pieces = read_stream(stream, length, piece);
	check(whole.n_frames == pieces.n_frames && whole.crc == pieces.crc &&
		whole.skipped_bytes == pieces.skipped_bytes &&
		whole.left_bytes == pieces.left_bytes);
	free(stream);
	return 0;
}
