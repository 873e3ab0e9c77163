// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * One thread: it looks at what pace.c says when that says so, and between two pieces of such work,
 * as between passes, it serves the port, signals, the process connector and whoever asks for the
 * status. Nothing is looked at before a host has opened a session, nor while it does not answer; no
 * process is watched without a session either.
 *
 * Times run on while the guest sleeps, and so does the timer that ends a wait: after a suspend, a
 * pass that was due is made at once.
 */
#include "guest-agent/agent.h"
#include "common/log.h"
#include "guest-agent/explain.h"
#include "guest-agent/find/scan.h"
#include "guest-agent/find/watch.h"
#include "guest-agent/manners.h"
#include "guest-agent/status.h"
#include "guest-agent/tell/link.h"
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define SERVE_MS 10 /* between two looks at the descriptors in the midst of work */

enum { SIGNALS, PORT, STATUS, EVENTS, TIMER, N_POLLS };

typedef struct Agent {
	const PfAgentOptions *options;
	PfFacts facts;
	PfState state;
	PfScanner *scanner;
	PfPace pace;

	PfWatch watch;
	PfConversation *conversation;
	PfLink link;

	PfStatusServer status_server;
	PfAgentStatus status;
	int64_t session_ms; /* when the session began */
	bool reported;      /* and said so */
	bool impossible[PF_N_CLASSES];

	int signals, timer;         /* signalfd, timerfd */
	int64_t timer_ms;           /* what it is set to */
	int64_t served_ms;          /* when the descriptors were looked at last */
	bool reread, stop;          /* SIGHUP; SIGTERM, SIGINT */
	int port_error, scan_error; /* 0 or what ends the agent, each with its own explanation */
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
	return agent->stop || agent->port_error < 0 || agent->scan_error < 0;
}

static const PfAgentConfig *config_of(const Agent *agent)
{
	return agent->options->config;
}

static unsigned interval_s(const Agent *agent)
{
	return agent->options->interval_s ? agent->options->interval_s
					  : config_of(agent)->interval_s;
}

static void configure_pace(Agent *agent)
{
	pf_pace_configure(&agent->pace, config_of(agent), interval_s(agent), now_ms());
}

static const char *wanted_port(const Agent *agent)
{
	return agent->options->port ? agent->options->port : config_of(agent)->port;
}

static void watch_processes(Agent *agent)
{
	if (agent->status.session && config_of(agent)->classes[PF_CLASS_MAPPED])
		pf_watch_begin(&agent->watch);
	else
		pf_watch_end(&agent->watch);
}

static void begin_session(Agent *agent, uint64_t number)
{
	bool watched = agent->watch.events != NULL;

	agent->status.n_sessions = number;
	agent->status.session = true;
	agent->status.since = time(NULL);
	agent->session_ms = now_ms();
	watch_processes(agent);
	/* Programs may have started while nobody listened. */
	if (!watched && agent->pace.n_passes[PF_CLASS_MAPPED] > 0)
		pf_pace_lost(&agent->pace, agent->session_ms);
}

static void end_session(Agent *agent)
{
	agent->status.session = false;
	agent->status.since = time(NULL);
	watch_processes(agent);
}

static void notice_session(Agent *agent)
{
	PfConversationCount count;

	pf_conversation_count(agent->conversation, &count);
	if (!pf_conversation_active(agent->conversation)) {
		if (agent->status.session)
			end_session(agent);
	} else if (!agent->status.session || agent->status.n_sessions != count.n_sessions) {
		begin_session(agent, count.n_sessions);
	}
}

static bool all_classes_told(const Agent *agent)
{
	for (int c = 0; c < PF_N_CLASSES; c++) {
		if (agent->pace.on[c] && agent->pace.n_passes[c] == 0)
			return false;
	}
	return agent->state.complete && !agent->state.scanned;
}

static void say_first_report(Agent *agent)
{
	uint64_t n_files = 0, n_pages = 0;
	PfStateCount count;

	if (agent->reported || !agent->status.session || !all_classes_told(agent))
		return;
	agent->reported = true;
	pf_state_count(&agent->state, &count);
	for (int c = 0; c < PF_N_CLASSES; c++) {
		n_files += count.classes[c].n_files;
		n_pages += count.classes[c].n_pages;
	}
	pf_info("reported %" PRIu64 " pages of %" PRIu64 " files in %" PRId64 " ms", n_pages,
		n_files, now_ms() - agent->session_ms);
}

static void read_signals(Agent *agent)
{
	struct signalfd_siginfo info;

	while (read(agent->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		if (info.ssi_signo == SIGHUP)
			agent->reread = true;
		else
			agent->stop = true;
	}
}

static void fill_passes(Agent *agent)
{
	PfStateCount count;

	pf_state_count(&agent->state, &count);
	for (int c = 0; c < PF_N_CLASSES; c++) {
		PfPassStatus *pass = &agent->status.classes[c];

		pass->on = config_of(agent)->classes[c];
		pass->impossible = pf_scanner_impossible(agent->scanner, c);
		pass->n_files = count.classes[c].n_files;
		pass->n_pages = count.classes[c].n_pages;
	}
}

static void answer_status(Agent *agent)
{
	PfAgentStatus *status = &agent->status;
	PfConversationCount count;

	pf_conversation_count(agent->conversation, &count);
	fill_passes(agent);
	status->port = agent->link.channel.fd >= 0 ? agent->link.path : "";
	status->connected = pf_link_connected(&agent->link);
	status->bytes_sent = count.bytes_sent;
	status->frames_sent = count.frames_sent;
	status->frames_acknowledged = count.frames_acknowledged;
	status->process_events = agent->watch.events != NULL;
	status->n_left_behind = pf_scanner_left_behind(agent->scanner);
	pf_status_measure(status);
	pf_status_server_answer(&agent->status_server, status);
}

/* Sets the timer that ends a wait. */
static void set_timer(Agent *agent, int64_t until_ms)
{
	struct itimerspec when = {0};

	if (until_ms == agent->timer_ms)
		return;
	if (until_ms != PF_PACE_NEVER) {
		when.it_value.tv_sec = until_ms / 1000;
		when.it_value.tv_nsec = until_ms % 1000 * 1000000;
	}
	if (timerfd_settime(agent->timer, TFD_TIMER_ABSTIME, &when, NULL) == 0)
		agent->timer_ms = until_ms;
}

/* Serves what has come in. 0 or a fatal -errno. */
static int dispatch(Agent *agent, const struct pollfd *polls)
{
	agent->served_ms = now_ms();
	if (polls[SIGNALS].revents)
		read_signals(agent);
	if (polls[EVENTS].revents)
		pf_watch_take(&agent->watch, &agent->pace, agent->served_ms);
	if (polls[STATUS].revents)
		answer_status(agent);
	return pf_link_dispatch(&agent->link, &polls[PORT], agent->served_ms);
}

/* Waits for what comes in, until a time at most, and serves it. 0 or a fatal -errno. */
static int serve_once(Agent *agent, int64_t until_ms)
{
	int64_t now = now_ms();
	int timeout = until_ms <= now ? 0 : -1, r;
	struct pollfd polls[N_POLLS] = {
		[SIGNALS] = {.fd = agent->signals, .events = POLLIN},
		[STATUS] = {.fd = agent->status_server.fd, .events = POLLIN},
		[EVENTS] = {.fd = pf_watch_fd(&agent->watch, now), .events = POLLIN},
		[TIMER] = {.fd = timeout ? agent->timer : -1, .events = POLLIN},
	};

	r = pf_link_prepare(&agent->link, &polls[PORT], &timeout);
	if (r < 0)
		return r;
	if (timeout != 0)
		set_timer(agent, earlier(until_ms, pf_watch_due_ms(&agent->watch, now)));
	if (poll(polls, N_POLLS, timeout) < 0)
		return errno == EINTR ? 0 : -errno;
	return dispatch(agent, polls);
}

static void serve(Agent *agent, int64_t until_ms)
{
	int r = serve_once(agent, until_ms);

	if (r < 0)
		agent->port_error = r;
}

static int step(void *userdata, uint64_t n_hashed)
{
	Agent *agent = userdata;
	int64_t now = now_ms(), until = now + pf_pace_hashed(&agent->pace, n_hashed, now);

	agent->status.n_hashed += n_hashed;
	if (until > now || now - agent->served_ms >= SERVE_MS) {
		do {
			serve(agent, until);
		} while (!ended(agent) && now_ms() < until);
	}
	return ended(agent) ? -ECANCELED : 0;
}

/* Memory is plugged and unplugged; where RAM is, only a hello says. */
static int read_ram(Agent *agent)
{
	PfRam before = agent->facts.ram;
	int r = pf_facts_read_ram(&agent->facts.ram);

	if (r == 0 && !pf_ram_equal(&before, &agent->facts.ram)) {
		pf_conversation_restart(agent->conversation);
		pf_link_expect_hello(&agent->link, now_ms());
	}
	return r;
}

static void note_pass(Agent *agent, PfPageClass class, const PfScanStats *stats)
{
	PfPassStatus *pass = &agent->status.classes[class];

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

	if (r == 0)
		r = pf_scanner_pass(agent->scanner, turn->class, config_of(agent),
			&agent->facts.ram, step, agent, stats);
	if (r == -ENOTSUP) {
		give_class_up(agent, turn->class);
		return 0;
	}
	if (r == 0)
		note_pass(agent, turn->class, stats);
	return r;
}

static int look(Agent *agent, PfScanStats *stats)
{
	pid_t pids[PF_PACE_MAX_PENDING];
	size_t n = pf_pace_take(&agent->pace, pids, now_ms());
	int r = pf_scanner_look(agent->scanner, pids, n, &agent->facts.ram, step, agent, stats);

	agent->status.n_new_processes += n;
	pf_debug("%zu new processes: %" PRIu64 " files, %" PRIu64 " pages hashed, %" PRIu64
		 " us of CPU",
		n, stats->n_files, stats->n_hashed, stats->cpu_us);
	return r;
}

static void work(Agent *agent, const PfTurn *turn)
{
	PfScanStats stats = {0};
	int r = turn->work == PF_WORK_LOOK ? look(agent, &stats) : pass(agent, turn, &stats);

	pf_pace_done(&agent->pace, turn, stats.cpu_us, now_ms());
	/* -ECANCELED is step()'s, which had a reason of its own. */
	agent->scan_error = r == -ECANCELED ? 0 : r;
}

static bool same_port(const char *a, const char *b)
{
	return a == b || (a && b && strcmp(a, b) == 0);
}

static void take_config(Agent *agent, PfAgentConfig *new)
{
	PfAgentConfig old = *agent->options->config;
	bool port_changed = !agent->options->port && !same_port(old.port, new->port);

	*agent->options->config = *new;
	for (int c = 0; c < PF_N_CLASSES; c++) {
		if (old.classes[c] && !new->classes[c])
			pf_state_drop_class(&agent->state, c);
	}
	if (port_changed)
		pf_link_want(&agent->link, new->port);
	pf_agent_config_deinit(&old);
	configure_pace(agent);
	watch_processes(agent);
}

static void reread(Agent *agent)
{
	const char *path = agent->options->config_path;
	PfAgentConfig new;
	char message[512];
	int r = pf_agent_config_init(&new);

	agent->reread = false;
	pf_pace_ask(&agent->pace, now_ms());
	if (r < 0 || !path)
		return;
	r = pf_agent_config_read(&new, path, message, sizeof(message));
	if (r == 0 || r == -ENOENT) {
		take_config(agent, &new);
	} else {
		pf_error("%s: what held before still holds", message);
		pf_agent_config_deinit(&new);
	}
}

static PfTurn next_turn(Agent *agent, int64_t now)
{
	if (!pf_link_heard(&agent->link, now))
		return (PfTurn){.work = PF_WORK_NONE, .due_ms = PF_PACE_NEVER};
	return pf_pace_next(&agent->pace, now);
}

static void tend_link(Agent *agent, int64_t now)
{
	int r = pf_link_tend(&agent->link, now);

	if (r < 0)
		agent->port_error = r;
}

static void loop(Agent *agent)
{
	while (!ended(agent)) {
		int64_t now = now_ms();
		PfTurn turn;

		notice_session(agent);
		say_first_report(agent);
		if (agent->reread)
			reread(agent);
		tend_link(agent, now);
		turn = next_turn(agent, now);
		if (turn.due_ms <= now)
			work(agent, &turn);
		else if (!ended(agent))
			serve(agent, earlier(turn.due_ms, pf_link_due_ms(&agent->link)));
	}
}

static int block_signals(void)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static void agent_deinit(Agent *agent)
{
	pf_status_server_deinit(&agent->status_server);
	pf_watch_end(&agent->watch);
	pf_link_deinit(&agent->link);
	pf_conversation_free(agent->conversation);
	pf_scanner_free(agent->scanner);
	pf_state_deinit(&agent->state);
	if (agent->signals >= 0)
		close(agent->signals);
	if (agent->timer >= 0)
		close(agent->timer);
}

static int agent_init(Agent *agent, const PfAgentOptions *options)
{
	int r;

	*agent = (Agent){.options = options,
		.link.channel.fd = -1,
		.status_server.fd = -1,
		.status = {.pid = getpid(), .started = time(NULL)},
		.signals = -1,
		.timer = -1,
		.timer_ms = PF_PACE_NEVER};
	pf_state_init(&agent->state);
	pf_pace_init(&agent->pace, now_ms());
	configure_pace(agent);
	agent->signals = block_signals();
	if (agent->signals < 0)
		return agent->signals;
	agent->timer = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC);
	if (agent->timer < 0)
		return -errno;
	r = pf_facts_read(&agent->facts);
	if (r == 0)
		r = pf_scanner_new(&agent->scanner, &agent->state);
	if (r < 0)
		return r;
	agent->conversation = pf_conversation_new(&agent->state, &agent->facts);
	if (!agent->conversation)
		return -ENOMEM;
	pf_link_init(&agent->link, wanted_port(agent), options->wait, agent->conversation);
	return 0;
}

/* The agent works without its view. */
static void serve_status(Agent *agent)
{
	int r = pf_status_server_init(&agent->status_server, PF_AGENT_STATUS_SOCKET);

	if (r < 0)
		pf_warning("%s: %s; pagefusion-agent --status will not work",
			PF_AGENT_STATUS_SOCKET, strerror(-r));
}

int pf_agent_run(const PfAgentOptions *options)
{
	static Agent agent;
	int r = agent_init(&agent, options), status = EXIT_SUCCESS;

	if (r == 0) {
		tend_link(&agent, now_ms());
		if (!ended(&agent))
			serve_status(&agent);
		pf_manners_set();
		loop(&agent);
	}
	if (agent.port_error < 0) {
		pf_explain_port(agent.link.path, agent.port_error);
		status = EXIT_FAILURE;
	} else if (r < 0 || agent.scan_error < 0) {
		pf_explain_guest(r < 0 ? r : agent.scan_error);
		status = EXIT_FAILURE;
	}
	agent_deinit(&agent);
	return status;
}
