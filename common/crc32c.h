/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* CRC-32C (Castagnoli, RFC 3720 appendix B.4) of size bytes, going on from crc; start with 0. */
uint32_t pf_crc32c(uint32_t crc, const void *data, size_t size);
