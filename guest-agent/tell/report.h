/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Turns what the host was not told yet into frames. No I/O. */
#include "guest-agent/facts.h"
#include "guest-agent/state.h"

#define PF_REPORT_MAX_FRAME (128u * 1024u) /* bytes, header included */

typedef struct PfReport PfReport;

enum {
	PF_REPORT_OK = 0,
	PF_REPORT_E_IDLE, /* everything was told */
};

/* Frames are valid until the next call on this report. */

/* NULL without memory. state must live as long as the report. */
PfReport *pf_report_new(PfState *state);
void pf_report_free(PfReport *report);

/* PF_REPORT_OK or -ENOMEM. */
int pf_report_knock(PfReport *report, const uint8_t **frame, size_t *size);
int pf_report_hello(PfReport *report, uint64_t session_id, const PfFacts *facts,
	const uint8_t **frame, size_t *size);

/* The next frame, which then counts as told: PF_REPORT_OK, PF_REPORT_E_IDLE or -ENOMEM. */
int pf_report_next(PfReport *report, uint64_t session_id, const uint8_t **frame, size_t *size);
