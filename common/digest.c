/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The algorithm is fetched once: a fetch for every page would cost more than hashing one. No configuration of OpenSSL is
 * read: a file that somebody made for other programs (other providers, FIPS alone) must not decide whether pages can be
 * hashed, and a program without shared libraries could load nothing that it names.
 */
#include "common/digest.h"

#include <assert.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>

struct PfHasher {
	EVP_MD *sha256;
	EVP_MD_CTX *context;
};

PfHasher *pf_hasher_new(void)
{
	PfHasher *hasher = calloc(1, sizeof(*hasher));

	if (!hasher)
		return NULL;
	if (!OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG, NULL)) {
		pf_hasher_free(hasher);
		return NULL;
	}
	hasher->sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
	hasher->context = EVP_MD_CTX_new();
	if (!hasher->sha256 || !hasher->context) {
		pf_hasher_free(hasher);
		return NULL;
	}
	assert(EVP_MD_get_size(hasher->sha256) == PF_DIGEST_SIZE);
	return hasher;
}

void pf_hasher_free(PfHasher *hasher)
{
	if (!hasher)
		return;
	EVP_MD_CTX_free(hasher->context);
	EVP_MD_free(hasher->sha256);
	free(hasher);
}

int pf_hasher_page(PfHasher *hasher, const void *page, PfDigest *digest)
{
	if (!EVP_DigestInit_ex(hasher->context, hasher->sha256, NULL) ||
		!EVP_DigestUpdate(hasher->context, page, PF_PAGE_SIZE) ||
		!EVP_DigestFinal_ex(hasher->context, digest->bytes, NULL))
		return -EIO;
	return 0;
}
