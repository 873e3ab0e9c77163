/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Text that others chose, on its way to a terminal; and JSON. */
#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdio.h>

typedef enum PfCtlQuote {
	PF_CTL_PLAIN,  /* as it is */
	PF_CTL_QUOTED, /* between double quotes; inside, quotes and backslashes get a backslash */
} PfCtlQuote;

/*
 * string (UTF-8; what is not becomes U+FFFD) with control and formatting characters as \uXXXX, so
 * that no name can move a cursor, hide text or end a line. The caller frees it.
 */
char *pf_ctl_escape(const char *string, PfCtlQuote quote);

/* The columns that a terminal gives an escaped string. */
size_t pf_ctl_width(const char *escaped);

/* Writes string, padded with spaces to width columns (0: as wide as it is). */
void pf_ctl_write_padded(FILE *out, const char *escaped, size_t width);

/* Writes root as JSON and a newline. root is consumed. */
void pf_ctl_write_json(FILE *out, JsonNode *root);
