/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A shim may be faster than libvirt's event about its VM, so unmatched ones wait a while; a timer ends that, whether or
 * not anything else happens. Any user may connect: of those who wait, whoever has most loses first, so nobody crowds out
 * another user's shims.
 *
 * Before they are let in, connections stand in a queue of the kernel's, and who finds that full waits in connect(). The
 * faster they are let in the less a crowd delays a shim, so as many are as a share of the processor allows. They have
 * their turn after messages and together with orders. What they bring unread is closed in another thread; while too much
 * of that is not closed yet nobody is let in.
 */
#include "host-service/service/shim_listener.h"
#include "host-service/service/cpu_time.h"
#include "host-service/service/log_limit.h"
#include "host-service/wire/received_fds.h"
#include <errno.h>
#include <glib-unix.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_UNMATCHED    128 /* shims that no VM is known for */
#define ACCEPT_RETRY_MS  1000
#define ACCEPTS_A_TURN   16
#define CPU_PERCENT      10
#define MAX_CLOSING      32
#define CLOSING_PAUSE_MS 1

typedef struct Unmatched {
	PfShimLink *link;
	gint64 since_us;
} Unmatched;

struct PfShimListener {
	PfVm *(*find_vm)(void *userdata, pid_t pid);
	void *userdata;
	int listener;
	guint wait_ms;
	guint source;
	PfQuota quota;
	guint timer; /* while somebody waits */
	PfLogLimit log;
	GQueue unmatched;   /* of Unmatched, the oldest first */
	GHashTable *users;  /* how many of them a user has */
	gint64 stranger_us; /* when one was last turned away; G_MININT64: never */
};

static void free_unmatched(gpointer data)
{
	Unmatched *unmatched = data;

	pf_shim_link_free(unmatched->link);
	g_free(unmatched);
}

static gboolean on_timer(gpointer userdata);

/* Until the oldest has waited long enough; who came later may be the oldest then. */
static void arm_timer(PfShimListener *listener)
{
	const Unmatched *oldest = g_queue_peek_head(&listener->unmatched);
	gint64 left_us;

	g_clear_handle_id(&listener->timer, g_source_remove);
	if (!oldest)
		return;
	left_us = oldest->since_us + listener->wait_ms * (gint64)1000 - g_get_monotonic_time();
	listener->timer = g_timeout_add((guint)(MAX(left_us, 0) / 1000) + 1, on_timer, listener);
}

static gboolean is_late(const PfShimListener *listener, const Unmatched *unmatched, gint64 now_us)
{
	return now_us - unmatched->since_us >= listener->wait_ms * (gint64)1000;
}

static void count(PfShimListener *listener, uid_t uid, int more)
{
	gpointer key = GUINT_TO_POINTER(uid);
	int n = GPOINTER_TO_INT(g_hash_table_lookup(listener->users, key)) + more;

	if (n > 0)
		g_hash_table_insert(listener->users, key, GINT_TO_POINTER(n));
	else
		g_hash_table_remove(listener->users, key);
}

static Unmatched *take_out(PfShimListener *listener, GList *item)
{
	Unmatched *unmatched = item->data;

	g_queue_delete_link(&listener->unmatched, item);
	count(listener, pf_shim_link_uid(unmatched->link), -1);
	return unmatched;
}

void pf_shim_listener_match(PfShimListener *listener)
{
	gint64 now = g_get_monotonic_time();

	for (GList *item = listener->unmatched.head, *next; item; item = next) {
		Unmatched *unmatched = item->data;
		PfVm *vm = listener->find_vm(listener->userdata, pf_shim_link_pid(unmatched->link));
		gboolean alive = pf_shim_link_is_alive(unmatched->link);

		next = item->next;
		if (!vm && alive && !is_late(listener, unmatched, now))
			continue;
		take_out(listener, item);
		/* Its number may be another process's by now. */
		if (vm && alive)
			pf_vm_take_shim(vm, g_steal_pointer(&unmatched->link));
		else
			listener->stranger_us = now;
		free_unmatched(unmatched);
	}
	arm_timer(listener);
}

static gboolean on_timer(gpointer userdata)
{
	PfShimListener *listener = userdata;

	listener->timer = 0;
	pf_shim_listener_match(listener);
	return G_SOURCE_REMOVE;
}

gboolean pf_shim_listener_is_quiet(const PfShimListener *listener, gint64 for_us)
{
	if (!g_queue_is_empty((GQueue *)&listener->unmatched))
		return FALSE;
	return listener->stranger_us == G_MININT64 ||
	       g_get_monotonic_time() - listener->stranger_us > for_us;
}

static uid_t who_has_most(const PfShimListener *listener)
{
	gpointer uid, n, most_uid = NULL;
	GHashTableIter iter;
	int most = 0;

	g_hash_table_iter_init(&iter, listener->users);
	while (g_hash_table_iter_next(&iter, &uid, &n)) {
		if (GPOINTER_TO_INT(n) <= most)
			continue;
		most = GPOINTER_TO_INT(n);
		most_uid = uid;
	}
	return (uid_t)GPOINTER_TO_UINT(most_uid);
}

/* The oldest of whoever has most. */
static void drop_one(PfShimListener *listener)
{
	uid_t uid = who_has_most(listener);
	GList *item = listener->unmatched.head;

	while (pf_shim_link_uid(((const Unmatched *)item->data)->link) != uid)
		item = item->next;
	free_unmatched(take_out(listener, item));
	listener->stranger_us = g_get_monotonic_time();
}

static gboolean on_connection(gint fd, GIOCondition condition, gpointer userdata);

static void watch(PfShimListener *listener)
{
	listener->source = g_unix_fd_add_full(G_PRIORITY_DEFAULT_IDLE, listener->listener, G_IO_IN,
		on_connection, listener, NULL);
}

static gboolean on_accept_again(gpointer userdata)
{
	watch(userdata);
	return G_SOURCE_REMOVE;
}

static gboolean accept_later(PfShimListener *listener, guint ms)
{
	listener->source = g_timeout_add(ms, on_accept_again, listener);
	return G_SOURCE_REMOVE;
}

static void add(PfShimListener *listener, PfShimLink *link)
{
	PfVm *vm = listener->find_vm(listener->userdata, pf_shim_link_pid(link));
	Unmatched *unmatched;

	if (!pf_shim_link_is_alive(link)) {
		pf_shim_link_free(link);
		listener->stranger_us = g_get_monotonic_time();
		return;
	}
	if (vm) {
		pf_vm_take_shim(vm, link);
		return;
	}
	unmatched = g_new(Unmatched, 1);
	*unmatched = (Unmatched){link, g_get_monotonic_time()};
	g_queue_push_tail(&listener->unmatched, unmatched);
	count(listener, pf_shim_link_uid(link), 1);
	if (g_queue_get_length(&listener->unmatched) > MAX_UNMATCHED)
		drop_one(listener);
	if (!listener->timer)
		arm_timer(listener);
}

/* 0 or -errno; -EAGAIN: there is none. */
static int let_one_in(PfShimListener *listener)
{
	g_autoptr(GError) error = NULL;
	int peer = accept4(listener->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	PfShimLink *link;

	if (peer < 0)
		return errno == EINTR || errno == ECONNABORTED ? 0 : -errno;
	link = pf_shim_link_new(peer, &error);
	if (link)
		add(listener, link);
	else
		pf_log_limited(&listener->log, PF_LOG_WARNING, "%s", error->message);
	return 0;
}

static gboolean on_connection(gint fd, GIOCondition condition, gpointer userdata)
{
	PfShimListener *listener = userdata;
	uint64_t cpu_us = pf_cpu_time_us();
	gint64 wait_us;
	int error = 0;

	if (pf_closer_n_pending(NULL) > MAX_CLOSING)
		return accept_later(listener, CLOSING_PAUSE_MS);
	for (int i = 0; i < ACCEPTS_A_TURN && error == 0; i++)
		error = let_one_in(listener);
	/* Without descriptors left the socket would stay readable, and nothing else have its turn. */
	if (error < 0 && error != -EAGAIN) {
		pf_log_limited(&listener->log, PF_LOG_WARNING, "a shim cannot be let in: %s",
			g_strerror(-error));
		return accept_later(listener, ACCEPT_RETRY_MS);
	}
	wait_us = pf_quota_spend(&listener->quota, 0, 0,
		pf_cpu_time_us() - cpu_us + PF_QUOTA_TURN_US, g_get_monotonic_time());
	return wait_us > 0 ? accept_later(listener, (guint)(wait_us / 1000 + 1))
			   : G_SOURCE_CONTINUE;
}

PfShimListener *pf_shim_listener_new(
	int fd, guint wait_ms, PfVm *(*find_vm)(void *userdata, pid_t pid), void *userdata)
{
	PfShimListener *listener = g_new0(PfShimListener, 1);
	PfPolicy policy = PF_POLICY_DEFAULTS;

	policy.cpu_percent = CPU_PERCENT;
	pf_quota_init(&listener->quota, &policy, g_get_monotonic_time());
	listener->wait_ms = wait_ms;
	listener->find_vm = find_vm;
	listener->userdata = userdata;
	listener->stranger_us = G_MININT64;
	listener->listener = fd;
	pf_log_limit_init(&listener->log, "the shims' socket", g_get_monotonic_time());
	g_queue_init(&listener->unmatched);
	listener->users = g_hash_table_new(NULL, NULL);
	watch(listener);
	return listener;
}

void pf_shim_listener_free(PfShimListener *listener)
{
	if (!listener)
		return;
	g_clear_handle_id(&listener->source, g_source_remove);
	g_clear_handle_id(&listener->timer, g_source_remove);
	g_queue_clear_full(&listener->unmatched, free_unmatched);
	g_hash_table_unref(listener->users);
	/* With connections that nobody has let in. */
	pf_received_fds_close_later(listener->listener);
	g_free(listener);
}
