/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/daemon/host_features.h"
#include "host-service/shim/kernel.h"
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <unistd.h>

static void test_names(void **unused)
{
	g_autofree char *none = pf_host_feature_names(0);
	g_autofree char *two = pf_host_feature_names(UFFD_FEATURE_MOVE | UFFD_FEATURE_EVENT_REMAP);
	g_autofree char *all = pf_host_feature_names(PF_UFFD_NEEDED_FEATURES);
	g_auto(GStrv) names = g_strsplit(all, ", ", -1);

	assert_string_equal(none, "");
	assert_string_equal(two, "EVENT_REMAP, UFFDIO_MOVE");
	/* Each feature that is needed has a name. */
	assert_int_equal(g_strv_length(names), __builtin_popcountll(PF_UFFD_NEEDED_FEATURES));
}

static void refused(const char *device, int code, const char *part)
{
	g_autoptr(GError) error = NULL;

	assert_false(pf_host_features_check(device, &error));
	assert_true(g_error_matches(error, G_IO_ERROR, code));
	assert_non_null(strstr(error->message, part));
	assert_non_null(strstr(error->message, device));
}

static void test_refusals(void **unused)
{
	refused("/nonexistent/userfaultfd", G_IO_ERROR_NOT_SUPPORTED, "bookworm-backports");
	refused("/dev/null", G_IO_ERROR_NOT_SUPPORTED, "does not work here");
}

static void test_this_host(void **unused)
{
	g_autoptr(GError) error = NULL;

	if (access("/dev/userfaultfd", R_OK | W_OK) != 0)
		skip();
	assert_true(pf_host_features_check("/dev/userfaultfd", &error));
	assert_null(error);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_this_host),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
