/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The CD with the guest additions, and the port that they open, by the real broker process on libvirt's test driver. What that
 * driver says of VMs that run, and does to their drives, stands in this file, which the broker is forked from.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "host-service/broker/additions_edit.h"
#include "tests/unit/host-service/broker_rig.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <libvirt/libvirt-qemu.h>
#include <libvirt/virterror.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define ISO_SIZE 0x9000

typedef enum Refuses {
	NOTHING,
	LOCKED,    /* as QEMU does when the guest has mounted it */
	TIMED_OUT, /* as libvirt does when the guest does not let go */
	BROKEN,
} Refuses;

/* What the test and the broker's process both see. */
static struct Shared {
	gint hangs; /* QEMU does not answer */
	gint n_updates;
	gint n_defines;
	gint n_reads;  /* of the definition of "runs" */
	gint n_events; /* of its ports, that are to come */
	Refuses refuses;
	gint n_good;                 /* updates that are done before it refuses */
	unsigned flags;              /* of the last update */
	char device[1024];           /* of the last update */
	char live[512], config[512]; /* drives; "": none */
} * shared;

static char *directory;

/* Stand in for libvirt's */

static __thread const char *own_error;

char *virDomainGetXMLDesc(virDomainPtr handle, unsigned int flags)
{
	const char *name = virDomainGetName(handle);
	gboolean inactive = flags & VIR_DOMAIN_XML_INACTIVE || strcmp(name, "off") == 0;
	char uuid[VIR_UUID_STRING_BUFLEN];

	virDomainGetUUIDString(handle, uuid);
	if (strcmp(name, "runs") == 0)
		g_atomic_int_inc(&shared->n_reads);
	return g_strdup_printf("<domain type='test'%s><name>%s</name><uuid>%s</uuid>"
			       "<memory unit='KiB'>65536</memory>"
			       "<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>"
			       "<devices>%s</devices></domain>",
		inactive ? "" : " id='7'", name, uuid, inactive ? shared->config : shared->live);
}

virDomainPtr virDomainDefineXML(virConnectPtr connection, const char *text)
{
	g_autoptr(PfDomainXml) xml = pf_domain_xml_new(text, NULL);
	xmlNode *disk =
		pf_domain_xml_child(pf_domain_xml_child(xml->root, NULL, "devices"), NULL, "disk");
	g_autofree char *drive = disk ? pf_additions_format(xml, disk) : g_strdup("");

	g_atomic_int_inc(&shared->n_defines);
	g_strlcpy(shared->config, drive, sizeof(shared->config));
	return virDomainLookupByName(connection, "off");
}

int virDomainUpdateDeviceFlags(virDomainPtr handle, const char *device, unsigned int flags)
{
	static const char *const errors[] = {[LOCKED] =
						     "unable to execute QEMU command "
						     "'blockdev-open-tray': Device 'sata0-0-0' is "
						     "locked and force was not specified, wait for "
						     "tray to open and try again",
		[TIMED_OUT] = "timed out waiting for disk tray status update",
		[BROKEN] = "the image is\non fire"};

	g_atomic_int_inc(&shared->n_updates);
	g_strlcpy(shared->device, device, sizeof(shared->device));
	shared->flags = flags;
	while (g_atomic_int_get(&shared->hangs))
		g_usleep(1000);
	own_error = NULL;
	if (shared->refuses == NOTHING || shared->n_good-- > 0 ||
		(shared->refuses == LOCKED && flags & VIR_DOMAIN_DEVICE_MODIFY_FORCE)) {
		g_strlcpy(shared->live, device, sizeof(shared->live));
		return 0;
	}
	own_error = errors[shared->refuses];
	return -1;
}

const char *virGetLastErrorMessage(void)
{
	static typeof(&virGetLastErrorMessage) real;

	*(void **)&real = dlsym(RTLD_NEXT, "virGetLastErrorMessage");
	return own_error ? own_error : real();
}

/* Every call forgets the last error, also this. */
const char *virDomainGetName(virDomainPtr handle)
{
	static typeof(&virDomainGetName) real;

	own_error = NULL;
	*(void **)&real = dlsym(RTLD_NEXT, "virDomainGetName");
	return real(handle);
}

/* In the broker's process. */
static struct {
	virConnectPtr connection;
	virConnectDomainQemuMonitorEventCallback callback;
	void *opaque;
} ports;

static void on_ports(int timer, void *opaque)
{
	virDomainPtr handle;

	if (g_atomic_int_get(&shared->n_events) == 0)
		return;
	handle = virDomainLookupByName(ports.connection, "runs");
	for (; g_atomic_int_get(&shared->n_events) > 0;
		g_atomic_int_dec_and_test(&shared->n_events))
		ports.callback(
			ports.connection, handle, "VSERPORT_CHANGE", 0, 0, "{}", ports.opaque);
	virDomainFree(handle);
}

int virConnectDomainQemuMonitorEventRegister(virConnectPtr connection, virDomainPtr handle,
	const char *event, virConnectDomainQemuMonitorEventCallback callback, void *opaque,
	virFreeCallback free_opaque, unsigned int flags)
{
	if (handle || strcmp(event, "VSERPORT_CHANGE") != 0)
		return -1;
	ports.connection = connection;
	ports.callback = callback;
	ports.opaque = opaque;
	virEventAddTimeout(10, on_ports, NULL, NULL);
	return 7;
}

/* The image, and the broker */

static char *iso_path(void)
{
	return g_build_filename(directory, "a.iso", NULL);
}

static void write_iso(void)
{
	g_autofree char *path = iso_path();
	char *bytes = g_malloc0(ISO_SIZE);

	memcpy(bytes + 0x8001, "CD001", 5);
	assert_true(g_file_set_contents(path, bytes, ISO_SIZE, NULL));
	assert_int_equal(g_chmod(path, 0644), 0);
	g_free(bytes);
}

static gboolean has_six_domains(Fixture *f)
{
	return g_hash_table_size(f->domains) == 6;
}

static int set_up(void **state)
{
	Fixture *f;

	directory = g_dir_make_tmp("pf-additions-XXXXXX", NULL);
	write_iso();
	memset(shared, 0, sizeof(*shared));
	broker_rig_iso = iso_path();
	f = start(NODE);
	run_until(f, has_six_domains);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	g_autofree char *path = iso_path();

	g_atomic_int_set(&shared->hangs, 0);
	stop(*state);
	if (g_remove(path) != 0)
		assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(g_rmdir(directory), 0);
	g_clear_pointer(&directory, g_free);
	g_clear_pointer(&broker_rig_iso, g_free);
	return 0;
}

static gboolean finish_change(Fixture *f, PfAdditionsChange *change, GError **error)
{
	run_until(f, has_result);
	return pf_broker_additions_finish(f->result, change, error);
}

static gboolean insert(Fixture *f, const char *vm, PfAdditionsChange *change, GError **error)
{
	g_clear_object(&f->result);
	pf_broker_insert_additions(f->front, vm, on_result, f);
	return finish_change(f, change, error);
}

static gboolean eject(
	Fixture *f, const char *vm, gboolean force, PfAdditionsChange *change, GError **error)
{
	g_clear_object(&f->result);
	pf_broker_eject_additions(f->front, vm, force, on_result, f);
	return finish_change(f, change, error);
}

static void must_finish(Fixture *f, PfAdditionsChange *change)
{
	g_autoptr(GError) error = NULL;

	if (!finish_change(f, change, &error))
		fail_msg("not changed: %s", error->message);
}

static void must_insert(Fixture *f, const char *vm, PfAdditionsChange *change)
{
	g_autoptr(GError) error = NULL;

	if (!insert(f, vm, change, &error))
		fail_msg("not inserted into %s: %s", vm, error->message);
}

static void must_eject(Fixture *f, const char *vm, gboolean force, PfAdditionsChange *change)
{
	g_autoptr(GError) error = NULL;

	if (!eject(f, vm, force, change, &error))
		fail_msg("not ejected from %s: %s", vm, error->message);
}

static void assert_change(const PfAdditionsChange *change, const char *drive, gboolean changed,
	gboolean running, gboolean of_drive)
{
	assert_string_equal(change->drive, drive);
	assert_int_equal(change->changed, changed);
	assert_int_equal(change->running, running);
	assert_int_equal(change->of_drive, of_drive);
}

static void expect_no_insert(Fixture *f, const char *vm, GIOErrorEnum code, const char *says)
{
	g_autoptr(GError) error = NULL;
	PfAdditionsChange change;

	assert_false(insert(f, vm, &change, &error));
	assert_error(error, code, says);
}

static void expect_no_eject(Fixture *f, const char *vm, GIOErrorEnum code, const char *says)
{
	g_autoptr(GError) error = NULL;
	PfAdditionsChange change;

	assert_false(eject(f, vm, FALSE, &change, &error));
	assert_error(error, code, says);
}

#define EMPTY_DRIVE "<disk type='file' device='cdrom'><target dev='sdb' bus='sata'/></disk>"

static void put_empty_drives(void)
{
	strcpy(shared->live, EMPTY_DRIVE);
	strcpy(shared->config, EMPTY_DRIVE);
}

/* Tests */

static void test_off(void **state)
{
	Fixture *f = *state;
	PfAdditionsChange change;

	must_insert(f, "off", &change);
	assert_change(&change, "sda", TRUE, FALSE, TRUE);
	assert_non_null(strstr(shared->config, broker_rig_iso));
	must_insert(f, "off", &change);
	assert_change(&change, "sda", FALSE, FALSE, FALSE);
	assert_int_equal(shared->n_defines, 1);
	must_eject(f, "off", FALSE, &change);
	assert_change(&change, "sda", TRUE, FALSE, TRUE);
	assert_string_equal(shared->config, "");
	must_eject(f, "off", FALSE, &change);
	assert_change(&change, "", FALSE, FALSE, FALSE);
	assert_int_equal(shared->n_defines, 2);
	assert_int_equal(shared->n_updates, 0);
}

static void test_running(void **state)
{
	Fixture *f = *state;
	PfAdditionsChange change;

	put_empty_drives();
	must_insert(f, RUNS, &change);
	assert_change(&change, "sdb", TRUE, TRUE, FALSE);
	assert_non_null(strstr(shared->device, broker_rig_iso));
	assert_int_equal(shared->flags, VIR_DOMAIN_AFFECT_LIVE);
	must_insert(f, RUNS, &change);
	assert_change(&change, "sdb", FALSE, TRUE, FALSE);
	assert_int_equal(shared->n_updates, 1);
	assert_int_equal(shared->n_defines, 0);
	must_eject(f, RUNS, FALSE, &change);
	assert_change(&change, "sdb", TRUE, TRUE, FALSE);
	assert_null(strstr(shared->device, "source"));
	assert_int_equal(shared->flags, VIR_DOMAIN_AFFECT_LIVE);
	must_eject(f, RUNS, FALSE, &change);
	assert_change(&change, "", FALSE, FALSE, FALSE);
	assert_int_equal(shared->n_updates, 2);
	assert_int_equal(shared->n_defines, 0);
}

/* Both, and the drive with the definition; of a VM without a definition only what it has. */
static void test_eject_of_both(void **state)
{
	Fixture *f = *state;
	PfAdditionsChange change;
	g_autofree char *drive = g_strdup_printf(
		"<disk type='file' device='cdrom'><source file='%s'/><target dev='sda' bus='sata'/>"
		"<alias name='" PF_ADDITIONS_ALIAS "'/></disk>",
		broker_rig_iso);

	strcpy(shared->live, drive);
	strcpy(shared->config, drive);
	must_eject(f, "runs", FALSE, &change);
	assert_change(&change, "sda", TRUE, TRUE, TRUE);
	assert_non_null(strstr(shared->live, PF_ADDITIONS_ALIAS));
	assert_string_equal(shared->config, "");
	strcpy(shared->live, drive);
	strcpy(shared->config, drive);
	shared->n_defines = 0;
	must_eject(f, "passing", FALSE, &change);
	assert_change(&change, "sda", TRUE, TRUE, FALSE);
	assert_int_equal(shared->n_defines, 0);
}

static void test_locked(void **state)
{
	Fixture *f = *state;
	PfAdditionsChange change;
	char inserted[sizeof(shared->config)];

	put_empty_drives();
	must_insert(f, "runs", &change);
	strcpy(shared->config, shared->live);
	strcpy(inserted, shared->config);
	shared->refuses = LOCKED;
	expect_no_eject(f, "runs", G_IO_ERROR_NOT_SUPPORTED,
		"the guest of VM runs uses the CD in drive sdb: unmount and eject it in the guest first");
	assert_string_equal(shared->config, inserted);
	must_eject(f, "runs", TRUE, &change);
	assert_int_equal(shared->flags, VIR_DOMAIN_AFFECT_LIVE | VIR_DOMAIN_DEVICE_MODIFY_FORCE);
	assert_int_equal(shared->n_defines, 1);
	expect_no_insert(f, "runs", G_IO_ERROR_FAILED, "wait for tray to open");
	shared->refuses = NOTHING;
	must_insert(f, "runs", &change);
	shared->refuses = TIMED_OUT;
	expect_no_eject(f, "runs", G_IO_ERROR_NOT_SUPPORTED,
		"or say --force (libvirt cannot change the CD drive of VM runs: timed out");
	shared->refuses = BROKEN;
	expect_no_eject(f, "runs", G_IO_ERROR_FAILED,
		"libvirt cannot change the CD drive of VM runs: the image is on fire");
}

static void put_two_full_drives(void)
{
	g_snprintf(shared->live, sizeof(shared->live),
		"<disk device='cdrom'><source file='%s'/><target dev='sda'/></disk>"
		"<disk device='cdrom'><source file='%s'/><target dev='sdb'/></disk>",
		broker_rig_iso, broker_rig_iso);
}

/* It is of that drive that is spoken, and what came out before is not lost sight of. */
static void test_second_locked(void **state)
{
	Fixture *f = *state;
	PfAdditionsChange change;

	put_two_full_drives();
	shared->refuses = LOCKED;
	shared->n_good = 1;
	expect_no_eject(f, "passing", G_IO_ERROR_NOT_SUPPORTED, "uses the CD in drive sdb:");
	assert_int_equal(shared->n_updates, 2);
	put_two_full_drives();
	shared->refuses = NOTHING;
	must_eject(f, "passing", FALSE, &change);
	assert_change(&change, "sda", TRUE, TRUE, FALSE);
	assert_int_equal(shared->n_updates, 4);
}

static void test_refusals(void **state)
{
	Fixture *f = *state;

	expect_no_insert(f, "runs", G_IO_ERROR_NOT_SUPPORTED,
		"VM runs: it has no CD drive, and none can be added while it runs: shut it off");
	expect_no_insert(f, "saved", G_IO_ERROR_NOT_SUPPORTED, "virsh managedsave-remove saved");
	expect_no_eject(f, "saved", G_IO_ERROR_NOT_SUPPORTED, "virsh managedsave-remove saved");
	expect_no_insert(f, "nobody", G_IO_ERROR_NOT_FOUND, "there is no VM nobody");
	expect_no_eject(f, NOBODY, G_IO_ERROR_NOT_FOUND, "there is no VM");
	expect_no_insert(f, "", G_IO_ERROR_INVALID_ARGUMENT, "no valid name");
	strcpy(shared->config,
		"<disk device='cdrom'><source file='/debian.iso'/><target dev='sdx'/></disk>");
	expect_no_insert(
		f, "off", G_IO_ERROR_NOT_SUPPORTED, "VM off: its CD drive sdx holds /debian.iso");
	assert_int_equal(shared->n_defines, 0);
	assert_int_equal(shared->n_updates, 0);
}

static void expect_bad_iso(Fixture *f, const char *says)
{
	g_autofree char *message = g_strdup_printf("%s%s", broker_rig_iso, says);

	put_empty_drives();
	expect_no_insert(f, "off", G_IO_ERROR_FAILED, message);
	expect_no_insert(f, "runs", G_IO_ERROR_FAILED, message);
	assert_int_equal(shared->n_defines, 0);
	assert_int_equal(shared->n_updates, 0);
}

static void test_image(void **state)
{
	Fixture *f = *state;

	assert_int_equal(g_chmod(broker_rig_iso, 0646), 0);
	expect_bad_iso(f, " can be written by others than root");
	assert_int_equal(g_chmod(broker_rig_iso, 01664), 0);
	expect_bad_iso(f, " can be written by others than root");
	assert_int_equal(g_chmod(broker_rig_iso, 0640), 0);
	expect_bad_iso(f, " cannot be read by QEMU: chmod o+r it");
	assert_int_equal(g_chmod(broker_rig_iso, 0644), 0);
	assert_int_equal(truncate(broker_rig_iso, 0x8003), 0);
	expect_bad_iso(f, " is no ISO 9660 image");
	assert_int_equal(truncate(broker_rig_iso, ISO_SIZE), 0);
	expect_bad_iso(f, " is no ISO 9660 image");
	if (geteuid() == 0) {
		write_iso();
		assert_int_equal(chown(broker_rig_iso, 65534, 0), 0);
		expect_bad_iso(f, " can be written by others than root");
	}
	g_remove(broker_rig_iso);
	expect_bad_iso(f, ": install the package pagefusion-guest-additions, or make");
	/* Nobody waits for who would write to it. */
	assert_int_equal(mkfifo(broker_rig_iso, 0644), 0);
	expect_bad_iso(f, " is no file");
}

#define OPEN_PLACE " is in a directory that others than root can write to"

/* Who can put another file in its place need not write to it. */
static void test_place_of_image(void **state)
{
	Fixture *f = *state;
	PfAdditionsChange change;

	assert_int_equal(g_chmod(directory, 0757), 0);
	expect_bad_iso(f, OPEN_PLACE);
	assert_int_equal(g_chmod(directory, 0775), 0);
	expect_bad_iso(f, OPEN_PLACE);
	assert_int_equal(g_chmod(directory, 01777), 0);
	must_insert(f, "off", &change);
	assert_int_equal(g_chmod(directory, 0755), 0);
	if (geteuid() == 0) {
		shared->n_defines = 0;
		assert_int_equal(chown(directory, 65534, 0), 0);
		expect_bad_iso(f, OPEN_PLACE);
	}
}

/* Nor who can put another link there, or another file in the place of what it leads to. */
static void test_place_of_link(void **state)
{
	Fixture *f = *state;
	g_autofree char *other = g_dir_make_tmp("pf-additions-XXXXXX", NULL);
	g_autofree char *target = g_build_filename(other, "b.iso", NULL);
	PfAdditionsChange change;

	assert_int_equal(g_rename(broker_rig_iso, target), 0);
	assert_int_equal(symlink(target, broker_rig_iso), 0);
	assert_int_equal(g_chmod(directory, 0757), 0);
	expect_bad_iso(f, OPEN_PLACE);
	assert_int_equal(g_chmod(directory, 0755), 0);
	assert_int_equal(g_chmod(other, 0757), 0);
	expect_bad_iso(f, OPEN_PLACE);
	assert_int_equal(g_chmod(other, 0755), 0);
	must_insert(f, "off", &change);
	assert_int_equal(g_remove(target), 0);
	assert_int_equal(g_rmdir(other), 0);
}

/* One that is missing does not keep what is inserted. */
static void test_eject_without_image(void **state)
{
	Fixture *f = *state;
	PfAdditionsChange change;

	must_insert(f, "off", &change);
	g_remove(broker_rig_iso);
	must_eject(f, "off", FALSE, &change);
	assert_change(&change, "sda", TRUE, FALSE, TRUE);
}

/* Or answered, which it should not be. */
static gboolean is_updating(Fixture *f)
{
	return g_atomic_int_get(&shared->n_updates) > 0 || f->result;
}

static gboolean on_tick(gpointer userdata)
{
	return G_SOURCE_CONTINUE;
}

/* A QEMU that does not answer keeps nobody else waiting, and its VM only from further changes. */
static void test_hung_qemu(void **state)
{
	Fixture *f = *state;
	PfAdditionsChange change;
	g_autoptr(GSource) tick = g_timeout_source_new(5);

	put_empty_drives();
	g_atomic_int_set(&shared->hangs, 1);
	pf_broker_insert_additions(f->front, "runs", on_result, f);
	g_source_set_callback(tick, on_tick, NULL, NULL);
	g_source_attach(tick, f->context);
	run_until(f, is_updating);
	g_source_destroy(tick);
	if (f->result)
		must_finish(f, &change);
	assert_null(f->result);
	expect_no_eject(f, RUNS, G_IO_ERROR_PENDING,
		"QEMU has not finished an earlier change of the CD drive of VM runs");
	must_insert(f, "off", &change);
	assert_change(&change, "sdb", TRUE, FALSE, FALSE);
	expect_refused(f, "runs", TRUE, G_IO_ERROR_BUSY, "VM runs is running");
	g_clear_object(&f->result);
	g_atomic_int_set(&shared->hangs, 0);
	must_finish(f, &change);
	assert_change(&change, "sdb", TRUE, TRUE, FALSE);
	must_eject(f, "runs", FALSE, &change);
}

#define PORT(state)                                                                                \
	"<channel type='unix'><target type='virtio' name='org.pagefusion.agent.0' state='" state   \
	"'/></channel>"

static const PfDomain *domain_runs(Fixture *f)
{
	return g_hash_table_lookup(f->domains, "runs");
}

static gboolean port_is_open(Fixture *f)
{
	return domain_runs(f)->port_open;
}

static gboolean port_is_closed(Fixture *f)
{
	return !domain_runs(f)->port_open;
}

/* However often a guest opens and closes it, the broker does not look more than once a second, and sees how it ended. */
static void test_port(void **state)
{
	Fixture *f = *state;
	gint64 began = g_get_monotonic_time(), seconds;
	gint n_reads = g_atomic_int_get(&shared->n_reads), n;

	assert_false(port_is_open(f));
	strcpy(shared->live, PORT("connected"));
	g_atomic_int_set(&shared->n_events, 10000);
	run_until(f, port_is_open);
	while (n = g_atomic_int_get(&shared->n_reads) - n_reads, n < 3) {
		g_atomic_int_set(&shared->n_events, 100);
		g_main_context_iteration(f->context, FALSE);
		g_usleep(1000);
	}
	seconds = (g_get_monotonic_time() - began) / G_USEC_PER_SEC;
	assert_in_range(n, 3, seconds);
	assert_true(port_is_open(f));
	strcpy(shared->live, PORT("disconnected"));
	run_until(f, port_is_closed);
	/* What libvirt notes a moment after it has told is seen, too. */
	strcpy(shared->live, PORT("connected"));
	run_until(f, port_is_open);
}

/* Each test in a process of its own, so that its broker is forked before there is a main context, see start(). */
static int run_alone(const struct CMUnitTest *test)
{
	const struct CMUnitTest tests[] = {*test};
	pid_t pid = fork();
	int status = 1;

	if (pid == 0)
		exit(cmocka_run_group_tests(tests, NULL, NULL));
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0 ? 0 : 1;
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_off),
		TEST(test_running),
		TEST(test_eject_of_both),
		TEST(test_locked),
		TEST(test_second_locked),
		TEST(test_refusals),
		TEST(test_image),
		TEST(test_place_of_image),
		TEST(test_place_of_link),
		TEST(test_eject_without_image),
		TEST(test_hung_qemu),
		TEST(test_port),
	};
#undef TEST
	int failed = 0;

	shared = mmap(
		NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return 1;
	for (size_t i = 0; i < G_N_ELEMENTS(tests); i++)
		failed += run_alone(&tests[i]);
	return failed;
}
