/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sample definitions, read, refused, and turned on and off. "Equal" means the canonical form (C14N,
 * with comments) without the white space between elements.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "host-service/broker/domain_xml.h"
#include <gio/gio.h>
#include <libxml/c14n.h>
#include <string.h>

#define SHIM   "/usr/lib/x86_64-linux-gnu/pagefusion/libpagefusion-vmm.so"
#define SOCKET "/run/pagefusion/shim.sock"

static char *read_sample(const char *name)
{
	g_autofree char *path = g_strdup_printf("%s/%s.xml", PF_TEST_DOMAINS, name);
	char *text = NULL;

	assert_true(g_file_get_contents(path, &text, NULL, NULL));
	return text;
}

static PfDomainXml *parse(const char *text)
{
	g_autoptr(GError) error = NULL;
	PfDomainXml *xml = pf_domain_xml_new(text, &error);

	assert_non_null(xml);
	return xml;
}

static PfDomainXml *load(const char *name)
{
	g_autofree char *text = read_sample(name);

	return parse(text);
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

static void enable(PfDomainXml *xml)
{
	assert_true(pf_domain_xml_enable(xml, SHIM, SOCKET));
}

static void test_on_off_is_where_it_was(void **state)
{
	static const char *const samples[] = {"plain", "minimal", "metadata", "preload",
		"arguments", "direct-io", "hugepages", "virtiofs", "numa", "mem-path", "container"};

	for (size_t i = 0; i < G_N_ELEMENTS(samples); i++) {
		g_autoptr(PfDomainXml) xml = load(samples[i]);
		g_autofree char *before = canonical(xml);
		g_autofree char *after = NULL;
		g_autofree char *on = NULL;

		enable(xml);
		on = canonical(xml);
		assert_string_not_equal(before, on);
		assert_true(pf_domain_xml_disable(xml));
		after = canonical(xml);
		/* minimal.xml and arguments.xml: an element of the user's that was empty may go, or
		 * come. */
		if (strcmp(samples[i], "minimal") == 0)
			assert_non_null(strstr(after, "<devices></devices>"));
		else if (strcmp(samples[i], "arguments") == 0)
			assert_null(strstr(after, "<metadata>"));
		else
			assert_string_equal(before, after);
	}
}

static void test_on_writes_all_three(void **state)
{
	g_autoptr(PfDomainXml) xml = load("plain");
	g_autofree char *form = NULL;

	assert_false(pf_domain_xml_has_flag(xml));
	assert_false(pf_domain_xml_has_shim(xml));
	enable(xml);
	assert_true(pf_domain_xml_has_flag(xml));
	assert_true(pf_domain_xml_has_shim(xml));
	form = canonical(xml);
	assert_non_null(strstr(form, "<metadata><pf:pagefusion xmlns:pf=\"" PF_DOMAIN_XMLNS
				     "\"></pf:pagefusion></metadata>"));
	assert_non_null(strstr(form,
		"<channel type=\"unix\"><target name=\"org.pagefusion.agent.0\" type=\"virtio\">"));
	assert_non_null(strstr(form, "<qemu:env name=\"LD_PRELOAD\" value=\"" SHIM "\">"));
	assert_non_null(strstr(form, "<qemu:env name=\"PAGEFUSION_SOCKET\" value=\"" SOCKET "\">"));
	assert_non_null(strstr(form, "org.qemu.guest_agent.0"));
}

static void test_twice_changes_nothing(void **state)
{
	static const char *const samples[] = {"plain", "minimal", "metadata", "preload", "group"};

	for (size_t i = 0; i < G_N_ELEMENTS(samples); i++) {
		g_autoptr(PfDomainXml) xml = load(samples[i]);
		g_autofree char *once = NULL, *twice = NULL;

		enable(xml);
		once = canonical(xml);
		assert_false(pf_domain_xml_enable(xml, SHIM, SOCKET));
		twice = canonical(xml);
		assert_string_equal(once, twice);
		assert_true(pf_domain_xml_disable(xml));
		assert_false(pf_domain_xml_disable(xml));
	}
}

static void test_other_preloads_stay(void **state)
{
	g_autoptr(PfDomainXml) xml = load("preload");
	g_autofree char *on = NULL, *off = NULL;

	enable(xml);
	on = canonical(xml);
	assert_non_null(strstr(
		on, "value=\"/usr/lib/x86_64-linux-gnu/libjemalloc.so.2 /opt/trace.so:" SHIM "\""));
	assert_non_null(strstr(on, "QEMU_AUDIO_DRV"));
	assert_non_null(strstr(on, "-fw_cfg"));
	assert_true(pf_domain_xml_disable(xml));
	off = canonical(xml);
	assert_non_null(
		strstr(off, "value=\"/usr/lib/x86_64-linux-gnu/libjemalloc.so.2 /opt/trace.so\""));
	assert_null(strstr(off, "PAGEFUSION_SOCKET"));
}

/* A shim that stands elsewhere, from another version of the package, is replaced and taken out
 * likewise. */
static void test_shim_in_another_directory(void **state)
{
	g_autoptr(PfDomainXml) xml = load("group");
	g_autofree char *on = NULL, *off = NULL;

	enable(xml);
	on = canonical(xml);
	assert_non_null(strstr(on, "value=\"/opt/trace.so:" SHIM "\""));
	assert_null(strstr(on, "/old/place"));
	assert_true(pf_domain_xml_disable(xml));
	off = canonical(xml);
	assert_non_null(strstr(off, "name=\"LD_PRELOAD\" value=\"/opt/trace.so\""));
	assert_null(strstr(off, "fusion:"));
}

static void test_shim_first_and_in_the_middle(void **state)
{
	static const struct {
		const char *value, *rest;
	} cases[] = {
		{"/x/libpagefusion-vmm.so:/opt/a.so", "value=\"/opt/a.so\""},
		{"/opt/a.so:/x/libpagefusion-vmm.so:/opt/b.so", "value=\"/opt/a.so:/opt/b.so\""},
		{"/opt/a.so /x/libpagefusion-vmm.so /y/libpagefusion-vmm.so",
			"value=\"/opt/a.so\""},
		{"/opt/my-libpagefusion-vmm.so:/x/libpagefusion-vmm.so",
			"value=\"/opt/my-libpagefusion-vmm.so\""},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autofree char *text = g_strdup_printf(
			"<domain type='kvm' xmlns:qemu='%s'><name>a</name><qemu:commandline>"
			"<qemu:env name='LD_PRELOAD' value='%s'/></qemu:commandline></domain>",
			PF_DOMAIN_QEMU_XMLNS, cases[i].value);
		g_autoptr(PfDomainXml) xml = parse(text);
		g_autofree char *off = NULL;

		assert_true(pf_domain_xml_disable(xml));
		off = canonical(xml);
		assert_non_null(strstr(off, cases[i].rest));
	}
}

static void test_metadata_of_others_stays(void **state)
{
	g_autoptr(PfDomainXml) xml = load("metadata");
	g_autofree char *on = NULL;

	enable(xml);
	on = canonical(xml);
	assert_non_null(strstr(on, "<!-- kept by hand: do not lose me -->"));
	assert_non_null(strstr(on, "<libosinfo:os id=\"http://debian.org/debian/12\">"));
	assert_non_null(strstr(on, "<pf:note xmlns:pf=\"https://example.org/not-page-fusion\">"));
	assert_non_null(strstr(on, "<pf:pagefusion xmlns:pf=\"" PF_DOMAIN_XMLNS "\">"));
}

static void test_running_definition(void **state)
{
	g_autoptr(PfDomainXml) xml = load("running");
	g_autofree char *channel = pf_domain_xml_channel(xml);
	g_autofree char *group = pf_domain_xml_group(xml);

	assert_string_equal(channel,
		"/var/lib/libvirt/qemu/channel/target/domain-7-running/org.pagefusion.agent.0");
	assert_string_equal(group, "default");
	assert_true(pf_domain_xml_has_flag(xml));
	assert_true(pf_domain_xml_has_shim(xml));
	assert_true(pf_domain_xml_is_live(xml));
	assert_true(pf_domain_xml_is_qemu(xml));
	assert_null(pf_domain_xml_refusal(xml));
}

static void test_no_channel_without_a_path(void **state)
{
	g_autoptr(PfDomainXml) xml = load("plain");

	assert_false(pf_domain_xml_is_live(xml));
	assert_null(pf_domain_xml_channel(xml));
	enable(xml);
	assert_null(pf_domain_xml_channel(xml));
}

#define DOMAIN_WITH_CHANNEL(channel, target)                                                       \
	"<domain type='kvm'><name>a</name><devices><channel type='" channel "'>"                   \
	"<source path='/dev/x'/><target type='" target "' name='" PF_DOMAIN_CHANNEL                \
	"'/></channel></devices></domain>"

static void test_channel_of_another_type_is_refused(void **state)
{
	static const struct {
		const char *text;
		gboolean good;
	} cases[] = {
		{DOMAIN_WITH_CHANNEL("unix", "virtio"), TRUE},
		{DOMAIN_WITH_CHANNEL("pty", "virtio"), FALSE},
		{DOMAIN_WITH_CHANNEL("unix", "xen"), FALSE},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autoptr(PfDomainXml) xml = parse(cases[i].text);
		const char *refusal = pf_domain_xml_refusal(xml);

		assert_int_equal(refusal == NULL, cases[i].good);
		assert_true(!refusal || strstr(refusal, "<channel> " PF_DOMAIN_CHANNEL));
	}
}

/* What `on` takes for the channel is what is read as the channel. */
static void test_channel_that_is_there_is_used(void **state)
{
	g_autoptr(PfDomainXml) xml = parse(DOMAIN_WITH_CHANNEL("unix", "virtio"));
	g_autoptr(PfDomainXml) other = parse(DOMAIN_WITH_CHANNEL("pty", "virtio"));
	g_autofree char *path = pf_domain_xml_channel(xml);
	g_autofree char *on = NULL;

	assert_string_equal(path, "/dev/x");
	assert_null(pf_domain_xml_channel(other));
	enable(xml);
	on = canonical(xml);
	assert_ptr_equal(strstr(on, "<channel"), g_strrstr(on, "<channel"));
}

/* The flag without the shim in QEMU's environment is a flag, but nothing that fuses. */
static void test_group_and_half_a_shim(void **state)
{
	g_autoptr(PfDomainXml) xml = load("group");
	g_autofree char *group = pf_domain_xml_group(xml);

	assert_string_equal(group, "tenant-1");
	assert_true(pf_domain_xml_has_flag(xml));
	assert_false(pf_domain_xml_has_shim(xml));
}

#define DOMAIN_WITH_FLAG(attributes)                                                               \
	"<domain type='kvm'><name>a</name><metadata><pf:pagefusion "                               \
	"xmlns:pf='" PF_DOMAIN_XMLNS "' " attributes "/></metadata></domain>"

static void test_policy_is_read(void **state)
{
	static const struct {
		const char *text;
		PfThp thp;
		gboolean good;
	} cases[] = {
		{DOMAIN_WITH_FLAG(""), PF_THP_DEFAULT, TRUE},
		{DOMAIN_WITH_FLAG("thp='default'"), PF_THP_DEFAULT, TRUE},
		{DOMAIN_WITH_FLAG("thp='preserve'"), PF_THP_PRESERVE, TRUE},
		{DOMAIN_WITH_FLAG("thp='balanced' group='x'"), PF_THP_BALANCED, TRUE},
		{DOMAIN_WITH_FLAG("thp='all'"), PF_THP_ALL, TRUE},
		{DOMAIN_WITH_FLAG("thp=''"), PF_THP_DEFAULT, FALSE},
		{DOMAIN_WITH_FLAG("thp='All'"), PF_THP_DEFAULT, FALSE},
		{DOMAIN_WITH_FLAG("thp='all '"), PF_THP_DEFAULT, FALSE},
		{DOMAIN_WITH_FLAG("xmlns:o='urn:o' o:thp='all'"), PF_THP_DEFAULT, TRUE},
	};
	g_autoptr(PfDomainXml) plain = load("plain");

	assert_int_equal(pf_domain_xml_thp(plain), PF_THP_DEFAULT);
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autoptr(PfDomainXml) xml = parse(cases[i].text);
		const char *refusal = pf_domain_xml_refusal(xml);

		assert_int_equal(pf_domain_xml_thp(xml), cases[i].thp);
		assert_int_equal(refusal == NULL, cases[i].good);
		assert_true(!refusal || strstr(refusal, "<pf:pagefusion thp> in <metadata>"));
		assert_true(!refusal || strstr(refusal, "preserve, balanced, all or default"));
	}
}

static void test_policy_is_written(void **state)
{
	g_autoptr(PfDomainXml) xml = load("group");
	g_autofree char *before = canonical(xml);
	g_autofree char *group = NULL, *on = NULL, *after = NULL;

	assert_false(pf_domain_xml_set_thp(xml, PF_THP_DEFAULT));
	assert_true(pf_domain_xml_set_thp(xml, PF_THP_ALL));
	assert_false(pf_domain_xml_set_thp(xml, PF_THP_ALL));
	assert_true(pf_domain_xml_set_thp(xml, PF_THP_PRESERVE));
	assert_int_equal(pf_domain_xml_thp(xml), PF_THP_PRESERVE);
	group = pf_domain_xml_group(xml);
	assert_string_equal(group, "tenant-1");
	on = canonical(xml);
	assert_non_null(strstr(on, " group=\"tenant-1\" thp=\"preserve\">"));
	assert_true(pf_domain_xml_set_thp(xml, PF_THP_DEFAULT));
	after = canonical(xml);
	assert_string_equal(before, after);
}

/* One that is no policy gives way, and an attribute of somebody else's stays. */
static void test_policy_replaces_rubbish(void **state)
{
	g_autoptr(PfDomainXml) xml =
		parse(DOMAIN_WITH_FLAG("xmlns:o='urn:o' o:thp='mine' thp='rubbish'"));
	g_autofree char *form = NULL;

	assert_true(pf_domain_xml_set_thp(xml, PF_THP_BALANCED));
	assert_int_equal(pf_domain_xml_thp(xml), PF_THP_BALANCED);
	assert_true(pf_domain_xml_set_thp(xml, PF_THP_DEFAULT));
	assert_false(pf_domain_xml_set_thp(xml, PF_THP_DEFAULT));
	form = canonical(xml);
	assert_non_null(strstr(form, "o:thp=\"mine\""));
	assert_null(strstr(form, " thp="));
}

/* Off takes the policy with the flag, on does not touch it. */
static void test_policy_goes_with_the_flag(void **state)
{
	g_autoptr(PfDomainXml) xml = load("plain");

	enable(xml);
	assert_true(pf_domain_xml_set_thp(xml, PF_THP_ALL));
	assert_false(pf_domain_xml_enable(xml, SHIM, SOCKET));
	assert_int_equal(pf_domain_xml_thp(xml), PF_THP_ALL);
	assert_true(pf_domain_xml_disable(xml));
	enable(xml);
	assert_int_equal(pf_domain_xml_thp(xml), PF_THP_DEFAULT);
}

#define SIXTY "123456789012345678901234567890123456789012345678901234567890"

/* What is no name of a group is no group: not the default one, and not the one that it would be if it were cut. */
static void test_group_is_read(void **state)
{
	static const struct {
		const char *text, *group; /* NULL: a refusal */
	} cases[] = {
		{DOMAIN_WITH_FLAG(""), "default"},
		{DOMAIN_WITH_FLAG("group='default'"), "default"},
		{DOMAIN_WITH_FLAG("group='Tenant_1.b-c'"), "Tenant_1.b-c"},
		{DOMAIN_WITH_FLAG("group='" SIXTY "123'"), SIXTY "123"},
		{DOMAIN_WITH_FLAG("group='" SIXTY "1234'"), NULL},
		{DOMAIN_WITH_FLAG("group=''"), NULL},
		{DOMAIN_WITH_FLAG("group=' default'"), NULL},
		{DOMAIN_WITH_FLAG("group='default '"), NULL},
		{DOMAIN_WITH_FLAG("group='-a'"), NULL},
		{DOMAIN_WITH_FLAG("group='a/../b'"), NULL},
		{DOMAIN_WITH_FLAG("group='a&#10;b'"), NULL},
		{DOMAIN_WITH_FLAG("group='\303\244'"), NULL},
		{DOMAIN_WITH_FLAG("xmlns:o='urn:o' o:group='a b'"), "default"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autoptr(PfDomainXml) xml = parse(cases[i].text);
		g_autofree char *group = pf_domain_xml_group(xml);
		const char *refusal = pf_domain_xml_refusal(xml);

		assert_int_equal(group == NULL, cases[i].group == NULL);
		assert_int_equal(refusal == NULL, cases[i].group != NULL);
		if (group)
			assert_string_equal(group, cases[i].group);
		assert_true(!refusal || strstr(refusal, "<pf:pagefusion group> in <metadata>"));
		assert_true(!refusal || strstr(refusal, PF_GROUP_NAME_RULE));
		/* It has to go into PfDomain.refusal. */
		assert_true(!refusal || strlen(refusal) < 256);
	}
}

static void test_group_is_written(void **state)
{
	g_autoptr(PfDomainXml) xml = load("group");
	g_autofree char *before = canonical(xml);
	g_autofree char *on = NULL, *off = NULL, *after = NULL, *group = NULL;

	assert_false(pf_domain_xml_set_group(xml, "tenant-1"));
	assert_true(pf_domain_xml_set_thp(xml, PF_THP_ALL));
	assert_true(pf_domain_xml_set_group(xml, "tenant-2"));
	assert_false(pf_domain_xml_set_group(xml, "tenant-2"));
	group = pf_domain_xml_group(xml);
	assert_string_equal(group, "tenant-2");
	on = canonical(xml);
	assert_non_null(strstr(on, " group=\"tenant-2\" thp=\"all\">"));
	assert_true(pf_domain_xml_set_group(xml, PF_GROUP_DEFAULT));
	assert_false(pf_domain_xml_set_group(xml, PF_GROUP_DEFAULT));
	off = canonical(xml);
	assert_null(strstr(off, "group="));
	assert_int_equal(pf_domain_xml_thp(xml), PF_THP_ALL);
	assert_true(pf_domain_xml_set_thp(xml, PF_THP_DEFAULT));
	assert_true(pf_domain_xml_set_group(xml, "tenant-1"));
	after = canonical(xml);
	assert_string_equal(before, after);
}

/* One that is none gives way, and an attribute of somebody else's stays. */
static void test_group_replaces_rubbish(void **state)
{
	g_autoptr(PfDomainXml) xml =
		parse(DOMAIN_WITH_FLAG("xmlns:o='urn:o' o:group='mine' group=''"));
	g_autofree char *group = NULL, *form = NULL;

	assert_true(pf_domain_xml_set_group(xml, "tenant-1"));
	group = pf_domain_xml_group(xml);
	assert_string_equal(group, "tenant-1");
	assert_null(pf_domain_xml_refusal(xml));
	assert_true(pf_domain_xml_set_group(xml, PF_GROUP_DEFAULT));
	form = canonical(xml);
	assert_non_null(strstr(form, "o:group=\"mine\""));
	assert_null(strstr(form, " group="));
}

/* Who turns the flag off and on again is in the default group. */
static void test_group_goes_with_the_flag(void **state)
{
	g_autoptr(PfDomainXml) xml = load("plain");
	g_autofree char *group = NULL, *again = NULL;

	enable(xml);
	assert_true(pf_domain_xml_set_group(xml, "tenant-1"));
	assert_false(pf_domain_xml_enable(xml, SHIM, SOCKET));
	group = pf_domain_xml_group(xml);
	assert_string_equal(group, "tenant-1");
	assert_true(pf_domain_xml_disable(xml));
	enable(xml);
	again = pf_domain_xml_group(xml);
	assert_string_equal(again, "default");
}

static void test_direct_files(void **state)
{
	static const struct {
		const char *path, *target;
	} expected[] = {
		{"/images/top.qcow2", "vda"},
		{"/images/base.raw", "vda"},
		{"/images/sync.raw", "vdd"},
	};
	g_autoptr(PfDomainXml) xml = load("direct-io");
	g_autoptr(GPtrArray) files = pf_domain_xml_direct_files(xml);

	assert_int_equal(files->len, G_N_ELEMENTS(expected));
	for (guint i = 0; i < files->len; i++) {
		const PfDomainDirectFile *file = g_ptr_array_index(files, i);

		assert_string_equal(file->path, expected[i].path);
		assert_string_equal(file->target, expected[i].target);
	}
	assert_null(pf_domain_xml_refusal(xml));
}

static void assert_refused(const PfDomainXml *xml, const char *names)
{
	const char *refusal = pf_domain_xml_refusal(xml);

	assert_non_null(refusal);
	if (!strstr(refusal, names))
		fail_msg("\"%s\" does not name %s", refusal, names);
	/* It has to go into PfDomain.refusal. */
	assert_in_range(strlen(refusal), 20, 255);
}

static void test_refused_samples(void **state)
{
	static const struct {
		const char *sample, *names;
	} cases[] = {
		{"hugepages", "<hugepages>"},
		{"virtiofs", "<source> in <memoryBacking>"},
		{"locked", "<locked>"},
		{"passthrough", "<hostdev>"},
		{"vhostuser", "<interface type='vhostuser'>"},
		{"sev", "<launchSecurity>"},
		{"realtime", "<cputune>"},
		{"nvdimm", "nvdimm"},
		{"numa", "memAccess"},
		{"aarch64", "x86_64"},
		{"container", "neither kvm nor qemu"},
		{"mem-path", "<qemu:arg>"},
		{"vdpa", "<interface type='vdpa'>"},
	};
	static const char *const fine[] = {"plain", "minimal", "metadata", "preload", "arguments"};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autoptr(PfDomainXml) xml = load(cases[i].sample);

		assert_refused(xml, cases[i].names);
	}
	for (size_t i = 0; i < G_N_ELEMENTS(fine); i++) {
		g_autoptr(PfDomainXml) xml = load(fine[i]);

		assert_null(pf_domain_xml_refusal(xml));
	}
}

/* What the samples leave out, each put into a definition that is fine without it. */
static void test_refused_elements(void **state)
{
	static const struct {
		const char *before, *element, *names;
	} cases[] = {
		{"<devices>", "<memoryBacking><source type='file'/></memoryBacking>", "<source>"},
		{"<devices>", "<memoryBacking><access mode='shared'/></memoryBacking>", "<access"},
		{"<devices>", "<memoryBacking><nosharepages/></memoryBacking>", "<nosharepages>"},
		{"<devices>", "<launchSecurity type='tdx'/>", "<launchSecurity>"},
		{"<devices>", "<cputune><emulatorsched scheduler='rr' priority='1'/></cputune>",
			"<cputune>"},
		{"<memballoon", "<memory model='dimm' access='shared'/>",
			"<memory access='shared'>"},
		{"<memballoon", "<memory model='virtio-pmem'/>", "virtio-pmem"},
		{"<memballoon", "<filesystem type='mount'><driver type='virtiofs'/></filesystem>",
			"virtiofs"},
		{"<memballoon", "<interface type='hostdev'/>", "<interface type='hostdev'>"},
		{"<memballoon", "<hostdev mode='subsystem' type='mdev'/>", "<hostdev>"},
		{"<memballoon", "<hostdev mode='subsystem' type='scsi_host'/>", "vhost-scsi"},
		{"<memballoon", "<disk type='nvme'/>", "<disk type='nvme'>"},
		{"<memballoon", "<disk type='vhostuser'/>", "<disk type='vhostuser'>"},
		{"<memballoon", "<disk type='vhostvdpa'/>", "<disk type='vhostvdpa'>"},
		{"<memballoon", "<disk type='volume'><driver cache='none'/></disk>",
			"<disk type='volume'>"},
		{"<memballoon", "<video><driver name='vhostuser'/></video>", "<video>"},
	};
	static const char *const harmless[] = {
		"<hostdev mode='subsystem' type='usb'/>",
		"<disk type='volume'><driver cache='writeback'/></disk>",
		"<memory model='dimm'/>",
		"<filesystem type='mount'><driver type='path'/></filesystem>",
	};
	g_autofree char *plain = read_sample("plain");

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_auto(GStrv) halves = g_strsplit(plain, cases[i].before, 2);
		g_autofree char *text =
			g_strconcat(halves[0], cases[i].element, cases[i].before, halves[1], NULL);
		g_autoptr(PfDomainXml) xml = parse(text);

		assert_refused(xml, cases[i].names);
	}
	for (size_t i = 0; i < G_N_ELEMENTS(harmless); i++) {
		g_auto(GStrv) halves = g_strsplit(plain, "<memballoon", 2);
		g_autofree char *text =
			g_strconcat(halves[0], harmless[i], "<memballoon", halves[1], NULL);
		g_autoptr(PfDomainXml) xml = parse(text);

		assert_null(pf_domain_xml_refusal(xml));
	}
}

static void test_refused_arguments(void **state)
{
	static const char *const values[] = {"memory-backend-file,id=m,size=1G", "-mem-path",
		"memory-backend-memfd,id=m,size=1G", "mem-lock=on", "vfio-pci,host=01:00.0",
		"vhost-scsi-pci,wwpn=naa.1", "vhost-user-blk-pci,chardev=c"};

	for (size_t i = 0; i < G_N_ELEMENTS(values); i++) {
		g_autofree char *text = g_strdup_printf(
			"<domain type='kvm' xmlns:q='%s'><os><type arch='x86_64'>hvm</type></os>"
			"<q:commandline><q:arg value='%s'/></q:commandline></domain>",
			PF_DOMAIN_QEMU_XMLNS, values[i]);
		g_autoptr(PfDomainXml) xml = parse(text);

		assert_refused(xml, "<qemu:arg>");
	}
}

static void test_what_is_no_definition(void **state)
{
	static const char *const texts[] = {"", "rubbish", "<domain>", "<network/>",
		"<x:domain xmlns:x='urn:x'/>",
		"<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/hostname'>]><network>&a;</network>"};

	for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
		g_autoptr(GError) error = NULL;

		assert_null(pf_domain_xml_new(texts[i], &error));
		assert_true(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_on_off_is_where_it_was),
		cmocka_unit_test(test_on_writes_all_three),
		cmocka_unit_test(test_twice_changes_nothing),
		cmocka_unit_test(test_other_preloads_stay),
		cmocka_unit_test(test_shim_in_another_directory),
		cmocka_unit_test(test_shim_first_and_in_the_middle),
		cmocka_unit_test(test_metadata_of_others_stays),
		cmocka_unit_test(test_running_definition),
		cmocka_unit_test(test_no_channel_without_a_path),
		cmocka_unit_test(test_channel_of_another_type_is_refused),
		cmocka_unit_test(test_channel_that_is_there_is_used),
		cmocka_unit_test(test_group_and_half_a_shim),
		cmocka_unit_test(test_policy_is_read),
		cmocka_unit_test(test_policy_is_written),
		cmocka_unit_test(test_policy_replaces_rubbish),
		cmocka_unit_test(test_policy_goes_with_the_flag),
		cmocka_unit_test(test_group_is_read),
		cmocka_unit_test(test_group_is_written),
		cmocka_unit_test(test_group_replaces_rubbish),
		cmocka_unit_test(test_group_goes_with_the_flag),
		cmocka_unit_test(test_direct_files),
		cmocka_unit_test(test_refused_samples),
		cmocka_unit_test(test_refused_elements),
		cmocka_unit_test(test_refused_arguments),
		cmocka_unit_test(test_what_is_no_definition),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
