/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/config/config_value.h"
#include "host-service/config/policy.h"
#include <limits.h>
#include <string.h>

static gboolean parse_number(const char *value, guint64 min, guint64 max, guint64 *number)
{
	return g_ascii_string_to_unsigned(value, 10, min, max, number, NULL);
}

static gboolean parse_uint(const char *value, guint64 min, guint64 max, void *field)
{
	guint64 number;

	if (!parse_number(value, min, max, &number))
		return FALSE;
	*(guint *)field = (guint)number;
	return TRUE;
}

gboolean pf_config_value_admission(const char *value, void *field)
{
	if (strcmp(value, "any") != 0)
		return parse_uint(value, 2, PF_POLICY_MAX_ADMISSION, field);
	*(guint *)field = 1;
	return TRUE;
}

gboolean pf_config_value_thp(const char *value, void *field)
{
	PfThp thp;

	if (!pf_thp_parse(value, &thp) || thp == PF_THP_DEFAULT)
		return FALSE;
	*(PfThp *)field = thp;
	return TRUE;
}

gboolean pf_config_value_percent(const char *value, void *field)
{
	return parse_uint(value, 1, 100, field);
}

gboolean pf_config_value_hints(const char *value, void *field)
{
	return parse_number(value, 1000, 1000000000, field);
}

/* 2 to the power of what a suffix stands for. */
static guint suffix_shift(char c)
{
	switch (c) {
	case 'K':
		return 10;
	case 'M':
		return 20;
	case 'G':
		return 30;
	default:
		return 0;
	}
}

/* At less than 64 KiB a second a guest's report would take for ever. */
gboolean pf_config_value_bytes(const char *value, void *field)
{
	gsize length = strlen(value);
	guint shift = length > 0 ? suffix_shift(value[length - 1]) : 0;
	g_autofree char *digits = g_strndup(value, shift > 0 ? length - 1 : length);
	guint64 number;

	if (!parse_number(digits, 1, (guint64)16 << 30, &number))
		return FALSE;
	number <<= shift;
	if (number < (guint64)64 << 10 || number > (guint64)16 << 30)
		return FALSE;
	*(guint64 *)field = number;
	return TRUE;
}

gboolean pf_config_value_user(const char *value, void *field)
{
	if (value[0] == 0 || strcmp(value, "root") == 0 || strcmp(value, "0") == 0)
		return FALSE;
	for (const char *p = value; *p; p++)
		if (!g_ascii_isgraph(*p) || strchr(":/", *p))
			return FALSE;
	g_free(*(char **)field);
	*(char **)field = g_strdup(value);
	return TRUE;
}

gboolean pf_config_value_path(const char *value, void *field)
{
	if (!g_path_is_absolute(value) || strlen(value) >= PATH_MAX)
		return FALSE;
	g_free(*(char **)field);
	*(char **)field = g_strdup(value);
	return TRUE;
}

gboolean pf_config_value_mebibytes(const char *value, void *field)
{
	guint64 number;

	if (!parse_number(value, 64, 1 << 24, &number))
		return FALSE;
	*(guint64 *)field = number << 20;
	return TRUE;
}
