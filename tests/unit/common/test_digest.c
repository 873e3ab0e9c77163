/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "common/digest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

/* A configuration of OpenSSL that leaves no digest to be had: none of it may be read. */
static const char openssl_config[] = "openssl_conf = all\n[all]\nalg_section = algorithms\n"
				     "[algorithms]\ndefault_properties = fips=yes\n";

static int make_hasher(void **state)
{
	int fd = memfd_create("openssl.cnf", 0);
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (fd < 0 || write(fd, openssl_config, strlen(openssl_config)) < 0 ||
		setenv("OPENSSL_CONF", path, 1) < 0)
		return -1;
	*state = pf_hasher_new();
	return *state ? 0 : -1;
}

static int free_hasher(void **state)
{
	pf_hasher_free(*state);
	return 0;
}

/* `head -c 4096 /dev/zero | sha256sum` */
static const PfDigest zero_page = {{0xad, 0x7f, 0xac, 0xb2, 0x58, 0x6f, 0xc6, 0xe9, 0x66, 0xc0,
	0x04, 0xd7, 0xd1, 0xd1, 0x6b, 0x02, 0x4f, 0x58, 0x05, 0xff, 0x7c, 0xb4, 0x7c, 0x7a, 0x85,
	0xda, 0xbd, 0x8b, 0x48, 0x89, 0x2c, 0xa7}};

static void test_zero_page(void **state)
{
	uint8_t page[PF_PAGE_SIZE] = {0};
	PfDigest digest;

	assert_int_equal(pf_hasher_page(*state, page, &digest), 0);
	assert_memory_equal(digest.bytes, zero_page.bytes, PF_DIGEST_SIZE);
}

static void test_is_used_again(void **state)
{
	uint8_t page[PF_PAGE_SIZE] = {0};
	PfDigest first, second;

	page[PF_PAGE_SIZE - 1] = 1;
	assert_int_equal(pf_hasher_page(*state, page, &first), 0);
	assert_false(pf_digest_equal(&first, &zero_page));
	page[PF_PAGE_SIZE - 1] = 0;
	assert_int_equal(pf_hasher_page(*state, page, &second), 0);
	assert_true(pf_digest_equal(&second, &zero_page));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_zero_page),
		cmocka_unit_test(test_is_used_again),
	};

	return cmocka_run_group_tests(tests, make_hasher, free_hasher);
}
