/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A QEMU that a guest has broken out into need not answer its monitor, and libvirt waits for ever. So each request that
 * may need a monitor has a thread, which may hang until that QEMU ends; the broker's own thread goes on meanwhile, and
 * sends the answers: an eventfd tells it that there are some. One request of a VM at a time is under way, so one VM can
 * hang one thread.
 *
 * A thread has a connection of its own. libvirtd serves a handful of calls of a connection at a time
 * (max_client_requests, 5), so calls that hang would stop the one that the broker reads and changes definitions
 * through. It has not many more threads for all its clients together (max_workers, 20), and reading a definition
 * needs one of them: so no more than max_threads are asked for at a time, and other requests wait here until one is
 * done. With so many QEMUs that hang, nobody else's request is served until one of them ends; nothing else is held up.
 */
#include "host-service/broker/broker_threads.h"
#include "host-service/broker/broker_domains.h"
#include <sys/eventfd.h>
#include <unistd.h>

#define KEEPALIVE_SECONDS    5
#define KEEPALIVE_UNANSWERED 3

/* Counted references: one is the owner's, one each thread's. What has no other note is the broker's own thread's. */
struct PfBrokerThreads {
	const char *uri;
	guint max_threads;
	void (*answered)(void *userdata, PfBrokerMessage *answer, const GError *error);
	void *userdata;
	GHashTable *vms; /* UUIDs, owned: those with a request that waits or is under way */
	GQueue waiting;  /* of Job, owned */
	guint n_threads;
	int watch;   /* of libvirt's event loop */
	int done_fd; /* an eventfd, readable when there is something in: */
	GMutex lock;
	GQueue done; /* of Job, owned; under lock */
};

typedef struct Job {
	PfBrokerThreads *threads;
	char *uuid, *name;
	PfBrokerWork work;
	const void *data;
	PfBrokerRequest request;
	PfBrokerMessage answer;
	GError *error;
} Job;

static void free_job(gpointer data)
{
	Job *job = data;

	g_free(job->uuid);
	g_free(job->name);
	g_clear_error(&job->error);
	g_free(job);
}

static void finish(gpointer data)
{
	PfBrokerThreads *threads = data;

	g_queue_clear_full(&threads->done, free_job);
	g_mutex_clear(&threads->lock);
	close(threads->done_fd);
}

static void unref(PfBrokerThreads *threads)
{
	g_atomic_rc_box_release_full(threads, finish);
}

/* In a thread */

static void connect_and_work(Job *job)
{
	virConnectPtr connection = virConnectOpen(job->threads->uri);

	if (!connection) {
		pf_broker_set_libvirt_error(&job->error, G_IO_ERROR_NOT_CONNECTED,
			"libvirt cannot be asked about VM", job->name);
		return;
	}
	/* So that a libvirtd that hangs, or goes, ends the call. */
	virConnectSetKeepAlive(connection, KEEPALIVE_SECONDS, KEEPALIVE_UNANSWERED);
	job->work(connection, &job->request, job->name, job->data, &job->answer, &job->error);
	virConnectClose(connection);
}

static gpointer run_job(gpointer data)
{
	Job *job = data;
	PfBrokerThreads *threads = job->threads;

	connect_and_work(job);
	g_mutex_lock(&threads->lock);
	g_queue_push_tail(&threads->done, job);
	g_mutex_unlock(&threads->lock);
	eventfd_write(threads->done_fd, 1);
	unref(threads);
	return NULL;
}

/* In the broker's own thread */

static void answer(PfBrokerThreads *threads, Job *job)
{
	g_hash_table_remove(threads->vms, job->uuid);
	threads->answered(threads->userdata, &job->answer, job->error);
	free_job(job);
}

static void start(PfBrokerThreads *threads, Job *job)
{
	GThread *thread;

	g_atomic_rc_box_acquire(threads);
	thread = g_thread_try_new("pf-broker-ask", run_job, job, &job->error);
	if (thread) {
		threads->n_threads++;
		g_thread_unref(thread);
		return;
	}
	unref(threads);
	answer(threads, job);
}

static void start_some(PfBrokerThreads *threads)
{
	while (threads->n_threads < threads->max_threads && !g_queue_is_empty(&threads->waiting))
		start(threads, g_queue_pop_head(&threads->waiting));
}

static Job *next_done(PfBrokerThreads *threads)
{
	Job *job;

	g_mutex_lock(&threads->lock);
	job = g_queue_pop_head(&threads->done);
	g_mutex_unlock(&threads->lock);
	return job;
}

static void on_done(int watch, int fd, int events, void *opaque)
{
	PfBrokerThreads *threads = opaque;
	eventfd_t n;
	Job *job;

	eventfd_read(fd, &n);
	while ((job = next_done(threads))) {
		threads->n_threads--;
		answer(threads, job);
	}
	start_some(threads);
}

PfBrokerThreads *pf_broker_threads_new(const char *uri, guint max_threads,
	void (*answered)(void *userdata, PfBrokerMessage *answer, const GError *error),
	void *userdata)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	PfBrokerThreads *threads;

	if (fd < 0)
		return NULL;
	threads = g_atomic_rc_box_new0(PfBrokerThreads);
	threads->uri = uri;
	threads->max_threads = max_threads;
	threads->answered = answered;
	threads->userdata = userdata;
	threads->vms = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	threads->done_fd = fd;
	g_mutex_init(&threads->lock);
	threads->watch = virEventAddHandle(fd, VIR_EVENT_HANDLE_READABLE, on_done, threads, NULL);
	return threads;
}

void pf_broker_threads_free(PfBrokerThreads *threads)
{
	if (!threads)
		return;
	virEventRemoveHandle(threads->watch);
	g_queue_clear_full(&threads->waiting, free_job);
	g_hash_table_unref(threads->vms);
	unref(threads);
}

gboolean pf_broker_threads_begin(PfBrokerThreads *threads, const PfBrokerRequest *request,
	const char *uuid, const char *name, PfBrokerWork work, const void *data)
{
	Job *job;

	if (!g_hash_table_add(threads->vms, g_strdup(uuid)))
		return FALSE;
	job = g_new0(Job, 1);
	*job = (Job){.threads = threads,
		.uuid = g_strdup(uuid),
		.name = g_strdup(name),
		.work = work,
		.data = data,
		.request = *request};
	job->answer = (PfBrokerMessage){.type = PF_BROKER_ANSWER, .id = request->id, .error = -1};
	g_queue_push_tail(&threads->waiting, job);
	start_some(threads);
	return TRUE;
}
