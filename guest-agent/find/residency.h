/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Which pages of a file may be in the page cache, without mapping it: cachestat(2), Linux 6.5. */
#include <stdbool.h>
#include <stdint.h>

/* Whether one of the pages may be resident. True where the kernel cannot say. */
bool pf_residency_possible(int fd, uint64_t first, uint64_t n_pages);

/* The first page from first on, below end, that may be resident, or end: skips what has none. first where the
 * kernel cannot say. */
uint64_t pf_residency_next(int fd, uint64_t first, uint64_t end);
