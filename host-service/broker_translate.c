/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A QEMU that a guest has broken out into need not answer its monitor, and libvirt waits for ever. So each request
 * has a thread, which may hang until that QEMU ends; the broker's own thread goes on meanwhile, and sends the
 * answers: an eventfd tells it that there are some. One request of a VM at a time is under way, so one VM can hang
 * one thread.
 *
 * A thread has a connection of its own. libvirtd serves a handful of calls of a connection at a time
 * (max_client_requests, 5), so calls that hang would stop the one that the broker reads and changes definitions
 * through. It has not many more threads for all its clients together (max_workers, 20), and reading a definition
 * needs one of them: so no more than MAX_THREADS are asked for at a time, and other requests wait here until one is
 * done. With so many QEMUs that hang, no other guest's memory is found until one of them ends; nothing else is held
 * up.
 *
 * Guest memory is linear in QEMU between the ends of a range that the guest names, or the range is not translated. The
 * guest's numbers were checked by pf_broker_check_request(); whether there is RAM in the middle, and whether it is the
 * guest's own, the shim checks for each order.
 */
#include "host-service/broker_translate.h"
#include "host-service/broker_domains.h"
#include "host-service/qemu_process.h"
#include <inttypes.h>
#include <libvirt/libvirt-qemu.h>
#include <libvirt/virterror.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MAX_THREADS          8
#define KEEPALIVE_SECONDS    5
#define KEEPALIVE_UNANSWERED 3

/* Counted references: one is the owner's, one each thread's. What has no other note is the broker's own thread's. */
struct PfBrokerTranslator {
	const char *uri;
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
	PfBrokerTranslator *translator;
	char *name;
	PfBrokerRequest request;
	PfBrokerMessage answer;
	GError *error;
} Job;

static void free_job(gpointer data)
{
	Job *job = data;

	g_free(job->name);
	g_clear_error(&job->error);
	g_free(job);
}

static void finish(gpointer data)
{
	PfBrokerTranslator *translator = data;

	g_queue_clear_full(&translator->done, free_job);
	g_mutex_clear(&translator->lock);
	close(translator->done_fd);
}

static void unref(PfBrokerTranslator *translator)
{
	g_atomic_rc_box_release_full(translator, finish);
}

/* In a thread */

/* Where a page lies: v = 0 when it is no RAM. FALSE: the monitor could not be asked. */
static gboolean ask_hva(virDomainPtr handle, uint64_t gpa, PfHva *hva)
{
	g_autofree char *command = g_strdup_printf("gpa2hva 0x%" PRIx64, gpa);
	char *reply = NULL;

	if (virDomainQemuMonitorCommand(
		    handle, command, &reply, VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP) < 0)
		return FALSE;
	if (!pf_qemu_parse_gpa2hva(reply, gpa, hva))
		hva->v = 0;
	free(reply);
	return TRUE;
}

static gboolean ask_range(virDomainPtr handle, const PfGuestRange *range, PfHva *hva)
{
	uint64_t first = range->first.v << PF_PAGE_SHIFT;
	uint64_t distance = (range->n_pages - 1) << PF_PAGE_SHIFT;
	PfHva last;

	if (!ask_hva(handle, first, hva))
		return FALSE;
	if (hva->v == 0 || distance == 0)
		return TRUE;
	if (!ask_hva(handle, first + distance, &last))
		return FALSE;
	if (last.v < hva->v || last.v - hva->v != distance)
		hva->v = 0;
	return TRUE;
}

static void ask(virConnectPtr connection, Job *job)
{
	const PfBrokerRequest *request = &job->request;
	virDomainPtr handle = virDomainLookupByUUIDString(connection, request->vm);
	gboolean asked = handle != NULL;

	for (uint32_t i = 0; asked && i < request->n_ranges; i++)
		asked = ask_range(handle, &request->ranges[i], &job->answer.body.hvas[i]);
	if (asked)
		job->answer.n_hvas = request->n_ranges;
	else
		pf_broker_set_libvirt_error(&job->error, G_IO_ERROR_FAILED,
			"QEMU's monitor does not say where the memory lies of VM", job->name);
	if (handle)
		virDomainFree(handle);
}

static void connect_and_ask(Job *job)
{
	virConnectPtr connection = virConnectOpen(job->translator->uri);

	if (!connection) {
		pf_broker_set_libvirt_error(&job->error, G_IO_ERROR_NOT_CONNECTED,
			"libvirt does not say where the memory lies of VM", job->name);
		return;
	}
	/* So that a libvirtd that hangs, or goes, ends the call. */
	virConnectSetKeepAlive(connection, KEEPALIVE_SECONDS, KEEPALIVE_UNANSWERED);
	ask(connection, job);
	virConnectClose(connection);
}

static gpointer work(gpointer data)
{
	Job *job = data;
	PfBrokerTranslator *translator = job->translator;

	connect_and_ask(job);
	g_mutex_lock(&translator->lock);
	g_queue_push_tail(&translator->done, job);
	g_mutex_unlock(&translator->lock);
	eventfd_write(translator->done_fd, 1);
	unref(translator);
	return NULL;
}

/* In the broker's own thread */

static void answer(PfBrokerTranslator *translator, Job *job)
{
	g_hash_table_remove(translator->vms, job->request.vm);
	translator->answered(translator->userdata, &job->answer, job->error);
	free_job(job);
}

static void start(PfBrokerTranslator *translator, Job *job)
{
	GThread *thread;

	g_atomic_rc_box_acquire(translator);
	thread = g_thread_try_new("translate", work, job, &job->error);
	if (thread) {
		translator->n_threads++;
		g_thread_unref(thread);
		return;
	}
	unref(translator);
	answer(translator, job);
}

static void start_some(PfBrokerTranslator *translator)
{
	while (translator->n_threads < MAX_THREADS && !g_queue_is_empty(&translator->waiting))
		start(translator, g_queue_pop_head(&translator->waiting));
}

static Job *next_done(PfBrokerTranslator *translator)
{
	Job *job;

	g_mutex_lock(&translator->lock);
	job = g_queue_pop_head(&translator->done);
	g_mutex_unlock(&translator->lock);
	return job;
}

static void on_done(int watch, int fd, int events, void *opaque)
{
	PfBrokerTranslator *translator = opaque;
	eventfd_t n;
	Job *job;

	eventfd_read(fd, &n);
	while ((job = next_done(translator))) {
		translator->n_threads--;
		answer(translator, job);
	}
	start_some(translator);
}

PfBrokerTranslator *pf_broker_translator_new(const char *uri,
	void (*answered)(void *userdata, PfBrokerMessage *answer, const GError *error),
	void *userdata)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	PfBrokerTranslator *translator;

	if (fd < 0)
		return NULL;
	translator = g_atomic_rc_box_new0(PfBrokerTranslator);
	translator->uri = uri;
	translator->answered = answered;
	translator->userdata = userdata;
	translator->vms = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	translator->done_fd = fd;
	g_mutex_init(&translator->lock);
	translator->watch =
		virEventAddHandle(fd, VIR_EVENT_HANDLE_READABLE, on_done, translator, NULL);
	return translator;
}

void pf_broker_translator_free(PfBrokerTranslator *translator)
{
	if (!translator)
		return;
	virEventRemoveHandle(translator->watch);
	g_queue_clear_full(&translator->waiting, free_job);
	g_hash_table_unref(translator->vms);
	unref(translator);
}

gboolean pf_broker_translator_begin(PfBrokerTranslator *translator, const PfBrokerRequest *request,
	const char *name, GError **error)
{
	Job *job;

	if (!g_hash_table_add(translator->vms, g_strdup(request->vm))) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY,
			"QEMU's monitor has not answered yet where the memory lies of VM %s", name);
		return FALSE;
	}
	job = g_new0(Job, 1);
	*job = (Job){.translator = translator, .name = g_strdup(name), .request = *request};
	job->answer = (PfBrokerMessage){.type = PF_BROKER_ANSWER, .id = request->id, .error = -1};
	g_queue_push_tail(&translator->waiting, job);
	start_some(translator);
	return TRUE;
}
