/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The broker of the toy VMs. Requests are served by one thread that blocks in the socket; events
 * are sent by whoever calls. A packet is atomic, so the two need no lock between them but for the
 * tables. Stopping shuts the socket down, which ends the thread's wait.
 */
#include "tests/vmm/toy_broker.h"
#include "host-service/wire/broker_protocol.h"
#include "host-service/wire/packet.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef struct ToyVm {
	PfDomain domain;
	GArray *memory; /* of ToyRange */
} ToyVm;

struct ToyBroker {
	int fd;
	GThread *thread;
	GMutex lock;
	GHashTable *vms; /* uuid to ToyVm, owned; under lock */
};

static void toy_vm_free(gpointer data)
{
	ToyVm *vm = data;

	g_array_unref(vm->memory);
	g_free(vm);
}

static void send_message(ToyBroker *toy, PfBrokerMessage *message, int fd)
{
	message->magic = PF_BROKER_MAGIC;
	/* The service may end first: then nobody wants the answer. */
	(void)pf_packet_send(toy->fd, message, sizeof(*message), fd);
}

static int fail(PfBrokerMessage *answer, GIOErrorEnum code, const char *text)
{
	answer->error = code;
	g_strlcpy(answer->text, text, sizeof(answer->text));
	return -1;
}

static int open_userfaultfd(PfBrokerMessage *answer)
{
	int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

	return fd >= 0 ? fd : fail(answer, g_io_error_from_errno(errno), "no /dev/userfaultfd");
}

static int open_channel(const ToyVm *vm, PfBrokerMessage *answer)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	g_strlcpy(address.sun_path, vm->domain.channel, sizeof(address.sun_path));
	if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
		return fd;
	fail(answer, g_io_error_from_errno(errno), "the toy VM's channel cannot be opened");
	if (fd >= 0)
		close(fd);
	return -1;
}

static PfHva translate_range(const ToyVm *vm, const PfGuestRange *range)
{
	for (guint i = 0; i < vm->memory->len; i++) {
		const ToyRange *memory = &g_array_index(vm->memory, ToyRange, i);
		uint64_t page = range->first.v - memory->first.v;

		if (range->first.v >= memory->first.v && page < memory->n_pages &&
			range->n_pages <= memory->n_pages - page)
			return (PfHva){memory->hva.v + (page << PF_PAGE_SHIFT)};
	}
	return (PfHva){0};
}

static void translate(const ToyVm *vm, const PfBrokerRequest *request, PfBrokerMessage *answer)
{
	answer->n_hvas = request->n_ranges;
	for (uint32_t i = 0; i < request->n_ranges; i++)
		answer->body.hvas[i] = translate_range(vm, &request->ranges[i]);
}

static ToyVm *find(ToyBroker *toy, const char *name_or_uuid)
{
	ToyVm *vm = g_hash_table_lookup(toy->vms, name_or_uuid);
	GHashTableIter iter;
	gpointer value;

	g_hash_table_iter_init(&iter, toy->vms);
	while (!vm && g_hash_table_iter_next(&iter, NULL, &value))
		if (strcmp(((ToyVm *)value)->domain.name, name_or_uuid) == 0)
			vm = value;
	return vm;
}

static void modify(
	ToyBroker *toy, ToyVm *vm, const PfBrokerRequest *request, PfBrokerMessage *answer)
{
	PfBrokerMessage event = {.type = PF_BROKER_DOMAIN, .error = -1};

	if (vm->domain.active) {
		fail(answer, G_IO_ERROR_BUSY, "the toy VM is running");
		return;
	}
	if (request->changes & PF_VM_SET_ENABLED)
		vm->domain.enabled = request->enabled == 1;
	if (request->changes & PF_VM_SET_THP)
		vm->domain.thp = (PfThp)request->thp;
	event.body.domain = vm->domain;
	send_message(toy, &event, -1);
}

static int answer_request(ToyBroker *toy, const PfBrokerRequest *request, PfBrokerMessage *answer)
{
	ToyVm *vm = find(toy, request->vm);
	int fd = -1;

	if (!vm)
		return fail(answer, G_IO_ERROR_NOT_FOUND, "no such toy VM");
	if (request->type == PF_BROKER_OPEN_USERFAULTFD)
		return open_userfaultfd(answer);
	if (request->type == PF_BROKER_OPEN_CHANNEL)
		fd = open_channel(vm, answer);
	else if (request->type == PF_BROKER_TRANSLATE)
		translate(vm, request, answer);
	else
		modify(toy, vm, request, answer);
	return fd;
}

static gpointer serve(gpointer data)
{
	ToyBroker *toy = data;
	PfBrokerRequest request;
	size_t n_fds;
	int fd;

	for (;;) {
		PfBrokerMessage answer = {.type = PF_BROKER_ANSWER, .error = -1};
		ssize_t n = pf_packet_receive(toy->fd, &request, sizeof(request), &fd, &n_fds);

		if (n <= 0)
			return NULL;
		if (!pf_broker_check_request(&request, (size_t)n, n_fds))
			g_error("the service sent a request that a real broker refuses");
		answer.id = request.id;
		g_mutex_lock(&toy->lock);
		fd = answer_request(toy, &request, &answer);
		g_mutex_unlock(&toy->lock);
		send_message(toy, &answer, fd);
		if (fd >= 0)
			close(fd);
	}
}

ToyBroker *toy_broker_start(int *service_fd)
{
	ToyBroker *toy = g_new0(ToyBroker, 1);
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
		g_error("socketpair: %s", g_strerror(errno));
	*service_fd = fds[0];
	toy->fd = fds[1];
	toy->vms = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, toy_vm_free);
	g_mutex_init(&toy->lock);
	toy->thread = g_thread_new("toy-broker", serve, toy);
	return toy;
}

void toy_broker_stop(ToyBroker *toy)
{
	shutdown(toy->fd, SHUT_RDWR);
	g_thread_join(toy->thread);
	close(toy->fd);
	g_hash_table_unref(toy->vms);
	g_mutex_clear(&toy->lock);
	g_free(toy);
}

void toy_broker_set_domain(ToyBroker *toy, const PfDomain *domain)
{
	PfBrokerMessage event = {.type = PF_BROKER_DOMAIN, .error = -1, .body.domain = *domain};
	ToyVm *vm;

	g_mutex_lock(&toy->lock);
	vm = g_hash_table_lookup(toy->vms, domain->uuid);
	if (!vm) {
		vm = g_new0(ToyVm, 1);
		vm->memory = g_array_new(FALSE, FALSE, sizeof(ToyRange));
		g_hash_table_insert(toy->vms, g_strdup(domain->uuid), vm);
	}
	vm->domain = *domain;
	send_message(toy, &event, -1);
	g_mutex_unlock(&toy->lock);
}

void toy_broker_remove_domain(ToyBroker *toy, const char *uuid)
{
	PfBrokerMessage event = {.type = PF_BROKER_GONE, .error = -1};

	g_strlcpy(event.body.domain.uuid, uuid, sizeof(event.body.domain.uuid));
	g_mutex_lock(&toy->lock);
	g_hash_table_remove(toy->vms, uuid);
	send_message(toy, &event, -1);
	g_mutex_unlock(&toy->lock);
}

void toy_broker_set_memory(
	ToyBroker *toy, const char *uuid, const ToyRange *ranges, size_t n_ranges)
{
	ToyVm *vm;

	g_mutex_lock(&toy->lock);
	vm = g_hash_table_lookup(toy->vms, uuid);
	if (!vm)
		g_error("toy_broker_set_memory: no domain %s", uuid);
	g_array_set_size(vm->memory, 0);
	g_array_append_vals(vm->memory, ranges, (guint)n_ranges);
	g_mutex_unlock(&toy->lock);
}

void toy_broker_set_libvirt(ToyBroker *toy, gboolean connected, const char *reason)
{
	PfBrokerMessage event = {.error = -1};

	event.type = connected ? PF_BROKER_CONNECTED : PF_BROKER_LIBVIRT_AWAY;
	g_strlcpy(event.text, reason, sizeof(event.text));
	send_message(toy, &event, -1);
}
