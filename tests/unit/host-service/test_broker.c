/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the broker says of libvirt's domains, and does and refuses to do with them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/host-service/broker_rig.h"
#include <dlfcn.h>
#include <libvirt/libvirt.h>
#include <unistd.h>

static gboolean has_reason(Fixture *f)
{
	return f->reason && *f->reason;
}

static gboolean has_six_domains(Fixture *f)
{
	return g_hash_table_size(f->domains) == 6;
}

static gboolean set_thp(Fixture *f, const char *vm, PfThp thp, GError **error)
{
	const PfVmSettings settings = {.changes = PF_VM_SET_THP, .thp = thp};

	return modify(f, vm, &settings, error);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
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
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
