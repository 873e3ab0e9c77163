/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The front before a service that somebody else has taken over: what it may not send ends the conversation and nothing
 * else, and whoever has asked gets an answer. */
#include "tests/unit/host-service/front_rig.h"
#include "host-service/wire/packet.h"
#include "tests/unit/host-service/lingering_socket.h"

#define MAX_ASKED       16
#define MAX_WAITING     4096
#define MAX_VMS         65536
#define MAX_STORE_WORDS 4096

static void send_bytes(const Rig *rig, const void *bytes, size_t size, int fd)
{
	int r;

	while ((r = pf_packet_send(rig->there, bytes, size, fd)) == -EAGAIN && !rig->ended)
		g_main_context_iteration(NULL, FALSE);
	/* The front may have ended the conversation before the last of many. */
	assert_true(r == 0 || rig->ended);
}

static void send_message(const Rig *rig, const PfFrontMessage *message)
{
	send_bytes(rig, message, sizeof(*message), -1);
}

static PfFrontMessage of_type(PfFrontMessageType type, uint64_t id)
{
	PfFrontMessage message = {.magic = PF_FRONT_MAGIC, .type = type, .id = id};

	if (type == PF_FRONT_VM)
		message.body.vm.figures.thp = PF_THP_ALL;
	if (type == PF_FRONT_END)
		message.body.end = (PfFrontEnd){.connected = 1, .found = 1};
	if (type == PF_FRONT_KEEP || type == PF_FRONT_DROP)
		g_strlcpy(message.body.store, STORE_A, sizeof(message.body.store));
	return message;
}

static uint64_t take_query(const Rig *rig)
{
	PfFrontQuery query;

	assert_int_equal(recv(rig->there, &query, sizeof(query), MSG_DONTWAIT), (int)sizeof(query));
	assert_true(pf_front_check_query(&query, sizeof(query)));
	return query.id;
}

static void start(Rig *rig, guint want, const char *vm, GAsyncResult **result)
{
	rig_init(rig);
	assert_int_equal(fcntl(rig->there, F_SETFL, O_NONBLOCK), 0);
	*result = NULL;
	pf_front_query(rig->here, want, vm, store_result, result);
}

/* The conversation has ended, once, and everybody knows. */
static void assert_over(Rig *rig, GAsyncResult **result)
{
	GAsyncResult *later = NULL;

	RUN_UNTIL(rig->ended > 0);
	assert_int_equal(rig->ended, 1);
	assert_fails(result, G_IO_ERROR_CLOSED, "has ended");
	pf_front_query(rig->here, 0, NULL, store_result, &later);
	assert_fails(&later, G_IO_ERROR_CLOSED, "has ended");
	rig_deinit(rig);
}

/* One packet, after a query for everything. */
static void assert_ends(const void *bytes, size_t size, int fd)
{
	GAsyncResult *result;
	Rig rig;

	start(&rig, PF_FRONT_WANT_HOST | PF_FRONT_WANT_VMS, NULL, &result);
	assert_int_equal(take_query(&rig), 1);
	send_bytes(&rig, bytes, size, fd);
	RUN_UNTIL(rig.ended > 0);
	assert_int_equal(rig.said->len, 0);
	assert_over(&rig, &result);
}

static void assert_message_ends(const PfFrontMessage *message)
{
	assert_ends(message, sizeof(*message), -1);
}

/* Messages by themselves */

static void rejects_wrong_sizes(void **state)
{
	struct {
		PfFrontMessage message;
		char more;
	} packet = {of_type(PF_FRONT_HOST, 1), 0};

	assert_ends("", 0, -1);
	assert_ends("x", 1, -1);
	assert_ends(&packet, sizeof(packet.message) - 1, -1);
	assert_ends(&packet, sizeof(packet.message) + 1, -1);
}

static void rejects_wrong_headers(void **state)
{
	PfFrontMessage message = of_type(PF_FRONT_HOST, 1);

	message.magic++;
	assert_message_ends(&message);
	message = of_type(PF_FRONT_HOST, 1);
	message.type = PF_FRONT_HOST - 1;
	assert_message_ends(&message);
	message.type = PF_FRONT_DROP + 1;
	assert_message_ends(&message);
	message = of_type(PF_FRONT_HOST, 2);
	assert_message_ends(&message);
	message.id = 0;
	assert_message_ends(&message);
	message = of_type(PF_FRONT_DROP, 1);
	assert_message_ends(&message);
}

/* What has names in tables elsewhere, and booleans. */
static void rejects_wrong_numbers(void **state)
{
	PfFrontMessage host = of_type(PF_FRONT_HOST, 1), vm = of_type(PF_FRONT_VM, 1),
		       end = of_type(PF_FRONT_END, 1);
	static const size_t in_vm[] = {
		offsetof(PfFrontVm, domain.thp),
		offsetof(PfFrontVm, domain.enabled),
		offsetof(PfFrontVm, domain.active),
		offsetof(PfFrontVm, domain.has_shim),
		offsetof(PfFrontVm, domain.port_open),
		offsetof(PfFrontVm, figures.shim_connected),
		offsetof(PfFrontVm, figures.thp),
		offsetof(PfFrontVm, figures.stats.quota),
		offsetof(PfFrontVm, figures.additions),
	};

	host.body.host.pressure = 2;
	assert_message_ends(&host);
	for (size_t i = 0; i < G_N_ELEMENTS(in_vm); i++) {
		PfFrontMessage wrong = vm;

		memset((char *)&wrong.body.vm + in_vm[i], 0xff, sizeof(uint32_t));
		assert_message_ends(&wrong);
	}
	vm.body.vm.figures.thp = PF_THP_DEFAULT;
	assert_message_ends(&vm);
	end.body.end.connected = 2;
	assert_message_ends(&end);
	end = of_type(PF_FRONT_END, 1);
	end.body.end.found = 2;
	assert_message_ends(&end);
}

static void rejects_wrong_names_of_stores(void **state)
{
	static const char *const names[] = {
		"",
		"store-",
		"store-0123456789abcdef0123456789abcde",
		"store-0123456789abcdef0123456789abcdef0",
		"store-0123456789ABCDEF0123456789abcdef",
		"stork-0123456789abcdef0123456789abcdef",
		"store-0123456789abcdef0123456789abcde\n",
		"store-../../../../../../../etc/passwd",
	};
	PfFrontMessage message = of_type(PF_FRONT_DROP, 0);

	for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
		g_strlcpy(message.body.store, names[i], sizeof(message.body.store));
		assert_message_ends(&message);
	}
	memset(message.body.store, 'a', sizeof(message.body.store));
	assert_message_ends(&message);
}

/* Text without an end, and text that a terminal would obey. */
static void cleans_text(void **state)
{
	PfFrontMessage vm = of_type(PF_FRONT_VM, 1), end = of_type(PF_FRONT_END, 1);
	g_autoptr(PfFrontAnswer) answer = NULL;
	const PfVmView *view;
	GAsyncResult *result;
	Rig rig;

	start(&rig, PF_FRONT_WANT_VMS, NULL, &result);
	memset(vm.body.vm.domain.name, 'n', sizeof(vm.body.vm.domain.name));
	memset(vm.body.vm.agent_version, 0xff, sizeof(vm.body.vm.agent_version));
	memset(vm.body.vm.reason, 'r', sizeof(vm.body.vm.reason));
	vm.body.vm.reason[sizeof(vm.body.vm.reason) - 1] = (char)0xf0; /* of four bytes */
	memset(vm.body.vm.domain.uuid, 0x9b, sizeof(vm.body.vm.domain.uuid));
	g_strlcpy(vm.body.vm.kernel, "6.1\033]0;\a\n\342\200\256", sizeof(vm.body.vm.kernel));
	memset(end.body.end.reason, '\r', sizeof(end.body.end.reason));
	end.body.end.connected = 0;
	send_message(&rig, &vm);
	send_message(&rig, &end);
	answer = finish(&result, NULL);
	assert_non_null(answer);
	assert_true(g_str_has_prefix(answer->reason, "\357\277\275"));
	assert_true(strlen(answer->reason) < PF_FRONT_MAX_REASON);
	assert_null(strchr(answer->reason, '\r'));
	view = g_ptr_array_index(answer->vms, 0);
	assert_int_equal(strlen(view->domain->name), sizeof(view->domain->name) - 1);
	assert_int_equal(strlen(view->domain->uuid), 36);
	assert_true(g_utf8_validate(view->domain->uuid, -1, NULL));
	assert_true(g_utf8_validate(view->agent_version, -1, NULL));
	assert_int_equal(strlen(view->reason), PF_FRONT_MAX_REASON - 1);
	assert_string_equal(view->kernel, "6.1\357\277\275]0;\357\277\275\357\277\275\357\277\275");
	rig_deinit(&rig);
}

/* Sequences */

typedef struct Sequence {
	guint want;
	const char *vm;
	gboolean found;
	PfFrontMessageType types[3]; /* 0: no more */
} Sequence;

static void rejects_what_was_not_asked_for(void **state)
{
	static const Sequence sequences[] = {
		{0, NULL, TRUE, {PF_FRONT_HOST}},
		{0, NULL, TRUE, {PF_FRONT_VM}},
		{0, NULL, FALSE, {PF_FRONT_END}},
		{0, "", TRUE, {PF_FRONT_VM}},
		{PF_FRONT_WANT_HOST, NULL, TRUE, {PF_FRONT_END}},
		{PF_FRONT_WANT_HOST, NULL, TRUE, {PF_FRONT_HOST, PF_FRONT_HOST}},
		{PF_FRONT_WANT_HOST, NULL, TRUE, {PF_FRONT_HOST, PF_FRONT_VM}},
		{PF_FRONT_WANT_VMS, NULL, FALSE, {PF_FRONT_VM, PF_FRONT_END}},
		{PF_FRONT_WANT_VMS, "db", TRUE, {PF_FRONT_END}},
		{PF_FRONT_WANT_VMS, "db", FALSE, {PF_FRONT_VM, PF_FRONT_END}},
		{PF_FRONT_WANT_VMS, "db", TRUE, {PF_FRONT_VM, PF_FRONT_VM}},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(sequences); i++) {
		const Sequence *sequence = &sequences[i];
		GAsyncResult *result;
		Rig rig;

		start(&rig, sequence->want, sequence->vm, &result);
		for (size_t k = 0; k < G_N_ELEMENTS(sequence->types) && sequence->types[k]; k++) {
			PfFrontMessage message = of_type(sequence->types[k], 1);

			if (message.type == PF_FRONT_END)
				message.body.end.found = sequence->found ? 1 : 0;
			send_message(&rig, &message);
		}
		assert_over(&rig, &result);
	}
}

static void rejects_answers_out_of_turn(void **state)
{
	PfFrontMessage second = of_type(PF_FRONT_END, 2), first = of_type(PF_FRONT_END, 1);
	GAsyncResult *results[2] = {0};
	Rig rig;

	start(&rig, 0, NULL, &results[0]);
	pf_front_query(rig.here, 0, NULL, store_result, &results[1]);
	send_message(&rig, &second);
	RUN_UNTIL(rig.ended > 0);
	assert_fails(&results[1], G_IO_ERROR_CLOSED, "has ended");
	assert_over(&rig, &results[0]);

	/* The same answer twice. */
	start(&rig, 0, NULL, &results[0]);
	send_message(&rig, &first);
	pf_front_answer_free(finish(&results[0], NULL));
	pf_front_query(rig.here, 0, NULL, store_result, &results[1]);
	send_message(&rig, &first);
	assert_over(&rig, &results[1]);
}

/* Too much */

static void send_vms(Rig *rig, size_t n, const PfFrontMessage *vm)
{
	for (size_t i = 0; i < n && !rig->ended; i++) {
		send_message(rig, vm);
		g_main_context_iteration(NULL, FALSE);
	}
}

static void rejects_too_many_vms(void **state)
{
	PfFrontMessage vm = of_type(PF_FRONT_VM, 1);
	GAsyncResult *result;
	Rig rig;

	start(&rig, PF_FRONT_WANT_VMS, NULL, &result);
	send_vms(&rig, MAX_VMS, &vm);
	while (g_main_context_iteration(NULL, FALSE))
		;
	assert_int_equal(rig.ended, 0);
	send_message(&rig, &vm);
	assert_over(&rig, &result);
}

static void rejects_too_many_bytes(void **state)
{
	PfFrontMessage vm = of_type(PF_FRONT_VM, 1);
	GAsyncResult *result;
	Rig rig;

	memset(vm.body.vm.reason, 'r', sizeof(vm.body.vm.reason));
	memset(vm.body.vm.kernel, 'k', sizeof(vm.body.vm.kernel));
	memset(vm.body.vm.agent_version, 'v', sizeof(vm.body.vm.agent_version));
	start(&rig, PF_FRONT_WANT_VMS, NULL, &result);
	send_vms(&rig, MAX_VMS, &vm);
	assert_over(&rig, &result);
}

/* Descriptors */

static void keep(const Rig *rig, const char *name, int fd)
{
	PfFrontMessage message = of_type(PF_FRONT_KEEP, 0);

	g_strlcpy(message.body.store, name, sizeof(message.body.store));
	send_bytes(rig, &message, sizeof(message), fd);
}

static void rejects_what_is_no_sealed_memory(void **state)
{
	PfFrontMessage message = of_type(PF_FRONT_KEEP, 0);
	int pipe_fds[2];
	int fds[] = {
		open("/dev/null", O_RDWR | O_CLOEXEC),
		open("/", O_PATH | O_CLOEXEC),
		open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600),
		memfd_create("test", MFD_CLOEXEC),
		sealed_memory(0),
		sealed_memory(F_SEAL_SHRINK),
		sealed_memory(F_SEAL_GROW | F_SEAL_WRITE),
		-1,
	};

	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	close(pipe_fds[0]);
	fds[G_N_ELEMENTS(fds) - 1] = pipe_fds[1];
	for (size_t i = 0; i < G_N_ELEMENTS(fds); i++) {
		assert_true(fds[i] >= 0);
		assert_ends(&message, sizeof(message), fds[i]);
		close(fds[i]);
	}
	assert_ends(&message, sizeof(message), -1);
}

static void rejects_descriptors_that_are_not_due(void **state)
{
	PfFrontMessage host = of_type(PF_FRONT_HOST, 1), drop = of_type(PF_FRONT_DROP, 0);
	int fd = sealed_memory(F_SEAL_SHRINK | F_SEAL_GROW);

	assert_ends(&host, sizeof(host), fd);
	assert_ends(&drop, sizeof(drop), fd);
	close(fd);
}

/* One that takes long to close, in a message that is refused and in one that nobody reads. */
static void does_not_wait_for_descriptors(void **state)
{
	gint64 begin = g_get_monotonic_time();
	GAsyncResult *result;
	int peers[2];
	Rig rig;

	start(&rig, 0, NULL, &result);
	for (size_t i = 0; i < G_N_ELEMENTS(peers); i++) {
		int fd = lingering_socket(&peers[i]);

		keep(&rig, STORE_A, fd);
		close(fd);
	}
	assert_over(&rig, &result);
	assert_true(g_get_monotonic_time() - begin < LINGER_S * G_USEC_PER_SEC / 2);
	for (size_t i = 0; i < G_N_ELEMENTS(peers); i++)
		end_lingering(peers[i]);
}

static void keeps_so_many_stores(void **state)
{
	int fd = sealed_memory(F_SEAL_SHRINK | F_SEAL_GROW);
	PfFrontMessage end = of_type(PF_FRONT_END, 1);
	g_autoptr(PfFrontAnswer) answer = NULL;
	GAsyncResult *result;
	Rig rig;

	start(&rig, 0, NULL, &result);
	for (unsigned i = 0; i <= PF_FRONT_MAX_STORES; i++) {
		g_autofree char *name = g_strdup_printf("store-%032x", i);

		keep(&rig, name, fd);
	}
	send_message(&rig, &end);
	answer = finish(&result, NULL);
	assert_non_null(answer);
	assert_int_equal(rig.said->len, PF_FRONT_MAX_STORES);
	close(fd);
	rig_deinit(&rig);
}

static void ends_who_floods_with_stores(void **state)
{
	PfFrontMessage drop = of_type(PF_FRONT_DROP, 0);
	GAsyncResult *result;
	Rig rig;

	start(&rig, 0, NULL, &result);
	for (unsigned i = 0; i < 2 * MAX_STORE_WORDS && !rig.ended; i++)
		send_message(&rig, &drop);
	RUN_UNTIL(rig.ended > 0);
	assert_int_equal(rig.said->len, MAX_STORE_WORDS);
	assert_over(&rig, &result);
}

/* Silence */

static void asks_so_much_at_once(void **state)
{
	static GAsyncResult *results[MAX_ASKED + MAX_WAITING + 1];
	Rig rig;

	start(&rig, 0, NULL, &results[0]);
	for (size_t i = 1; i < G_N_ELEMENTS(results); i++)
		pf_front_query(rig.here, 0, NULL, store_result, &results[i]);
	for (unsigned i = 0; i < MAX_ASKED; i++)
		assert_int_equal(take_query(&rig), i + 1);
	assert_int_equal(recv(rig.there, &(char){0}, 1, MSG_DONTWAIT), -1);
	assert_fails(&results[G_N_ELEMENTS(results) - 1], G_IO_ERROR_BUSY,
		"others ask at the same time");
	pf_front_free(g_steal_pointer(&rig.here));
	for (size_t i = 0; i < G_N_ELEMENTS(results) - 1; i++)
		assert_fails(&results[i], G_IO_ERROR_CLOSED, "has ended");
	assert_int_equal(rig.ended, 0);
	rig_deinit(&rig);
}

/* What was asked and what waits for its turn time out; answers that come later are dropped, and it goes on. */
static void gives_up_waiting(void **state)
{
	GAsyncResult *results[MAX_ASKED + 1] = {0}, *later = NULL;
	PfFrontMessage end;
	g_autoptr(PfFrontAnswer) answer = NULL;
	Rig rig;

	start(&rig, PF_FRONT_WANT_VMS, NULL, &results[0]);
	for (size_t i = 1; i < G_N_ELEMENTS(results); i++)
		pf_front_query(rig.here, 0, NULL, store_result, &results[i]);
	for (size_t i = 0; i < G_N_ELEMENTS(results); i++)
		assert_fails(&results[i], G_IO_ERROR_TIMED_OUT, "the service does not answer: ");
	assert_int_equal(rig.ended, 0);
	pf_front_query(rig.here, 0, NULL, store_result, &later);
	end = of_type(PF_FRONT_VM, 1);
	send_message(&rig, &end);
	/* The one that waited has used an id and was never sent. */
	for (uint64_t id = 1; id <= MAX_ASKED + 2; id++) {
		end = of_type(PF_FRONT_END, id);
		if (id != MAX_ASKED + 1)
			send_message(&rig, &end);
		while (g_main_context_iteration(NULL, FALSE))
			;
	}
	answer = finish(&later, NULL);
	assert_non_null(answer);
	assert_int_equal(rig.ended, 0);
	rig_deinit(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rejects_wrong_sizes),
		cmocka_unit_test(rejects_wrong_headers),
		cmocka_unit_test(rejects_wrong_numbers),
		cmocka_unit_test(rejects_wrong_names_of_stores),
		cmocka_unit_test(cleans_text),
		cmocka_unit_test(rejects_what_was_not_asked_for),
		cmocka_unit_test(rejects_answers_out_of_turn),
		cmocka_unit_test(rejects_too_many_vms),
		cmocka_unit_test(rejects_too_many_bytes),
		cmocka_unit_test(rejects_what_is_no_sealed_memory),
		cmocka_unit_test(rejects_descriptors_that_are_not_due),
		cmocka_unit_test(does_not_wait_for_descriptors),
		cmocka_unit_test(keeps_so_many_stores),
		cmocka_unit_test(ends_who_floods_with_stores),
		cmocka_unit_test(asks_so_much_at_once),
		cmocka_unit_test(gives_up_waiting),
	};

	alarm(100); /* an answer that never comes */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
