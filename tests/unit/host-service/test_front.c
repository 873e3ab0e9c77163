/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Both real ends of the front's socket, with a service that this file plays. */
#include "tests/unit/host-service/front_rig.h"
#include "host-service/service/service_front.h"
#include "host-service/wire/packet.h"
#include <poll.h>

struct PfService {
	gboolean connected;
	PfDomain domains[2];
	PfVmView views[2];
	PfHostView host;
	unsigned rounds; /* how often all of them are listed */
	unsigned lists;  /* so far */
};

static PfService fake;

static int reset_fake(void **state)
{
	fake = (PfService){.connected = TRUE,
		.rounds = 1,
		.host = {.stats = {.shared = 100, .hint_to_fused_us_p90 = -1},
			.store_swapped_kib = 24,
			.pressure = TRUE},
		.domains = {{.uuid = "uuid-of-db",
				    .name = "db",
				    .group = "shop",
				    .state = "running",
				    .enabled = TRUE,
				    .active = TRUE,
				    .thp = PF_THP_ALL,
				    .memory_pages = 131072},
			{.uuid = "uuid-of-web", .name = "web", .group = "default"}},
		.views = {{.domain = &fake.domains[0],
				  .reason = "",
				  .agent_version = "0.1.0",
				  .kernel = "6.1.0\033[2J",
				  .figures = {.shim_connected = TRUE,
					  .thp = PF_THP_ALL,
					  .stats = {.fused = 7000, .refused = {[PF_SHIM_BUSY] = 3}},
					  .shim = {.maps = 1000, .aside = 1},
					  .paused_ms = 1200,
					  .additions = PF_ADDITIONS_SILENT,
					  .additions_since = 1800000000}},
			{.domain = &fake.domains[1],
				.reason = "page fusion is off",
				.agent_version = "",
				.kernel = "",
				.figures = {.thp = PF_THP_BALANCED}}}};
	return 0;
}

void pf_service_foreach_vm(
	PfService *service, void (*visit)(const PfVmView *vm, void *userdata), void *userdata)
{
	service->lists++;
	for (size_t i = 0; i < service->rounds * G_N_ELEMENTS(service->views); i++)
		visit(&service->views[i % G_N_ELEMENTS(service->views)], userdata);
}

gboolean pf_service_visit_vm(PfService *service, const char *name_or_uuid,
	void (*visit)(const PfVmView *vm, void *userdata), void *userdata)
{
	for (size_t i = 0; i < G_N_ELEMENTS(service->views); i++) {
		if (strcmp(service->domains[i].uuid, name_or_uuid) != 0 &&
			strcmp(service->domains[i].name, name_or_uuid) != 0)
			continue;
		visit(&service->views[i], userdata);
		return TRUE;
	}
	return FALSE;
}

void pf_service_host_view(PfService *service, PfHostView *view)
{
	*view = service->host;
}

gboolean pf_service_libvirt_connected(PfService *service, const char **reason)
{
	*reason = service->connected ? "" : "libvirt is away: start it";
	return service->connected;
}

/* Both ends */

typedef struct Ends {
	Rig rig;
	PfServiceFront *there;
	unsigned there_ended;
} Ends;

static void on_service_end(void *userdata)
{
	((Ends *)userdata)->there_ended++;
}

static void ends_init(Ends *ends)
{
	rig_init(&ends->rig);
	ends->there_ended = 0;
	ends->there = pf_service_front_new(ends->rig.there, on_service_end, ends);
	ends->rig.there = -1;
	pf_service_front_serve(ends->there, &fake);
}

static void ends_deinit(Ends *ends)
{
	assert_int_equal(ends->rig.ended, 0);
	assert_int_equal(ends->there_ended, 0);
	pf_service_front_free(ends->there);
	rig_deinit(&ends->rig);
}

static PfFrontAnswer *ask(Ends *ends, guint want, const char *vm)
{
	GAsyncResult *result = NULL;
	g_autoptr(GError) error = NULL;
	PfFrontAnswer *answer;

	pf_front_query(ends->rig.here, want, vm, store_result, &result);
	answer = finish(&result, &error);
	assert_null(error);
	assert_non_null(answer);
	return answer;
}

static void count_end(void *userdata)
{
	++*(unsigned *)userdata;
}

/* Answers */

static void says_whether_libvirt_is_there(void **state)
{
	Ends ends;
	g_autoptr(PfFrontAnswer) there = NULL;
	g_autoptr(PfFrontAnswer) away = NULL;

	ends_init(&ends);
	there = ask(&ends, 0, NULL);
	assert_true(there->connected && there->found);
	assert_string_equal(there->reason, "");
	assert_int_equal(there->vms->len, 0);
	assert_int_equal(there->host.stats.shared, 0);
	fake.connected = FALSE;
	away = ask(&ends, 0, NULL);
	assert_false(away->connected);
	assert_string_equal(away->reason, "libvirt is away: start it");
	ends_deinit(&ends);
}

static void shows_host_and_vms(void **state)
{
	Ends ends;
	g_autoptr(PfFrontAnswer) answer = NULL;
	const PfVmView *db, *web;

	ends_init(&ends);
	answer = ask(&ends, PF_FRONT_WANT_HOST | PF_FRONT_WANT_VMS, NULL);
	assert_memory_equal(&answer->host, &fake.host, sizeof(fake.host));
	assert_int_equal(answer->vms->len, 2);
	db = g_ptr_array_index(answer->vms, 0);
	assert_memory_equal(db->domain, &fake.domains[0], sizeof(fake.domains[0]));
	assert_memory_equal(&db->figures, &fake.views[0].figures, sizeof(db->figures));
	assert_string_equal(db->agent_version, "0.1.0");
	assert_int_equal(db->figures.additions, PF_ADDITIONS_SILENT);
	assert_int_equal(db->figures.additions_since, 1800000000);
	assert_string_equal(db->kernel, "6.1.0\357\277\275[2J");
	web = g_ptr_array_index(answer->vms, 1);
	assert_string_equal(web->domain->name, "web");
	assert_string_equal(web->reason, "page fusion is off");
	assert_string_equal(web->kernel, "");
	assert_false(web->figures.shim_connected);
	assert_int_equal(web->figures.thp, PF_THP_BALANCED);
	ends_deinit(&ends);
}

static void finds_one_vm(void **state)
{
	static const char *const names[] = {"web", "uuid-of-web"};
	Ends ends;

	ends_init(&ends);
	for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
		g_autoptr(PfFrontAnswer) answer = ask(&ends, PF_FRONT_WANT_VMS, names[i]);
		const PfVmView *vm;

		assert_true(answer->found);
		assert_int_equal(answer->vms->len, 1);
		vm = g_ptr_array_index(answer->vms, 0);
		assert_string_equal(vm->domain->name, "web");
	}
	ends_deinit(&ends);
}

/* Also what a query has no room for. */
static void says_that_there_is_no_such_vm(void **state)
{
	g_autofree char *longest = g_strnfill(PF_FRONT_MAX_VM - 1, 'n');
	g_autofree char *too_long = g_strnfill(PF_FRONT_MAX_VM, 'n');
	const char *const names[] = {"", "nobody", longest, too_long};
	Ends ends;

	ends_init(&ends);
	for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
		g_autoptr(PfFrontAnswer) answer = ask(&ends, PF_FRONT_WANT_VMS, names[i]);

		assert_false(answer->found);
		assert_true(answer->connected);
		assert_int_equal(answer->vms->len, 0);
	}
	ends_deinit(&ends);
}

/* More than the socket takes, and more queries than are with the service at once. */
static void answers_many_large_queries(void **state)
{
	GAsyncResult *results[40] = {0};
	Ends ends;

	fake.rounds = 500;
	ends_init(&ends);
	pf_service_front_serve(ends.there, NULL);
	for (size_t i = 0; i < G_N_ELEMENTS(results); i++)
		pf_front_query(ends.rig.here, i % 2 ? PF_FRONT_WANT_VMS : PF_FRONT_WANT_HOST, NULL,
			store_result, &results[i]);
	while (g_main_context_iteration(NULL, FALSE))
		;
	assert_null(results[0]);
	pf_service_front_serve(ends.there, &fake);
	for (size_t i = 0; i < G_N_ELEMENTS(results); i++) {
		g_autoptr(PfFrontAnswer) answer = finish(&results[i], NULL);

		assert_non_null(answer);
		assert_int_equal(answer->vms->len, i % 2 ? 1000 : 0);
		assert_int_equal(answer->host.stats.shared, i % 2 ? 0 : 100);
	}
	ends_deinit(&ends);
}

/* A front that asks and hardly reads: only one answer is put together at a time. */
static void takes_one_query_at_a_time(void **state)
{
	PfFrontQuery query = {.magic = PF_FRONT_MAGIC, .id = 1, .want = PF_FRONT_WANT_VMS};
	PfServiceFront *there;
	struct pollfd room;
	unsigned ended = 0;
	int fds[2];

	fake.rounds = 500;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	there = pf_service_front_new(fds[1], count_end, &ended);
	pf_service_front_serve(there, &fake);
	for (; query.id <= 3; query.id++)
		assert_int_equal(pf_packet_send(fds[0], &query, sizeof(query), -1), 0);
	for (int i = 0; i < 3; i++) {
		PfFrontMessage message;

		RUN_UNTIL(fake.lists > 0);
		while (g_main_context_iteration(NULL, FALSE))
			;
		assert_int_equal(fake.lists, 1);
		/* Until there is room for more. */
		do {
			assert_true(recv(fds[0], &message, sizeof(message), 0) > 0);
			room = (struct pollfd){.fd = fds[1], .events = POLLOUT};
		} while (poll(&room, 1, 0) == 0);
	}
	assert_int_equal(ended, 0);
	pf_service_front_free(there);
	close(fds[0]);
}

/* Stores */

static char *kept_as(const char *name, int fd)
{
	struct stat status;

	assert_int_equal(fstat(fd, &status), 0);
	return g_strdup_printf("keep %s %lu", name, (unsigned long)status.st_ino);
}

static void wait_for_words(const Ends *ends, guint n)
{
	RUN_UNTIL(ends->rig.said->len >= n);
	assert_int_equal(ends->rig.said->len, n);
}

static void has_stores_kept(void **state)
{
	int fd = sealed_memory(F_SEAL_SHRINK | F_SEAL_GROW);
	g_autofree char *kept = kept_as(STORE_A, fd);
	PfGroupsKeeper keeper;
	Ends ends;

	ends_init(&ends);
	keeper = pf_service_front_keeper(ends.there);
	keeper.keep(keeper.userdata, STORE_A, fd);
	keeper.keep(keeper.userdata, STORE_A, fd); /* said once is enough */
	keeper.drop(keeper.userdata, STORE_A);
	keeper.drop(keeper.userdata, STORE_B); /* of an earlier service */
	keeper.keep(keeper.userdata, STORE_A, fd);
	assert_true(fcntl(fd, F_GETFD) >= 0);
	close(fd);
	wait_for_words(&ends, 4);
	assert_said(&ends.rig, 0, kept);
	assert_said(&ends.rig, 1, "drop " STORE_A);
	assert_said(&ends.rig, 2, "drop " STORE_B);
	assert_said(&ends.rig, 3, kept);
	ends_deinit(&ends);
}

/* Nobody reads while they are said: neither the order nor a descriptor is lost, and an answer comes between. */
static void keeps_stores_in_order(void **state)
{
	enum { N = 600 };
	g_autoptr(GPtrArray) expected = g_ptr_array_new_with_free_func(g_free);
	GAsyncResult *result = NULL;
	PfGroupsKeeper keeper;
	Ends ends;

	ends_init(&ends);
	keeper = pf_service_front_keeper(ends.there);
	pf_front_query(ends.rig.here, PF_FRONT_WANT_VMS, NULL, store_result, &result);
	for (unsigned i = 0; i < N; i++) {
		g_autofree char *name = g_strdup_printf("store-%032x", i);
		int fd = sealed_memory(F_SEAL_SHRINK | F_SEAL_GROW);

		keeper.keep(keeper.userdata, name, fd);
		g_ptr_array_add(expected, kept_as(name, fd));
		close(fd);
	}
	wait_for_words(&ends, N);
	for (unsigned i = 0; i < N; i++)
		assert_said(&ends.rig, i, g_ptr_array_index(expected, i));
	pf_front_answer_free(finish(&result, NULL));
	ends_deinit(&ends);
}

/* A word that the front has not read when the service ends is heard, although a query was not. */
static void hears_the_last_word(void **state)
{
	GAsyncResult *result = NULL;
	PfGroupsKeeper keeper;
	Ends ends;

	ends_init(&ends);
	keeper = pf_service_front_keeper(ends.there);
	pf_front_query(ends.rig.here, 0, NULL, store_result, &result);
	keeper.drop(keeper.userdata, STORE_A);
	pf_service_front_free(g_steal_pointer(&ends.there));
	RUN_UNTIL(ends.rig.ended > 0);
	assert_int_equal(ends.rig.said->len, 1);
	assert_said(&ends.rig, 0, "drop " STORE_A);
	assert_fails(&result, G_IO_ERROR_CLOSED, "has ended");
	ends.rig.ended = 0;
	ends_deinit(&ends);
}

/* Ends */

static void service_hears_of_the_end(void **state)
{
	PfGroupsKeeper keeper;
	Ends ends;

	for (int serving = 0; serving < 2; serving++) {
		ends_init(&ends);
		pf_service_front_serve(ends.there, serving ? &fake : NULL);
		pf_front_free(g_steal_pointer(&ends.rig.here));
		keeper = pf_service_front_keeper(ends.there);
		keeper.drop(keeper.userdata, STORE_A);
		RUN_UNTIL(ends.there_ended > 0);
		keeper.drop(keeper.userdata, STORE_A);
		while (g_main_context_iteration(NULL, FALSE))
			;
		assert_int_equal(ends.there_ended, 1);
		ends.there_ended = 0;
		ends_deinit(&ends);
	}
}

static void free_front(GObject *source, GAsyncResult *result, void *userdata)
{
	Ends *ends = userdata;

	pf_front_answer_free(pf_front_query_finish(result, NULL));
	pf_front_free(g_steal_pointer(&ends->rig.here));
}

static void may_be_freed_by_an_answer(void **state)
{
	GAsyncResult *result = NULL;
	Ends ends;

	ends_init(&ends);
	pf_front_query(ends.rig.here, 0, NULL, free_front, &ends);
	pf_front_query(ends.rig.here, 0, NULL, store_result, &result);
	RUN_UNTIL(!ends.rig.here);
	assert_fails(&result, G_IO_ERROR_CLOSED, "has ended");
	ends.there_ended = 0;
	ends_deinit(&ends);
}

#define with_fake(test) cmocka_unit_test_setup(test, reset_fake)

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_fake(says_whether_libvirt_is_there),
		with_fake(shows_host_and_vms),
		with_fake(finds_one_vm),
		with_fake(says_that_there_is_no_such_vm),
		with_fake(answers_many_large_queries),
		with_fake(takes_one_query_at_a_time),
		with_fake(has_stores_kept),
		with_fake(keeps_stores_in_order),
		with_fake(hears_the_last_word),
		with_fake(service_hears_of_the_end),
		with_fake(may_be_freed_by_an_answer),
	};

	alarm(100); /* an answer that never comes */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
