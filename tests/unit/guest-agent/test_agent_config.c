// SPDX-License-Identifier: LGPL-2.1-or-later
/* Every key, and every mistake with the line that it is answered with. */
#include "config_rig.h"
#include <errno.h>

/* The message is this one, and nothing was changed. */
static void assert_wrong_bytes(const char *text, size_t size, const char *expected)
{
	PfAgentConfig config;

	assert_int_equal(pf_agent_config_init(&config), 0);
	assert_int_equal(parse_bytes(&config, text, size), -EINVAL);
	if (strcmp(message, expected) != 0)
		fail_msg("\"%s\": \"%s\", wanted \"%s\"", text, message, expected);
	assert_defaults(&config);
	pf_agent_config_deinit(&config);
}

static void assert_wrong(const char *text, const char *expected)
{
	assert_wrong_bytes(text, strlen(text), expected);
}

static void nothing_said_is_the_defaults(void **state)
{
	static const char *const texts[] = {"", "\n", "\n\n\n", "# nothing\n; nothing\n  # nothing",
		"[agent]\n[classes]\n[cache]\n", "[agent]", "\xef\xbb\xbf[agent]\r\n\r\n"};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		PfAgentConfig config = parse(texts[i]);

		assert_defaults(&config);
		pf_agent_config_deinit(&config);
	}
}

static void every_key_is_read(void **state)
{
	PfAgentConfig config =
		parse("[classes]\nmapped = off\ncache=off\nbuffers =on\nkernel: on\n"
		      "[agent]\nport = /dev/vport0p1\ninterval = 1\nslow-interval = 86400\n"
		      "hash-limit = 3G\ncpu-limit = 12.5\n");

	assert_string_equal(config.port, "/dev/vport0p1");
	assert_int_equal(config.interval_s, 1);
	assert_int_equal(config.slow_interval_s, 86400);
	assert_int_equal(config.hash_limit, UINT64_C(3) << 30);
	assert_int_equal(config.cpu_limit_permyriad, 1250);
	assert_false(config.classes[PF_CLASS_MAPPED]);
	assert_false(config.classes[PF_CLASS_CACHE]);
	assert_true(config.classes[PF_CLASS_BUFFERS]);
	assert_true(config.classes[PF_CLASS_KERNEL]);
	assert_paths(config.cache_paths, default_paths);
	/* A second file says over it what it says. */
	assert_int_equal(parse_bytes(&config, "[cache]\npaths = /a", 18), 0);
	assert_string_equal(config.port, "/dev/vport0p1");
	assert_string_equal(config.cache_paths[0], "/a");
	assert_null(config.cache_paths[1]);
	assert_int_equal(parse_bytes(&config, "[agent]\nport = /dev/x", 21), 0);
	assert_string_equal(config.port, "/dev/x");
	assert_int_equal(config.interval_s, 1);
	pf_agent_config_deinit(&config);
}

static void paths_go_on_over_lines(void **state)
{
	static const char *const texts[] = {
		"[cache]\npaths = /a\t/b  /c\n  /d\n\t/e /f\n",
		"[cache]\r\npaths =\r\n /a /b\r\n\t/c\r\n\r\n\t# not this\r\n\t/d\r\n /e\r\n /f",
		"[cache]\npaths = /a /b\n# not this\n /c /d /e /f\n[classes]\n",
	};
	static const char *const expected[] = {"/a", "/b", "/c", "/d", "/e", "/f", NULL};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		PfAgentConfig config = parse(texts[i]);

		assert_paths(config.cache_paths, expected);
		pf_agent_config_deinit(&config);
	}
}

/* The smallest and the largest value of each number. */
static void numbers_reach_their_bounds(void **state)
{
	PfAgentConfig config = parse("[agent]\nslow-interval = 10\nhash-limit = 1048576\n"
				     "cpu-limit = 0.01\ninterval = 86400");

	assert_int_equal(config.slow_interval_s, 10);
	assert_int_equal(config.hash_limit, 1 << 20);
	assert_int_equal(config.cpu_limit_permyriad, 1);
	assert_int_equal(config.interval_s, 86400);
	pf_agent_config_deinit(&config);
	config = parse("[agent]\nhash-limit = 1024G\ncpu-limit = 100.00");
	assert_int_equal(config.hash_limit, UINT64_C(1) << 40);
	assert_int_equal(config.cpu_limit_permyriad, 10000);
	pf_agent_config_deinit(&config);
	config = parse("[agent]\nhash-limit = 1024K\ncpu-limit = 0.1");
	assert_int_equal(config.hash_limit, 1 << 20);
	assert_int_equal(config.cpu_limit_permyriad, 10);
	pf_agent_config_deinit(&config);
}

/* Values that a key does not take: the message names the key, the value, and what it takes. */
static void values_are_checked(void **state)
{
	static const struct {
		const char *section, *key, *value, *takes;
	} wrong[] = {
#define SECONDS "a number of seconds from "
		{"agent", "interval", "0", SECONDS "1 to 86400"},
		{"agent", "interval", "86401", SECONDS "1 to 86400"},
		{"agent", "interval", "", SECONDS "1 to 86400"},
		{"agent", "interval", "60s", SECONDS "1 to 86400"},
		{"agent", "interval", "+60", SECONDS "1 to 86400"},
		{"agent", "interval", "-1", SECONDS "1 to 86400"},
		{"agent", "interval", "0x10", SECONDS "1 to 86400"},
		{"agent", "interval", "1 2", SECONDS "1 to 86400"},
		{"agent", "interval", "4294967356", SECONDS "1 to 86400"},
		{"agent", "interval", "18446744073709551676", SECONDS "1 to 86400"},
		{"agent", "interval", "= 5", SECONDS "1 to 86400"},
		{"agent", "slow-interval", "9", SECONDS "10 to 86400"},
		{"agent", "slow-interval", "86401", SECONDS "10 to 86400"},
#define BYTES "a number of bytes from 1M to 1024G, with or without K, M or G behind it"
		{"agent", "hash-limit", "1048575", BYTES},
		{"agent", "hash-limit", "1023K", BYTES},
		{"agent", "hash-limit", "1025G", BYTES},
		{"agent", "hash-limit", "M", BYTES},
		{"agent", "hash-limit", "64m", BYTES},
		{"agent", "hash-limit", "64MB", BYTES},
		{"agent", "hash-limit", "64 M", BYTES},
		{"agent", "hash-limit", "18014398509483008K", BYTES},
#define PERCENT "a percentage from 0.01 to 100, with at most two decimals"
		{"agent", "cpu-limit", "0", PERCENT},
		{"agent", "cpu-limit", "0.00", PERCENT},
		{"agent", "cpu-limit", "0.001", PERCENT},
		{"agent", "cpu-limit", "100.01", PERCENT},
		{"agent", "cpu-limit", "101", PERCENT},
		{"agent", "cpu-limit", "1844674407370955161", PERCENT},
		{"agent", "cpu-limit", ".1", PERCENT},
		{"agent", "cpu-limit", "1.", PERCENT},
		{"agent", "cpu-limit", "1,5", PERCENT},
		{"agent", "cpu-limit", "1%", PERCENT},
#define PORT "a path that begins with /, without blanks"
		{"agent", "port", "", PORT},
		{"agent", "port", "vport0p1", PORT},
		{"agent", "port", "/dev/a b", PORT},
		{"classes", "mapped", "yes", "on or off"},
		{"classes", "cache", "On", "on or off"},
		{"classes", "buffers", "1", "on or off"},
		{"classes", "kernel", "", "on or off"},
#define PATHS "at most 256 directories, each beginning with /, with blanks between them"
		{"cache", "paths", "/usr lib", PATHS},
		{"cache", "paths", "usr", PATHS},
		{"cache", "paths", "/usr, /lib ,", PATHS},
	};
	char text[256], expected[512];

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		snprintf(text, sizeof(text), "# x\n[%s]\n\n%s = %s\n", wrong[i].section,
			wrong[i].key, wrong[i].value);
		snprintf(expected, sizeof(expected),
			"x.conf:4: [%s] %s: cannot be '%s': give it %s", wrong[i].section,
			wrong[i].key, wrong[i].value, wrong[i].takes);
		assert_wrong(text, expected);
	}
}

#define AGENT_KEYS "port, interval, slow-interval, hash-limit, cpu-limit"
#define SECTIONS   "there are [agent], [classes] and [cache]"
#define NO_LINE    "this is neither a [section] nor 'key = value' nor a # comment"

static void mistakes_name_their_line(void **state)
{
	static const struct {
		const char *text, *expected;
	} wrong[] = {
		{"[agent]\nport = /x\nintervall = 5\n",
			"x.conf:3: [agent] has no key 'intervall': it may be one of " AGENT_KEYS},
		{"[agent]\nPort = /x\n",
			"x.conf:2: [agent] has no key 'Port': it may be one of " AGENT_KEYS},
		{"[agent]\nmapped = on\n",
			"x.conf:2: [agent] has no key 'mapped': it may be one of " AGENT_KEYS},
		{"[agent]\n = 5\n",
			"x.conf:2: [agent] has no key '': it may be one of " AGENT_KEYS},
		{"interval = 5\n", "x.conf:1: key 'interval' stands before any section: " SECTIONS},
		{"[agents]\n", "x.conf:1: there is no section [agents]: " SECTIONS},
		{"\n[]", "x.conf:2: there is no section []: " SECTIONS},
		{"[agent]\n[Cache]\n", "x.conf:2: there is no section [Cache]: " SECTIONS},
		{"[agent\n", "x.conf:1: '[agent' is no section: it must end with ], with nothing "
			     "behind"},
		{"[", "x.conf:1: '[' is no section: it must end with ], with nothing behind"},
		{"[agent] interval = 5\n",
			"x.conf:1: '[agent] interval = 5' is no section: it must end with ], with "
			"nothing behind"},
		{"[agent]\ninterval = 5\n  [cache]\n",
			"x.conf:3: a [section] begins its line, without blanks before it"},
		{" [nowhere]\n", "x.conf:1: a [section] begins its line, without blanks before it"},
		{"[agent]\ninterval = 5\n\ninterval = 5\n",
			"x.conf:4: [agent] interval: comes a second time: say it once"},
		{"[cache]\npaths = /a\n[cache]\npaths = /b\n",
			"x.conf:4: [cache] paths: comes a second time: say it once"},
		{"[agent]\ninterval = 5\n  port = /x\n",
			"x.conf:3: [agent] interval: its value is one line; this one begins with a "
			"blank, so it would go on with it"},
		{"[agent]\ninterval\n", "x.conf:2: " NO_LINE},
		{"[agent]\n\n\n  /usr\n", "x.conf:4: " NO_LINE},
		{"[agent]\ninterval = 5 ; seconds\n",
			"x.conf:2: a comment must stand on a line of its own"},
		{"[cache]\npaths = /a\n /b\t;/c\n",
			"x.conf:3: a comment must stand on a line of its own"},
		{"[agent]\ninterval = 5 # seconds\n",
			"x.conf:2: [agent] interval: cannot be '5 # seconds': give it a number of "
			"seconds from 1 to 86400"},
		{"[cache]\npaths =\n\n[classes]\ncache = on\n",
			"x.conf:2: [cache] paths: names no directory: [classes] cache = off turns "
			"the class off"},
		{"[agent]\nport = /\xff\n",
			"x.conf:2: this line holds control characters or bytes that are no UTF-8"},
		{"[agent]\nport = /a\x1b[1m\n",
			"x.conf:2: this line holds control characters or bytes that are no UTF-8"},
		{"[agent]\nport = /a\rb\n",
			"x.conf:2: this line holds control characters or bytes that are no UTF-8"},
		/* The first of two. */
		{"[agent]\nfirst = 1\nnothing\n",
			"x.conf:2: [agent] has no key 'first': it may be one of " AGENT_KEYS},
		{"[agent]\nnothing\nfirst = 1\n", "x.conf:2: " NO_LINE},
	};

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		assert_wrong(wrong[i].text, wrong[i].expected);
	assert_wrong_bytes("[agent]\nport = /a\0b\n", 20, "x.conf:2: this line holds a byte 0");
	assert_wrong_bytes("\0", 1, "x.conf:1: this line holds a byte 0");
}

/* As long as libinih takes it, and one byte more; comments of any length. */
static void long_lines_are_refused_not_cut(void **state)
{
	static char text[4096], expected[256];
	PfAgentConfig config;
	size_t longest = 0;

	for (size_t length = 1; length < 2048 && !longest; length++) {
		snprintf(text, sizeof(text), "[agent]\nport = /%0*d\ninterval = 7\n", (int)length,
			0);
		assert_int_equal(pf_agent_config_init(&config), 0);
		if (parse_bytes(&config, text, strlen(text)) == 0) {
			assert_int_equal(strlen(config.port), length + 1);
			assert_int_equal(config.interval_s, 7);
		} else {
			longest = length - 1 + strlen("port = /");
		}
		pf_agent_config_deinit(&config);
	}
	assert_true(longest >= 150);
	snprintf(expected, sizeof(expected),
		"x.conf:2: this line is too long: at most %zu bytes; one that begins with a blank "
		"goes on with the value above",
		longest);
	assert_string_equal(message, expected);
	snprintf(text, sizeof(text), "#%03000d\n[agent]\ninterval = 9\n\t ;%0900d", 0, 0);
	config = parse(text);
	assert_int_equal(config.interval_s, 9);
	pf_agent_config_deinit(&config);
}

/* A message is cut where it does not fit, never inside a character, and is one line. */
static void messages_are_bounded(void **state)
{
	char text[512] = "[agent]\n", small[16];
	PfAgentConfig config;

	for (int i = 0; i < 90; i++)
		strcat(text, "\xc3\xa4");
	strcat(text, " = 1");
	assert_int_equal(pf_agent_config_init(&config), 0);
	assert_int_equal(parse_bytes(&config, text, strlen(text)), -EINVAL);
	assert_non_null(strstr(message, "\xc3\xa4': it may be one of port"));
	assert_int_equal(
		pf_agent_config_parse(&config, "x.conf", text, strlen(text), small, sizeof(small)),
		-EINVAL);
	assert_string_equal(small, "x.conf:2: [agen");
	assert_int_equal(
		pf_agent_config_parse(&config, "x.conf", text, strlen(text), small, 4), -EINVAL);
	assert_string_equal(small, "x.c");
	pf_agent_config_deinit(&config);
}

static void there_is_room_for_many_paths(void **state)
{
	static char text[8192] = "[cache]\npaths =\n";
	PfAgentConfig config;
	char line[32], expected[256];

	for (int i = 0; i < 256; i++) {
		snprintf(line, sizeof(line), " /%d\n", i);
		strcat(text, line);
	}
	config = parse(text);
	assert_string_equal(config.cache_paths[255], "/255");
	assert_null(config.cache_paths[256]);
	pf_agent_config_deinit(&config);
	strcat(text, " /one-more\n");
	snprintf(expected, sizeof(expected),
		"x.conf:259: [cache] paths: cannot be '/one-more': give it %s", PATHS);
	assert_wrong(text, expected);
}

static void the_sections_are_these(void **state)
{
	assert_wrong("[x]\n", "x.conf:1: there is no section [x]: " SECTIONS);
}

static void classes_have_the_names_of_their_keys(void **state)
{
	char text[64];

	for (int class = 0; class < PF_N_CLASSES; class ++) {
		for (int on = 0; on <= 1; on++) {
			PfAgentConfig config;

			snprintf(text, sizeof(text), "[classes]\n%s = %s",
				pf_page_class_name((PfPageClass) class), on ? "on" : "off");
			config = parse(text);
			assert_int_equal(config.classes[class], on);
			pf_agent_config_deinit(&config);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_said_is_the_defaults),
		cmocka_unit_test(every_key_is_read),
		cmocka_unit_test(paths_go_on_over_lines),
		cmocka_unit_test(numbers_reach_their_bounds),
		cmocka_unit_test(values_are_checked),
		cmocka_unit_test(mistakes_name_their_line),
		cmocka_unit_test(long_lines_are_refused_not_cut),
		cmocka_unit_test(messages_are_bounded),
		cmocka_unit_test(there_is_room_for_many_paths),
		cmocka_unit_test(the_sections_are_these),
		cmocka_unit_test(classes_have_the_names_of_their_keys),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
