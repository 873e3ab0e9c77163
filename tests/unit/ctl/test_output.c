/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/ctl/output.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void escapes(void **state)
{
	static const struct {
		const char *string;
		const char *plain;
		const char *quoted;
	} cases[] = {
		{"", "", "\"\""}, {"a b/\303\251", "a b/\303\251", "\"a b/\303\251\""},
		{"a\"b\\c", "a\"b\\c", "\"a\\\"b\\\\c\""},
		{"\n\t\033\177", "\\u000a\\u0009\\u001b\\u007f",
			"\"\\u000a\\u0009\\u001b\\u007f\""},
		{"\302\233", "\\u009b", "\"\\u009b\""},        /* C1 */
		{"\342\200\256x", "\\u202ex", "\"\\u202ex\""}, /* right-to-left override */
		{"\342\200\250", "\\u2028", "\"\\u2028\""},    /* line separator */
		{"\363\240\200\201", "\\udb40\\udc01", "\"\\udb40\\udc01\""}, /* language tag */
		{"\377a", "\357\277\275a", "\"\357\277\275a\""},              /* not UTF-8 */
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autofree char *plain = pf_ctl_escape(cases[i].string, PF_CTL_PLAIN);
		g_autofree char *quoted = pf_ctl_escape(cases[i].string, PF_CTL_QUOTED);

		assert_string_equal(plain, cases[i].plain);
		assert_string_equal(quoted, cases[i].quoted);
	}
}

static void measures_width(void **state)
{
	assert_int_equal(pf_ctl_width(""), 0);
	assert_int_equal(pf_ctl_width("abc"), 3);
	assert_int_equal(pf_ctl_width("\303\251"), 1);
	assert_int_equal(pf_ctl_width("\346\274\242"), 2); /* a wide character */
	assert_int_equal(pf_ctl_width("e\314\201"), 1);    /* e and a combining accent */
}

static void pads(void **state)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	pf_ctl_write_padded(out, "\346\274\242", 4);
	pf_ctl_write_padded(out, "long", 2);
	fclose(out);
	assert_string_equal(text, "\346\274\242  long");
	free(text);
}

/* Every character of one byte, and C1's: parsed again they are what they were. */
static void json_keeps_every_character(void **state)
{
	g_autoptr(GString) all = g_string_new(NULL);
	g_autoptr(JsonNode) parsed = NULL;
	JsonNode *node;
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	for (gunichar c = 1; c <= 0x2100; c++)
		g_string_append_unichar(all, c);
	node = json_node_new(JSON_NODE_VALUE);
	json_node_set_string(node, all->str);
	pf_ctl_write_json(out, node);
	fclose(out);
	for (const char *p = text; p < text + size - 1; p = g_utf8_next_char(p))
		assert_int_not_equal(g_unichar_type(g_utf8_get_char(p)), G_UNICODE_CONTROL);
	parsed = json_from_string(text, NULL);
	assert_non_null(parsed);
	assert_string_equal(json_node_get_string(parsed), all->str);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(escapes),
		cmocka_unit_test(measures_width),
		cmocka_unit_test(pads),
		cmocka_unit_test(json_keeps_every_character),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
