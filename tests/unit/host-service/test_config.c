/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Every key, every mistake with the line that it is answered with, and the file as it is shipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "host-service/config/config.h"
#include "host-service/config/group_name.h"
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static PfConfig *parse(const char *text)
{
	g_autoptr(GError) error = NULL;
	PfConfig *config = pf_config_parse("x.conf", text, strlen(text), &error);

	if (!config)
		fail_msg("\"%s\": %s", text, error->message);
	assert_null(error);
	return config;
}

static void assert_policy(const PfPolicy *policy, const PfPolicy *expected)
{
	assert_int_equal(policy->admission, expected->admission);
	assert_int_equal(policy->thp, expected->thp);
	assert_int_equal(policy->bytes_per_s, expected->bytes_per_s);
	assert_int_equal(policy->hints_per_s, expected->hints_per_s);
	assert_int_equal(policy->cpu_percent, expected->cpu_percent);
	assert_int_equal(policy->candidates_percent, expected->candidates_percent);
	assert_int_equal(policy->frames_percent, expected->frames_percent);
	assert_int_equal(policy->index_memory_percent, expected->index_memory_percent);
}

static void assert_defaults(const PfConfig *config)
{
	assert_string_equal(pf_config_user(config), "pagefusion");
	assert_int_equal(pf_config_memory_limit(config), 0);
	assert_policy(pf_config_policy(config, PF_GROUP_DEFAULT), &PF_POLICY_DEFAULTS);
	assert_policy(pf_config_policy(config, "tenant-1"), &PF_POLICY_DEFAULTS);
}

static void assert_wrong(const char *text, gsize size, const char *message)
{
	g_autoptr(GError) error = NULL;

	assert_null(pf_config_parse("x.conf", text, size, &error));
	assert_non_null(error);
	assert_null(strchr(error->message, '\n'));
	if (strcmp(error->message, message) != 0)
		fail_msg("\"%s\": \"%s\", wanted \"%s\"", text, error->message, message);
}

static void nothing_said_is_the_defaults(void **state)
{
	static const char *const texts[] = {"", "\n", "# nothing\n", "[service]\n[defaults]\n",
		"[group tenant-1]", "\r\n[defaults]\r\n\r\n"};
	g_autoptr(PfConfig) none = pf_config_new();

	assert_defaults(none);
	for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
		g_autoptr(PfConfig) config = parse(texts[i]);

		assert_defaults(config);
	}
}

#define ALL_KEYS                                                                                   \
	"admission = 64\nthp=preserve\nbytes-per-second = 64K\nhints-per-second = 1000\n"          \
	"cpu-percent = 100\ncandidates-percent = 1\nframes-percent = 2\n"                          \
	"index-memory-percent = 3\n"

static const PfPolicy all_keys = {64, PF_THP_PRESERVE, 65536, 1000, 100, 1, 2, 3};

static void every_key_is_read(void **state)
{
	g_autoptr(PfConfig) config =
		parse("[service]\nuser = someone\nmemory-limit = 64\nadditions-iso = /a b.iso\n"
		      "[defaults]\n" ALL_KEYS);
	g_autoptr(PfConfig) group = parse("[group tenant-1]\n" ALL_KEYS);

	assert_string_equal(pf_config_user(config), "someone");
	assert_string_equal(pf_config_additions_iso(config), "/a b.iso");
	assert_int_equal(pf_config_memory_limit(config), 64 << 20);
	assert_policy(pf_config_policy(config, "any-other"), &all_keys);
	assert_policy(pf_config_policy(group, "tenant-1"), &all_keys);
	assert_policy(pf_config_policy(group, "tenant-2"), &PF_POLICY_DEFAULTS);
	assert_policy(pf_config_policy(group, PF_GROUP_DEFAULT), &PF_POLICY_DEFAULTS);
}

/* Key by key, before and behind the section that it inherits from. */
static void groups_inherit_the_defaults(void **state)
{
	static const char text[] = "[group before]\nadmission = 3\n"
				   "[defaults]\nadmission = 4\nframes-percent = 60\n"
				   "[group behind]\nframes-percent = 70\n[group empty]\n";
	g_autoptr(PfConfig) config = parse(text);
	PfPolicy expected = PF_POLICY_DEFAULTS;

	expected.admission = 3;
	expected.frames_percent = 60;
	assert_policy(pf_config_policy(config, "before"), &expected);
	expected.admission = 4;
	assert_policy(pf_config_policy(config, "empty"), &expected);
	assert_policy(pf_config_policy(config, PF_GROUP_DEFAULT), &expected);
	expected.frames_percent = 70;
	assert_policy(pf_config_policy(config, "behind"), &expected);
}

static void the_command_line_changes_the_defaults(void **state)
{
	g_autoptr(PfConfig) config = parse("[group own]\nthp = balanced\n[group none]\n");

	pf_config_set_thp(config, PF_THP_ALL);
	assert_int_equal(pf_config_policy(config, PF_GROUP_DEFAULT)->thp, PF_THP_ALL);
	assert_int_equal(pf_config_policy(config, "none")->thp, PF_THP_ALL);
	assert_int_equal(pf_config_policy(config, "own")->thp, PF_THP_BALANCED);
	pf_config_set_user(config, "another");
	assert_string_equal(pf_config_user(config), "another");
	pf_config_set_additions_iso(config, "/other.iso");
	assert_string_equal(pf_config_additions_iso(config), "/other.iso");
}

static void what_a_value_may_be(void **state)
{
	static const struct {
		const char *text;
		guint64 bytes_per_s;
		guint admission;
	} cases[] = {
		{"[defaults]\nbytes-per-second = 65536\nadmission = any", 65536, 1},
		{"[defaults]\nbytes-per-second = 1M\nadmission = 2", 1 << 20, 2},
		{"[defaults]\n  bytes-per-second  =  16G  \t\n\tadmission\t=\t3\t",
			UINT64_C(16) << 30, 3},
		{"[defaults]\r\nbytes-per-second = 100K\r\nadmission = any\r\n", 102400, 1},
		/* Merged: the last one counts. */
		{"[defaults]\nbytes-per-second = 1M\n[service]\n[defaults]\nadmission = 5\n"
		 "bytes-per-second = 2M\nbytes-per-second = 3M",
			3 << 20, 5},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autoptr(PfConfig) config = parse(cases[i].text);
		const PfPolicy *policy = pf_config_policy(config, PF_GROUP_DEFAULT);

		assert_int_equal(policy->bytes_per_s, cases[i].bytes_per_s);
		assert_int_equal(policy->admission, cases[i].admission);
	}
}

static void wrong_values_are_named(void **state)
{
	static const struct {
		const char *section, *key, *values[12], *takes;
	} cases[] = {
		{"service", "user", {"", "root", "0", "a b", "a:b", "../x", "\303\244"},
			"the name or the number of a user other than root"},
		{"service", "additions-iso", {"", "a.iso", "./a.iso", "~/a.iso"},
			"the absolute path of a file"},
		{"service", "memory-limit",
			{"", "63", "16777217", "1G", "-64", "18446744073709551680"},
			"a number of MiB from 64 to 16777216"},
		{"defaults", "admission",
			{"", "0", "1", "65", "Any", "two", "2 # two", "+2", "4294967298"},
			"a number from 2 to 64, or any"},
		{"group web", "thp", {"", "default", "All", "always", "\"all\""},
			"preserve, balanced or all"},
		{"defaults", "bytes-per-second",
			{"", "K", "65535", "63K", "17G", "16385M", "1T", "64k", "64 K", "-1",
				"17179869184G", "18446744073709551616"},
			"a number of bytes from 64K to 16G, with or without K, M or G behind it"},
		{"group web", "hints-per-second", {"", "999", "1000000001", "1K", "0x1000"},
			"a number from 1000 to 1000000000"},
		{"defaults", "cpu-percent", {"", "0", "101", "5%", "1.5", "4294967297"},
			"a number from 1 to 100"},
		{"group web", "candidates-percent", {"0", "101"}, "a number from 1 to 100"},
		{"defaults", "frames-percent", {"0", "101"}, "a number from 1 to 100"},
		{"group web", "index-memory-percent", {"0", "101"}, "a number from 1 to 100"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
		for (size_t v = 0; v < G_N_ELEMENTS(cases[i].values) && cases[i].values[v]; v++) {
			g_autofree char *text = g_strdup_printf("[defaults]\n[%s]\n%s = %s\n",
				cases[i].section, cases[i].key, cases[i].values[v]);
			g_autofree char *message = g_strdup_printf(
				"x.conf: [%s] %s cannot be '%s': give it %s", cases[i].section,
				cases[i].key, cases[i].values[v], cases[i].takes);

			assert_wrong(text, strlen(text), message);
		}
}

#define POLICY_KEYS                                                                                \
	"it may be one of admission, thp, bytes-per-second, hints-per-second, cpu-percent, "       \
	"candidates-percent, frames-percent, index-memory-percent"
#define SECTIONS "[service], [defaults] or [group NAME]"
#define NO_GROUP(name)                                                                             \
	"x.conf: [group " name "] is no name of a trust group: give it " PF_GROUP_NAME_RULE
#define SIXTY "123456789012345678901234567890123456789012345678901234567890"

static void what_there_is_not_is_named(void **state)
{
	static const struct {
		const char *text, *message;
	} cases[] = {
		{"[defaults]\ncpu = 1", "x.conf: [defaults] has no key 'cpu': " POLICY_KEYS},
		{"[group web]\nuser = x", "x.conf: [group web] has no key 'user': " POLICY_KEYS},
		{"[service]\nthp = all",
			"x.conf: [service] has no key 'thp': it may be one of user, memory-limit, additions-iso"},
		{"[defaults]\nthp[de] = all",
			"x.conf: [defaults] has no key 'thp[de]': " POLICY_KEYS},
		{"[defaults]\n" SIXTY "1234 = 1",
			"x.conf: [defaults] has no key '" SIXTY "...': " POLICY_KEYS},
		{"[Defaults]", "x.conf: there is no section [Defaults]: a section is " SECTIONS},
		{"[group]", "x.conf: there is no section [group]: a section is " SECTIONS},
		{"[group  web]", NO_GROUP(" web")},
		{"[group web ]", NO_GROUP("web ")},
		{"[group ]", NO_GROUP("")},
		{"[group -web]", NO_GROUP("-web")},
		{"[group a/b]", NO_GROUP("a/b")},
		{"[group \303\244]", NO_GROUP("\303\244")},
		{"[group " SIXTY "1234]", NO_GROUP(SIXTY "...")},
		{"thp = all\n[defaults]",
			"x.conf: something stands before the first section: begin with " SECTIONS},
		{"[defaults]\nthp\n",
			"x.conf: line 2 'thp' is no line of a configuration: write [SECTION], "
			"KEY = VALUE, or # and a comment"},
		{"[service]\n\n[defaults\n",
			"x.conf: line 3 '[defaults' is no line of a configuration: write [SECTION], "
			"KEY = VALUE, or # and a comment"},
		{"[defaults]\n = 3",
			"x.conf: line 2 ' = 3' is no line of a configuration: write [SECTION], "
			"KEY = VALUE, or # and a comment"},
		{"[defaults]\nEncoding=latin1",
			"x.conf: line 2 'Encoding=latin1' is no line of a configuration: write [SECTION], "
			"KEY = VALUE, or # and a comment"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
		assert_wrong(cases[i].text, strlen(cases[i].text), cases[i].message);
}

static void the_longest_name_is_one(void **state)
{
	g_autoptr(PfConfig) config = parse("[group " SIXTY "123]\nadmission=9\n[group A.b_c-9]\n");

	assert_int_equal(pf_config_policy(config, SIXTY "123")->admission, 9);
	assert_int_equal(pf_config_policy(config, "A.b_c-9")->admission, 2);
}

static void what_is_no_text_is_refused(void **state)
{
	g_autofree char *long_text = g_strnfill((1 << 20) + 1, '\n');

	assert_wrong("[service]\n\0\n", 12, "x.conf has a byte 0: write it as UTF-8 text");
	assert_wrong("[service]\n# \377", 13, "x.conf is no valid UTF-8: write it as UTF-8 text");
	assert_wrong(long_text, (1 << 20) + 1,
		"x.conf is longer than 1 MiB: that is no configuration of pagefusiond");
	long_text[1 << 20] = 0;
	pf_config_free(parse(long_text));
}

/* Files */

typedef struct Files {
	char *directory, *path;
} Files;

static int make_files(void **state)
{
	Files *files = g_new0(Files, 1);

	files->directory = g_dir_make_tmp("pf-config-XXXXXX", NULL);
	files->path = g_build_filename(files->directory, "x.conf", NULL);
	*state = files;
	return 0;
}

static int remove_files(void **state)
{
	Files *files = *state;

	g_unlink(files->path);
	g_rmdir(files->path);
	g_rmdir(files->directory);
	g_free(files->path);
	g_free(files->directory);
	g_free(files);
	return 0;
}

static void write_file(const Files *files, const char *text, mode_t mode)
{
	assert_true(g_file_set_contents(files->path, text, -1, NULL));
	assert_int_equal(chmod(files->path, mode), 0);
}

static void assert_unreadable(const Files *files, gboolean required, const char *says)
{
	g_autoptr(GError) error = NULL;
	g_auto(GStrv) around = NULL;
	g_autofree char *message = NULL;

	assert_null(pf_config_load(files->path, required, &error));
	assert_non_null(error);
	around = g_strsplit(error->message, files->path, -1);
	message = g_strjoinv("FILE", around);
	assert_string_equal(message, says);
}

static void a_file_is_read(void **state)
{
	const Files *files = *state;
	g_autoptr(GError) error = NULL;
	g_autoptr(PfConfig) config = NULL;

	write_file(files, "[defaults]\nadmission = 7\n", 0644);
	config = pf_config_load(files->path, FALSE, &error);
	assert_null(error);
	assert_int_equal(pf_config_policy(config, PF_GROUP_DEFAULT)->admission, 7);
	write_file(files, "[defaults]\nadmission = 1\n", 0644);
	assert_unreadable(files, FALSE,
		"FILE: [defaults] admission cannot be '1': give it a number from 2 to 64, or any");
}

static void an_empty_file_is_the_defaults(void **state)
{
	const Files *files = *state;
	g_autoptr(PfConfig) config = NULL;

	write_file(files, "", 0400);
	config = pf_config_load(files->path, TRUE, NULL);
	assert_non_null(config);
	assert_defaults(config);
}

static void a_missing_file_is_the_defaults_unless_it_is_required(void **state)
{
	const Files *files = *state;
	g_autoptr(PfConfig) config = pf_config_load(files->path, FALSE, NULL);

	assert_non_null(config);
	assert_defaults(config);
	assert_unreadable(files, TRUE, "cannot read FILE: No such file or directory");
}

static void only_root_may_write_it(void **state)
{
	static const char says[] =
		"FILE can be written by others than root: chown root and chmod go-w it";
	const Files *files = *state;

	write_file(files, "", 0664);
	assert_unreadable(files, TRUE, says);
	write_file(files, "", 0602);
	assert_unreadable(files, FALSE, says);
	write_file(files, "", 0600);
	if (geteuid() != 0)
		return; /* nobody else's file can be made */
	assert_int_equal(chown(files->path, 1, 0), 0);
	assert_unreadable(files, TRUE, says);
}

static void what_is_no_file_is_refused(void **state)
{
	const Files *files = *state;

	assert_int_equal(g_mkdir(files->path, 0755), 0);
	assert_unreadable(files, FALSE, "FILE is no file: give the configuration's name");
	assert_int_equal(g_rmdir(files->path), 0);
	/* Nobody writes to it, and nobody waits for that. */
	assert_int_equal(mkfifo(files->path, 0600), 0);
	assert_unreadable(files, FALSE, "FILE is no file: give the configuration's name");
}

static void a_long_file_is_refused(void **state)
{
	const Files *files = *state;
	g_autofree char *text = g_strnfill(5 << 20, '\n');

	write_file(files, text, 0600);
	assert_unreadable(
		files, TRUE, "FILE is longer than 1 MiB: that is no configuration of pagefusiond");
}

/* The example */

static char *read_example(void)
{
	char *text = NULL;

	assert_true(g_file_get_contents(PF_TEST_EXAMPLE, &text, NULL, NULL));
	return text;
}

static void the_example_is_the_defaults(void **state)
{
	g_autofree char *text = read_example();
	g_autoptr(PfConfig) config = parse(text);

	assert_defaults(config);
}

/* "#key = value" and "#[section]" do something without their #; "# text" is text. */
static char *uncomment(const char *text)
{
	g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

	for (size_t i = 0; lines[i]; i++)
		if (lines[i][0] == '#' && lines[i][1] && lines[i][1] != ' ')
			memmove(lines[i], lines[i] + 1, strlen(lines[i]));
	return g_strjoinv("\n", lines);
}

static void the_example_shows_the_defaults(void **state)
{
	static const char *const keys[] = {"\nuser", "\nmemory-limit", "\nadditions-iso",
		"\nadmission", "\nthp", "\nbytes-per-second", "\nhints-per-second", "\ncpu-percent",
		"\ncandidates-percent", "\nframes-percent", "\nindex-memory-percent"};
	g_autofree char *text = read_example();
	g_autofree char *shown = uncomment(text);
	g_autoptr(PfConfig) config = parse(shown);
	PfPolicy group = PF_POLICY_DEFAULTS;

	assert_string_equal(pf_config_user(config), "pagefusion");
	assert_int_equal(pf_config_memory_limit(config), UINT64_C(1) << 30);
	assert_policy(pf_config_policy(config, PF_GROUP_DEFAULT), &PF_POLICY_DEFAULTS);
	group.admission = 1;
	group.thp = PF_THP_PRESERVE;
	assert_policy(pf_config_policy(config, "tenant-1"), &group);
	for (size_t i = 0; i < G_N_ELEMENTS(keys); i++)
		assert_non_null(strstr(shown, keys[i]));
}

#define with_files(test) cmocka_unit_test_setup_teardown(test, make_files, remove_files)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_said_is_the_defaults),
		cmocka_unit_test(every_key_is_read),
		cmocka_unit_test(groups_inherit_the_defaults),
		cmocka_unit_test(the_command_line_changes_the_defaults),
		cmocka_unit_test(what_a_value_may_be),
		cmocka_unit_test(wrong_values_are_named),
		cmocka_unit_test(what_there_is_not_is_named),
		cmocka_unit_test(the_longest_name_is_one),
		cmocka_unit_test(what_is_no_text_is_refused),
		with_files(a_file_is_read),
		with_files(an_empty_file_is_the_defaults),
		with_files(a_missing_file_is_the_defaults_unless_it_is_required),
		with_files(only_root_may_write_it),
		with_files(what_is_no_file_is_refused),
		with_files(a_long_file_is_refused),
		cmocka_unit_test(the_example_is_the_defaults),
		cmocka_unit_test(the_example_shows_the_defaults),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
