/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/config/thp.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

static void names_are_parsed(void **state)
{
	static const char *const names[] = {"default", "preserve", "balanced", "all"};

	for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
		PfThp thp = PF_THP_ALL;

		assert_true(pf_thp_parse(names[i], &thp));
		assert_int_equal(thp, i);
		assert_string_equal(pf_thp_name(thp), names[i]);
	}
}

static void nothing_else_is(void **state)
{
	static const char *const wrong[] = {"", "All", "all ", "preserv", "always", "\xff"};
	PfThp thp = PF_THP_PRESERVE;

	for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++)
		assert_false(pf_thp_parse(wrong[i], &thp));
	assert_int_equal(thp, PF_THP_PRESERVE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_are_parsed),
		cmocka_unit_test(nothing_else_is),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
