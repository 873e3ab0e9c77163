/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A configuration decides who shares with whom and how much a guest may cost the host, so nothing in it is guessed: a
 * section or a key that there is not, and a value that is not what its key takes, end the start of the service. The
 * file is taken only from root (or from whom the service was started by) and only if nobody else can write to it.
 *
 * Values are read as they stand (g_key_file_get_value(): no escapes, no lists). Translations (thp[de]) are kept, so that
 * they show as keys that there are not, instead of being left out by GLib. A section that comes twice is one: GLib has
 * merged it before we see it, and the last value of a key counts.
 *
 * A trust group's section remembers which keys it has said. What it has not said is copied from the defaults whenever
 * these are complete: after the file was read, and when the command line has changed them. So the order of sections means
 * nothing.
 */
#include "host-service/config/config.h"
#include "host-service/config/config_value.h"
#include "host-service/config/group_name.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FILE     ((gsize)1 << 20)
#define MAX_SHOWN    60 /* characters of somebody's text in a message */
#define GROUP_PREFIX "group "
#define SECTIONS     "[service], [defaults] or [group NAME]"

typedef struct Section {
	guint said; /* keys of policy_keys, a bit each */
	PfPolicy policy;
} Section;

struct PfConfig {
	char *text, *user, *additions_iso;
	guint64 memory_limit;
	PfPolicy defaults;
	GHashTable *groups; /* name to Section, owned */
};

/* What a key takes: parse() is FALSE for anything else, which `takes` names. */
typedef struct Key {
	const char *name;
	gboolean (*parse)(const char *value, void *field);
	gsize offset, size; /* of the field */
	const char *takes;
} Key;

#define FIELD(type, member) offsetof(type, member), sizeof(((type *)NULL)->member)
#define PERCENT             "a number from 1 to 100"

static const Key policy_keys[] = {
	{"admission", pf_config_value_admission, FIELD(PfPolicy, admission),
		"a number from 2 to 64, or any"},
	{"thp", pf_config_value_thp, FIELD(PfPolicy, thp), "preserve, balanced or all"},
	{"bytes-per-second", pf_config_value_bytes, FIELD(PfPolicy, bytes_per_s),
		"a number of bytes from 64K to 16G, with or without K, M or G behind it"},
	{"hints-per-second", pf_config_value_hints, FIELD(PfPolicy, hints_per_s),
		"a number from 1000 to 1000000000"},
	{"cpu-percent", pf_config_value_percent, FIELD(PfPolicy, cpu_percent), PERCENT},
	{"candidates-percent", pf_config_value_percent, FIELD(PfPolicy, candidates_percent),
		PERCENT},
	{"frames-percent", pf_config_value_percent, FIELD(PfPolicy, frames_percent), PERCENT},
	{"index-memory-percent", pf_config_value_percent, FIELD(PfPolicy, index_memory_percent),
		PERCENT},
};

static const Key service_keys[] = {
	{"user", pf_config_value_user, FIELD(PfConfig, user),
		"the name or the number of a user other than root"},
	{"memory-limit", pf_config_value_mebibytes, FIELD(PfConfig, memory_limit),
		"a number of MiB from 64 to 16777216"},
	{"additions-iso", pf_config_value_path, FIELD(PfConfig, additions_iso),
		"the absolute path of a file"},
};

static gboolean fail(GError **error, GKeyFileError code, const char *format, ...)
	G_GNUC_PRINTF(3, 4);

/* FALSE, for the caller to return. */
static gboolean fail(GError **error, GKeyFileError code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	if (error)
		*error = g_error_new_valist(G_KEY_FILE_ERROR, code, format, args);
	va_end(args);
	return FALSE;
}

/* Somebody's text (UTF-8) for a message: no longer than a line bears (g_free). */
static char *shown(const char *text)
{
	g_autofree char *start = NULL;

	if (g_utf8_strlen(text, -1) <= MAX_SHOWN)
		return g_strdup(text);
	start = g_utf8_substring(text, 0, MAX_SHOWN);
	return g_strconcat(start, "...", NULL);
}

/* "a, b, c" (g_free). */
static char *key_names(const Key *keys, gsize n_keys)
{
	GString *names = g_string_new(keys[0].name);

	for (gsize i = 1; i < n_keys; i++)
		g_string_append_printf(names, ", %s", keys[i].name);
	return g_string_free(names, FALSE);
}

/* The number of the key; n_keys: there is none of this name. */
static gsize find_key(const Key *keys, gsize n_keys, const char *name)
{
	gsize i = 0;

	while (i < n_keys && strcmp(keys[i].name, name) != 0)
		i++;
	return i;
}

/* Reads a section's keys into a struct; *said gets a bit for each. */
static gboolean read_section(const char *path, GKeyFile *file, const char *section, const Key *keys,
	gsize n_keys, void *to, guint *said, GError **error)
{
	g_auto(GStrv) names = g_key_file_get_keys(file, section, NULL, NULL);
	g_autofree char *shown_section = shown(section);

	for (gsize n = 0; names && names[n]; n++) {
		gsize i = find_key(keys, n_keys, names[n]);
		g_autofree char *value = NULL;
		g_autofree char *shown_text = NULL;

		if (i == n_keys) {
			g_autofree char *known = key_names(keys, n_keys);

			shown_text = shown(names[n]);
			return fail(error, G_KEY_FILE_ERROR_KEY_NOT_FOUND,
				"%s: [%s] has no key '%s': it may be one of %s", path,
				shown_section, shown_text, known);
		}
		value = g_strstrip(g_key_file_get_value(file, section, names[n], NULL));
		if (!keys[i].parse(value, (char *)to + keys[i].offset)) {
			shown_text = shown(value);
			return fail(error, G_KEY_FILE_ERROR_INVALID_VALUE,
				"%s: [%s] %s cannot be '%s': give it %s", path, shown_section,
				keys[i].name, shown_text, keys[i].takes);
		}
		*said |= 1u << i;
	}
	return TRUE;
}

static gboolean read_group(
	PfConfig *config, const char *path, GKeyFile *file, const char *section, GError **error)
{
	const char *name = section + strlen(GROUP_PREFIX);
	Section *group;

	if (!pf_group_name_is_valid(name)) {
		g_autofree char *shown_name = shown(name);

		return fail(error, G_KEY_FILE_ERROR_GROUP_NOT_FOUND,
			"%s: [group %s] is no name of a trust group: give it %s", path, shown_name,
			PF_GROUP_NAME_RULE);
	}
	group = g_new0(Section, 1);
	g_hash_table_insert(config->groups, g_strdup(name), group);
	return read_section(path, file, section, policy_keys, G_N_ELEMENTS(policy_keys),
		&group->policy, &group->said, error);
}

static gboolean read_any(
	PfConfig *config, const char *path, GKeyFile *file, const char *section, GError **error)
{
	g_autofree char *shown_section = NULL;
	guint said = 0;

	if (strcmp(section, "service") == 0)
		return read_section(path, file, section, service_keys, G_N_ELEMENTS(service_keys),
			config, &said, error);
	if (strcmp(section, "defaults") == 0)
		return read_section(path, file, section, policy_keys, G_N_ELEMENTS(policy_keys),
			&config->defaults, &said, error);
	if (g_str_has_prefix(section, GROUP_PREFIX))
		return read_group(config, path, file, section, error);
	shown_section = shown(section);
	return fail(error, G_KEY_FILE_ERROR_GROUP_NOT_FOUND,
		"%s: there is no section [%s]: a section is " SECTIONS, path, shown_section);
}

/* What a trust group has not said is as the defaults have it. */
static void inherit(PfConfig *config)
{
	GHashTableIter iter;
	Section *group;

	g_hash_table_iter_init(&iter, config->groups);
	while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&group))
		for (gsize i = 0; i < G_N_ELEMENTS(policy_keys); i++)
			if (!(group->said & (1u << i)))
				memcpy((char *)&group->policy + policy_keys[i].offset,
					(const char *)&config->defaults + policy_keys[i].offset,
					policy_keys[i].size);
}

PfConfig *pf_config_new(void)
{
	PfConfig *config = g_new0(PfConfig, 1);

	config->text = g_strdup("");
	config->user = g_strdup(PF_CONFIG_USER);
	config->additions_iso = g_strdup(PF_CONFIG_ADDITIONS_ISO);
	config->defaults = PF_POLICY_DEFAULTS;
	config->groups = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
	return config;
}

void pf_config_free(PfConfig *config)
{
	g_free(config->text);
	g_free(config->user);
	g_free(config->additions_iso);
	g_hash_table_unref(config->groups);
	g_free(config);
}

/* Whether GLib takes this line, in a section. */
static gboolean is_line(const char *line)
{
	g_autofree char *text = g_strconcat("[x]\n", line, "\n", NULL);
	g_autoptr(GKeyFile) file = g_key_file_new();

	return g_key_file_load_from_data(
		file, text, strlen(text), G_KEY_FILE_KEEP_TRANSLATIONS, NULL);
}

/* GLib does not say which line it was; where each is good, something stands outside of all sections. */
static void fail_syntax(const char *path, const char *text, gsize size, GError **error)
{
	g_autofree char *copy = g_strndup(text, size);
	g_auto(GStrv) lines = g_strsplit(copy, "\n", -1);
	g_autofree char *shown_line = NULL;
	guint n = 0;

	while (lines[n] && is_line(lines[n]))
		n++;
	if (!lines[n]) {
		fail(error, G_KEY_FILE_ERROR_PARSE,
			"%s: something stands before the first section: begin with " SECTIONS,
			path);
		return;
	}
	shown_line = shown(g_strchomp(lines[n]));
	fail(error, G_KEY_FILE_ERROR_PARSE,
		"%s: line %u '%s' is no line of a configuration: write [SECTION], KEY = VALUE, or # "
		"and a comment",
		path, n + 1, shown_line);
}

static gboolean check_text(const char *path, const char *text, gsize size, GError **error)
{
	if (size > MAX_FILE)
		return fail(error, G_KEY_FILE_ERROR_PARSE,
			"%s is longer than 1 MiB: that is no configuration of pagefusiond", path);
	if (memchr(text, 0, size))
		return fail(error, G_KEY_FILE_ERROR_PARSE,
			"%s has a byte 0: write it as UTF-8 text", path);
	if (!g_utf8_validate(text, (gssize)size, NULL))
		return fail(error, G_KEY_FILE_ERROR_UNKNOWN_ENCODING,
			"%s is no valid UTF-8: write it as UTF-8 text", path);
	return TRUE;
}

static gboolean read_all(PfConfig *config, const char *path, GKeyFile *file, GError **error)
{
	g_auto(GStrv) sections = g_key_file_get_groups(file, NULL);

	for (gsize i = 0; sections[i]; i++)
		if (!read_any(config, path, file, sections[i], error))
			return FALSE;
	return TRUE;
}

PfConfig *pf_config_parse(const char *path, const char *text, gsize size, GError **error)
{
	g_autoptr(GKeyFile) file = g_key_file_new();
	g_autoptr(PfConfig) config = NULL;

	if (!check_text(path, text, size, error))
		return NULL;
	if (!g_key_file_load_from_data(file, text, size, G_KEY_FILE_KEEP_TRANSLATIONS, NULL)) {
		fail_syntax(path, text, size, error);
		return NULL;
	}
	config = pf_config_new();
	if (!read_all(config, path, file, error))
		return NULL; /* NOLINT(*unix.Malloc): g_autoptr frees config */
	inherit(config);
	g_free(config->text);
	config->text = g_strndup(text, size);
	return g_steal_pointer(&config);
}

/* Whether only root, or who runs us, decides what is in the file. */
static gboolean check_file(const char *path, int fd, GError **error)
{
	struct stat status;

	if (fstat(fd, &status) < 0) {
		g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno),
			"cannot read %s: %s", path, g_strerror(errno));
		return FALSE;
	}
	if (!S_ISREG(status.st_mode)) {
		g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
			"%s is no file: give the configuration's name", path);
		return FALSE;
	}
	if ((status.st_uid != 0 && status.st_uid != geteuid()) ||
		(status.st_mode & (S_IWGRP | S_IWOTH))) {
		g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_PERM,
			"%s can be written by others than root: chown root and chmod go-w it",
			path);
		return FALSE;
	}
	return TRUE;
}

/* One byte more than there may be shows that there are too many. NULL with error set. */
static GByteArray *read_file(const char *path, int fd, GError **error)
{
	g_autoptr(GByteArray) bytes = g_byte_array_new();
	guint8 part[4096];
	ssize_t n;

	while (bytes->len <= MAX_FILE && (n = read(fd, part, sizeof(part))) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno),
				"cannot read %s: %s", path, g_strerror(errno));
			return NULL;
		}
		g_byte_array_append(bytes, part, (guint)n);
	}
	return g_steal_pointer(&bytes);
}

PfConfig *pf_config_load(const char *path, gboolean required, GError **error)
{
	g_autoptr(GByteArray) bytes = NULL;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd < 0 && errno == ENOENT && !required)
		return pf_config_new();
	if (fd < 0) {
		g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno),
			"cannot read %s: %s", path, g_strerror(errno));
		return NULL;
	}
	if (check_file(path, fd, error))
		bytes = read_file(path, fd, error);
	close(fd);
	if (!bytes)
		return NULL;
	return pf_config_parse(
		path, bytes->len ? (const char *)bytes->data : "", bytes->len, error);
}

const PfPolicy *pf_config_policy(const PfConfig *config, const char *name)
{
	const Section *group = g_hash_table_lookup(config->groups, name);

	return group ? &group->policy : &config->defaults;
}

void pf_config_set_thp(PfConfig *config, PfThp thp)
{
	config->defaults.thp = thp;
	inherit(config);
}

PfThp pf_config_thp(const PfConfig *config)
{
	return config->defaults.thp;
}

const char *pf_config_text(const PfConfig *config)
{
	return config->text;
}

const char *pf_config_user(const PfConfig *config)
{
	return config->user;
}

void pf_config_set_user(PfConfig *config, const char *user)
{
	g_free(config->user);
	config->user = g_strdup(user);
}

const char *pf_config_additions_iso(const PfConfig *config)
{
	return config->additions_iso;
}

void pf_config_set_additions_iso(PfConfig *config, const char *path)
{
	g_free(config->additions_iso);
	config->additions_iso = g_strdup(path);
}

guint64 pf_config_memory_limit(const PfConfig *config)
{
	return config->memory_limit;
}
