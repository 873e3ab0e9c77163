// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * One thread: it looks at what pace.c says when that says so, and between two pieces of such work,
 * as between passes, it serves the port, signals, the process connector and whoever asks for the
 * status. Nothing is looked at before a host has opened a session, nor while it does not answer: what
 * was begun is given up then, so that no file stays open for a host that may never come back, and is
 * done again when it does; what was hashed is not hashed again for it. No process is watched without
 * a session either.
 *
 * Times run on while the guest sleeps, and so does the timer that ends a wait: after a suspend, a
 * pass that was due is made at once.
 */
#include "guest-agent/agent.h"
#include "common/log.h"
#include "guest-agent/explain.h"
#include "guest-agent/manners.h"
#include "guest-agent/settings.h"
#include "guest-agent/view.h"
#include "guest-agent/wake.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SERVE_MS 10 /* between two looks at the descriptors in the midst of work */

enum { SIGNALS, PORT, STATUS, EVENTS, TIMER, N_POLLS };

typedef struct Agent {
	PfSettings settings;
	PfFacts facts;
	PfState state;
	PfScanner *scanner;
	PfPace pace;

	PfWatch watch;
	PfConversation *conversation;
	PfLink link;

	PfView view;
	bool impossible[PF_N_CLASSES]; /* and that was said */

	PfWake wake;
	int64_t served_ms; /* when the descriptors were looked at last */
	PfFailure failure; /* what ends the agent, and its -errno */
	int error;
} Agent;

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int64_t earlier(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

static bool ended(const Agent *agent)
{
	return agent->wake.stop || agent->failure != PF_FAILURE_NONE;
}

/* The first one is the one that is told. */
static void fail(Agent *agent, PfFailure failure, int error)
{
	if (agent->failure != PF_FAILURE_NONE)
		return;
	agent->failure = error == -ENOMEM ? PF_FAILURE_ITSELF : failure;
	agent->error = error;
}

/* Whether there is somebody to work for. */
static bool goes_on(Agent *agent)
{
	return !ended(agent) && pf_link_heard(&agent->link, now_ms());
}

static void configure_pace(Agent *agent)
{
	const PfSettings *settings = &agent->settings;

	pf_pace_configure(
		&agent->pace, &settings->config, pf_settings_interval_s(settings), now_ms());
}

/* --- sessions --- */

static void watch_processes(Agent *agent)
{
	if (agent->view.status.session && agent->settings.config.classes[PF_CLASS_MAPPED])
		pf_watch_begin(&agent->watch);
	else
		pf_watch_end(&agent->watch);
}

static void begin_session(Agent *agent, uint64_t number)
{
	bool watched = agent->watch.events != NULL;
	int64_t now = now_ms();

	pf_view_session_begun(&agent->view, number, now);
	watch_processes(agent);
	/* Programs may have started while nobody listened. */
	if (!watched && agent->pace.n_passes[PF_CLASS_MAPPED] > 0)
		pf_pace_lost(&agent->pace, now);
}

static void notice_session(Agent *agent)
{
	const PfAgentStatus *status = &agent->view.status;
	PfConversationCount count;

	pf_conversation_count(agent->conversation, &count);
	if (pf_conversation_active(agent->conversation)) {
		if (!status->session || status->n_sessions != count.n_sessions)
			begin_session(agent, count.n_sessions);
	} else if (status->session) {
		pf_view_session_ended(&agent->view);
		watch_processes(agent);
	}
}

static bool all_told(const Agent *agent)
{
	for (int c = 0; c < PF_N_CLASSES; c++) {
		if (agent->pace.on[c] && agent->pace.n_passes[c] == 0)
			return false;
	}
	return agent->view.status.session && agent->state.complete && !agent->state.scanned;
}

/* --- what comes in --- */

static void answer_status(Agent *agent)
{
	const PfViewed viewed = {.config = &agent->settings.config,
		.state = &agent->state,
		.scanner = agent->scanner,
		.link = &agent->link,
		.watch = &agent->watch};

	pf_view_answer(&agent->view, &viewed);
}

/* Serves what has come in; the status last, as it tells of the rest. */
static void dispatch(Agent *agent, const struct pollfd *polls)
{
	int r;

	agent->served_ms = now_ms();
	if (polls[SIGNALS].revents)
		pf_wake_read_signals(&agent->wake);
	if (polls[EVENTS].revents)
		pf_watch_take(&agent->watch, &agent->pace, agent->served_ms);
	r = pf_link_dispatch(&agent->link, &polls[PORT], agent->served_ms);
	if (r < 0)
		fail(agent, PF_FAILURE_PORT, r);
	notice_session(agent);
	if (polls[STATUS].revents)
		answer_status(agent);
}

/* Waits for what comes in, until a time at most, and serves it. */
static void serve(Agent *agent, int64_t until_ms)
{
	int64_t now = now_ms();
	int timeout = until_ms <= now ? 0 : -1, r;
	struct pollfd polls[N_POLLS] = {
		[SIGNALS] = {.fd = agent->wake.signals, .events = POLLIN},
		[STATUS] = {.fd = agent->view.server.fd, .events = POLLIN},
		[EVENTS] = {.fd = pf_watch_fd(&agent->watch, now), .events = POLLIN},
		[TIMER] = {.fd = timeout ? agent->wake.timer : -1, .events = POLLIN},
	};

	r = pf_link_prepare(&agent->link, &polls[PORT], &timeout, now);
	if (r < 0) {
		fail(agent, PF_FAILURE_PORT, r);
		return;
	}
	if (timeout != 0)
		pf_wake_set(&agent->wake, earlier(until_ms, pf_watch_due_ms(&agent->watch, now)));
	if (poll(polls, N_POLLS, timeout) >= 0)
		dispatch(agent, polls);
	else if (errno != EINTR)
		fail(agent, PF_FAILURE_ITSELF, -errno);
}

/* --- work --- */

static int step(void *userdata, uint64_t n_hashed)
{
	Agent *agent = userdata;
	int64_t now = now_ms(), until = now + pf_pace_hashed(&agent->pace, n_hashed, now);

	agent->view.status.n_hashed += n_hashed;
	if (until > now || now - agent->served_ms >= SERVE_MS) {
		do {
			serve(agent, until);
		} while (goes_on(agent) && now_ms() < until);
	}
	return goes_on(agent) ? 0 : -ECANCELED;
}

/* Memory is plugged and unplugged; where RAM is, only a hello says: until it was said, nobody is there to work for. */
static int read_ram(Agent *agent)
{
	PfRam before = agent->facts.ram;
	int r = pf_facts_read_ram(&agent->facts.ram);

	if (r < 0) {
		fail(agent, PF_FAILURE_FACTS, r);
		return -ECANCELED;
	}
	if (!pf_ram_equal(&before, &agent->facts.ram)) {
		pf_conversation_restart(agent->conversation);
		pf_link_expect_hello(&agent->link, now_ms());
		return -ECANCELED;
	}
	return 0;
}

static void give_class_up(Agent *agent, PfPageClass class)
{
	if (!agent->impossible[class])
		pf_info("no pages of the class %s: %s", pf_page_class_name(class),
			pf_scanner_impossible(agent->scanner, class));
	agent->impossible[class] = true;
	pf_pace_switch_off(&agent->pace, class);
}

static int pass(Agent *agent, const PfTurn *turn, PfScanStats *stats)
{
	int r = read_ram(agent);

	if (r < 0)
		return r;
	pf_pace_begin(&agent->pace, turn->class, now_ms());
	r = pf_scanner_pass(agent->scanner, turn->class, &agent->settings.config, &agent->facts.ram,
		step, agent, stats);
	if (r == -ENOTSUP) {
		give_class_up(agent, turn->class);
		return 0;
	}
	if (r == 0)
		pf_view_pass(&agent->view, turn->class, stats);
	return r;
}

static int look(Agent *agent, PfScanStats *stats)
{
	pid_t pids[PF_PACE_MAX_PENDING];
	size_t n = pf_pace_take(&agent->pace, pids, now_ms());
	int r = pf_scanner_look(agent->scanner, pids, n, &agent->facts.ram, step, agent, stats);

	agent->view.status.n_new_processes += n;
	pf_debug("%zu new processes: %" PRIu64 " files, %" PRIu64 " pages hashed, %" PRIu64
		 " us of CPU",
		n, stats->n_files, stats->n_hashed, stats->cpu_us);
	return r;
}

static void work(Agent *agent, const PfTurn *turn)
{
	PfScanStats stats = {0};
	int r = turn->work == PF_WORK_LOOK ? look(agent, &stats) : pass(agent, turn, &stats);

	if (r == -ECANCELED) {
		pf_pace_given_up(&agent->pace, turn, stats.cpu_us, now_ms());
		return;
	}
	pf_pace_done(&agent->pace, turn, stats.cpu_us, now_ms());
	if (r < 0)
		fail(agent, PF_FAILURE_LOOKING, r);
}

/* --- the whole --- */

static void take_config(Agent *agent, PfAgentConfig *new)
{
	PfAgentConfig *config = &agent->settings.config;

	for (int c = 0; c < PF_N_CLASSES; c++) {
		if (config->classes[c] && !new->classes[c])
			pf_state_drop_class(&agent->state, c);
	}
	pf_agent_config_deinit(config);
	*config = *new;
	*new = (PfAgentConfig){0};
	configure_pace(agent);
	watch_processes(agent);
}

static void reread(Agent *agent)
{
	PfAgentConfig new;
	char message[512];
	int r = pf_settings_read(&agent->settings, &new, message, sizeof(message));

	agent->wake.hangup = false;
	pf_pace_ask(&agent->pace, now_ms());
	if (r == 0) {
		r = pf_link_want(&agent->link, pf_settings_port(&agent->settings, &new));
		if (r < 0)
			snprintf(message, sizeof(message), "%s", strerror(-r));
	}
	if (r == 0)
		take_config(agent, &new);
	else
		pf_error("%s: what held before still holds", message);
	pf_agent_config_deinit(&new);
}

static PfTurn next_turn(Agent *agent, int64_t now)
{
	if (!pf_link_heard(&agent->link, now))
		return (PfTurn){.work = PF_WORK_NONE, .due_ms = PF_PACE_NEVER};
	return pf_pace_next(&agent->pace, now);
}

/* When the port or the view want to be tended. */
static int64_t tend_ms(const Agent *agent)
{
	return earlier(pf_link_due_ms(&agent->link), pf_view_due_ms(&agent->view));
}

static void tend(Agent *agent)
{
	int64_t now = now_ms();
	int r;

	if (all_told(agent))
		pf_view_reported(&agent->view, &agent->state, now);
	if (agent->wake.hangup)
		reread(agent);
	r = pf_link_tend(&agent->link, now);
	if (r < 0)
		fail(agent, PF_FAILURE_PORT, r);
	else
		pf_view_tend(&agent->view, now);
}

static void loop(Agent *agent)
{
	for (tend(agent); !ended(agent); tend(agent)) {
		int64_t now = now_ms();
		PfTurn turn = next_turn(agent, now);

		if (turn.due_ms <= now)
			work(agent, &turn);
		else
			serve(agent, earlier(turn.due_ms, tend_ms(agent)));
	}
}

static void agent_deinit(Agent *agent)
{
	pf_view_deinit(&agent->view);
	pf_watch_end(&agent->watch);
	pf_link_deinit(&agent->link);
	pf_conversation_free(agent->conversation);
	pf_scanner_free(agent->scanner);
	pf_state_deinit(&agent->state);
	pf_settings_deinit(&agent->settings);
	pf_wake_deinit(&agent->wake);
}

/* 0 or -errno. */
static int init_link(Agent *agent, bool wait)
{
	const PfSettings *settings = &agent->settings;

	agent->conversation = pf_conversation_new(&agent->state, &agent->facts);
	if (!agent->conversation)
		return -ENOMEM;
	return pf_link_init(&agent->link, pf_settings_port(settings, &settings->config), wait,
		agent->conversation);
}

/* What goes wrong is the agent's failure. */
static void agent_init(Agent *agent, const PfAgentOptions *options)
{
	PfFailure failure = PF_FAILURE_ITSELF;
	int r;

	*agent = (Agent){.link.channel.fd = -1};
	pf_settings_init(&agent->settings, options);
	pf_view_init(&agent->view);
	pf_state_init(&agent->state);
	pf_pace_init(&agent->pace, now_ms());
	configure_pace(agent);
	r = pf_wake_init(&agent->wake);
	if (r == 0) {
		failure = PF_FAILURE_FACTS;
		r = pf_facts_read(&agent->facts);
	}
	if (r == 0) {
		failure = PF_FAILURE_LOOKING;
		r = pf_scanner_new(&agent->scanner, &agent->state);
	}
	if (r == 0)
		r = init_link(agent, options->wait);
	if (r < 0)
		fail(agent, failure, r);
}

int pf_agent_run(const PfAgentOptions *options)
{
	static Agent agent;
	bool failed;

	agent_init(&agent, options);
	if (!ended(&agent)) {
		pf_manners_set();
		loop(&agent);
	}
	failed = agent.failure != PF_FAILURE_NONE;
	if (failed)
		pf_explain(agent.failure, agent.error, pf_link_path(&agent.link));
	agent_deinit(&agent);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
