/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The medium of the guest additions in sample definitions, and what is shown of the additions as time goes by. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "host-service/broker/additions_edit.h"
#include "host-service/decide/additions.h"
#include "pagefusion-version.h"
#include <gio/gio.h>
#include <libxml/c14n.h>
#include <string.h>

#define ISO "/usr/share/pagefusion/pagefusion-guest-additions.iso"

/* Definitions */

static PfDomainXml *parse(const char *text)
{
	PfDomainXml *xml = pf_domain_xml_new(text, NULL);

	assert_non_null(xml);
	return xml;
}

static void drop_blanks(xmlNode *node)
{
	for (xmlNode *child = node->children, *next; child; child = next) {
		next = child->next;
		if (xmlIsBlankNode(child)) {
			xmlUnlinkNode(child);
			xmlFreeNode(child);
		} else if (child->type == XML_ELEMENT_NODE) {
			drop_blanks(child);
		}
	}
}

/* Without the white space between elements. */
static char *canonical(const PfDomainXml *xml)
{
	g_autofree char *text = pf_domain_xml_format(xml);
	g_autoptr(PfDomainXml) copy = parse(text);
	xmlChar *form = NULL;
	char *result;

	drop_blanks(copy->root);
	assert_true(xmlC14NDocDumpMemory(copy->doc, NULL, XML_C14N_1_0, NULL, 1, &form) >= 0);
	result = g_strdup((const char *)form);
	xmlFree(form);
	return result;
}

static PfDomainXml *load(const char *name)
{
	g_autofree char *path = g_strdup_printf("%s/%s.xml", PF_TEST_DOMAINS, name);
	g_autofree char *text = NULL;

	assert_true(g_file_get_contents(path, &text, NULL, NULL));
	return parse(text);
}

static PfDomainXml *make(const char *machine, const char *devices)
{
	g_autofree char *text = g_strdup_printf(
		"<domain type='kvm'><os><type arch='x86_64' machine='%s'>hvm</type></os>"
		"<devices>%s</devices></domain>",
		machine, devices);

	return parse(text);
}

static void assert_inserts(PfDomainXml *xml, const char *drive, uint32_t changed, uint32_t of_drive)
{
	PfAdditionsChange change;
	g_autoptr(GError) error = NULL;

	assert_true(pf_additions_insert(xml, ISO, TRUE, &change, NULL, &error));
	assert_null(error);
	assert_string_equal(change.drive, drive);
	assert_int_equal(change.changed, changed);
	assert_int_equal(change.of_drive, of_drive);
	assert_int_equal(change.running, 0);
}

static void assert_ejects(PfDomainXml *xml, const char *drive, uint32_t changed, uint32_t of_drive)
{
	PfAdditionsChange change = {0};

	pf_additions_eject(xml, ISO, &change);
	assert_string_equal(change.drive, drive);
	assert_int_equal(change.changed, changed);
	assert_int_equal(change.of_drive, of_drive);
}

static void assert_says(const PfDomainXml *xml, const char *what)
{
	g_autofree char *text = canonical(xml);

	if (!strstr(text, what))
		fail_msg("there is no %s in %s", what, text);
}

static void assert_says_not(const PfDomainXml *xml, const char *what)
{
	g_autofree char *text = canonical(xml);

	assert_null(strstr(text, what));
}

/* In and out again is as before: of a definition without drive, with an empty one, and of drives that others need. */
static void test_round_trips(void **state)
{
	static const struct {
		const char *sample, *drive;
		uint32_t of_drive;
	} samples[] = {
		{"plain", "sda", 1},
		{"preload", "sda", 1},
		{"running", "hda", 1},
		{"cdrom-empty", "sdb", 0},
		{"cdrom-mixed", "hdd", 0},
		{"cdrom-scsi", "sdc", 1},
		{"cdrom-usb", "sda", 1},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(samples); i++) {
		g_autoptr(PfDomainXml) xml = load(samples[i].sample);
		g_autofree char *before = canonical(xml), *once = NULL, *twice = NULL;
		g_autofree char *after = NULL;

		assert_inserts(xml, samples[i].drive, 1, samples[i].of_drive);
		once = canonical(xml);
		assert_string_not_equal(before, once);
		assert_inserts(xml, samples[i].drive, 0, 0);
		twice = canonical(xml);
		assert_string_equal(once, twice);
		assert_ejects(xml, samples[i].drive, 1, samples[i].of_drive);
		after = canonical(xml);
		assert_string_equal(before, after);
		assert_ejects(xml, "", 0, 0);
	}
}

static void test_what_is_written(void **state)
{
	g_autoptr(PfDomainXml) q35 = make("pc-q35-7.2", "");
	g_autoptr(PfDomainXml) pc = make("pc-i440fx-7.2", "<controller type='ide' index='0'/>");
	g_autoptr(PfDomainXml) bare = make("pc-i440fx-7.2", "");

	assert_inserts(q35, "sda", 1, 1);
	assert_says(q35,
		"<disk device=\"cdrom\" type=\"file\"><driver name=\"qemu\" type=\"raw\"></driver>"
		"<target bus=\"sata\" dev=\"sda\"></target><readonly></readonly>"
		"<alias name=\"ua-pagefusion-additions\"></alias>"
		"<source file=\"" ISO "\" startupPolicy=\"optional\">"
		"<seclabel model=\"dac\" relabel=\"no\"></seclabel></source></disk>");
	assert_inserts(pc, "hda", 1, 1);
	assert_says(pc, "<alias name=\"ua-pagefusion-additions\">");
	assert_inserts(bare, "hda", 1, 1);
	assert_says(bare, "<alias name=\"ua-pagefusion-additions-ide\">");
}

/* What libvirt adds by itself goes with the drive, unless somebody else needs it by now. */
static void test_ide_controller(void **state)
{
	g_autoptr(PfDomainXml) own =
		make("pc", "<disk type='file' device='cdrom'><source file='" ISO
			   "'/><target dev='hda' bus='ide'/>"
			   "<alias name='ua-pagefusion-additions-ide'/></disk>"
			   "<controller type='usb'/><controller type='ide' index='0'/>");
	g_autoptr(PfDomainXml) needed = make("pc",
		"<disk type='file' device='cdrom'><source file='" ISO
		"'/><target dev='hda' bus='ide'/>"
		"<alias name='ua-pagefusion-additions-ide'/></disk>"
		"<disk type='file'><target dev='hdb' bus='ide'/></disk><controller type='ide'/>");
	g_autoptr(PfDomainXml) theirs = make("pc",
		"<disk type='file' device='cdrom'><source file='" ISO
		"'/><target dev='hda' bus='ide'/>"
		"<alias name='ua-pagefusion-additions'/></disk><controller type='ide'/>");

	assert_ejects(own, "hda", 1, 1);
	assert_says_not(own, "ide");
	assert_says(own, "<controller type=\"usb\">");
	assert_ejects(needed, "hda", 1, 1);
	assert_says(needed, "<controller type=\"ide\">");
	assert_ejects(theirs, "hda", 1, 1);
	assert_says(theirs, "<controller type=\"ide\">");
}

/* A name or a place that is taken is not taken twice. */
static void test_places(void **state)
{
	static const struct {
		const char *machine, *devices, *drive;
	} cases[] = {
		{"q35", "<disk><target dev='sda' bus='sata'/></disk><disk><target dev='sdb' bus='usb'/></disk>",
			"sdc"},
		{"q35", "<disk><target dev='sdz' bus='sata'/><address controller='0' bus='0' unit='0'/></disk>",
			"sdb"},
		{"q35", "<disk><target dev='sdz' bus='sata'/><address controller='1' bus='0' unit='0'/></disk>",
			"sda"},
		{"pc",
			"<disk><target dev='hdz' bus='ide'/><address controller='0' bus='0' unit='0'/></disk>"
			"<disk><target dev='hdy' bus='ide'/><address controller='0' bus='1' unit='0'/></disk>",
			"hdb"},
		{"pc",
			"<disk><target dev='hdz' bus='ide'/><address controller='0' bus='0' unit='0'/></disk>"
			"<disk><target dev='hdb' bus='ide'/></disk>"
			"<disk><target dev='hdy' bus='ide'/><address controller='0' bus='1' unit='0'/></disk>",
			"hdd"},
		{"virt", "<controller type='usb' model='none'/><controller type='scsi'/>", "sda"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autoptr(PfDomainXml) xml = make(cases[i].machine, cases[i].devices);

		assert_inserts(xml, cases[i].drive, 1, 1);
	}
}

static void assert_refuses(PfDomainXml *xml, gboolean may_add, const char *says)
{
	g_autofree char *before = canonical(xml), *after = NULL;
	PfAdditionsChange change;
	g_autoptr(GError) error = NULL;

	assert_false(pf_additions_insert(xml, ISO, may_add, &change, NULL, &error));
	assert_true(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED));
	if (!strstr(error->message, says))
		fail_msg("\"%s\", wanted \"%s\"", error->message, says);
	after = canonical(xml);
	assert_string_equal(before, after);
}

static void test_refusals(void **state)
{
	static const char *const media[] = {"file='/a/debian.iso'", "dev='/dev/sr0'",
		"name='rbd/debian'", "pool='default' volume='debian'", "protocol='nbd'"};
	static const char *const named[] = {
		"/a/debian.iso", "/dev/sr0", "rbd/debian", "debian", "nbd"};
	g_autoptr(PfDomainXml) bare = make("q35", "<disk device='disk'><target dev='vda'/></disk>");
	g_autoptr(PfDomainXml) none = make("virt", "<controller type='usb' model='none'/>");
	g_autoptr(PfDomainXml) nothing = parse("<domain/>");

	for (size_t i = 0; i < G_N_ELEMENTS(media); i++) {
		g_autofree char *drive = g_strdup_printf(
			"<disk device='cdrom'><source %s/><target dev='sdd'/></disk>", media[i]);
		g_autofree char *says = g_strdup_printf("drive sdd holds %s: eject", named[i]);
		g_autoptr(PfDomainXml) xml = make("q35", drive);

		assert_refuses(xml, TRUE, says);
		assert_refuses(xml, FALSE, says);
		assert_ejects(xml, "", 0, 0);
	}
	assert_refuses(bare, FALSE, "shut it off and insert again");
	assert_refuses(none, TRUE, "no place for one");
	assert_refuses(nothing, TRUE, "no CD drive");
}

/* A drive of a running VM, as libvirt prints it when it is empty, and what it is told then. */
static void test_live_drive(void **state)
{
	g_autoptr(PfDomainXml) xml = make("q35",
		"<disk type='block' device='cdrom'><driver name='qemu' type='raw'/><source index='3'/>"
		"<backingStore/><target dev='sda' bus='sata' tray='open'/><readonly/>"
		"<alias name='sata0-0-0'/></disk>");
	PfAdditionsChange change = {0};
	xmlNode *drive = NULL;
	g_autofree char *in = NULL, *out = NULL;

	assert_true(pf_additions_insert(xml, ISO, FALSE, &change, &drive, NULL));
	assert_non_null(drive);
	in = pf_additions_format(xml, drive);
	assert_true(g_str_has_prefix(in, "<disk type=\"file\" device=\"cdrom\">"));
	assert_non_null(strstr(in, "<source file=\"" ISO "\""));
	assert_non_null(strstr(in, "<alias name=\"sata0-0-0\"/>"));
	assert_null(strstr(in, "backingStore"));
	assert_null(strstr(in, "index"));
	assert_true(pf_additions_insert(xml, ISO, FALSE, &change, &drive, NULL));
	assert_null(drive);
	drive = pf_additions_empty(xml, ISO, &change);
	assert_non_null(drive);
	out = pf_additions_format(xml, drive);
	assert_null(strstr(out, "source"));
	assert_non_null(strstr(out, "<target dev=\"sda\""));
	assert_null(pf_additions_empty(xml, ISO, &change));
}

/* By another path it is ours too, and gives way; what another has put into our drive stays, with the drive. */
static void test_other_paths(void **state)
{
	g_autoptr(PfDomainXml) old = make("q35",
		"<disk device='cdrom'><source file='/opt/pagefusion-guest-additions.iso'/>"
		"<target dev='sdb' bus='sata'/></disk><disk device='cdrom'><target dev='sdc'/></disk>");
	g_autoptr(PfDomainXml) theirs = make("q35",
		"<disk device='cdrom'><source file='/debian.iso'/><target dev='sda' bus='sata'/>"
		"<alias name='ua-pagefusion-additions'/></disk>");

	assert_inserts(old, "sdb", 1, 0);
	assert_says(old, "<source file=\"" ISO "\"");
	assert_says_not(old, "/opt");
	assert_ejects(theirs, "", 0, 0);
	assert_says(theirs, "/debian.iso");
}

static void test_two_drives(void **state)
{
	g_autoptr(PfDomainXml) xml = make("q35",
		"<disk device='cdrom'><source file='" ISO "'/><target dev='sda' bus='sata'/></disk>"
		"<disk device='cdrom'><source file='" ISO
		"'/><target dev='sdb' bus='sata'/></disk>");

	assert_ejects(xml, "sda", 1, 0);
	assert_says_not(xml, "<source");
	assert_says(xml, "sdb");
}

static void test_strange_paths(void **state)
{
	g_autoptr(PfDomainXml) xml = make("q35", "");
	const char *path = "/a & b/<c> \"d\" 'e'.iso";
	PfAdditionsChange change = {0};
	g_autofree char *text = NULL;
	g_autoptr(PfDomainXml) again = NULL;

	assert_true(pf_additions_insert(xml, path, TRUE, &change, NULL, NULL));
	text = pf_domain_xml_format(xml);
	again = parse(text);
	pf_additions_eject(again, path, &change);
	assert_says_not(again, "cdrom");
}

static void test_port(void **state)
{
	static const struct {
		const char *channel;
		gboolean is_open;
	} cases[] = {
		{"<channel type='unix'><target type='virtio' name='org.pagefusion.agent.0' state='connected'/></channel>",
			TRUE},
		{"<channel type='unix'><target type='virtio' name='org.pagefusion.agent.0' state='disconnected'/></channel>",
			FALSE},
		{"<channel type='unix'><target type='virtio' name='org.pagefusion.agent.0'/></channel>",
			FALSE},
		{"<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>",
			FALSE},
		{"", FALSE},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autoptr(PfDomainXml) xml = make("q35", cases[i].channel);

		assert_int_equal(pf_domain_xml_port_is_open(xml), cases[i].is_open);
	}
}

/* What is shown */

#define T 1000000 /* an hour like any other */

static void assert_shows(PfAdditions *additions, gint64 now, PfAdditionsState state, guint64 since)
{
	guint64 shown_since = 77;
	PfAdditionsState shown = pf_additions_state(additions, now, &shown_since);

	if (shown != state || shown_since != since)
		fail_msg("%d since %d, wanted %d since %d", shown, (int)shown_since, state,
			(int)since);
}

/* From the start of the VM until its agent has ended and is started again. */
static void test_life(void **state)
{
	PfAdditions a = {0};

	assert_shows(&a, T, PF_ADDITIONS_NEVER_SEEN, 0);
	pf_additions_asked(&a, T);
	pf_additions_port(&a, FALSE, T);
	assert_shows(&a, T + 1000, PF_ADDITIONS_NEVER_SEEN, 0);
	pf_additions_port(&a, TRUE, T + 1001);
	assert_shows(&a, T + 1001, PF_ADDITIONS_NEVER_SEEN, 0);
	pf_additions_answered(&a, FALSE, T + 1002);
	assert_shows(&a, T + 1002, PF_ADDITIONS_CONNECTED, T + 1002);
	assert_shows(&a, T + 2000, PF_ADDITIONS_CONNECTED, T + 1002);
	pf_additions_port(&a, FALSE, T + 2500);
	assert_shows(&a, T + 2500, PF_ADDITIONS_SILENT, T + 2500);
	pf_additions_port(&a, FALSE, T + 2600);
	assert_shows(&a, T + 2700, PF_ADDITIONS_SILENT, T + 2500);
	pf_additions_port(&a, TRUE, T + 3000);
	pf_additions_answered(&a, FALSE, T + 3001);
	assert_shows(&a, T + 3001, PF_ADDITIONS_CONNECTED, T + 3000);
}

/* libvirt notes the port late: the answer comes first. */
static void test_late_port(void **state)
{
	PfAdditions a = {0};

	pf_additions_answered(&a, FALSE, T);
	assert_shows(&a, T, PF_ADDITIONS_CONNECTED, T);
	assert_shows(&a, T + PF_ADDITIONS_WAIT_S - 1, PF_ADDITIONS_CONNECTED, T);
	assert_shows(&a, T + PF_ADDITIONS_WAIT_S, PF_ADDITIONS_SILENT, T);
	pf_additions_port(&a, TRUE, T + 40);
	assert_shows(&a, T + 40, PF_ADDITIONS_CONNECTED, T + 40);
	/* A new agent has answered before it is known that the old one went. */
	pf_additions_answered(&a, FALSE, T + 100);
	pf_additions_port(&a, FALSE, T + 101);
	pf_additions_port(&a, TRUE, T + 102);
	assert_shows(&a, T + 1000, PF_ADDITIONS_CONNECTED, T + 40);
}

/* It hangs: at the next hello, when another opens the port, or from the beginning. */
static void test_no_answer(void **state)
{
	PfAdditions a = {0}, other = {0};

	pf_additions_port(&a, TRUE, T);
	pf_additions_answered(&a, FALSE, T);
	assert_shows(&a, T, PF_ADDITIONS_CONNECTED, T);
	pf_additions_asked(&a, T + 500);
	assert_shows(&a, T + 500, PF_ADDITIONS_CONNECTED, T);
	pf_additions_asked(&a, T + 520);
	assert_shows(&a, T + 500 + PF_ADDITIONS_WAIT_S - 1, PF_ADDITIONS_CONNECTED, T);
	assert_shows(&a, T + 500 + PF_ADDITIONS_WAIT_S, PF_ADDITIONS_SILENT, T + 500);
	pf_additions_answered(&a, FALSE, T + 600);
	assert_shows(&a, T + 600, PF_ADDITIONS_CONNECTED, T + 600);
	pf_additions_port(&a, FALSE, T + 700);
	pf_additions_port(&a, TRUE, T + 800);
	assert_shows(&a, T + 800, PF_ADDITIONS_CONNECTED, T + 800);
	assert_shows(&a, T + 800 + PF_ADDITIONS_WAIT_S, PF_ADDITIONS_SILENT, T + 800);

	pf_additions_asked(&other, T);
	pf_additions_port(&other, TRUE, T + 50);
	assert_shows(&other, T + 50 + PF_ADDITIONS_WAIT_S - 1, PF_ADDITIONS_NEVER_SEEN, 0);
	assert_shows(&other, T + 50 + PF_ADDITIONS_WAIT_S, PF_ADDITIONS_SILENT, T + 50);
}

/* The clock is set back by an hour: nothing is waited for until it is that late again. */
static void test_clock_set_back(void **state)
{
	PfAdditions gone = {0}, hung = {0};
	gint64 back = T - 3600;

	pf_additions_port(&gone, TRUE, T);
	pf_additions_answered(&gone, FALSE, T);
	assert_shows(&gone, back, PF_ADDITIONS_CONNECTED, T);
	pf_additions_port(&gone, FALSE, back + 100);
	assert_shows(&gone, back + 100, PF_ADDITIONS_SILENT, back + 100);
	assert_shows(&gone, back + 500, PF_ADDITIONS_SILENT, back + 100);

	pf_additions_port(&hung, TRUE, T);
	pf_additions_answered(&hung, FALSE, T);
	pf_additions_asked(&hung, T + 1);
	assert_shows(&hung, back + 100, PF_ADDITIONS_SILENT, back + 100);
	pf_additions_answered(&hung, FALSE, back + 200);
	assert_shows(&hung, back + 200, PF_ADDITIONS_CONNECTED, back + 200);
}

static void test_too_old(void **state)
{
	PfAdditions a = {0};

	pf_additions_port(&a, TRUE, T);
	pf_additions_answered(&a, TRUE, T);
	assert_shows(&a, T, PF_ADDITIONS_TOO_OLD, T);
	pf_additions_answered(&a, FALSE, T + 60);
	assert_shows(&a, T + 60, PF_ADDITIONS_CONNECTED, T + 60);
	pf_additions_answered(&a, TRUE, T + 90);
	pf_additions_port(&a, FALSE, T + 190);
	assert_shows(&a, T + 190, PF_ADDITIONS_SILENT, T + 190);
}

static void test_versions(void **state)
{
	static const char *const older[][2] = {{"0.0.9", "0.1.0"}, {"0.9.0", "0.10.0"},
		{"0.1", "0.1.1"}, {"1.2.3", "1.2.10"}, {"9", "10"}, {"", "0.1.0"},
		{"unknown", "0.0.1"}, {"v1.0", "0.1.0"}, {".5", "0.1.0"}, {"0.1~rc1", "0.2"},
		{"0..5", "0.1.0"}};
	static const char *const not_older[][2] = {{"0.1.0", "0.1.0"}, {"0.1", "0.1.0"},
		{"0.1.0", "0.1"}, {"0.1.0-3", "0.1.0"}, {"0.1.0.1", "0.1.0"}, {"1", "0.1.0"},
		{"0.10.0", "0.9.0"}, {"99999999999999999999999.1", "0.1.0"},
		{"0.1.0 \xff", "0.1.0"}};

	for (size_t i = 0; i < G_N_ELEMENTS(older); i++)
		if (!pf_additions_is_older(older[i][0], older[i][1]))
			fail_msg("%s is older than %s", older[i][0], older[i][1]);
	for (size_t i = 0; i < G_N_ELEMENTS(not_older); i++)
		if (pf_additions_is_older(not_older[i][0], not_older[i][1]))
			fail_msg("%s is not older than %s", not_older[i][0], not_older[i][1]);
	assert_false(pf_additions_is_older(PF_VERSION, PF_AGENT_MIN_VERSION));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trips),
		cmocka_unit_test(test_what_is_written),
		cmocka_unit_test(test_ide_controller),
		cmocka_unit_test(test_places),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_live_drive),
		cmocka_unit_test(test_other_paths),
		cmocka_unit_test(test_two_drives),
		cmocka_unit_test(test_strange_paths),
		cmocka_unit_test(test_port),
		cmocka_unit_test(test_life),
		cmocka_unit_test(test_late_port),
		cmocka_unit_test(test_no_answer),
		cmocka_unit_test(test_clock_set_back),
		cmocka_unit_test(test_too_old),
		cmocka_unit_test(test_versions),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
