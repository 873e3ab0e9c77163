/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "common/frame.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MIB (1024u * 1024u)

static PfFrameReader reader;

static int init(void **state)
{
	pf_frame_reader_init(&reader);
	return 0;
}

static int deinit(void **state)
{
	pf_frame_reader_deinit(&reader);
	return 0;
}

/* Appends a frame with size bytes of fill to out and returns its size. */
static size_t make_frame(uint8_t *out, uint8_t fill, size_t size)
{
	memset(out + PF_FRAME_HEADER_SIZE, fill, size);
	assert_int_equal(pf_frame_write_header(out, out + PF_FRAME_HEADER_SIZE, size), PF_FRAME_OK);
	return PF_FRAME_HEADER_SIZE + size;
}

/* A header that announces size bytes and has a wrong checksum. */
static size_t make_false_header(uint8_t *out, size_t size)
{
	uint32_t fields[3] = {PF_FRAME_MAGIC, (uint32_t)size, 0x12345678};

	memcpy(out, fields, sizeof(fields));
	return sizeof(fields);
}

/* Feeds in pieces and notes the first byte of each payload; the number of payloads. */
static size_t feed(const uint8_t *data, size_t size, size_t piece, uint8_t *firsts, size_t max)
{
	size_t n = 0;

	while (size > 0) {
		const uint8_t *payload;
		uint8_t *room;
		size_t length;

		assert_int_equal(pf_frame_reader_reserve(&reader, &room, &length), 0);
		assert_true(length > 0);
		length = length < piece ? length : piece;
		length = length < size ? length : size;
		memcpy(room, data, length);
		pf_frame_reader_commit(&reader, length);
		data += length;
		size -= length;
		while (pf_frame_reader_next(&reader, &payload, &length) == PF_FRAME_OK) {
			assert_true(n < max);
			for (size_t i = 1; i < length; i++)
				assert_int_equal(payload[i], payload[0]);
			firsts[n++] = payload[0];
		}
	}
	return n;
}

static void test_header_is_little_endian(void **state)
{
	uint8_t frame[PF_FRAME_HEADER_SIZE + 9];
	static const uint8_t header[] = {'P', 'F', 'G', '1', 9, 0, 0, 0};

	memcpy(frame + PF_FRAME_HEADER_SIZE, "123456789", 9);
	assert_int_equal(
		pf_frame_write_header(frame, frame + PF_FRAME_HEADER_SIZE, 9), PF_FRAME_OK);
	assert_memory_equal(frame, header, sizeof(header));
	assert_int_equal(pf_frame_write_header(frame, frame, 0), PF_FRAME_E_SIZE);
	assert_int_equal(
		pf_frame_write_header(frame, frame, PF_FRAME_MAX_PAYLOAD + 1), PF_FRAME_E_SIZE);
}

/* Every cut of a stream with rubbish at each place gives the same frames. */
static void test_any_pieces(void **state)
{
	uint8_t stream[512], firsts[4];
	size_t size = 0;

	memcpy(stream, "PFPFGxPFG", 9);
	size = 9;
	size += make_frame(stream + size, 1, 100);
	size += make_frame(stream + size, 2, 1);
	memcpy(stream + size, "PPPPFG0", 7);
	size += 7;
	size += make_frame(stream + size, 3, 50);
	for (size_t piece = 1; piece <= size; piece++) {
		uint64_t skipped = reader.skipped_bytes;

		assert_int_equal(feed(stream, size, piece, firsts, 4), 3);
		assert_memory_equal(firsts, "\1\2\3", 3);
		assert_int_equal(reader.skipped_bytes - skipped, 16);
	}
	assert_int_equal(reader.n_frames, 3 * size);
}

static void test_largest_frame(void **state)
{
	uint8_t *stream = malloc(MIB + 100), firsts[2];
	size_t size = make_frame(stream, 7, PF_FRAME_MAX_PAYLOAD);

	size += make_frame(stream + size, 8, 5);
	assert_int_equal(feed(stream, size, 10000, firsts, 2), 2);
	assert_memory_equal(firsts, "\7\10", 2);
	assert_int_equal(reader.capacity, MIB);
	assert_int_equal(reader.skipped_bytes, 0);
	free(stream);
}

static void test_absurd_lengths(void **state)
{
	uint8_t stream[200], firsts[1];
	size_t size = make_false_header(stream, PF_FRAME_MAX_PAYLOAD + 1);

	size += make_false_header(stream + size, 0);
	size += make_false_header(stream + size, UINT32_MAX);
	size += make_frame(stream + size, 4, 10);
	assert_int_equal(feed(stream, size, size, firsts, 1), 1);
	assert_int_equal(reader.skipped_bytes, 3 * PF_FRAME_HEADER_SIZE);
	assert_in_range(reader.capacity, 1, 4096);
}

/* Even with the right checksum. */
static void test_empty_frame(void **state)
{
	uint8_t stream[100], firsts[2];
	uint32_t fields[3] = {PF_FRAME_MAGIC, 0, 0x48674bc7};
	size_t size = sizeof(fields);

	memcpy(stream, fields, sizeof(fields));
	size += make_frame(stream + size, 4, 10);
	assert_int_equal(feed(stream, size, size, firsts, 2), 1);
	assert_int_equal(firsts[0], 4);
}

static void test_every_damaged_byte(void **state)
{
	uint8_t stream[200], firsts[2];
	size_t first = make_frame(stream, 1, 30), size = first;

	size += make_frame(stream + size, 2, 90);
	for (size_t i = 0; i < first; i++) {
		/* Byte 5 makes it longer than what follows, so that it is waited for. */
		stream[i] ^= 0x10;
		assert_int_equal(feed(stream, size, size, firsts, 2), i == 5 ? 0 : 1);
		stream[i] ^= 0x10;
		pf_frame_reader_reset(&reader);
	}
	assert_int_equal(reader.n_frames, first - 1);
}

/* A torn frame announces a megabyte: newer frames complete it, and then all of them are found. */
static void test_torn_frame(void **state)
{
	uint8_t *torn = malloc(MIB), *frame = malloc(200000), firsts[8];
	size_t size, n = 0, fed = 0;

	make_frame(torn, 1, PF_FRAME_MAX_PAYLOAD);
	assert_int_equal(feed(torn, 4000, 1000, firsts, 8), 0);
	while (n == 0) {
		size = make_frame(frame, (uint8_t)(10 + fed), 190000);
		n = feed(frame, size, 5000, firsts, 8);
		fed++;
		assert_true(fed < 7);
	}
	assert_int_equal(fed, 6);
	assert_int_equal(n, 6);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(firsts[i], 10 + i);
	assert_int_equal(reader.skipped_bytes, 4000);
	free(torn);
	free(frame);
}

static void test_reset_forgets(void **state)
{
	uint8_t stream[64], firsts[1];
	size_t size = make_frame(stream, 1, 20);

	assert_int_equal(feed(stream, size - 1, size, firsts, 1), 0);
	pf_frame_reader_reset(&reader);
	assert_int_equal(feed(stream, size, size, firsts, 1), 1);
	assert_int_equal(reader.skipped_bytes, 0);
}

static void test_full_reader_says_so(void **state)
{
	uint8_t *room;
	size_t size;
	int r;

	while ((r = pf_frame_reader_reserve(&reader, &room, &size)) == 0) {
		memset(room, 0, size);
		pf_frame_reader_commit(&reader, size);
	}
	assert_int_equal(r, -ENOMEM);
	assert_int_equal(reader.end, MIB);
}

/*
 * 8 MiB of headers, each of which announces as much as it may. Summing a megabyte for each of them
 * would take most of an hour, this test's time limit is two minutes; and the reader is of use again
 * afterwards.
 */
static void test_hostile_headers(void **state)
{
	size_t n_bytes = 8 * MIB;
	uint8_t *stream = malloc(n_bytes + MIB), firsts[1];
	size_t size = 0;

	while (size < n_bytes)
		size += make_false_header(stream + size, PF_FRAME_MAX_PAYLOAD) - 4;
	assert_int_equal(feed(stream, size, 65536, firsts, 1), 0);
	assert_true(reader.rescan_bytes <= 8 * MIB);
	assert_true(reader.skipped_bytes >= size - MIB);

	memset(stream, 0, MIB);
	assert_int_equal(feed(stream, MIB, 65536, firsts, 1), 0);
	size = make_frame(stream, 9, 100);
	assert_int_equal(feed(stream, size, 10, firsts, 1), 1);
	free(stream);
}

int main(void)
{
#define FRAME_TEST(test) cmocka_unit_test_setup_teardown(test, init, deinit)
	const struct CMUnitTest tests[] = {
		FRAME_TEST(test_header_is_little_endian),
		FRAME_TEST(test_any_pieces),
		FRAME_TEST(test_largest_frame),
		FRAME_TEST(test_absurd_lengths),
		FRAME_TEST(test_empty_frame),
		FRAME_TEST(test_every_damaged_byte),
		FRAME_TEST(test_torn_frame),
		FRAME_TEST(test_reset_forgets),
		FRAME_TEST(test_full_reader_says_so),
		FRAME_TEST(test_hostile_headers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
