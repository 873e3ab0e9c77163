/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
#include "common/page.h"

/* Hashes pages with SHA-256 (OpenSSL EVP). One hasher serves one thread. */
typedef struct PfHasher PfHasher;

/* NULL when OpenSSL cannot give a SHA-256 (out of memory, or no such provider). */
PfHasher *pf_hasher_new(void);
void pf_hasher_free(PfHasher *hasher);

/* The digest of the PF_PAGE_SIZE bytes at page. 0, or -EIO when OpenSSL fails. */
int pf_hasher_page(PfHasher *hasher, const void *page, PfDigest *digest);
