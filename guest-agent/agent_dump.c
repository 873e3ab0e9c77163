// SPDX-License-Identifier: LGPL-2.1-or-later
/* What holds still only two looks can tell, so classes that change are looked at twice. */
#include "common/log.h"
#include "guest-agent/agent.h"
#include "guest-agent/dump.h"
#include "guest-agent/explain.h"
#include "guest-agent/find/scan.h"
#include <errno.h>
#include <stdlib.h>

static int pass(PfScanner *scanner, PfPageClass class, const PfAgentConfig *config,
	const PfFacts *facts, PfScanStats *sum)
{
	PfScanStats stats;
	int r = pf_scanner_pass(scanner, class, config, &facts->ram, NULL, NULL, &stats);

	if (r == -ENOTSUP) {
		pf_info("no pages of the class %s: %s", pf_page_class_name(class),
			pf_scanner_impossible(scanner, class));
		return 0;
	}
	sum->n_files += stats.n_files;
	sum->n_hashed += stats.n_hashed;
	sum->duration_ms += stats.duration_ms;
	sum->cpu_us += stats.cpu_us;
	return r;
}

static int look_at_all(
	PfScanner *scanner, const PfAgentConfig *config, const PfFacts *facts, PfScanStats *stats)
{
	int r = 0;

	*stats = (PfScanStats){0};
	for (int c = 0; c < PF_N_CLASSES && r == 0; c++) {
		if (!config->classes[c])
			continue;
		r = pass(scanner, c, config, facts, stats);
		if (r == 0 && pf_page_class_is_volatile(c) && !pf_scanner_impossible(scanner, c))
			r = pass(scanner, c, config, facts, stats);
	}
	return r;
}

int pf_agent_dump(const PfAgentConfig *config, bool with_digests)
{
	PfScanner *scanner = NULL;
	PfFailure failure = PF_FAILURE_FACTS;
	int r, status = EXIT_SUCCESS;
	PfScanStats stats;
	PfState state;
	PfFacts facts;

	pf_state_init(&state);
	r = pf_facts_read(&facts);
	if (r == 0) {
		failure = PF_FAILURE_LOOKING;
		r = pf_scanner_new(&scanner, &state);
	}
	if (r == 0)
		r = look_at_all(scanner, config, &facts, &stats);
	if (r < 0) {
		pf_explain(failure, r, NULL);
		status = EXIT_FAILURE;
	} else if (pf_dump_write(stdout, &facts, &state, &stats, with_digests) < 0) {
		pf_error("cannot write to standard output");
		status = EXIT_FAILURE;
	}
	pf_scanner_free(scanner);
	pf_state_deinit(&state);
	return status;
}
