/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Names of VMs come from whoever defines them, kernel versions from guests; what a terminal would
 * obey (common/text.h) does not get through. In JSON the same characters are escaped, which changes
 * nothing for a parser.
 */
#include "host-service/ctl/output.h"
#include "common/text.h"
#include <string.h>

/* As in JSON: a character beyond U+FFFF is a pair of surrogates. */
static void append_escape(GString *to, gunichar c)
{
	if (c > 0xffff) {
		g_string_append_printf(to, "\\u%04x", 0xd800 + ((c - 0x10000) >> 10));
		c = 0xdc00 + ((c - 0x10000) & 0x3ff);
	}
	g_string_append_printf(to, "\\u%04x", c);
}

char *pf_ctl_escape(const char *string, PfCtlQuote quote)
{
	g_autofree char *valid = g_utf8_make_valid(string, -1);
	GString *escaped = g_string_new(quote == PF_CTL_QUOTED ? "\"" : "");

	for (const char *p = valid; *p != '\0'; p = g_utf8_next_char(p)) {
		gunichar c = g_utf8_get_char(p);

		if (pf_text_is_harmful(c)) {
			append_escape(escaped, c);
			continue;
		}
		if (quote == PF_CTL_QUOTED && (c == '"' || c == '\\'))
			g_string_append_c(escaped, '\\');
		g_string_append_unichar(escaped, c);
	}
	if (quote == PF_CTL_QUOTED)
		g_string_append_c(escaped, '"');
	return g_string_free(escaped, FALSE);
}

size_t pf_ctl_width(const char *escaped)
{
	size_t width = 0;

	for (const char *p = escaped; *p != '\0'; p = g_utf8_next_char(p)) {
		gunichar c = g_utf8_get_char(p);

		if (g_unichar_iswide(c))
			width += 2;
		else if (!g_unichar_iszerowidth(c))
			width += 1;
	}
	return width;
}

void pf_ctl_write_padded(FILE *out, const char *escaped, size_t width)
{
	fputs(escaped, out);
	for (size_t used = pf_ctl_width(escaped); used < width; used++)
		fputc(' ', out);
}

void pf_ctl_write_json(FILE *out, JsonNode *root)
{
	g_autoptr(JsonGenerator) generator = json_generator_new();
	g_autofree char *json = NULL;

	json_generator_set_root(generator, root);
	json_node_unref(root);
	json_generator_set_pretty(generator, TRUE);
	json = json_generator_to_data(generator, NULL);
	/* What is left of harmful characters stands inside strings; newlines are the layout's. */
	for (const char *line = json; line != NULL;) {
		const char *end = strchr(line, '\n');
		g_autofree char *part = end ? g_strndup(line, (gsize)(end - line)) : g_strdup(line);
		g_autofree char *escaped = pf_ctl_escape(part, PF_CTL_PLAIN);

		fprintf(out, "%s\n", escaped);
		line = end ? end + 1 : NULL;
	}
}
