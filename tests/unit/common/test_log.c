/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "common/log.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static int saved_stderr, capture[2];
static char captured[32768];

static int catch_stderr(void **state)
{
	if (pipe(capture) < 0)
		return -1;
	saved_stderr = dup(STDERR_FILENO);
	dup2(capture[1], STDERR_FILENO);
	unsetenv("JOURNAL_STREAM");
	pf_log_init("program");
	pf_log_set_level(PF_LOG_INFO);
	return 0;
}

static int restore_stderr(void **state)
{
	dup2(saved_stderr, STDERR_FILENO);
	close(saved_stderr);
	close(capture[0]);
	close(capture[1]);
	return 0;
}

/* What was logged since the last call. */
static const char *logged(void)
{
	ssize_t n;

	if (write(STDERR_FILENO, "\f", 1) != 1)
		return NULL;
	n = read(capture[0], captured, sizeof(captured) - 1);
	assert_true(n > 0);
	assert_int_equal(captured[n - 1], '\f');
	captured[n - 1] = '\0';
	return captured;
}

static void test_line(void **state)
{
	pf_warning("%d pages", 3);
	assert_string_equal(logged(), "program: 3 pages\n");
}

static void test_level(void **state)
{
	pf_debug("hidden");
	assert_string_equal(logged(), "");
	pf_log_set_level(PF_LOG_DEBUG);
	pf_debug("shown");
	assert_string_equal(logged(), "program: shown\n");
	pf_log_set_level(PF_LOG_ERROR);
	pf_warning("hidden");
	pf_error("shown");
	assert_string_equal(logged(), "program: shown\n");
}

static void set_journal_stream(unsigned long long inode_offset)
{
	struct stat status;
	char stream[64];

	assert_int_equal(fstat(STDERR_FILENO, &status), 0);
	snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)status.st_dev,
		(unsigned long long)status.st_ino + inode_offset);
	setenv("JOURNAL_STREAM", stream, 1);
	pf_log_init("program");
}

static void test_journal(void **state)
{
	set_journal_stream(0);
	pf_error("e");
	pf_info("i");
	assert_string_equal(logged(), "<3>e\n<6>i\n");
}

static void test_another_stream_is_no_journal(void **state)
{
	set_journal_stream(1);
	pf_error("e");
	setenv("JOURNAL_STREAM", "rubbish", 1);
	pf_log_init("program");
	pf_error("e");
	assert_string_equal(logged(), "program: e\nprogram: e\n");
}

static void test_escapes(void **state)
{
	static const struct {
		const char *text, *line;
	} cases[] = {
		{"a\nb\r\x1b[31m\x7f", "program: a\\x0ab\\x0d\\x1b[31m\\x7f\n"},
		{"caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x90\xa7",
			"program: caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x90\xa7\n"},
		{"C1: \xc2\x9b"
		 "A",
			"program: C1: \\xc2\\x9bA\n"},
		{"lone: \x9b \xc3 \xff", "program: lone: \\x9b \\xc3 \\xff\n"},
		{"overlong: \xc1\x81 \xe0\x81\x81",
			"program: overlong: \\xc1\\x81 \\xe0\\x81\\x81\n"},
		{"surrogate: \xed\xa0\x80", "program: surrogate: \\xed\\xa0\\x80\n"},
		{"too high: \xf4\x90\x80\x80", "program: too high: \\xf4\\x90\\x80\\x80\n"},
		{"cut: \xf0\x9f\x90", "program: cut: \\xf0\\x9f\\x90\n"},
		{"separator: \xe2\x80\xa8", "program: separator: \\xe2\\x80\\xa8\n"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		pf_info("%s", cases[i].text);
		assert_string_equal(logged(), cases[i].line);
	}
}

static void test_long_message_is_cut(void **state)
{
	char *text = malloc(10001);
	const char *line;

	assert_non_null(text);
	memset(text, '\n', 10000);
	text[10000] = '\0';
	pf_info("%s", text);
	free(text);
	line = logged();
	assert_in_range(strlen(line), 2000, 10000);
	assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
}

static void test_keeps_errno(void **state)
{
	errno = ENOSPC;
	pf_info("%m");
	assert_int_equal(errno, ENOSPC);
	assert_string_equal(logged(), "program: No space left on device\n");

	close(STDERR_FILENO);
	errno = ENOSPC;
	pf_info("lost");
	assert_int_equal(errno, ENOSPC);
}

int main(void)
{
#define LOG_TEST(test) cmocka_unit_test_setup_teardown(test, catch_stderr, restore_stderr)
	const struct CMUnitTest tests[] = {
		LOG_TEST(test_line),
		LOG_TEST(test_level),
		LOG_TEST(test_journal),
		LOG_TEST(test_another_stream_is_no_journal),
		LOG_TEST(test_escapes),
		LOG_TEST(test_long_message_is_cut),
		LOG_TEST(test_keeps_errno),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
