// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A table of keys, each with what its value must look like and where it goes. Numbers are digits
 * and nothing else: no sign, no blanks, no other base; so what a person reads is what holds.
 */
#include "guest-agent/config_key.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PATHS 256

/* Digits and nothing else, up to *rest. */
static bool read_digits(const char *text, uint64_t *value, const char **rest)
{
	const char *c = text;

	for (*value = 0; *c >= '0' && *c <= '9'; c++) {
		if (*value > (UINT64_MAX - 9) / 10)
			return false;
		*value = *value * 10 + (uint64_t)(*c - '0');
	}
	*rest = c;
	return c > text;
}

static bool in_range(const PfConfigKey *key, uint64_t value)
{
	return value >= key->low && value <= key->high;
}

static int parse_seconds(const PfConfigKey *key, const char *value, PfConfigDraft *draft)
{
	uint64_t number;
	const char *rest;

	if (!read_digits(value, &number, &rest) || *rest || !in_range(key, number))
		return -EINVAL;
	*(unsigned *)((char *)&draft->values + key->offset) = (unsigned)number;
	return 0;
}

static int parse_bytes(const PfConfigKey *key, const char *value, PfConfigDraft *draft)
{
	static const char units[] = "KMG";
	uint64_t number;
	const char *rest, *unit;
	unsigned shift = 0;

	if (!read_digits(value, &number, &rest))
		return -EINVAL;
	if (*rest) {
		unit = strchr(units, *rest);
		if (!unit || rest[1])
			return -EINVAL;
		shift = (unsigned)(unit - units + 1) * 10;
	}
	if (number > UINT64_MAX >> shift || !in_range(key, number << shift))
		return -EINVAL;
	*(uint64_t *)((char *)&draft->values + key->offset) = number << shift;
	return 0;
}

/* With up to two decimals, into hundredths. */
static int parse_percent(const PfConfigKey *key, const char *value, PfConfigDraft *draft)
{
	uint64_t number, decimals = 0;
	const char *rest, *first;

	if (!read_digits(value, &number, &rest) || number > key->high)
		return -EINVAL;
	if (*rest == '.') {
		first = rest + 1;
		if (!read_digits(first, &decimals, &rest) || rest - first > 2)
			return -EINVAL;
		if (rest - first == 1)
			decimals *= 10;
	}
	number = number * 100 + decimals;
	if (*rest || !in_range(key, number))
		return -EINVAL;
	*(unsigned *)((char *)&draft->values + key->offset) = (unsigned)number;
	return 0;
}

static int parse_switch(const PfConfigKey *key, const char *value, PfConfigDraft *draft)
{
	bool on = strcmp(value, "on") == 0;

	if (!on && strcmp(value, "off") != 0)
		return -EINVAL;
	*(bool *)((char *)&draft->values + key->offset) = on;
	return 0;
}

static int parse_port(const PfConfigKey *key, const char *value, PfConfigDraft *draft)
{
	if (value[0] != '/' || strpbrk(value, PF_CONFIG_BLANKS))
		return -EINVAL;
	draft->values.port = strdup(value);
	return draft->values.port ? 0 : -ENOMEM;
}

static int add_path(PfConfigDraft *draft, const char *path, size_t length)
{
	char *text;

	if (path[0] != '/' || draft->n_paths == MAX_PATHS)
		return -EINVAL;
	text = realloc(draft->paths, draft->paths_size + length + 1);
	if (!text)
		return -ENOMEM;
	draft->paths = text;
	memcpy(text + draft->paths_size, path, length);
	text[draft->paths_size + length] = '\0';
	draft->paths_size += length + 1;
	draft->n_paths++;
	return 0;
}

int pf_config_key_paths(const PfConfigKey *key, const char *value, PfConfigDraft *draft)
{
	int r = 0;

	for (value += strspn(value, PF_CONFIG_BLANKS); r == 0 && *value;
		value += strspn(value, PF_CONFIG_BLANKS)) {
		size_t length = strcspn(value, PF_CONFIG_BLANKS);

		r = add_path(draft, value, length);
		value += length;
	}
	return r;
}

int pf_config_draft_finish(PfConfigDraft *draft)
{
	size_t list_size = (draft->n_paths + 1) * sizeof(char *);
	char **list, *text;

	if (draft->n_paths == 0)
		return 0;
	list = malloc(list_size + draft->paths_size);
	if (!list)
		return -ENOMEM;
	text = memcpy((char *)list + list_size, draft->paths, draft->paths_size);
	for (size_t i = 0; i < draft->n_paths; i++) {
		list[i] = text;
		text += strlen(text) + 1;
	}
	list[draft->n_paths] = NULL;
	draft->values.cache_paths = list;
	return 0;
}

void pf_config_draft_deinit(PfConfigDraft *draft)
{
	free(draft->paths);
	pf_agent_config_deinit(&draft->values);
}

#define FIELD(member) offsetof(PfAgentConfig, member)
#define CLASS(name, class)                                                                         \
	{                                                                                          \
		"classes", name, parse_switch, FIELD(classes) + sizeof(bool) * (class), 0, 0,      \
			"on or off"                                                                \
	}

static const PfConfigKey keys[] = {
	{"agent", "port", parse_port, FIELD(port), 0, 0,
		"a path that begins with /, without blanks"},
	{"agent", "interval", parse_seconds, FIELD(interval_s), 1, PF_AGENT_MAX_INTERVAL_S,
		"a number of seconds from 1 to 86400"},
	{"agent", "slow-interval", parse_seconds, FIELD(slow_interval_s), 10,
		PF_AGENT_MAX_INTERVAL_S, "a number of seconds from 10 to 86400"},
	{"agent", "hash-limit", parse_bytes, FIELD(hash_limit), 1 << 20, UINT64_C(1) << 40,
		"a number of bytes from 1M to 1024G, with or without K, M or G behind it"},
	{"agent", "cpu-limit", parse_percent, FIELD(cpu_limit_permyriad), 1, 10000,
		"a percentage from 0.01 to 100, with at most two decimals"},
	CLASS("mapped", PF_CLASS_MAPPED),
	CLASS("cache", PF_CLASS_CACHE),
	CLASS("buffers", PF_CLASS_BUFFERS),
	CLASS("kernel", PF_CLASS_KERNEL),
	{"cache", "paths", pf_config_key_paths, FIELD(cache_paths), 0, 0,
		"at most 256 directories, each beginning with /, with blanks between them"},
};

#define N_KEYS (sizeof(keys) / sizeof(keys[0]))

_Static_assert(N_KEYS < 64, "a bit a key");

bool pf_config_is_section(const char *name)
{
	for (size_t i = 0; i < N_KEYS; i++) {
		if (strcmp(keys[i].section, name) == 0)
			return true;
	}
	return false;
}

const PfConfigKey *pf_config_key_find(const char *section, const char *name)
{
	for (size_t i = 0; i < N_KEYS; i++) {
		if (strcmp(keys[i].section, section) == 0 && strcmp(keys[i].name, name) == 0)
			return &keys[i];
	}
	return NULL;
}

void pf_config_key_names(const char *section, char *names, size_t size)
{
	size_t length = 0;

	names[0] = '\0';
	for (size_t i = 0; i < N_KEYS; i++) {
		if (strcmp(keys[i].section, section) == 0)
			length += (size_t)snprintf(names + length, size - length, "%s%s",
				length ? ", " : "", keys[i].name);
	}
}

size_t pf_config_key_number(const PfConfigKey *key)
{
	return (size_t)(key - keys);
}
