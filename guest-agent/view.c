// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The agent works without its view. Where it cannot listen, a predecessor that is about to end may
 * still hold the socket, or /run is not there yet: it tries again, soon at first and then less and
 * less often, and says once that nobody can ask, and that somebody can again.
 */
#include "guest-agent/view.h"
#include "common/log.h"
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define FIRST_WAIT_MS 1000
#define LAST_WAIT_MS  60000

void pf_view_init(PfView *view)
{
	*view = (PfView){.status = {.pid = getpid(), .started = time(NULL)},
		.server.fd = -1,
		.server.spare = -1,
		.wait_ms = FIRST_WAIT_MS};
}

void pf_view_deinit(PfView *view)
{
	pf_status_server_deinit(&view->server);
}

static void miss(PfView *view, int error, int64_t now_ms)
{
	view->next_try_ms = now_ms + view->wait_ms;
	view->wait_ms = view->wait_ms * 2 < LAST_WAIT_MS ? view->wait_ms * 2 : LAST_WAIT_MS;
	if (!view->missed)
		pf_warning("%s: %s; until that is mended, pagefusion-agent --status will not work",
			PF_AGENT_STATUS_SOCKET, strerror(-error));
	view->missed = true;
}

void pf_view_tend(PfView *view, int64_t now_ms)
{
	int r;

	if (now_ms < pf_view_due_ms(view))
		return;
	r = pf_status_server_init(&view->server, PF_AGENT_STATUS_SOCKET);
	if (r < 0) {
		miss(view, r, now_ms);
		return;
	}
	if (view->missed)
		pf_info("%s: pagefusion-agent --status works now", PF_AGENT_STATUS_SOCKET);
	view->missed = false;
	view->wait_ms = FIRST_WAIT_MS;
}

int64_t pf_view_due_ms(const PfView *view)
{
	return view->server.fd < 0 ? view->next_try_ms : INT64_MAX;
}

void pf_view_session_begun(PfView *view, uint64_t number, int64_t now_ms)
{
	view->status.n_sessions = number;
	view->status.session = true;
	view->status.since = time(NULL);
	view->session_ms = now_ms;
}

void pf_view_session_ended(PfView *view)
{
	view->status.session = false;
	view->status.since = time(NULL);
}

void pf_view_pass(PfView *view, PfPageClass class, const PfScanStats *stats)
{
	PfPassStatus *pass = &view->status.classes[class];

	pass->n_passes++;
	pass->ended = time(NULL);
	pass->cpu_us = stats->cpu_us;
	pass->duration_ms = stats->duration_ms;
	pass->n_hashed = stats->n_hashed;
	pf_debug("%s: %" PRIu64 " files, %" PRIu64 " pages hashed, %" PRIu64 " ms, %" PRIu64
		 " us of CPU",
		pf_page_class_name(class), stats->n_files, stats->n_hashed, stats->duration_ms,
		stats->cpu_us);
}

void pf_view_reported(PfView *view, const PfState *state, int64_t now_ms)
{
	uint64_t n_files = 0, n_pages = 0;
	PfStateCount count;

	if (view->reported)
		return;
	view->reported = true;
	pf_state_count(state, &count);
	for (int c = 0; c < PF_N_CLASSES; c++) {
		n_files += count.classes[c].n_files;
		n_pages += count.classes[c].n_pages;
	}
	pf_info("reported %" PRIu64 " pages of %" PRIu64 " files in %" PRId64 " ms", n_pages,
		n_files, now_ms - view->session_ms);
}

static void fill_classes(PfAgentStatus *status, const PfViewed *viewed)
{
	PfStateCount count;

	pf_state_count(viewed->state, &count);
	status->n_left_out = count.n_left_out;
	for (int c = 0; c < PF_N_CLASSES; c++) {
		PfPassStatus *pass = &status->classes[c];

		pass->on = viewed->config->classes[c];
		pass->impossible = pf_scanner_impossible(viewed->scanner, c);
		pass->n_files = count.classes[c].n_files;
		pass->n_pages = count.classes[c].n_pages;
	}
}

static void fill_link(PfAgentStatus *status, const PfLink *link)
{
	PfConversationCount count;

	pf_conversation_count(link->conversation, &count);
	status->port = link->channel.fd >= 0 ? pf_link_path(link) : "";
	status->connected = pf_link_connected(link);
	status->bytes_sent = count.bytes_sent;
	status->frames_sent = count.frames_sent;
	status->frames_acknowledged = count.frames_acknowledged;
}

void pf_view_answer(PfView *view, const PfViewed *viewed)
{
	PfAgentStatus *status = &view->status;

	fill_classes(status, viewed);
	fill_link(status, viewed->link);
	status->process_events = viewed->watch->events != NULL;
	status->n_left_behind = pf_scanner_left_behind(viewed->scanner);
	pf_status_measure(status);
	pf_status_server_answer(&view->server, status);
}
