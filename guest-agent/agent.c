// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * One thread: it scans, and between two files of a scan, as between scans, it serves the port and
 * the signals. The first scan is made at once, so that much is known when the host says hello;
 * later ones only while there is a session, as nobody hears of them otherwise, or when SIGHUP asks
 * for one.
 *
 * A knock is sent at start. If no hello comes the host may be waiting for the rest of a frame that
 * a predecessor (an agent that was killed, or the guest before a reset) did not finish: so later
 * knocks flush.
 */
#include "guest-agent/agent.h"
#include "common/log.h"
#include "guest-agent/channel.h"
#include "guest-agent/dump.h"
#include "guest-agent/scan.h"
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#define FIRST_KNOCK_MS 2000
#define NEXT_KNOCK_MS  30000

typedef struct Agent {
	PfFacts facts;
	PfState state;
	PfScanner *scanner;
	PfConversation *conversation;
	PfChannel channel;
	int signals; /* signalfd */
	int64_t interval_ms, next_scan_ms, next_knock_ms;
	bool rescan; /* asked for by SIGHUP, or the first */
	bool stop;
	int port_error, scan_error; /* 0 or what ends the agent, each with its own explanation */
} Agent;

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Logs why the guest cannot be read, and what to do. */
static int explain(int error)
{
	if (error == -EPERM)
		pf_error("page frame numbers read as 0, or mapped files cannot be opened: run this "
			 "as root (CAP_SYS_ADMIN and CAP_SYS_PTRACE in the initial namespaces)");
	else if (error == -ENOTSUP)
		pf_error("this guest's pages are not 4 KiB: page fusion cannot work in it");
	else
		pf_error("cannot read this guest's memory layout: %s", strerror(-error));
	return EXIT_FAILURE;
}

static int explain_port(const char *port, int error)
{
	if (error == -ENOENT || error == -ENODEV || error == -ENXIO)
		pf_error("no virtio-serial port %s: turn page fusion on for this VM on the host "
			 "(pagefusionctl modifyvm VM --pagefusion on)",
			port);
	else if (error == -EBUSY)
		pf_error("virtio-serial port %s is in use: stop the other pagefusion-agent", port);
	else
		pf_error("virtio-serial port %s: %s", port, strerror(-error));
	return EXIT_FAILURE;
}

static void read_signals(Agent *agent)
{
	struct signalfd_siginfo info;

	while (read(agent->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		if (info.ssi_signo == SIGHUP)
			agent->rescan = true;
		else
			agent->stop = true;
	}
}

/* Waits at most timeout_ms (-1: no limit) for the port and for signals, and serves them. 0 or a
 * fatal -errno. */
static int serve_once(Agent *agent, int timeout_ms)
{
	struct pollfd polls[2] = {{.fd = agent->signals, .events = POLLIN}};
	bool connected = agent->channel.connected;
	int r = pf_channel_prepare(&agent->channel, &polls[1], &timeout_ms);

	if (r < 0)
		return r;
	if (poll(polls, 2, timeout_ms) < 0)
		return errno == EINTR ? 0 : -errno;
	if (polls[0].revents)
		read_signals(agent);
	r = pf_channel_dispatch(&agent->channel, &polls[1]);
	/* A host that comes back speaks by itself. */
	if (!connected && agent->channel.connected)
		agent->next_knock_ms = now_ms() + FIRST_KNOCK_MS;
	return r;
}

static void serve(Agent *agent, int timeout_ms)
{
	agent->port_error = serve_once(agent, timeout_ms);
}

static bool ended(const Agent *agent)
{
	return agent->stop || agent->port_error < 0 || agent->scan_error < 0;
}

static int pause_scan(void *userdata)
{
	Agent *agent = userdata;

	serve(agent, 0);
	return ended(agent);
}

/* Memory is plugged and unplugged; where RAM is, only a hello says. */
static int read_ram(Agent *agent)
{
	PfRam before = agent->facts.ram;
	int r = pf_facts_read_ram(&agent->facts.ram);

	if (r == 0 && !pf_ram_equal(&before, &agent->facts.ram)) {
		pf_conversation_restart(agent->conversation);
		agent->next_knock_ms = now_ms() + FIRST_KNOCK_MS;
	}
	return r;
}

static void scan(Agent *agent)
{
	PfScanStats stats;
	int r;

	agent->rescan = false;
	r = read_ram(agent);
	if (r == 0)
		r = pf_scanner_run(agent->scanner, &agent->facts.ram, pause_scan, agent, &stats);
	agent->next_scan_ms = now_ms() + agent->interval_ms;
	if (r == 0)
		pf_debug("scan: %" PRIu64 " files, %" PRIu64 " pages hashed, %" PRIu64 " ms",
			stats.n_files, stats.n_hashed, stats.duration_ms);
	/* -ECANCELED is pause_scan()'s, which had a reason of its own. */
	agent->scan_error = r == -ECANCELED ? 0 : r;
}

static bool scan_due(const Agent *agent)
{
	return agent->rescan ||
	       (pf_conversation_active(agent->conversation) && now_ms() >= agent->next_scan_ms);
}

static void knock_when_due(Agent *agent)
{
	int64_t now = now_ms();

	if (now < agent->next_knock_ms || !agent->channel.connected)
		return;
	pf_conversation_knock(agent->conversation, true);
	agent->next_knock_ms = now + NEXT_KNOCK_MS;
}

static int idle_ms(const Agent *agent)
{
	int64_t until = pf_conversation_active(agent->conversation) ? agent->next_scan_ms
								    : agent->next_knock_ms;
	int64_t left = until - now_ms();

	return left < 0 ? 0 : (int)(left < INT32_MAX ? left : INT32_MAX);
}

static void loop(Agent *agent)
{
	agent->rescan = true;
	pf_conversation_knock(agent->conversation, false);
	agent->next_knock_ms = now_ms() + FIRST_KNOCK_MS;
	while (!ended(agent)) {
		knock_when_due(agent);
		if (scan_due(agent))
			scan(agent);
		else
			serve(agent, idle_ms(agent));
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
	pf_channel_deinit(&agent->channel);
	pf_conversation_free(agent->conversation);
	pf_scanner_free(agent->scanner);
	pf_state_deinit(&agent->state);
	if (agent->signals >= 0)
		close(agent->signals);
}

static int agent_init(Agent *agent)
{
	int r;

	*agent = (Agent){.channel.fd = -1};
	pf_state_init(&agent->state);
	agent->signals = block_signals();
	if (agent->signals < 0)
		return agent->signals;
	r = pf_facts_read(&agent->facts);
	if (r == 0)
		r = pf_scanner_new(&agent->scanner, &agent->state);
	if (r < 0)
		return r;
	agent->conversation = pf_conversation_new(&agent->state, &agent->facts);
	return agent->conversation ? 0 : -ENOMEM;
}

int pf_agent_run(const PfAgentOptions *options)
{
	static Agent agent;
	int port, r, status = EXIT_SUCCESS;

	port = pf_channel_open(options->port);
	if (port < 0)
		return explain_port(options->port, port);
	r = agent_init(&agent);
	pf_channel_init(&agent.channel, port, agent.conversation);
	if (r == 0) {
		agent.interval_ms = (int64_t)options->interval_s * 1000;
		loop(&agent);
	}
	if (agent.port_error < 0)
		status = explain_port(options->port, agent.port_error);
	else if (r < 0 || agent.scan_error < 0)
		status = explain(r < 0 ? r : agent.scan_error);
	agent_deinit(&agent);
	return status;
}

int pf_agent_dump(bool with_digests)
{
	PfScanner *scanner = NULL;
	PfScanStats stats;
	PfState state;
	PfFacts facts;
	int r, status;

	pf_state_init(&state);
	r = pf_facts_read(&facts);
	if (r == 0)
		r = pf_scanner_new(&scanner, &state);
	if (r == 0)
		r = pf_scanner_run(scanner, &facts.ram, NULL, NULL, &stats);
	status = r < 0 ? explain(r) : EXIT_SUCCESS;
	if (r == 0 && pf_dump_write(stdout, &facts, &state, &stats, with_digests) < 0) {
		pf_error("cannot write to standard output");
		status = EXIT_FAILURE;
	}
	pf_scanner_free(scanner);
	pf_state_deinit(&state);
	return status;
}
