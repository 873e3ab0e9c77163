/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The broker process: forked from pagefusiond before it has threads, it is the one that holds on to
 * root, talks to libvirt and opens /dev/userfaultfd. It ends when one of its clients closes its
 * end, and with a packet that is no request of this client: then the client is not what it was.
 *
 * One thread, in libvirt's own event loop, serves both. A libvirtd that hangs stops the broker
 * only, and its clients' requests wait in their sockets meanwhile. A QEMU that hangs must not even
 * do that: what needs its monitor (TRANSLATE, and what changes a drive of a VM that runs) has a
 * thread of its own, and is answered when that has ended (broker_threads.c). What is called here
 * answers from libvirtd's own memory:
 * to read a definition or an info (virDomainGetXMLDesc, virDomainGetInfo) takes the lock of the
 * domain, which libvirtd does not hold while it waits for a monitor, and no job; since events of
 * the balloon are there (QEMU 1.2) libvirtd does not ask QEMU for the size of its memory either.
 *
 * A guest may have taken the service over, so the service must not be able to keep the front
 * waiting, by not reading or by reading slowly. Nothing that is sent blocks: what a socket has no
 * room for waits in a queue, and while something does, nothing is read from that client. So at most
 * one answer (and its descriptor) waits, and events; a client that lets thousands of them wait has
 * hung, and ends the broker. Each turn of the loop takes one request from each client.
 *
 * One timer connects to libvirt and does so again every two seconds while libvirt is away. A lost
 * connection is noticed by its close callback (keepalive messages find a libvirtd that hangs),
 * which only sets the timer off: closing a connection inside its own callback is not safe.
 */
#include "common/log.h"
#include "host-service/broker/additions.h"
#include "host-service/broker/broker_domains.h"
#include "host-service/daemon/process.h"
#include "host-service/daemon/sandbox.h"
#include "host-service/wire/packet.h"
#include "host-service/wire/packet_queue.h"
#include "host-service/wire/received_fds.h"
#include <errno.h>
#include <glib-unix.h>
#include <libvirt/virterror.h>
#include <linux/capability.h>
#include <unistd.h>

#define RECONNECT_MS         2000
#define KEEPALIVE_SECONDS    5
#define KEEPALIVE_UNANSWERED 3
#define MAX_UNREAD           8192 /* messages, of some 1.5 KiB each */

typedef struct Server Server;

typedef struct Client {
	Server *server;
	PfBrokerClient which;
	int fd;              /* nonblocking */
	int watch;           /* of libvirt's event loop */
	PfPacketQueue queue; /* of PfBrokerMessage */
} Client;

struct Server {
	Client service, front;
	const PfBrokerConfig *config;
	virConnectPtr connection; /* NULL while libvirt is away */
	PfBrokerDomains *domains;
	PfBrokerThreads *translations;   /* the service's */
	PfBrokerThreads *changes;        /* the front's */
	int timer;                       /* of connecting */
	bool lost;                       /* the connection was closed from the other side */
	bool ended;                      /* leave the main loop */
	bool failed;                     /* and with an error */
	char reason[PF_BROKER_MAX_TEXT]; /* why libvirt is away, as last told */
};

static const char *client_name(const Client *client)
{
	return client->which == PF_BROKER_CLIENT_SERVICE ? "service" : "front";
}

static void fail_client(Client *client, const char *what)
{
	pf_error("broker: the %s %s; ending", client_name(client), what);
	client->server->ended = client->server->failed = true;
}

/* Sends what the socket takes. */
static void flush_queue(Client *client)
{
	int r = pf_packet_queue_flush(&client->queue, client->fd);

	if (r == -EOVERFLOW && !client->server->ended)
		fail_client(client, "does not read");
	/* The client has gone: nothing is left to do. */
	else if (r < 0 && r != -EAGAIN)
		client->server->ended = true;
	virEventUpdateHandle(client->watch,
		VIR_EVENT_HANDLE_HANGUP | VIR_EVENT_HANDLE_ERROR |
			(pf_packet_queue_is_empty(&client->queue) ? VIR_EVENT_HANDLE_READABLE
								  : VIR_EVENT_HANDLE_WRITABLE));
}

/* fd is consumed; -1: none. */
static void send_message(Client *client, PfBrokerMessage *message, int fd)
{
	message->magic = PF_BROKER_MAGIC;
	pf_packet_queue_put(&client->queue, message, sizeof(*message), fd);
	flush_queue(client);
}

static void emit(void *userdata, PfBrokerMessage *event)
{
	Server *server = userdata;

	event->error = -1;
	send_message(&server->service, event, -1);
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

static void send_answer(Client *client, PfBrokerMessage *answer, int fd, const GError *error)
{
	if (error) {
		answer->error = error->code;
		g_strlcpy(answer->text, error->message, sizeof(answer->text));
	}
	send_message(client, answer, fd);
}

static void on_translated(void *userdata, PfBrokerMessage *answer, const GError *error)
{
	Server *server = userdata;

	send_answer(&server->service, answer, -1, error);
}

static void on_changed(void *userdata, PfBrokerMessage *answer, const GError *error)
{
	Server *server = userdata;

	send_answer(&server->front, answer, -1, error);
}

/* Whether it is answered later. *fd: the descriptor that is the answer, or -1. */
static gboolean dispatch(Server *server, const PfBrokerRequest *request, PfBrokerMessage *answer,
	int *fd, GError **error)
{
	switch (request->type) {
	case PF_BROKER_OPEN_USERFAULTFD:
		*fd = pf_broker_serve_userfaultfd(server->domains, request->vm, error);
		return FALSE;
	case PF_BROKER_OPEN_CHANNEL:
		*fd = pf_broker_serve_channel(server->domains, request->vm, error);
		return FALSE;
	case PF_BROKER_TRANSLATE:
		return pf_broker_serve_translate(
			server->domains, server->connection, server->translations, request, error);
	case PF_BROKER_MODIFY:
		pf_broker_serve_modify(
			server->domains, server->connection, server->config, request, error);
		return FALSE;
	default: /* of the guest additions: the request was checked */
		return pf_broker_serve_additions(server->connection, server->changes,
			server->config, request, answer, error);
	}
}

static void answer_request(Client *client, const PfBrokerRequest *request)
{
	PfBrokerMessage answer = {.type = PF_BROKER_ANSWER, .id = request->id, .error = -1};
	g_autoptr(GError) error = NULL;
	int fd = -1;

	if (!dispatch(client->server, request, &answer, &fd, &error))
		send_answer(client, &answer, fd, error);
}

static bool is_request(
	const Client *client, const PfBrokerRequest *request, size_t size, size_t n_fds)
{
	return pf_broker_check_request(request, size, n_fds) &&
	       pf_broker_may_ask(client->which, request->type);
}

static void read_request(Client *client)
{
	PfBrokerRequest request;
	size_t n_fds;
	int received;
	ssize_t n = pf_packet_receive(client->fd, &request, sizeof(request), &received, &n_fds);

	if (received >= 0)
		pf_received_fds_close_later(received);
	if (n > 0 && is_request(client, &request, (size_t)n, n_fds))
		answer_request(client, &request);
	else if (n > 0)
		fail_client(client, "sent something that is no request of it");
	else if (n != -EAGAIN)
		client->server->ended = true;
}

static void on_socket(int watch, int fd, int events, void *opaque)
{
	Client *client = opaque;

	if (pf_packet_queue_is_empty(&client->queue))
		read_request(client);
	else
		flush_queue(client);
}

static void ignore_libvirt_error(void *userdata, virErrorPtr error)
{
}

static bool is_session_uri(const char *uri)
{
	return g_str_has_suffix(uri, "/session") || strstr(uri, "/session?");
}

static void add_client(Server *server, Client *client, PfBrokerClient which, int fd)
{
	*client = (Client){.server = server, .which = which, .fd = fd};
	pf_packet_queue_init(&client->queue, MAX_UNREAD);
	g_unix_set_fd_nonblocking(fd, TRUE, NULL);
	client->watch = virEventAddHandle(fd,
		VIR_EVENT_HANDLE_READABLE | VIR_EVENT_HANDLE_HANGUP | VIR_EVENT_HANDLE_ERROR,
		on_socket, client, NULL);
	if (client->watch < 0)
		server->ended = server->failed = true;
}

static void remove_client(Client *client)
{
	virEventRemoveHandle(client->watch);
	pf_packet_queue_clear(&client->queue);
}

static void run(Server *server, PfBrokerSockets sockets)
{
	add_client(server, &server->service, PF_BROKER_CLIENT_SERVICE, sockets.service);
	add_client(server, &server->front, PF_BROKER_CLIENT_FRONT, sockets.front);
	server->timer = virEventAddTimeout(-1, on_connect_timer, server, NULL);
	server->domains = pf_broker_domains_new(emit, server);
	server->translations = pf_broker_threads_new(
		server->config->uri, PF_BROKER_TRANSLATE_THREADS, on_translated, server);
	server->changes = pf_broker_threads_new(
		server->config->uri, PF_BROKER_CHANGE_THREADS, on_changed, server);
	if (!server->translations || !server->changes)
		server->ended = server->failed = true;
	if (is_session_uri(server->config->uri))
		tell_away(server, "page fusion needs the system daemon: use qemu:///system");
	else
		virEventUpdateTimeout(server->timer, 0);
	while (!server->ended)
		if (virEventRunDefaultImpl() < 0)
			server->ended = server->failed = true;
	pf_broker_threads_free(server->translations);
	pf_broker_threads_free(server->changes);
	disconnect(server);
	pf_broker_domains_free(server->domains);
	virEventRemoveTimeout(server->timer);
	remove_client(&server->service);
	remove_client(&server->front);
}

int pf_broker_serve(PfBrokerSockets sockets, const PfBrokerConfig *config)
{
	Server server = {.config = config};

	virSetErrorFunc(NULL, ignore_libvirt_error);
	if (virInitialize() < 0 || virEventRegisterDefaultImpl() < 0) {
		pf_error("broker: libvirt cannot be initialised: %s", virGetLastErrorMessage());
		server.failed = true;
	} else {
		run(&server, sockets);
	}
	close(sockets.service);
	close(sockets.front);
	return server.failed ? 1 : 0;
}

typedef struct Start {
	const PfBrokerConfig *config;
	PfBrokerSockets sockets; /* the broker's ends */
} Start;

/*
 * libvirt, QEMU's sockets and the files of disks are reached through directories and with rights that are not root's
 * own, so to speak with libvirt as root is not all that it takes.
 */
static int become_broker(void *userdata)
{
	static const int needed[] = {CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, -1};
	const Start *start = userdata;
	g_autoptr(GError) error = NULL;

	if (pf_sandbox_keep_capabilities(needed, &error))
		return pf_broker_serve(start->sockets, start->config);
	pf_error("broker: %s", error->message);
	return 1;
}

static void close_pair(const int fds[2])
{
	close(fds[0]);
	close(fds[1]);
}

pid_t pf_broker_spawn(const PfBrokerConfig *config, PfBrokerSockets *sockets, GError **error)
{
	int service[2], front[2];
	pid_t broker;

	if (!pf_process_socket_pair(service, error))
		return -1;
	if (!pf_process_socket_pair(front, error)) {
		close_pair(service);
		return -1;
	}
	broker = pf_process_start("pf-broker", (const int[]){service[1], front[1], -1},
		become_broker, &(Start){config, {service[1], front[1]}}, error);
	if (broker < 0) {
		close_pair(service);
		close_pair(front);
		return -1;
	}
	close(service[1]);
	close(front[1]);
	*sockets = (PfBrokerSockets){service[0], front[0]};
	return broker;
}
