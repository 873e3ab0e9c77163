/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
#include <stddef.h>

/*
 * Copies text to out (capacity bytes, at least 1) as valid UTF-8 without control characters: each
 * byte that is part of neither becomes '?'. What does not fit is cut off, never inside a character.
 */
void pf_text_clean(char *out, size_t capacity, const char *text);
