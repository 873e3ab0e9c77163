/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The broker process: forked from pagefusiond before it has threads, it is the one that holds on to
 * root, talks to libvirt and opens /dev/userfaultfd. One thread in libvirt's own event loop; a
 * libvirt call that hangs stops the broker only, and the service's requests wait in their socket
 * meanwhile. It ends when the service closes its end, and with a packet that is no request: then
 * the service is not what it was.
 *
 * One timer connects to libvirt and does so again every two seconds while libvirt is away. A lost
 * connection is noticed by its close callback (keepalive messages find a libvirtd that hangs),
 * which only sets the timer off: closing a connection inside its own callback is not safe.
 */
#include "common/log.h"
#include "host-service/broker_domains.h"
#include <errno.h>
#include <libvirt/virterror.h>
#include <limits.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define RECONNECT_MS         2000
#define KEEPALIVE_SECONDS    5
#define KEEPALIVE_UNANSWERED 3

typedef struct Server {
	int fd;
	const PfBrokerConfig *config;
	virConnectPtr connection; /* NULL while libvirt is away */
	PfBrokerDomains *domains;
	int timer;                       /* of connecting */
	bool lost;                       /* the connection was closed from the other side */
	bool ended;                      /* leave the main loop */
	bool failed;                     /* and with an error */
	char reason[PF_BROKER_MAX_TEXT]; /* why libvirt is away, as last told */
} Server;

static void send_message(Server *server, PfBrokerMessage *message, int fd)
{
	message->magic = PF_BROKER_MAGIC;
	/* The service has gone: nothing is left to do. */
	if (pf_broker_send(server->fd, message, sizeof(*message), fd) < 0)
		server->ended = true;
}

static void emit(void *userdata, PfBrokerMessage *event)
{
	event->error = -1;
	send_message(userdata, event, -1);
}

/* Tells the service once for each reason. */
static void tell_away(Server *server, const char *reason)
{
	PfBrokerMessage event = {.type = PF_BROKER_LIBVIRT_AWAY};

	if (strcmp(server->reason, reason) == 0)
		return;
	g_strlcpy(server->reason, reason, sizeof(server->reason));
	memcpy(event.text, server->reason, sizeof(event.text));
	emit(server, &event);
}

static void tell_no_answer(Server *server)
{
	g_autofree char *error = g_strdup(virGetLastErrorMessage());
	g_autofree char *reason = NULL;

	g_strdelimit(g_strchomp(error), "\r\n", ' ');
	reason = g_strdup_printf(
		"libvirt does not answer at %.200s: start libvirtd or virtqemud, for example "
		"with 'systemctl start libvirtd' (%.200s)",
		server->config->uri, error);
	tell_away(server, reason);
}

static void on_close(virConnectPtr connection, int reason, void *opaque)
{
	Server *server = opaque;

	server->lost = true;
	virEventUpdateTimeout(server->timer, 0);
}

static void disconnect(Server *server)
{
	if (!server->connection)
		return;
	pf_broker_domains_detach(server->domains);
	virConnectUnregisterCloseCallback(server->connection, on_close);
	virConnectClose(server->connection);
	server->connection = NULL;
	server->lost = false;
}

/* FALSE: the service was told why not. */
static bool connect_libvirt(Server *server)
{
	server->connection = virConnectOpen(server->config->uri);
	if (!server->connection) {
		tell_no_answer(server);
		return false;
	}
	/* The test driver has neither of these, and needs none: it lives in this process. */
	virConnectRegisterCloseCallback(server->connection, on_close, server, NULL);
	virConnectSetKeepAlive(server->connection, KEEPALIVE_SECONDS, KEEPALIVE_UNANSWERED);
	if (!pf_broker_domains_attach(server->domains, server->connection)) {
		/* First, as closing a connection makes libvirt forget its last error. */
		tell_no_answer(server);
		disconnect(server);
		return false;
	}
	server->reason[0] = 0;
	return true;
}

static void on_connect_timer(int timer, void *opaque)
{
	Server *server = opaque;

	if (server->lost) {
		disconnect(server);
		tell_away(server, "the connection to libvirt was lost: it comes back when libvirtd "
				  "or virtqemud runs again, else start it ('systemctl start "
				  "libvirtd')");
		virEventUpdateTimeout(timer, RECONNECT_MS);
		return;
	}
	if (server->connection || connect_libvirt(server)) {
		virEventUpdateTimeout(timer, -1);
		return;
	}
	virEventUpdateTimeout(timer, RECONNECT_MS);
}

static int dispatch(
	Server *server, const PfBrokerRequest *request, PfBrokerMessage *answer, GError **error)
{
	switch (request->type) {
	case PF_BROKER_OPEN_USERFAULTFD:
		return pf_broker_serve_userfaultfd(error);
	case PF_BROKER_OPEN_CHANNEL:
		return pf_broker_serve_channel(server->domains, request->vm, error);
	case PF_BROKER_TRANSLATE:
		if (pf_broker_serve_translate(
			    server->domains, server->connection, request, answer->body.hvas, error))
			answer->n_hvas = request->n_ranges;
		return -1;
	default: /* PF_BROKER_MODIFY: the request was checked */
		pf_broker_serve_modify(
			server->domains, server->connection, server->config, request, error);
		return -1;
	}
}

static void answer_request(Server *server, const PfBrokerRequest *request)
{
	PfBrokerMessage answer = {.type = PF_BROKER_ANSWER, .id = request->id, .error = -1};
	g_autoptr(GError) error = NULL;
	int fd = dispatch(server, request, &answer, &error);

	if (error) {
		answer.error = error->code;
		g_strlcpy(answer.text, error->message, sizeof(answer.text));
	}
	send_message(server, &answer, fd);
	if (fd >= 0)
		close(fd);
}

static void on_socket(int watch, int fd, int events, void *opaque)
{
	Server *server = opaque;
	PfBrokerRequest request;
	size_t n_fds;
	int received;
	ssize_t n = pf_broker_receive(fd, &request, sizeof(request), &received, &n_fds);

	if (received >= 0)
		close(received);
	if (n > 0 && pf_broker_check_request(&request, (size_t)n, n_fds)) {
		answer_request(server, &request);
		return;
	}
	server->ended = true;
	if (n > 0) {
		server->failed = true;
		pf_error("broker: the service sent something that is no request; ending");
	}
}

static void ignore_libvirt_error(void *userdata, virErrorPtr error)
{
}

static bool is_session_uri(const char *uri)
{
	return g_str_has_suffix(uri, "/session") || strstr(uri, "/session?");
}

static void run(Server *server)
{
	int watch = virEventAddHandle(server->fd,
		VIR_EVENT_HANDLE_READABLE | VIR_EVENT_HANDLE_HANGUP | VIR_EVENT_HANDLE_ERROR,
		on_socket, server, NULL);

	server->timer = virEventAddTimeout(-1, on_connect_timer, server, NULL);
	server->domains = pf_broker_domains_new(emit, server);
	if (is_session_uri(server->config->uri))
		tell_away(server, "page fusion needs the system daemon: use qemu:///system");
	else
		virEventUpdateTimeout(server->timer, 0);
	while (!server->ended && watch >= 0)
		if (virEventRunDefaultImpl() < 0)
			server->ended = server->failed = true;
	disconnect(server);
	pf_broker_domains_free(server->domains);
	virEventRemoveTimeout(server->timer);
	virEventRemoveHandle(watch);
}

int pf_broker_serve(int fd, const PfBrokerConfig *config)
{
	Server server = {.fd = fd, .config = config};

	virSetErrorFunc(NULL, ignore_libvirt_error);
	if (virInitialize() < 0 || virEventRegisterDefaultImpl() < 0) {
		pf_error("broker: libvirt cannot be initialised: %s", virGetLastErrorMessage());
		close(fd);
		return 1;
	}
	run(&server);
	close(fd);
	return server.failed ? 1 : 0;
}

/* The service ends in order and takes the broker along; a signal to both must not end the broker
 * first. */
static int become_broker(int fd, const PfBrokerConfig *config)
{
	prctl(PR_SET_NAME, "pf-broker");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	return pf_broker_serve(fd, config);
}

/* What systemd keeps for the service (stores that can be written) is nothing for the broker. */
static void keep_only(int fd)
{
	if (fd > STDERR_FILENO + 1)
		close_range(STDERR_FILENO + 1, (unsigned)fd - 1, 0);
	close_range((unsigned)fd + 1, UINT_MAX, 0);
}

int pf_broker_spawn(const PfBrokerConfig *config, GPid *pid, GError **error)
{
	int fds[2], code;
	pid_t child;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0) {
		code = errno;
		g_set_error(error, G_IO_ERROR, g_io_error_from_errno(code),
			"the broker's socket cannot be made: %s", g_strerror(code));
		return -1;
	}
	fflush(NULL);
	child = fork();
	if (child == 0) {
		keep_only(fds[1]);
		exit(become_broker(fds[1], config));
	}
	code = errno;
	close(fds[1]);
	if (child < 0) {
		close(fds[0]);
		g_set_error(error, G_IO_ERROR, g_io_error_from_errno(code),
			"the broker process cannot be started: %s", g_strerror(code));
		return -1;
	}
	*pid = child;
	return fds[0];
}
