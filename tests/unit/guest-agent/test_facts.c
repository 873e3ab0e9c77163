// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/facts.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static void parse(PfRam *ram, char *text)
{
	FILE *file = fmemopen(text, strlen(text), "r");

	assert_non_null(file);
	pf_ram_parse(ram, file);
	fclose(file);
}

static void test_iomem(void **state)
{
	char text[] = "00000000-00000fff : Reserved\n"
		      "00001000-0009fbff : System RAM\n"
		      "000f0000-000fffff : System ROM\n"
		      "00100000-1fffffff : System RAM\n"
		      "  01000000-01ffffff : Kernel code\n"
		      "  02000000-02ffffff : System RAM\n"
		      "20000000-2fffffff : System RAM\n"
		      "30000800-30001fff : System RAM\n"
		      "rubbish\n"
		      "fee00000-fee00fff : Local APIC\n"
		      "100000000-17fffffff : System RAM\n"
		      "180000000-180000100 : System RAM\n"
		      "200000000-2ffffffff : virtio1\n"
		      "  200000000-20fffffff : System RAM\n"
		      "300000000-30fffffff : virtio2\n"
		      "  300000000-307ffffff : System RAM (virtio_mem)\n"
		      "  308000000-30fffffff : System RAM with a name of its own\n"
		      "310000000-31fffffff : System RAM too\n";
	PfRam ram;

	parse(&ram, text);
	assert_int_equal(ram.n, 5);
	assert_int_equal(ram.ranges[0].first.v, 1);
	assert_int_equal(ram.ranges[0].n_pages, 0x9e);
	assert_int_equal(ram.ranges[1].first.v, 0x100);
	assert_int_equal(ram.ranges[1].n_pages, 0x2ff00);
	assert_int_equal(ram.ranges[2].first.v, 0x30001);
	assert_int_equal(ram.ranges[2].n_pages, 1);
	assert_int_equal(ram.ranges[3].n_pages, 0x80000);
	assert_int_equal(ram.ranges[4].first.v, 0x300000);
	assert_int_equal(ram.ranges[4].n_pages, 0x8000);
	assert_true(pf_ram_contains(&ram, (PfGfn){0x9e}));
	assert_false(pf_ram_contains(&ram, (PfGfn){0x9f}));
	assert_false(pf_ram_contains(&ram, (PfGfn){0}));
	assert_true(pf_ram_contains(&ram, (PfGfn){0x17ffff}));
	assert_false(pf_ram_contains(&ram, (PfGfn){0x180000}));
}

static void test_equal(void **state)
{
	PfRam a = {{{{1}, 9}, {{20}, 5}}, 2}, b = a;

	assert_true(pf_ram_equal(&a, &b));
	b.ranges[1].n_pages = 6;
	assert_false(pf_ram_equal(&a, &b));
	b = a;
	b.ranges[0].first.v = 2;
	assert_false(pf_ram_equal(&a, &b));
	b = a;
	b.n = 1;
	assert_false(pf_ram_equal(&a, &b));
}

static void test_hidden(void **state)
{
	char text[] = "00000000-00000000 : System RAM\n00000000-00000000 : System RAM\n";
	PfRam ram;

	parse(&ram, text);
	assert_int_equal(ram.n, 0);
}

static void test_many(void **state)
{
	static char text[100 * 64];
	PfRam ram;
	int size = 0;

	for (int i = 0; i < 100; i++)
		size += snprintf(text + size, sizeof(text) - (size_t)size,
			"%08x-%08x : System RAM\n", i * 0x10000, i * 0x10000 + 0xfff);
	parse(&ram, text);
	assert_int_equal(ram.n, PF_SESSION_MAX_RAM_RANGES);
	assert_int_equal(ram.ranges[63].first.v, 63 * 16);
}

static void test_boot_id(void **state)
{
	static const uint8_t wanted[16] = {0x14, 0x06, 0xf4, 0xc9, 0xe2, 0xe9, 0x42, 0x05, 0xb2,
		0x25, 0x0a, 0xe4, 0x47, 0x53, 0xfc, 0x7d};
	uint8_t id[16];

	assert_int_equal(pf_boot_id_parse("1406f4c9-e2e9-4205-b225-0ae44753fc7d\n", id), 0);
	assert_memory_equal(id, wanted, 16);
	assert_int_equal(pf_boot_id_parse("1406f4c9-e2e9-4205-b225-0ae44753fc7", id), -EINVAL);
	assert_int_equal(pf_boot_id_parse("1406f4c9e2e94205b2250ae44753fc7d", id), -EINVAL);
	assert_int_equal(pf_boot_id_parse("1406f4c9-e2e9-4205-b225-0ae44753fc7dd", id), -EINVAL);
	assert_int_equal(pf_boot_id_parse("", id), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_iomem),
		cmocka_unit_test(test_equal),
		cmocka_unit_test(test_hidden),
		cmocka_unit_test(test_many),
		cmocka_unit_test(test_boot_id),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
