/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
#include <stdio.h>

/* Writes text as a JSON string (RFC 8259), quotes included; text is UTF-8. */
void pf_json_string(FILE *out, const char *text);
