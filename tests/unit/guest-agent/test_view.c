// SPDX-License-Identifier: LGPL-2.1-or-later
/* When the view tries to listen, by a clock of the test's own; whether it can is the test's, too. */
#include "common/log.h"
#include "guest-agent/view.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

int __wrap_pf_status_server_init(PfStatusServer *server, const char *path);
void __wrap_pf_log(PfLogLevel level, const char *format, ...);
void __wrap_pf_status_server_answer(PfStatusServer *server, const PfAgentStatus *status);
const char *__wrap_pf_scanner_impossible(PfScanner *scanner, PfPageClass class);
uint64_t __wrap_pf_scanner_left_behind(const PfScanner *scanner);

static PfView view;
static int result, n_tries, n_warnings, n_infos;
static PfAgentStatus answered;
static char line[256]; /* that was logged last */

int __wrap_pf_status_server_init(PfStatusServer *server, const char *path)
{
	n_tries++;
	*server = (PfStatusServer){.fd = result < 0 ? -1 : dup(STDIN_FILENO), .spare = -1};
	return result;
}

void __wrap_pf_log(PfLogLevel level, const char *format, ...)
{
	va_list arguments;

	n_warnings += level == PF_LOG_WARNING;
	n_infos += level == PF_LOG_INFO;
	va_start(arguments, format);
	vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
}

void __wrap_pf_status_server_answer(PfStatusServer *server, const PfAgentStatus *status)
{
	answered = *status;
}

const char *__wrap_pf_scanner_impossible(PfScanner *scanner, PfPageClass class)
{
	return NULL;
}

uint64_t __wrap_pf_scanner_left_behind(const PfScanner *scanner)
{
	return 7;
}

static int setup(void **state)
{
	result = n_tries = n_warnings = n_infos = 0;
	pf_view_init(&view);
	return 0;
}

static int teardown(void **state)
{
	pf_view_deinit(&view);
	return 0;
}

static void test_listens(void **state)
{
	pf_view_tend(&view, 5000);
	pf_view_tend(&view, 500000);
	assert_int_equal(n_tries, 1);
	assert_true(view.server.fd >= 0);
	assert_int_equal(pf_view_due_ms(&view), INT64_MAX);
	assert_int_equal(n_warnings + n_infos, 0);
}

/* Less and less often, said once. */
static void test_tries_again(void **state)
{
	static const int64_t waits_ms[] = {1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000};
	int64_t now = 5000;

	result = -EADDRINUSE;
	pf_view_tend(&view, now);
	for (size_t i = 0; i < sizeof(waits_ms) / sizeof(waits_ms[0]); i++) {
		assert_int_equal(n_tries, i + 1);
		assert_int_equal(pf_view_due_ms(&view), now + waits_ms[i]);
		pf_view_tend(&view, now + waits_ms[i] - 1);
		assert_int_equal(n_tries, i + 1);
		now += waits_ms[i];
		pf_view_tend(&view, now);
	}
	assert_int_equal(n_warnings, 1);
	assert_non_null(strstr(line, "--status will not work"));
	result = 0;
	pf_view_tend(&view, now + 60000);
	assert_int_equal(n_warnings, 1);
	assert_int_equal(n_infos, 1);
	assert_non_null(strstr(line, "--status works now"));
	assert_true(view.server.fd >= 0);
}

/* It gave its socket up, as it could not accept: it gets another one, and soon. */
static void test_lost(void **state)
{
	result = -EROFS;
	pf_view_tend(&view, 0);
	pf_view_tend(&view, 1000);
	result = 0;
	pf_view_tend(&view, 3000);
	pf_status_server_deinit(&view.server);
	result = -EROFS;
	pf_view_tend(&view, 10000);
	assert_int_equal(n_warnings, 2);
	assert_int_equal(pf_view_due_ms(&view), 11000);
	result = 0;
	pf_view_tend(&view, 11000);
	assert_true(view.server.fd >= 0);
}

static void test_files_left_out(void **state)
{
	PfState files = {.n_left_out = {[PF_CLASS_MAPPED] = 300, [PF_CLASS_CACHE] = 20}};
	const PfAgentConfig config = {0};
	const PfFacts facts = {0};
	PfConversation *conversation = pf_conversation_new(&files, &facts);
	const PfLink link = {.channel.fd = -1, .conversation = conversation};
	const PfWatch watch = {0};

	assert_non_null(conversation);
	pf_view_answer(&view,
		&(PfViewed){.config = &config, .state = &files, .link = &link, .watch = &watch});
	assert_int_equal(answered.n_left_out, 320);
	assert_int_equal(answered.n_left_behind, 7);
	pf_conversation_free(conversation);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_listens, setup, teardown),
		cmocka_unit_test_setup_teardown(test_tries_again, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lost, setup, teardown),
		cmocka_unit_test_setup_teardown(test_files_left_out, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
