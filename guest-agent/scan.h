/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Walks the processes of the guest and brings the state up to date. */
#include "guest-agent/facts.h"
#include "guest-agent/state.h"
#include <sys/types.h>

typedef struct PfScanner PfScanner;

typedef struct PfScanStats {
	uint64_t n_files;  /* mapped files that were looked at */
	uint64_t n_hashed; /* pages hashed in this scan */
	uint64_t duration_ms;
} PfScanStats;

/* Called between files; not 0 gives the scan up. */
typedef int (*PfScanPause)(void *userdata);

/*
 * 0 and a scanner; -EPERM without CAP_SYS_ADMIN, another -errno. state must live as long as the
 * scanner. Installs a handler for SIGBUS.
 */
int pf_scanner_new(PfScanner **scanner, PfState *state);
void pf_scanner_free(PfScanner *scanner);

/*
 * Scans all processes; pages outside ram are left out. pause may be NULL. 0, -ECANCELED when pause
 * gave it up, -EPERM when files cannot be opened through map_files, another fatal -errno.
 */
int pf_scanner_run(PfScanner *scanner, const PfRam *ram, PfScanPause pause, void *userdata,
	PfScanStats *stats);

/* The same for one process, as if there were no other. */
int pf_scanner_run_one(PfScanner *scanner, pid_t pid, const PfRam *ram, PfScanStats *stats);
