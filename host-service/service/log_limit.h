/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What is logged about one VM: its guest or its QEMU may cause a line again and again, and must not fill the journal. In
 * each minute PF_LOG_LIMIT_LINES are let through, and behind the last of them it is said that more is left out; how much
 * that was is said when it goes on.
 */
#include "common/log.h"
#include <stdbool.h>
#include <stdint.h>

#define PF_LOG_LIMIT_LINES 20u

typedef struct PfLogLimit {
	const char *name;  /* of the VM; not ours */
	unsigned n;        /* lines in this minute */
	uint64_t left_out; /* and not said yet */
	int64_t since_us;  /* its begin */
} PfLogLimit;

/* name must live as long as the limit. */
void pf_log_limit_init(PfLogLimit *limit, const char *name, int64_t now_us);

/* Whether one more line may be logged; logs itself what is to be said of lines that are left out. */
bool pf_log_limit_take(PfLogLimit *limit, int64_t now_us);

/* One line, "NAME: ...", now. What is for debugging is never left out. */
void pf_log_limited(PfLogLimit *limit, PfLogLevel level, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
