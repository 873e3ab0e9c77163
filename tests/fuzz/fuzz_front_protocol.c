/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a service that somebody has taken over sends to the front, and what the front makes of it on the bus. The low
 * bits of a record's operation say what it is: a packet as it stands, a message with a right header and the record's
 * bytes over a good body, or something that the front asks.
 */
#include "common/log.h"
#include "common/text.h"
#include "host-service/front/dbus_values.h"
#include "host-service/front/front.h"
#include "host-service/wire/front_protocol.h"
#include "host-service/wire/packet.h"
#include "tests/fuzz/records.h"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define REQUIRE(what)                                                                              \
	do {                                                                                       \
		if (!(what))                                                                       \
			abort();                                                                   \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { RAW, ASK, HOST, VM, END, KEEP, DROP, QUERY, N_KINDS };
enum { NO_FD, SEALED, NOT_SEALED, ANY_FILE, N_FDS };

static struct {
	int fds[N_FDS];
	PfFront *front;
	unsigned asked, answered, ended, kept;
} run = {.fds = {-1}};

/* Opened once: sending does not use them up. */
static void open_fds(void)
{
	if (run.fds[SEALED] > 0)
		return;
	pf_log_set_level(0);
	run.fds[SEALED] = memfd_create("store", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	REQUIRE(fcntl(run.fds[SEALED], F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	run.fds[NOT_SEALED] = memfd_create("store", MFD_CLOEXEC);
	run.fds[ANY_FILE] = open("/dev/null", O_RDWR | O_CLOEXEC);
	REQUIRE(run.fds[NOT_SEALED] > 0 && run.fds[ANY_FILE] > 0);
}

static void require_clean(const char *text)
{
	uint32_t character;

	while (*text) {
		size_t length = pf_text_decode(text, &character);

		REQUIRE(length > 0 && !pf_text_is_harmful(character));
		text += length;
	}
}

static void require_store_name(const char *name)
{
	REQUIRE(g_str_has_prefix(name, "store-") && strlen(name) == strlen("store-") + 32);
	REQUIRE(strspn(name + strlen("store-"), "0123456789abcdef") == 32);
}

static void on_keep(void *userdata, const char *name, int fd)
{
	REQUIRE(fcntl(fd, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW));
	require_store_name(name);
	REQUIRE(++run.kept <= PF_FRONT_MAX_STORES);
}

static void on_drop(void *userdata, const char *name)
{
	require_store_name(name);
	run.kept -= run.kept > 0;
}

static void on_closed(void *userdata)
{
	REQUIRE(run.ended++ == 0);
}

/* All that the bus is made of. */
static void show(const PfFrontAnswer *answer)
{
	const PfMetricQuery query = {PF_METRIC_OBJECT_ALL, UINT32_MAX};
	GVariantBuilder values;

	g_variant_builder_init(&values, G_VARIANT_TYPE(PF_DBUS_VALUES));
	pf_dbus_add_host_values(&values, &query, &answer->host);
	for (guint i = 0; i < answer->vms->len; i++) {
		const PfVmView *vm = g_ptr_array_index(answer->vms, i);

		REQUIRE(vm->figures.thp != PF_THP_DEFAULT);
		require_clean(vm->reason);
		require_clean(vm->agent_version);
		require_clean(vm->kernel);
		require_clean(vm->domain->uuid);
		require_clean(vm->domain->name);
		require_clean(vm->domain->group);
		require_clean(vm->domain->state);
		g_variant_unref(g_variant_ref_sink(pf_dbus_describe_vm(vm)));
		pf_dbus_add_vm_values(&values, &query, vm);
	}
	g_variant_builder_clear(&values);
}

/* userdata: whether one VM was asked for. */
static void on_answer(GObject *source, GAsyncResult *result, void *userdata)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(PfFrontAnswer) answer = pf_front_query_finish(result, &error);

	run.answered++;
	REQUIRE(!answer == !!error);
	if (!answer)
		return;
	require_clean(answer->reason);
	REQUIRE(!userdata || answer->vms->len == (answer->found ? 1 : 0));
	REQUIRE(userdata || answer->found);
	show(answer);
}

static void ask(const Record *record)
{
	g_autofree char *name =
		record->size > 1 ? g_strndup((const char *)record->bytes + 1, record->size - 1)
				 : NULL;
	guint want = record->size > 0 ? record->bytes[0] % 4 : 0;

	if (name)
		want |= PF_FRONT_WANT_VMS;
	run.asked++;
	pf_front_query(run.front, want, name, on_answer, name ? &run : NULL);
}

static void check_query(const Record *record)
{
	PfFrontQuery query = {.magic = PF_FRONT_MAGIC, .id = 1};

	memcpy(&query, record->bytes, MIN(record->size, sizeof(query)));
	if (!pf_front_check_query(&query, sizeof(query)))
		return;
	REQUIRE(query.id != 0 && memchr(query.vm, 0, sizeof(query.vm)));
	REQUIRE(!query.vm[0] || query.want & PF_FRONT_WANT_VMS);
}

/* Something that is good as it is. */
static PfFrontMessage good_message(unsigned kind)
{
	PfFrontMessage message = {.magic = PF_FRONT_MAGIC, .type = PF_FRONT_HOST + kind - HOST};

	if (kind == KEEP || kind == DROP)
		g_strlcpy(message.body.store, "store-0123456789abcdef0123456789abcdef",
			sizeof(message.body.store));
	else
		message.id = run.answered + 1;
	if (kind == VM)
		message.body.vm.figures.thp = PF_THP_BALANCED;
	if (kind == END)
		message.body.end = (PfFrontEnd){.connected = 1, .found = 1};
	return message;
}

static void say(int peer, const Record *record)
{
	unsigned kind = record->operation % N_KINDS;
	int fd = run.fds[record->operation / N_KINDS % N_FDS];
	PfFrontMessage message;

	if (kind == RAW) {
		pf_packet_send(peer, record->bytes, record->size, fd);
		return;
	}
	message = good_message(kind);
	memcpy(&message.body, record->bytes, MIN(record->size, sizeof(message.body)));
	pf_packet_send(peer, &message, sizeof(message), fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const PfGroupsKeeper keeper = {on_keep, on_drop, NULL};
	Record record;
	int fds[2];

	open_fds();
	run.asked = run.answered = run.ended = run.kept = 0;
	REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0);
	run.front = pf_front_new(fds[0], &keeper, on_closed, NULL);
	while (next_record(&data, &size, &record)) {
		unsigned kind = record.operation % N_KINDS;

		if (kind == ASK)
			ask(&record);
		else if (kind == QUERY)
			check_query(&record);
		else
			say(fds[1], &record);
		while (g_main_context_iteration(NULL, FALSE))
			;
	}
	pf_front_free(run.front);
	close(fds[1]);
	while (g_main_context_iteration(NULL, FALSE))
		;
	REQUIRE(run.answered == run.asked);
	return 0;
}
