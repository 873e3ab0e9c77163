/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
#include "proto/limits.h"
#include <stddef.h>
#include <stdint.h>

/*
 * The GNU build-id of the file behind fd (open for reading, not consumed, its position does not
 * matter), in id; gives its length in bytes, 0 where there is none: no ELF file, one of another
 * byte order, one that is not whole, one with a build-id longer than PF_SESSION_MAX_BUILD_ID, or
 * one whose first pages are not in memory: nothing is read from a disk. pf_guard_init() must have
 * been called. *broken is why it is a program or library that is not sound (static text), or NULL; it is told only as
 * far as the search for the build-id comes by.
 */
size_t pf_elf_id_read(int fd, uint8_t id[PF_SESSION_MAX_BUILD_ID], const char **broken);
