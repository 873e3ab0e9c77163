/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define PF_ELF_ID_MAX 64 /* bytes; a longer build-id counts as none */

/*
 * The GNU build-id of the file behind fd (open for reading, not consumed, its position does not
 * matter), in id; gives its length in bytes, 0 where there is none: no ELF file, one of another
 * byte order, one that is not whole.
 */
size_t pf_elf_id_read(int fd, uint8_t id[PF_ELF_ID_MAX]);
