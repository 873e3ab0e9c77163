/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Logs why the agent cannot work, and what to do. */

/* What does not work. */
typedef enum PfFailure {
	PF_FAILURE_NONE,
	PF_FAILURE_FACTS,   /* pf_facts_read() and pf_facts_read_ram() */
	PF_FAILURE_LOOKING, /* the scanner */
	PF_FAILURE_PORT,    /* opening it, reading from it, writing to it */
	PF_FAILURE_ITSELF,  /* the agent's own process: memory, descriptors */
} PfFailure;

/* error is a negative errno; port is needed for PF_FAILURE_PORT only. */
void pf_explain(PfFailure failure, int error, const char *port);
