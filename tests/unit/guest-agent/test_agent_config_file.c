// SPDX-License-Identifier: LGPL-2.1-or-later
/* What may stand in the place of the configuration's file, and that the shipped file and the manual name
 * the same keys and defaults as the code. */
#include "config_rig.h"
#include "guest-agent/tell/port.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char directory[] = "/tmp/pf-agent-config-XXXXXX";
static char path[64];

static int make_directory(void **state)
{
	return mkdtemp(directory) && chmod(directory, 0755) == 0 ? 0 : -1;
}

static int remove_directory(void **state)
{
	return rmdir(directory);
}

static void make_file(const char *text, mode_t mode)
{
	int fd;

	snprintf(path, sizeof(path), "%s/agent.conf", directory);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	assert_int_equal(fchmod(fd, mode), 0);
	close(fd);
}

static void assert_unreadable(const char *file, int error, const char *why)
{
	PfAgentConfig config;
	char expected[256];

	memset(message, '?', sizeof(message));
	assert_int_equal(pf_agent_config_init(&config), 0);
	assert_int_equal(pf_agent_config_read(&config, file, message, sizeof(message)), error);
	snprintf(expected, sizeof(expected), "%s: %s", file, why);
	assert_string_equal(message, expected);
	assert_defaults(&config);
	pf_agent_config_deinit(&config);
}

static void a_file_is_read(void **state)
{
	PfAgentConfig config;
	char expected[256];

	make_file("[agent]\ninterval = 5", 0644);
	assert_int_equal(pf_agent_config_init(&config), 0);
	assert_int_equal(pf_agent_config_read(&config, path, message, sizeof(message)), 0);
	assert_int_equal(config.interval_s, 5);
	make_file("[agent]\n\ninterval = a", 0644);
	assert_int_equal(pf_agent_config_read(&config, path, message, sizeof(message)), -EINVAL);
	snprintf(expected, sizeof(expected),
		"%s:3: [agent] interval: cannot be 'a': give it a number of seconds from 1 to 86400",
		path);
	assert_string_equal(message, expected);
	assert_int_equal(config.interval_s, 5);
	assert_int_equal(pf_agent_config_read(&config, "/dev/null", message, sizeof(message)), 0);
	pf_agent_config_deinit(&config);
	unlink(path);
	assert_unreadable(path, -ENOENT, "No such file or directory");
}

static void what_is_no_file_is_refused(void **state)
{
	assert_unreadable(directory, -EISDIR, "Is a directory");
	assert_unreadable("/dev/zero", -EINVAL, "is longer than 64 KiB");
	snprintf(path, sizeof(path), "%s/fifo", directory);
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_unreadable(path, -EINVAL, "is no regular file");
	unlink(path);
}

static void a_file_is_read_up_to_a_bound(void **state)
{
	PfAgentConfig config;

	make_file("[agent]\n", 0600);
	assert_int_equal(truncate(path, 100 << 20), 0);
	assert_unreadable(path, -EINVAL, "is longer than 64 KiB");
	make_file("", 0600);
	for (int i = 0; i < 65536 / 16; i++) {
		int fd = open(path, O_WRONLY | O_APPEND);

		assert_int_equal(write(fd, "###############\n", 16), 16);
		close(fd);
	}
	assert_int_equal(pf_agent_config_init(&config), 0);
	assert_int_equal(pf_agent_config_read(&config, path, message, sizeof(message)), 0);
	pf_agent_config_deinit(&config);
	assert_int_equal(truncate(path, 65537), 0);
	assert_unreadable(path, -EINVAL, "is longer than 64 KiB");
	unlink(path);
}

static void only_root_may_have_written_it(void **state)
{
	static const char why[] = "others than root can write to it: chown root, chmod go-w";

	make_file("[agent]\ninterval = 5", 0664);
	assert_unreadable(path, -EPERM, why);
	make_file("[agent]\ninterval = 5", 0602);
	assert_unreadable(path, -EPERM, why);
	if (geteuid() == 0) {
		make_file("[agent]\ninterval = 5", 0600);
		assert_int_equal(chown(path, 65534, 0), 0);
		assert_unreadable(path, -EPERM, why);
	}
	unlink(path);
}

/* In a process without root's rights. */
static void a_file_without_permission_is_refused(void **state)
{
	int status;
	pid_t child;

	make_file("[agent]\ninterval = 5", 0000);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		PfAgentConfig config;

		if (geteuid() == 0 && setuid(65534) < 0)
			_exit(1);
		_exit(pf_agent_config_init(&config) != 0 ||
			pf_agent_config_read(&config, path, message, sizeof(message)) != -EACCES ||
			!strstr(message, ": Permission denied"));
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	unlink(path);
}

/* --- what is written of the keys --- */

static char *read_text(const char *file)
{
	char *text = calloc(1, 65536);
	FILE *in = fopen(file, "re");

	assert_non_null(text);
	assert_non_null(in);
	assert_true(fread(text, 1, 65535, in) > 0);
	fclose(in);
	return text;
}

/* ", a, b,": the keys of a section, as the code knows them. */
static void list_keys(const char *section, char *keys, size_t size)
{
	PfAgentConfig config;
	char text[64];
	const char *list;

	snprintf(text, sizeof(text), "[%s]\nnothing = 1", section);
	assert_int_equal(pf_agent_config_init(&config), 0);
	assert_int_equal(parse_bytes(&config, text, strlen(text)), -EINVAL);
	list = strstr(message, "may be one of ");
	assert_non_null(list);
	snprintf(keys, size, "%s, ", list + strlen("may be one of "));
	pf_agent_config_deinit(&config);
}

/* Takes each key's name out of what the code knows; nothing may be left, and nothing missing. */
typedef struct Named {
	char keys[3][128];
} Named;

static const char *const sections[3] = {"agent", "classes", "cache"};

static void name_key(Named *named, const char *section, const char *key)
{
	char item[64];

	snprintf(item, sizeof(item), "%s, ", key);
	for (size_t i = 0; i < 3; i++) {
		char *at = strstr(named->keys[i], item);

		if (strcmp(sections[i], section) != 0)
			continue;
		if (!at || (at > named->keys[i] && at[-1] != ' '))
			fail_msg("[%s] %s: no such key, or named twice", section, key);
		else
			memmove(at, at + strlen(item), strlen(at + strlen(item)) + 1);
		return;
	}
	fail_msg("no section %s", section);
}

static Named all_keys(void)
{
	Named named = {0};

	for (size_t i = 0; i < 3; i++)
		list_keys(sections[i], named.keys[i], sizeof(named.keys[i]));
	return named;
}

static void assert_all_named(const Named *named)
{
	for (size_t i = 0; i < 3; i++)
		assert_string_equal(named->keys[i], "");
}

/* With the # of every value taken away it says the defaults, and every key. */
static void the_shipped_file_says_the_defaults(void **state)
{
	char *text = read_text(PF_TEST_AGENT_CONF), *out = text, section[32] = "", key[32];
	bool begins = true;
	PfAgentConfig config;
	Named named = all_keys();

	config = parse(text);
	assert_defaults(&config);
	pf_agent_config_deinit(&config);
	for (const char *in = text; *in; in++) {
		if (!(begins && in[0] == '#' && in[1] != ' ' && in[1] != '\n'))
			*out++ = *in;
		begins = *in == '\n';
	}
	*out = '\0';
	config = parse(text);
	assert_default_values(&config);
	assert_string_equal(config.port, "/dev/virtio-ports/" PF_PORT_NAME);
	pf_agent_config_deinit(&config);
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		if (sscanf(line, "[%31[a-z]", section) != 1 && line[0] != '#' && line[0] != '\t') {
			assert_int_equal(sscanf(line, "%31[a-z-] =", key), 1);
			name_key(&named, section, key);
		}
	}
	assert_all_named(&named);
	free(text);
}

/* Each key with its default in brackets: ".It Cm KEY Pq DEFAULT". */
static void the_manual_names_keys_and_defaults(void **state)
{
	char *text = read_text(PF_TEST_AGENT_CONF_MANUAL), section[32] = "", key[32], value[32];
	Named named = all_keys();

	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		char said[128];
		PfAgentConfig config;

		if (sscanf(line, ".Ss Section [%31[a-z]", section) == 1 ||
			sscanf(line, ".It Cm %31s Pq %31[^\n]", key, value) != 2)
			continue;
		name_key(&named, section, key);
		if (strcmp(key, "port") == 0 || strcmp(key, "paths") == 0)
			continue;
		snprintf(said, sizeof(said), "[%s]\n%s = %s\n", section, key, value);
		config = parse(said);
		assert_defaults(&config);
		pf_agent_config_deinit(&config);
	}
	assert_all_named(&named);
	free(text);
}

static void the_manual_names_every_directory(void **state)
{
	char *text = read_text(PF_TEST_AGENT_CONF_MANUAL);

	for (size_t i = 0; default_paths[i]; i++)
		assert_non_null(strstr(text, default_paths[i]));
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_file_is_read),
		cmocka_unit_test(what_is_no_file_is_refused),
		cmocka_unit_test(a_file_is_read_up_to_a_bound),
		cmocka_unit_test(only_root_may_have_written_it),
		cmocka_unit_test(a_file_without_permission_is_refused),
		cmocka_unit_test(the_shipped_file_says_the_defaults),
		cmocka_unit_test(the_manual_names_keys_and_defaults),
		cmocka_unit_test(the_manual_names_every_directory),
	};

	return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
