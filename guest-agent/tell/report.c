// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A report goes file by file: first the whole module withdrawn when nothing of it is left, or else
 * its declaration, then pages withdrawn, then hints in runs, until the file has nothing left to
 * tell. Each call gives one frame, so a report needs no memory beyond it and can stop anywhere.
 * Withdrawals of a file stand before its hints; between files no order is needed, as a hint
 * replaces whatever was said of its gfn before. When no file has anything left and a scan was
 * completed meanwhile, the end of the report says what stands.
 *
 * Only pages that hold still are told (pf_file_page_reportable()); one that does so no longer is withdrawn like one that
 * has left.
 *
 * A frame holds far less than PF_REPORT_MAX_FRAME, with the longest encoding of each field: larger ones would cost
 * memory and save nothing.
 */
#include "guest-agent/tell/report.h"
#include "common/frame.h"
#include "pagefusion-version.h"
#include "proto/agent.pb-c.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define MAX_PAGES  2048u /* whose digests are in a frame */
#define MAX_RUNS   1024u
#define MAX_RANGES 1024u

#define RUN_SIZE   32u  /* of a run without its digests, at most */
#define OTHER_SIZE 512u /* of all the rest, a module's name and build-id included */

_Static_assert(MAX_PAGES *PF_DIGEST_SIZE + MAX_RUNS * RUN_SIZE + OTHER_SIZE <= PF_REPORT_MAX_FRAME,
	"hints fit in a frame");
_Static_assert(MAX_RANGES *RUN_SIZE + OTHER_SIZE <= PF_REPORT_MAX_FRAME, "ranges fit in a frame");

struct PfReport {
	PfState *state; /* not owned */
	size_t cursor;  /* the file that is being told */
	uint8_t *frame; /* owned */
	size_t capacity;
	Pagefusion__Run runs[MAX_RUNS];
	Pagefusion__Run *run_pointers[MAX_RUNS];
	Pagefusion__PageRange ranges[MAX_RANGES];
	Pagefusion__PageRange *range_pointers[MAX_RANGES];
	PfDigest digests[MAX_PAGES];
};

PfReport *pf_report_new(PfState *state)
{
	PfReport *report = calloc(1, sizeof(*report));

	if (!report)
		return NULL;
	report->state = state;
	for (size_t i = 0; i < MAX_RUNS; i++)
		report->run_pointers[i] = &report->runs[i];
	for (size_t i = 0; i < MAX_RANGES; i++)
		report->range_pointers[i] = &report->ranges[i];
	return report;
}

void pf_report_free(PfReport *report)
{
	if (!report)
		return;
	free(report->frame);
	free(report);
}

static int pack(PfReport *report, const Pagefusion__AgentMessage *message, const uint8_t **frame,
	size_t *size)
{
	size_t payload = pagefusion__agent_message__get_packed_size(message);
	size_t total = payload + PF_FRAME_HEADER_SIZE;
	int r;

	assert(total <= PF_REPORT_MAX_FRAME);
	if (total > report->capacity) {
		uint8_t *grown = realloc(report->frame, total);

		if (!grown)
			return -ENOMEM;
		report->frame = grown;
		report->capacity = total;
	}
	pagefusion__agent_message__pack(message, report->frame + PF_FRAME_HEADER_SIZE);
	r = pf_frame_write_header(report->frame, report->frame + PF_FRAME_HEADER_SIZE, payload);
	assert(r == PF_FRAME_OK);
	(void)r;
	*frame = report->frame;
	*size = total;
	return PF_REPORT_OK;
}

int pf_report_knock(PfReport *report, const uint8_t **frame, size_t *size)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Knock knock = PAGEFUSION__KNOCK__INIT;

	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_KNOCK;
	message.knock = &knock;
	return pack(report, &message, frame, size);
}

int pf_report_hello(PfReport *report, uint64_t session_id, const PfFacts *facts,
	const uint8_t **frame, size_t *size)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__AgentHello hello = PAGEFUSION__AGENT_HELLO__INIT;
	Pagefusion__RamRange ranges[PF_SESSION_MAX_RAM_RANGES],
		*pointers[PF_SESSION_MAX_RAM_RANGES];

	for (size_t i = 0; i < facts->ram.n; i++) {
		pagefusion__ram_range__init(&ranges[i]);
		ranges[i].first_gfn = facts->ram.ranges[i].first.v;
		ranges[i].n_pages = facts->ram.ranges[i].n_pages;
		pointers[i] = &ranges[i];
	}
	hello.protocol = PF_SESSION_PROTOCOL;
	hello.boot_id.data = (uint8_t *)facts->boot_id;
	hello.boot_id.len = sizeof(facts->boot_id);
	hello.agent_version = (char *)PF_VERSION;
	hello.kernel = (char *)facts->kernel;
	hello.page_size = PF_PAGE_SIZE;
	hello.ram = pointers;
	hello.n_ram = facts->ram.n;
	message.session_id = session_id;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_HELLO;
	message.hello = &hello;
	return pack(report, &message, frame, size);
}

static void tell_module(
	const PfFile *file, Pagefusion__AgentMessage *message, Pagefusion__Module *module)
{
	pagefusion__module__init(module);
	module->id = file->module_id;
	module->build_id.data = (uint8_t *)file->build_id;
	module->build_id.len = file->build_id_size;
	module->name = (char *)file->name;
	module->n_pages = file->n_pages;
	message->body_case = PAGEFUSION__AGENT_MESSAGE__BODY_MODULE;
	message->module = module;
}

static bool left(const PfFilePage *page)
{
	return pf_file_page_untold(page) && !pf_file_page_reportable(page);
}

static bool moved(const PfFilePage *page)
{
	return pf_file_page_untold(page) && pf_file_page_reportable(page);
}

/* Pages that are not what the host was told, as ranges; false when there are none. */
static bool tell_withdrawn(PfReport *report, PfFile *file, Pagefusion__AgentMessage *message,
	Pagefusion__Withdrawn *withdrawn)
{
	size_t n = 0;

	for (size_t i = 0; i < file->n; i++) {
		PfFilePage *page = &file->pages[i];
		Pagefusion__PageRange *last = n > 0 ? &report->ranges[n - 1] : NULL;

		if (!left(page))
			continue;
		if (last && page->file_page == last->first_page + last->n_pages) {
			last->n_pages++;
		} else if (n < MAX_RANGES) {
			pagefusion__page_range__init(&report->ranges[n]);
			report->ranges[n].first_page = page->file_page;
			report->ranges[n++].n_pages = 1;
		} else {
			break;
		}
		page->told = PF_TOLD_NOTHING;
	}
	pagefusion__withdrawn__init(withdrawn);
	withdrawn->module_id = file->module_id;
	withdrawn->pages = report->range_pointers;
	withdrawn->n_pages = n;
	message->body_case = PAGEFUSION__AGENT_MESSAGE__BODY_WITHDRAWN;
	message->withdrawn = withdrawn;
	return n > 0;
}

static bool follows(const Pagefusion__Run *run, const PfFilePage *page)
{
	size_t n = run->digests.len / PF_DIGEST_SIZE;

	return page->file_page == run->file_page + n && page->gfn == run->gfn + n;
}

/* Pages that are where the host was not told, as runs; false when there are none. */
static bool tell_hints(
	PfReport *report, PfFile *file, Pagefusion__AgentMessage *message, Pagefusion__Hints *hints)
{
	size_t n = 0, n_pages = 0;

	for (size_t i = 0; i < file->n && n_pages < MAX_PAGES; i++) {
		PfFilePage *page = &file->pages[i];

		if (!moved(page))
			continue;
		if (n == 0 || !follows(&report->runs[n - 1], page)) {
			if (n == MAX_RUNS)
				break;
			pagefusion__run__init(&report->runs[n]);
			report->runs[n].file_page = page->file_page;
			report->runs[n].gfn = page->gfn;
			report->runs[n++].digests.data = report->digests[n_pages].bytes;
		}
		report->runs[n - 1].digests.len += PF_DIGEST_SIZE;
		report->digests[n_pages++] = page->digest;
		page->told = PF_TOLD_HERE;
	}
	pagefusion__hints__init(hints);
	hints->module_id = file->module_id;
	hints->runs = report->run_pointers;
	hints->n_runs = n;
	message->body_case = PAGEFUSION__AGENT_MESSAGE__BODY_HINTS;
	message->hints = hints;
	return n > 0;
}

static void forget_module(PfState *state, PfFile *file)
{
	pf_state_release_id(state, file->module_id);
	pf_file_forget_told(file);
}

/* Whether a module could be declared: without a free id the file stays untold until its next
 * commit. */
static bool declare(PfState *state, PfFile *file)
{
	if (!file->declared && !pf_state_take_id(state, &file->module_id))
		return false;
	file->declared = true;
	file->outdated = false;
	return true;
}

static int tell_file(
	PfReport *report, PfFile *file, uint64_t session_id, const uint8_t **frame, size_t *size)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Module module;
	Pagefusion__Withdrawn withdrawn;
	Pagefusion__Hints hints;

	message.session_id = session_id;
	if (file->n_reportable == 0 && !file->declared)
		return PF_REPORT_E_IDLE;
	if (file->n_reportable == 0) {
		pagefusion__withdrawn__init(&withdrawn);
		withdrawn.module_id = file->module_id;
		message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_WITHDRAWN;
		message.withdrawn = &withdrawn;
		forget_module(report->state, file);
	} else if (!file->declared || file->outdated) {
		if (!declare(report->state, file))
			return PF_REPORT_E_IDLE;
		tell_module(file, &message, &module);
	} else if (!tell_withdrawn(report, file, &message, &withdrawn) &&
		   !tell_hints(report, file, &message, &hints)) {
		return PF_REPORT_E_IDLE;
	}
	return pack(report, &message, frame, size);
}

static int tell_end(PfReport *report, uint64_t session_id, const uint8_t **frame, size_t *size)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__ReportEnd end = PAGEFUSION__REPORT_END__INIT;
	PfState *state = report->state;

	for (size_t i = 0; i < state->n; i++) {
		if (!state->files[i]->declared)
			continue;
		end.n_modules++;
		end.n_pages += state->files[i]->n_reportable;
	}
	state->scanned = false;
	message.session_id = session_id;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_REPORT_END;
	message.report_end = &end;
	return pack(report, &message, frame, size);
}

int pf_report_next(PfReport *report, uint64_t session_id, const uint8_t **frame, size_t *size)
{
	PfState *state = report->state;

	for (size_t visited = 0; visited < state->n; visited++, report->cursor++) {
		PfFile *file;
		int r;

		if (report->cursor >= state->n)
			report->cursor = 0;
		file = state->files[report->cursor];
		if (!file->dirty)
			continue;
		r = tell_file(report, file, session_id, frame, size);
		if (r != PF_REPORT_E_IDLE)
			return r;
		file->dirty = false;
	}
	return state->scanned ? tell_end(report, session_id, frame, size) : PF_REPORT_E_IDLE;
}
