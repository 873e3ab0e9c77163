// SPDX-License-Identifier: LGPL-2.1-or-later
/* What is said of files that are broken: the first time, and not again. */
#include "guest-agent/find/trouble.h"
#include "common/log.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <cmocka.h>

static unsigned n_said[PF_LOG_DEBUG + 1];
static char last[512];

void __wrap_pf_log(PfLogLevel level, const char *format, ...) __attribute__((format(printf, 2, 3)));

void __wrap_pf_log(PfLogLevel level, const char *format, ...)
{
	va_list arguments;

	n_said[level]++;
	va_start(arguments, format);
	vsnprintf(last, sizeof(last), format, arguments);
	va_end(arguments);
}

static int setup(void **state)
{
	memset(n_said, 0, sizeof(n_said));
	return 0;
}

static void test_unreadable(void **state)
{
	PfTrouble trouble = {0};

	pf_trouble_unreadable(&trouble, makedev(8, 3), "libfirst.so");
	assert_int_equal(n_said[PF_LOG_WARNING], 1);
	assert_memory_equal(last, "libfirst.so cannot be read (device 8:3): ", 41);
	for (unsigned i = 0; i < 100; i++)
		pf_trouble_unreadable(&trouble, makedev(8, 3), "libother.so");
	assert_int_equal(n_said[PF_LOG_WARNING], 1);
	assert_int_equal(n_said[PF_LOG_DEBUG], 100);
	for (unsigned i = 4; i < 3 + PF_TROUBLE_MAX_DEVICES; i++)
		pf_trouble_unreadable(&trouble, makedev(8, i), "libfirst.so");
	assert_int_equal(n_said[PF_LOG_WARNING], PF_TROUBLE_MAX_DEVICES);
	pf_trouble_unreadable(&trouble, makedev(8, 3), "libother.so");
	assert_int_equal(n_said[PF_LOG_WARNING], PF_TROUBLE_MAX_DEVICES);
	/* One more than there is room for. */
	pf_trouble_unreadable(&trouble, makedev(9, 1), "libfirst.so");
	pf_trouble_unreadable(&trouble, makedev(9, 1), "libother.so");
	pf_trouble_unreadable(&trouble, makedev(8, 4), "libother.so");
	assert_int_equal(n_said[PF_LOG_WARNING], PF_TROUBLE_MAX_DEVICES + 1);
}

static void test_broken_elf(void **state)
{
	PfTrouble trouble = {0};

	pf_trouble_broken_elf(&trouble, "libhalf.so", "it is short");
	assert_int_equal(n_said[PF_LOG_INFO], 1);
	assert_memory_equal(last, "libhalf.so is a broken ELF file: it is short. ", 46);
	pf_trouble_broken_elf(&trouble, "libother.so", "it is shorter");
	assert_int_equal(n_said[PF_LOG_INFO], 1);
	assert_int_equal(n_said[PF_LOG_DEBUG], 1);
	assert_string_equal(last, "libother.so is a broken ELF file: it is shorter");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_unreadable, setup),
		cmocka_unit_test_setup(test_broken_elf, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
