// SPDX-License-Identifier: LGPL-2.1-or-later
/* What a person is told to type, with systemd, with a script, and with neither. */
#include "guest-agent/service.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

static bool systemd, script;

int __wrap_access(const char *path, int mode);

int __wrap_access(const char *path, int mode)
{
	if ((systemd && strcmp(path, "/run/systemd/system") == 0) ||
		(script && strcmp(path, "/etc/init.d/pagefusion-agent") == 0))
		return 0;
	errno = ENOENT;
	return -1;
}

static void test_texts(void **state)
{
	systemd = script = true;
	assert_string_equal(pf_service_start(), "systemctl start pagefusion-agent");
	assert_string_equal(pf_service_restart(), "systemctl restart pagefusion-agent");
	assert_string_equal(pf_service_log(), "journalctl -u pagefusion-agent");
	systemd = false;
	assert_string_equal(pf_service_start(), "/etc/init.d/pagefusion-agent start");
	assert_string_equal(pf_service_restart(), "/etc/init.d/pagefusion-agent restart");
	assert_null(strstr(pf_service_log(), "journalctl"));
	assert_non_null(strstr(pf_service_log(), "/var/log/pagefusion-agent.log"));
	script = false;
	assert_null(strstr(pf_service_start(), "/etc/init.d"));
	assert_null(strstr(pf_service_restart(), "/etc/init.d"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_texts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
