/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Text that somebody else chose. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The character at the start of text, which ends with a 0: its length in bytes with *character set,
 * or 0 when the bytes there are no UTF-8 (RFC 3629).
 */
size_t pf_text_decode(const char *text, uint32_t *character);

/*
 * Whether a character must not reach a terminal as it is: a control character (which a terminal
 * obeys, also those of U+0080 to U+009F), a line or paragraph separator, or a formatting character
 * (which makes text look like other text).
 */
bool pf_text_is_harmful(uint32_t character);

/*
 * Copies text to out (capacity bytes, at least 1) as valid UTF-8 without harmful characters: each
 * of these, and each byte that is no UTF-8, becomes U+FFFD. What does not fit is cut off, never
 * inside a character.
 */
void pf_text_clean(char *out, size_t capacity, const char *text);
