/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * How the input of the channel's fuzz targets is read: a list of records, each an operation, a
 * length (16 bits, little-endian) and as many bytes, less at the end. So a fuzzer reaches what lies
 * behind a checksum, which it could not guess.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Record {
	uint8_t operation;
	const uint8_t *bytes;
	size_t size;
} Record;

/* Takes the next record off the input; false at its end. */
static inline bool next_record(const uint8_t **data, size_t *size, Record *record)
{
	if (*size < 3)
		return false;
	record->operation = (*data)[0];
	record->size = (size_t)((*data)[1] | (*data)[2] << 8);
	record->bytes = *data + 3;
	*data += 3;
	*size -= 3;
	if (record->size > *size)
		record->size = *size;
	*data += record->size;
	*size -= record->size;
	return true;
}
