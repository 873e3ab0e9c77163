/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The real broker process on libvirt's test driver, which needs no QEMU and no daemon: each test
 * spawns its own and speaks with it through two PfBrokers, the service's and the front's. The main loop of a test runs until what it
 * waits for is there, and ends the test if that takes ten seconds.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "host-service/broker_protocol.h"
#include "host-service/packet.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <libvirt/libvirt.h>
#include <poll.h>
#include <signal.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define NODE    "test://" PF_TEST_DOMAINS "/node.test.xml"
#define RUNS    "2f6a1c1e-8a0f-4c5f-9d1b-0a5f3a4d7c01"
#define OFF     "2f6a1c1e-8a0f-4c5f-9d1b-0a5f3a4d7c02"
#define NOBODY  "00000000-0000-4000-8000-000000000000"
#define TIMEOUT 10

typedef struct Fixture {
	GMainContext *context;
	PfBroker *broker, *front;
	pid_t pid;
	GHashTable *domains; /* name to PfDomain */
	guint changes;       /* domain_changed() calls */
	gboolean connected;
	guint n_domains_when_connected;
	char *reason;
	gboolean closed;
	GAsyncResult *result;
} Fixture;

static void domain_changed(void *userdata, const PfDomain *domain)
{
	Fixture *f = userdata;

	f->changes++;
	g_hash_table_replace(
		f->domains, g_strdup(domain->name), g_memdup2(domain, sizeof(*domain)));
}

static void domain_gone(void *userdata, const char *uuid)
{
	fail_msg("no domain of the test driver goes, but %s did", uuid);
}

static void libvirt_changed(void *userdata, gboolean connected, const char *reason)
{
	Fixture *f = userdata;

	f->connected = connected;
	if (connected)
		f->n_domains_when_connected = g_hash_table_size(f->domains);
	g_free(f->reason);
	f->reason = g_strdup(reason);
}

static void closed(void *userdata)
{
	((Fixture *)userdata)->closed = TRUE;
}

static const PfBrokerEvents events = {domain_changed, domain_gone, libvirt_changed, closed};

static void front_hears_of_domain(void *userdata, const PfDomain *domain)
{
	fail_msg("the front heard of %s", domain->name);
}

static void front_hears_of_libvirt(void *userdata, gboolean connected, const char *reason)
{
	fail_msg("the front heard of libvirt: %d", connected);
}

static void front_closed(void *userdata)
{
}

static const PfBrokerEvents front_events = {
	front_hears_of_domain, domain_gone, front_hears_of_libvirt, front_closed};

static PfBrokerSockets spawn(pid_t *pid, const char *uri)
{
	const PfBrokerConfig config = {uri, "/lib/libpagefusion-vmm.so", "/run/shim.sock"};
	g_autoptr(GError) error = NULL;
	PfBrokerSockets sockets = {-1, -1};

	*pid = pf_broker_spawn(&config, &sockets, &error);
	assert_null(error);
	assert_true(*pid > 0);
	assert_true(sockets.service >= 0 && sockets.front >= 0);
	return sockets;
}

static void close_sockets(const PfBrokerSockets *sockets)
{
	close(sockets->service);
	close(sockets->front);
}

static Fixture *start(const char *uri)
{
	Fixture *f = g_new0(Fixture, 1);
	PfBrokerSockets sockets;

	/* Never the default context: the next broker's fork would inherit its descriptors. */
	f->context = g_main_context_new();
	g_main_context_push_thread_default(f->context);
	f->domains = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
	sockets = spawn(&f->pid, uri);
	f->broker = pf_broker_new(sockets.service, &events, f);
	f->front = pf_broker_new(sockets.front, &front_events, f);
	return f;
}

static int exit_status(pid_t pid)
{
	struct pollfd process = {.fd = pidfd_open(pid, 0), .events = POLLIN};
	int status;

	if (poll(&process, 1, 1000 * TIMEOUT) != 1)
		fail_msg("the broker has not ended after %d seconds", TIMEOUT);
	close(process.fd);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static void stop(Fixture *f)
{
	g_clear_pointer(&f->broker, pf_broker_free);
	if (f->pid)
		assert_int_equal(exit_status(f->pid), 0);
	g_clear_pointer(&f->front, pf_broker_free);
	g_clear_object(&f->result);
	g_main_context_pop_thread_default(f->context);
	g_main_context_unref(f->context);
	g_hash_table_unref(f->domains);
	g_free(f->reason);
	g_free(f);
}

static gboolean on_timeout(gpointer userdata)
{
	fail_msg("nothing came for %d seconds", TIMEOUT);
	return G_SOURCE_REMOVE;
}

static void run_until(Fixture *f, gboolean (*done)(Fixture *f))
{
	g_autoptr(GSource) timeout = g_timeout_source_new_seconds(TIMEOUT);

	g_source_set_callback(timeout, on_timeout, NULL, NULL);
	g_source_attach(timeout, f->context);
	while (!done(f))
		g_main_context_iteration(f->context, TRUE);
	g_source_destroy(timeout);
}

static gboolean has_result(Fixture *f)
{
	return f->result != NULL;
}

static gboolean is_closed(Fixture *f)
{
	return f->closed;
}

static gboolean is_connected(Fixture *f)
{
	return f->connected;
}

static gboolean has_reason(Fixture *f)
{
	return f->reason && *f->reason;
}

static gboolean has_test_domain(Fixture *f)
{
	return g_hash_table_contains(f->domains, "test");
}

static gboolean has_six_domains(Fixture *f)
{
	return g_hash_table_size(f->domains) == 6;
}

static void on_result(GObject *source, GAsyncResult *result, gpointer userdata)
{
	((Fixture *)userdata)->result = g_object_ref(result);
}

static void assert_error(GError *error, GIOErrorEnum code, const char *says)
{
	assert_non_null(error);
	assert_true(error->domain == G_IO_ERROR);
	if (error->code != (int)code || !strstr(error->message, says))
		fail_msg("error %d \"%s\", wanted %d \"%s\"", error->code, error->message, code,
			says);
	assert_null(strchr(error->message, '\n'));
}

static gboolean modify(Fixture *f, const char *vm, const PfVmSettings *settings, GError **error)
{
	g_clear_object(&f->result);
	pf_broker_modify(f->front, vm, settings, on_result, f);
	run_until(f, has_result);
	/* What the service hears of it was sent before the answer. */
	while (g_main_context_iteration(f->context, FALSE))
		;
	return pf_broker_modify_finish(f->result, error);
}

static gboolean set_enabled(Fixture *f, const char *vm, gboolean enabled, GError **error)
{
	const PfVmSettings settings = {.changes = PF_VM_SET_ENABLED, .enabled = enabled};

	return modify(f, vm, &settings, error);
}

static gboolean set_thp(Fixture *f, const char *vm, PfThp thp, GError **error)
{
	const PfVmSettings settings = {.changes = PF_VM_SET_THP, .thp = thp};

	return modify(f, vm, &settings, error);
}

static void expect_refused(
	Fixture *f, const char *vm, gboolean enabled, GIOErrorEnum code, const char *says)
{
	g_autoptr(GError) error = NULL;

	assert_false(set_enabled(f, vm, enabled, &error));
	assert_error(error, code, says);
}

static void test_sees_domains(void **state)
{
	Fixture *f = start("test:///default");
	const PfDomain *domain;

	run_until(f, is_connected);
	domain = g_hash_table_lookup(f->domains, "test");
	assert_non_null(domain);
	assert_string_equal(domain->state, "running");
	assert_string_equal(domain->group, "default");
	assert_string_equal(domain->channel, "");
	assert_non_null(strstr(domain->refusal, "neither kvm nor qemu"));
	assert_true(domain->active);
	assert_false(domain->enabled);
	assert_int_equal(domain->pid, 0);
	assert_int_equal(domain->memory_pages, 8388608 / 4);
	stop(f);
}

static void test_sees_what_does_not_run(void **state)
{
	Fixture *f = start(NODE);
	const PfDomain *domain;

	run_until(f, has_six_domains);
	domain = g_hash_table_lookup(f->domains, "off");
	assert_string_equal(domain->uuid, OFF);
	assert_string_equal(domain->state, "shut off");
	assert_string_equal(domain->group, "tenant-1");
	assert_false(domain->active);
	assert_true(domain->enabled);
	domain = g_hash_table_lookup(f->domains, "paused");
	assert_string_equal(domain->state, "paused");
	assert_true(domain->active);
	stop(f);
}

static void test_set_enabled_refusals(void **state)
{
	Fixture *f = start(NODE);
	g_autofree char *long_name = g_strnfill(5000, 'x');

	run_until(f, has_six_domains);
	expect_refused(f, "nobody", TRUE, G_IO_ERROR_NOT_FOUND, "there is no VM nobody");
	expect_refused(f, NOBODY, TRUE, G_IO_ERROR_NOT_FOUND, "there is no VM");
	expect_refused(
		f, "runs", TRUE, G_IO_ERROR_BUSY, "VM runs is running: page fusion can only");
	expect_refused(f, RUNS, FALSE, G_IO_ERROR_BUSY, "virsh shutdown runs");
	expect_refused(f, "paused", TRUE, G_IO_ERROR_BUSY, "VM paused is paused");
	expect_refused(f, "saved", TRUE, G_IO_ERROR_BUSY, "managedsave-remove saved");
	expect_refused(f, "passing", TRUE, G_IO_ERROR_NOT_SUPPORTED, "transient");
	expect_refused(f, OFF, TRUE, G_IO_ERROR_FAILED, "the name of another");
	expect_refused(f, "off", TRUE, G_IO_ERROR_NOT_SUPPORTED, "neither kvm nor qemu");
	/* These do not even reach the broker, which would end. */
	expect_refused(f, long_name, TRUE, G_IO_ERROR_INVALID_ARGUMENT, "no valid name");
	expect_refused(f, "", TRUE, G_IO_ERROR_INVALID_ARGUMENT, "no valid name");
	expect_refused(f, "a\nb", TRUE, G_IO_ERROR_INVALID_ARGUMENT, "no valid name");
	expect_refused(f, "\xff", TRUE, G_IO_ERROR_INVALID_ARGUMENT, "no valid name");
	stop(f);
}

/* The test driver takes a new definition; the service knows of it when it gets the answer. */
static void test_set_enabled_defines(void **state)
{
	Fixture *f = start(NODE);
	g_autoptr(GError) error = NULL;
	const PfDomain *domain;
	guint changes;

	run_until(f, has_six_domains);
	assert_true(set_enabled(f, "off", FALSE, &error));
	domain = g_hash_table_lookup(f->domains, "off");
	assert_false(domain->enabled);
	assert_string_equal(domain->group, "default");
	changes = f->changes;
	assert_true(set_enabled(f, "off", FALSE, &error));
	assert_int_equal(f->changes, changes);
	stop(f);
}

/* The policy is written, said, and taken away again; a VM whose flag is off has none. */
static void test_set_thp(void **state)
{
	Fixture *f = start(NODE);
	g_autoptr(GError) error = NULL;
	const PfDomain *domain;
	guint changes;

	run_until(f, has_six_domains);
	domain = g_hash_table_lookup(f->domains, "off");
	assert_int_equal(domain->thp, PF_THP_BALANCED);
	assert_true(set_thp(f, "off", PF_THP_PRESERVE, &error));
	domain = g_hash_table_lookup(f->domains, "off");
	assert_int_equal(domain->thp, PF_THP_PRESERVE);
	assert_string_equal(domain->group, "tenant-1");
	assert_true(domain->enabled);
	changes = f->changes;
	assert_true(set_thp(f, "off", PF_THP_PRESERVE, &error));
	assert_int_equal(f->changes, changes);
	assert_true(set_thp(f, "off", PF_THP_DEFAULT, &error));
	domain = g_hash_table_lookup(f->domains, "off");
	assert_int_equal(domain->thp, PF_THP_DEFAULT);
	assert_true(set_enabled(f, "off", FALSE, &error));
	assert_false(set_thp(f, "off", PF_THP_ALL, &error));
	assert_error(error, G_IO_ERROR_NOT_SUPPORTED, "VM off: page fusion is off");
	assert_non_null(strstr(error->message, "--pagefusion on --thp POLICY"));
	stop(f);
}

static gboolean set_group(Fixture *f, const char *vm, const char *group, GError **error)
{
	PfVmSettings settings = {.changes = PF_VM_SET_GROUP};

	g_strlcpy(settings.group, group, sizeof(settings.group));
	return modify(f, vm, &settings, error);
}

static void assert_group(Fixture *f, const char *vm, const char *group)
{
	const PfDomain *domain = g_hash_table_lookup(f->domains, vm);

	assert_string_equal(domain->group, group);
}

/* The group is written, said, and taken away again; the policy beside it stays. */
static void test_set_group(void **state)
{
	Fixture *f = start(NODE);
	g_autoptr(GError) error = NULL;
	const PfDomain *domain;
	guint changes;

	run_until(f, has_six_domains);
	assert_group(f, "off", "tenant-1");
	assert_true(set_group(f, "off", "tenant-2", &error));
	assert_group(f, "off", "tenant-2");
	domain = g_hash_table_lookup(f->domains, "off");
	assert_int_equal(domain->thp, PF_THP_BALANCED);
	assert_true(domain->enabled);
	changes = f->changes;
	assert_true(set_group(f, "off", "tenant-2", &error));
	assert_int_equal(f->changes, changes);
	assert_true(set_group(f, "off", PF_GROUP_DEFAULT, &error));
	assert_group(f, "off", "default");
	assert_true(set_enabled(f, "off", FALSE, &error));
	assert_null(error);
	assert_false(set_group(f, "off", "tenant-1", &error));
	assert_error(error, G_IO_ERROR_NOT_SUPPORTED, "VM off: page fusion is off");
	assert_non_null(strstr(error->message, "--pagefusion on --group NAME"));
	assert_group(f, "off", "default");
	stop(f);
}

/* Neither while the VM runs, nor with what else is refused, nor with a name that is none. */
static void test_set_group_refusals(void **state)
{
	PfVmSettings all = {
		PF_VM_SET_ENABLED | PF_VM_SET_THP | PF_VM_SET_GROUP, TRUE, PF_THP_ALL, "tenant-2"};
	Fixture *f = start(NODE);
	g_autoptr(GError) refused = NULL;
	g_autoptr(GError) busy = NULL;
	g_autoptr(GError) wrong = NULL;

	run_until(f, has_six_domains);
	assert_false(modify(f, "off", &all, &refused));
	assert_error(refused, G_IO_ERROR_NOT_SUPPORTED, "neither kvm nor qemu");
	assert_group(f, "off", "tenant-1");
	assert_false(set_group(f, "runs", "tenant-2", &busy));
	assert_error(busy, G_IO_ERROR_BUSY, "can only be changed while it is shut off");
	/* It does not even reach the broker, which would end. */
	assert_false(set_group(f, "off", "a/b", &wrong));
	assert_error(wrong, G_IO_ERROR_INVALID_ARGUMENT, "no valid setting");
	assert_group(f, "off", "tenant-1");
	stop(f);
}

/* A group that is no name of one is no group, and never the default one. */
static void test_sees_what_is_no_group(void **state)
{
	Fixture *f = start(NODE);
	const PfDomain *domain;

	run_until(f, has_six_domains);
	domain = g_hash_table_lookup(f->domains, "paused");
	assert_string_equal(domain->group, "");
	assert_non_null(strstr(domain->refusal, "<pf:pagefusion group> in <metadata>"));
	assert_non_null(strstr(domain->refusal, PF_GROUP_NAME_RULE));
	stop(f);
}

/* Either both settings are changed or none. */
static void test_refused_with_policy(void **state)
{
	const PfVmSettings both = {PF_VM_SET_ENABLED | PF_VM_SET_THP, TRUE, PF_THP_ALL};
	Fixture *f = start(NODE);
	g_autoptr(GError) error = NULL;
	g_autoptr(GError) busy = NULL;
	const PfDomain *domain;

	run_until(f, has_six_domains);
	assert_false(modify(f, "off", &both, &error));
	assert_error(error, G_IO_ERROR_NOT_SUPPORTED, "neither kvm nor qemu");
	domain = g_hash_table_lookup(f->domains, "off");
	assert_int_equal(domain->thp, PF_THP_BALANCED);
	assert_false(set_thp(f, "runs", PF_THP_ALL, &busy));
	assert_error(busy, G_IO_ERROR_BUSY, "can only be changed while it is shut off");
	stop(f);
}

static void expect_untranslated(Fixture *f, const char *uuid, const PfGuestRange *ranges,
	size_t n_ranges, GIOErrorEnum code, const char *says)
{
	g_autoptr(GError) error = NULL;
	PfHva *hvas = NULL;
	size_t n_hvas;

	g_clear_object(&f->result);
	pf_broker_translate(f->broker, uuid, ranges, n_ranges, on_result, f);
	run_until(f, has_result);
	assert_false(pf_broker_translate_finish(f->result, &hvas, &n_hvas, &error));
	assert_null(hvas);
	assert_error(error, code, says);
}

static void test_translate_fails_cleanly(void **state)
{
	Fixture *f = start(NODE);
	const PfGuestRange good = {{0}, 16}, wraps = {{UINT64_MAX}, 2}, empty = {{0}, 0};
	PfGuestRange many[PF_SESSION_MAX_RAM_RANGES + 1];

	for (size_t i = 0; i < G_N_ELEMENTS(many); i++)
		many[i] = good;
	run_until(f, has_six_domains);
	expect_untranslated(f, NOBODY, &good, 1, G_IO_ERROR_NOT_FOUND, "no VM with the UUID");
	expect_untranslated(
		f, RUNS, &good, 1, G_IO_ERROR_NOT_SUPPORTED, "VM runs does not run with");
	expect_untranslated(f, "runs", &good, 1, G_IO_ERROR_INVALID_ARGUMENT, "no valid");
	expect_untranslated(f, RUNS, &wraps, 1, G_IO_ERROR_INVALID_ARGUMENT, "no valid");
	expect_untranslated(f, RUNS, &empty, 1, G_IO_ERROR_INVALID_ARGUMENT, "no valid");
	expect_untranslated(f, RUNS, &good, 0, G_IO_ERROR_INVALID_ARGUMENT, "no valid");
	expect_untranslated(
		f, RUNS, many, G_N_ELEMENTS(many), G_IO_ERROR_INVALID_ARGUMENT, "no valid");
	stop(f);
}

static void test_channel_fails_cleanly(void **state)
{
	Fixture *f = start(NODE);
	g_autoptr(GError) error = NULL;

	run_until(f, has_six_domains);
	pf_broker_open_channel(f->broker, RUNS, on_result, f);
	run_until(f, has_result);
	assert_int_equal(pf_broker_open_channel_finish(f->result, &error), -1);
	assert_error(error, G_IO_ERROR_NOT_SUPPORTED, "does not run with page fusion");
	stop(f);
}

static void test_userfaultfd_is_for_vms(void **state)
{
	Fixture *f = start(NODE);
	g_autoptr(GError) error = NULL;

	run_until(f, has_six_domains);
	pf_broker_open_userfaultfd(f->broker, RUNS, on_result, f);
	run_until(f, has_result);
	assert_int_equal(pf_broker_open_userfaultfd_finish(f->result, &error), -1);
	assert_error(error, G_IO_ERROR_NOT_SUPPORTED, "does not run with page fusion");
	stop(f);
}

static void test_session_daemon_is_refused(void **state)
{
	Fixture *f = start("qemu:///session");

	run_until(f, has_reason);
	assert_false(f->connected);
	assert_string_equal(f->reason, "page fusion needs the system daemon: use qemu:///system");
	expect_refused(f, "any", TRUE, G_IO_ERROR_NOT_CONNECTED, "libvirt does not answer");
	stop(f);
}

/* The node's file is not there at first: libvirt is away, and comes later. */
static void test_connects_later(void **state)
{
	g_autofree char *directory = g_dir_make_tmp("pf-broker-XXXXXX", NULL);
	g_autofree char *link = g_strconcat(directory, "/node.xml", NULL);
	g_autofree char *uri = g_strconcat("test://", link, NULL);
	Fixture *f = start(uri);

	run_until(f, has_reason);
	assert_false(f->connected);
	assert_non_null(strstr(f->reason, "start libvirtd or virtqemud"));
	assert_null(strchr(f->reason, '\n'));
	assert_int_equal(symlink(PF_TEST_DOMAINS "/node.test.xml", link), 0);
	run_until(f, is_connected);
	run_until(f, has_six_domains);
	unlink(link);
	rmdir(directory);
	stop(f);
}

/* Who hears that libvirt is there can ask for every VM. */
static void test_domains_are_said_before_connected(void **state)
{
	Fixture *f = start(NODE);

	run_until(f, is_connected);
	assert_int_equal(f->n_domains_when_connected, 6);
	stop(f);
}

/* Stands in for libvirt's, in the broker too, which is forked from here. */
static gboolean cannot_list;

int virConnectListAllDomains(virConnectPtr connection, virDomainPtr **handles, unsigned int flags)
{
	static typeof(&virConnectListAllDomains) real;

	*(void **)&real = dlsym(RTLD_NEXT, "virConnectListAllDomains");
	return real(cannot_list ? NULL : connection, handles, flags);
}

static void test_says_why_domains_cannot_be_listed(void **state)
{
	Fixture *f;

	cannot_list = TRUE;
	f = start(NODE);
	cannot_list = FALSE;
	run_until(f, has_reason);
	assert_false(f->connected);
	assert_non_null(strstr(f->reason, "invalid connection pointer in"));
	stop(f);
}

static void test_awaited_answers_fail_when_the_broker_dies(void **state)
{
	Fixture *f = start("test:///default");
	g_autoptr(GError) error = NULL;

	run_until(f, has_test_domain);
	kill(f->pid, SIGSTOP);
	pf_broker_open_userfaultfd(f->broker, RUNS, on_result, f);
	kill(f->pid, SIGKILL);
	assert_true(WIFSIGNALED(exit_status(f->pid)));
	f->pid = 0;
	run_until(f, is_closed);
	run_until(f, has_result);
	assert_int_equal(pf_broker_open_userfaultfd_finish(f->result, &error), -1);
	assert_error(error, G_IO_ERROR_CLOSED, "ended");
	/* Later ones fail likewise. */
	expect_refused(f, "test", TRUE, G_IO_ERROR_CLOSED, "ended");
	stop(f);
}

static void test_awaited_answers_fail_when_it_is_freed(void **state)
{
	Fixture *f = start("test:///default");
	g_autoptr(GError) error = NULL;

	pf_broker_open_userfaultfd(f->broker, RUNS, on_result, f);
	g_clear_pointer(&f->broker, pf_broker_free);
	run_until(f, has_result);
	assert_int_equal(pf_broker_open_userfaultfd_finish(f->result, &error), -1);
	assert_error(error, G_IO_ERROR_CLOSED, "ended");
	assert_false(f->closed);
	stop(f);
}

static guint n_answers;

static void count_answer(GObject *source, GAsyncResult *result, gpointer userdata)
{
	g_autoptr(GError) error = NULL;

	assert_false(pf_broker_modify_finish(result, &error));
	assert_error(error, G_IO_ERROR_NOT_FOUND, "there is no VM nobody");
	n_answers++;
}

static gboolean has_all_answers(Fixture *f)
{
	return n_answers == 2000;
}

/* More requests than the socket takes at once, while the broker stands still. */
static void test_many_requests_wait(void **state)
{
	const PfVmSettings on = {.changes = PF_VM_SET_ENABLED, .enabled = TRUE};
	Fixture *f = start("test:///default");

	n_answers = 0;
	run_until(f, is_connected);
	kill(f->pid, SIGSTOP);
	for (int i = 0; i < 2000; i++)
		pf_broker_modify(f->front, "nobody", &on, count_answer, f);
	for (int i = 0; i < 10; i++)
		g_main_context_iteration(f->context, FALSE);
	kill(f->pid, SIGCONT);
	run_until(f, has_all_answers);
	stop(f);
}

/* The broker ends with status 1 when it gets this packet from this client. */
static void expect_end(PfBrokerClient client, const void *packet, size_t size, int descriptor)
{
	pid_t pid;
	PfBrokerSockets sockets = spawn(&pid, "test:///default");
	int fd = client == PF_BROKER_CLIENT_SERVICE ? sockets.service : sockets.front, status;

	assert_int_equal(pf_packet_send(fd, packet, size, descriptor), 0);
	status = exit_status(pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 1);
	close_sockets(&sockets);
}

static void test_what_is_no_request_ends_the_broker(void **state)
{
	PfBrokerRequest request = {
		.magic = PF_BROKER_MAGIC, .type = PF_BROKER_OPEN_USERFAULTFD, .id = 1, .vm = RUNS};

	expect_end(PF_BROKER_CLIENT_SERVICE, "rubbish", 7, -1);
	expect_end(PF_BROKER_CLIENT_FRONT, "rubbish", 7, -1);
	expect_end(PF_BROKER_CLIENT_SERVICE, &request, sizeof(request) - 1, -1);
	expect_end(PF_BROKER_CLIENT_SERVICE, &request, sizeof(request), STDERR_FILENO);
	request.type = PF_BROKER_ANSWER;
	expect_end(PF_BROKER_CLIENT_SERVICE, &request, sizeof(request), -1);
}

/* Good requests, each of the client that has no right to it. */
static void test_rights(void **state)
{
	PfBrokerRequest request = {.magic = PF_BROKER_MAGIC,
		.type = PF_BROKER_MODIFY,
		.id = 1,
		.changes = PF_VM_SET_ENABLED,
		.vm = OFF,
		.ranges = {{{0}, 1}}};

	expect_end(PF_BROKER_CLIENT_SERVICE, &request, sizeof(request), -1);
	request.changes = 0;
	request.type = PF_BROKER_OPEN_USERFAULTFD;
	expect_end(PF_BROKER_CLIENT_FRONT, &request, sizeof(request), -1);
	request.type = PF_BROKER_OPEN_CHANNEL;
	expect_end(PF_BROKER_CLIENT_FRONT, &request, sizeof(request), -1);
	request.type = PF_BROKER_TRANSLATE;
	request.n_ranges = 1;
	expect_end(PF_BROKER_CLIENT_FRONT, &request, sizeof(request), -1);
}

/* Everything has been said to the service, and nothing to the front. */
static void test_front_hears_nothing(void **state)
{
	struct pollfd front;
	pid_t pid;
	PfBrokerSockets sockets = spawn(&pid, NODE);
	PfBrokerMessage message = {0};
	size_t n_fds;
	int fd;

	while (message.type != PF_BROKER_CONNECTED)
		assert_int_equal(
			pf_packet_receive(sockets.service, &message, sizeof(message), &fd, &n_fds),
			sizeof(message));
	front = (struct pollfd){.fd = sockets.front, .events = POLLIN};
	assert_int_equal(poll(&front, 1, 0), 0);
	close_sockets(&sockets);
	assert_int_equal(exit_status(pid), 0);
}

static void test_ends_with_each_client(void **state)
{
	pid_t pid;
	PfBrokerSockets sockets = spawn(&pid, "test:///default");

	close(sockets.front);
	assert_int_equal(exit_status(pid), 0);
	close(sockets.service);
	sockets = spawn(&pid, "test:///default");
	close(sockets.service);
	assert_int_equal(exit_status(pid), 0);
	close(sockets.front);
}

/* A service that asks for descriptors, as fast as it can, and reads nothing. */
static void fill_with_requests(int service)
{
	const PfBrokerRequest request = {
		.magic = PF_BROKER_MAGIC, .type = PF_BROKER_OPEN_USERFAULTFD, .id = 1, .vm = RUNS};
	struct pollfd room = {.fd = service, .events = POLLOUT};
	int r;

	assert_true(g_unix_set_fd_nonblocking(service, TRUE, NULL));
	/* Full for so long: the broker takes no more. */
	while (poll(&room, 1, 500) > 0) {
		r = pf_packet_send(service, &request, sizeof(request), -1);
		assert_true(r == 0 || r == -EAGAIN);
	}
}

static guint n_open_files(pid_t pid)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/fd", pid);
	g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
	guint n = 0;

	assert_non_null(dir);
	while (g_dir_read_name(dir))
		n++;
	return n;
}

/* The front gets its answers all the same, and the broker keeps no descriptors. */
static void test_service_that_does_not_read(void **state)
{
	const PfBrokerRequest request = {.magic = PF_BROKER_MAGIC,
		.type = PF_BROKER_MODIFY,
		.id = 7,
		.changes = PF_VM_SET_ENABLED,
		.vm = "nobody"};
	struct timeval patience = {.tv_sec = TIMEOUT};
	pid_t pid;
	PfBrokerSockets sockets = spawn(&pid, "test:///default");
	PfBrokerMessage answer;
	guint n_files;
	size_t n_fds;
	int fd;

	setsockopt(sockets.front, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	for (int i = 0; i < 2; i++) {
		assert_int_equal(pf_packet_send(sockets.front, &request, sizeof(request), -1), 0);
		assert_int_equal(
			pf_packet_receive(sockets.front, &answer, sizeof(answer), &fd, &n_fds),
			sizeof(answer));
		assert_int_equal(answer.id, 7);
		if (i > 0)
			break;
		n_files = n_open_files(pid);
		fill_with_requests(sockets.service);
	}
	assert_in_range(n_open_files(pid), n_files - 1, n_files + 1);
	close_sockets(&sockets);
	assert_int_equal(exit_status(pid), 0);
}

/* The service reads none of the events that the front causes; the broker has had enough at last, and not before. */
static void test_service_that_has_hung(void **state)
{
	PfBrokerRequest request = {.magic = PF_BROKER_MAGIC,
		.type = PF_BROKER_MODIFY,
		.changes = PF_VM_SET_THP,
		.vm = "off"};
	struct timeval patience = {.tv_sec = TIMEOUT};
	pid_t pid;
	PfBrokerSockets sockets = spawn(&pid, NODE);
	PfBrokerMessage answer;
	ssize_t n = sizeof(answer);
	size_t n_fds;
	int fd, status;

	setsockopt(sockets.front, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	while (n == sizeof(answer) && request.id < 3 * 8192) {
		request.id++;
		request.thp = 1 + request.id % 2;
		if (pf_packet_send(sockets.front, &request, sizeof(request), -1) < 0)
			break;
		n = pf_packet_receive(sockets.front, &answer, sizeof(answer), &fd, &n_fds);
	}
	assert_in_range(request.id, 8192, 2 * 8192);
	status = exit_status(pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 1);
	close_sockets(&sockets);
}

/* A signal to the whole process group ends the service first, and the broker with it. */
static void test_ends_with_the_service(void **state)
{
	Fixture *f = start("test:///default");

	run_until(f, is_connected);
	kill(f->pid, SIGTERM);
	kill(f->pid, SIGINT);
	expect_refused(f, "nobody", TRUE, G_IO_ERROR_NOT_FOUND, "there is no VM nobody");
	stop(f);
}

/* Descriptors that the service was started with, the stores that systemd keeps among them, are not the broker's. */
static void test_inherits_nothing(void **state)
{
	PfBrokerSockets sockets;
	pid_t pid;
	char byte;
	int pipe_fds[2], low, high;

	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	low = fcntl(pipe_fds[1], F_DUPFD, 3);
	high = fcntl(pipe_fds[1], F_DUPFD, 200);
	sockets = spawn(&pid, "test:///default");
	close(pipe_fds[1]);
	close(low);
	close(high);
	/* It ends only when nobody has the other end. */
	assert_int_equal(read(pipe_fds[0], &byte, 1), 0);
	close(pipe_fds[0]);
	close_sockets(&sockets);
	assert_true(WIFEXITED(exit_status(pid)));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_inherits_nothing),
		cmocka_unit_test(test_sees_domains),
		cmocka_unit_test(test_sees_what_does_not_run),
		cmocka_unit_test(test_set_enabled_refusals),
		cmocka_unit_test(test_set_enabled_defines),
		cmocka_unit_test(test_set_thp),
		cmocka_unit_test(test_set_group),
		cmocka_unit_test(test_set_group_refusals),
		cmocka_unit_test(test_sees_what_is_no_group),
		cmocka_unit_test(test_refused_with_policy),
		cmocka_unit_test(test_translate_fails_cleanly),
		cmocka_unit_test(test_channel_fails_cleanly),
		cmocka_unit_test(test_userfaultfd_is_for_vms),
		cmocka_unit_test(test_session_daemon_is_refused),
		cmocka_unit_test(test_connects_later),
		cmocka_unit_test(test_domains_are_said_before_connected),
		cmocka_unit_test(test_says_why_domains_cannot_be_listed),
		cmocka_unit_test(test_awaited_answers_fail_when_the_broker_dies),
		cmocka_unit_test(test_awaited_answers_fail_when_it_is_freed),
		cmocka_unit_test(test_many_requests_wait),
		cmocka_unit_test(test_what_is_no_request_ends_the_broker),
		cmocka_unit_test(test_rights),
		cmocka_unit_test(test_front_hears_nothing),
		cmocka_unit_test(test_ends_with_each_client),
		cmocka_unit_test(test_service_that_does_not_read),
		cmocka_unit_test(test_service_that_has_hung),
		cmocka_unit_test(test_ends_with_the_service),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
