/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * One line a message, to standard error, with the journal's priority prefix ("<6>") where standard
 * error is the journal's. Guest and host both use it; the shim does not log at all.
 */
#include <stdarg.h>

typedef enum PfLogLevel {
	PF_LOG_ERROR = 3,
	PF_LOG_WARNING = 4,
	PF_LOG_INFO = 6,
	PF_LOG_DEBUG = 7,
} PfLogLevel;

/* Messages above level are dropped; PF_LOG_INFO at start. */
void pf_log_set_level(PfLogLevel level);

/* program is what stands before each line; it is not copied. */
void pf_log_init(const char *program);

void pf_log(PfLogLevel level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define pf_error(...)   pf_log(PF_LOG_ERROR, __VA_ARGS__)
#define pf_warning(...) pf_log(PF_LOG_WARNING, __VA_ARGS__)
#define pf_info(...)    pf_log(PF_LOG_INFO, __VA_ARGS__)
#define pf_debug(...)   pf_log(PF_LOG_DEBUG, __VA_ARGS__)
