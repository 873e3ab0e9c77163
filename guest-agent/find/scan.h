/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Brings the state up to date: a pass for each class of pages. */
#include "guest-agent/config.h"
#include "guest-agent/facts.h"
#include "guest-agent/find/found.h"
#include "guest-agent/state.h"

typedef struct PfScanner PfScanner;

typedef struct PfScanStats {
	uint64_t n_files;  /* that were looked at */
	uint64_t n_hashed; /* pages hashed in this pass */
	uint64_t duration_ms, cpu_us;
} PfScanStats;

/*
 * 0 and a scanner; -EPERM without CAP_SYS_ADMIN, another -errno. state must live as long as the
 * scanner. Installs a handler for SIGBUS.
 */
int pf_scanner_new(PfScanner **scanner, PfState *state);
void pf_scanner_free(PfScanner *scanner);

/*
 * A complete pass of a class; pages outside ram are left out. step may be NULL. 0; what step returned when it
 * gave the pass up; -EPERM when files cannot be opened through map_files; -ENOTSUP when the class cannot be looked for
 * here; another fatal -errno.
 */
int pf_scanner_pass(PfScanner *scanner, PfPageClass class, const PfAgentConfig *config,
	const PfRam *ram, PfStep step, void *userdata, PfScanStats *stats);

/* Adds what these processes map. Results as above. */
int pf_scanner_look(PfScanner *scanner, const pid_t *pids, size_t n, const PfRam *ram, PfStep step,
	void *userdata, PfScanStats *stats);

/* Why a class cannot be looked for here, or NULL. */
const char *pf_scanner_impossible(PfScanner *scanner, PfPageClass class);

/* Files that did not answer and were left behind, all in all. */
uint64_t pf_scanner_left_behind(const PfScanner *scanner);

/* Mappings of files that a user may be serving, which are left alone, all in all. */
uint64_t pf_scanner_left_alone(const PfScanner *scanner);
