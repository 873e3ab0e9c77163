/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading a domain's definition. The text comes from libvirt, which made it from what an
 * administrator wrote, so it is well-formed and small; still it is parsed without network, without
 * external entities and with libxml2's limits.
 *
 * What a domain must not have is a table of XPath expressions, each with the sentence that an
 * administrator gets to read. The reasons behind them: the shim fuses private anonymous memory only
 * (huge pages, files and shared memory are none); a device that holds guest memory for DMA by
 * itself (VFIO, vDPA, vhost-user, vhost-scsi) would go on with the page that was replaced; locked
 * memory and real-time vCPUs cannot bear the waits; encrypted memory has no bytes to compare.
 * Elements are matched wherever libvirt puts them, not only where they make sense.
 */
#include "host-service/broker/domain_xml.h"
#include <gio/gio.h>
#include <libxml/parser.h>
#include <libxml/xpath.h>
#include <libxml/xpathInternals.h>
#include <string.h>

static const struct {
	const char *xpath;
	const char *sentence;
} refusals[] = {
	{"/domain[not(@type='kvm' or @type='qemu')]", "the domain's type is neither kvm nor qemu: "
						      "page fusion works for QEMU's domains only"},
	{"/domain/os/type[@arch != 'x86_64']",
		"<type arch> in <os> is not x86_64: page fusion works for x86_64 guests only"},
	{"/domain/memoryBacking/hugepages", "<hugepages> in <memoryBacking>: remove it, only "
					    "memory in ordinary pages can be fused"},
	{"/domain/memoryBacking/source[@type='file' or @type='memfd']",
		"<source> in <memoryBacking> is file or memfd: remove it, only anonymous memory "
		"can be fused"},
	{"/domain/memoryBacking/access[@mode='shared']",
		"<access mode='shared'> in <memoryBacking>: remove it, shared memory cannot be "
		"fused"},
	{"/domain/memoryBacking/locked",
		"<locked> in <memoryBacking>: remove it, locked memory cannot be fused"},
	{"/domain/memoryBacking/nosharepages",
		"<nosharepages> in <memoryBacking> forbids sharing this domain's pages: remove it"},
	{"/domain/cpu/numa/cell[@memAccess='shared']",
		"<cell memAccess='shared'> in <numa>: remove memAccess, shared memory cannot be "
		"fused"},
	{"/domain/devices/memory[@access='shared']",
		"<memory access='shared'> in <devices>: remove access, shared memory cannot be "
		"fused"},
	{"/domain/devices/memory[@model='nvdimm' or @model='virtio-pmem']",
		"<memory> in <devices> is an nvdimm or virtio-pmem: remove it, memory in a file "
		"cannot be fused"},
	{"/domain/devices/filesystem[driver/@type='virtiofs']",
		"<filesystem> with virtiofs needs shared memory: remove it or use <driver "
		"type='path'/>"},
	{"/domain/devices/interface[@type='vhostuser']",
		"<interface type='vhostuser'> needs shared memory: use type network or bridge"},
	{"/domain/devices/disk[@type='vhostuser']",
		"<disk type='vhostuser'> needs shared memory: use type file or block"},
	{"/domain/devices/video[driver/@name='vhostuser']",
		"<video> with <driver name='vhostuser'> needs shared memory: remove the driver"},
	{"/domain/devices/interface[@type='hostdev']",
		"<interface type='hostdev'> passes a host device through (VFIO): use type network "
		"or bridge"},
	{"/domain/devices/interface[@type='vdpa']",
		"<interface type='vdpa'> pins guest memory: use type network or bridge"},
	{"/domain/devices/disk[@type='nvme']",
		"<disk type='nvme'> passes a host device through (VFIO): use type block"},
	{"/domain/devices/disk[@type='vhostvdpa']",
		"<disk type='vhostvdpa'> pins guest memory: use type block"},
	{"/domain/devices/hostdev[@type='pci' or @type='mdev']",
		"<hostdev> passes a host device through (VFIO), which pins guest memory: remove "
		"it"},
	{"/domain/devices/hostdev[@type='scsi_host']",
		"<hostdev type='scsi_host'> (vhost-scsi) writes to guest memory from the kernel: "
		"remove it"},
	{"/domain/devices/channel[target/@name='" PF_DOMAIN_CHANNEL
	 "' and not(@type='unix' and target/@type='virtio')]",
		"<channel> " PF_DOMAIN_CHANNEL " is not of type unix with a virtio target: remove "
		"it, page fusion adds its own"},
	{"/domain/launchSecurity", "<launchSecurity>: remove it, the host cannot compare memory "
				   "that it must not read"},
	{"/domain/cputune/*[@scheduler='fifo' or @scheduler='rr']",
		"<cputune> has a real-time scheduler: remove it, fusing makes a vCPU wait now and "
		"then"},
	{"/domain/devices/disk[@type='volume' and (driver/@cache='none' or "
	 "driver/@cache='directsync')]",
		"<disk type='volume'> with cache none or directsync: use type file or block, or "
		"cache='writeback'"},
	{"/domain/qemu:commandline/qemu:arg[contains(@value, 'memory-backend-file') or "
	 "contains(@value, 'memory-backend-memfd') or contains(@value, '-mem-path')]",
		"<qemu:arg> gives the guest memory from a file: remove it, only anonymous memory "
		"can be fused"},
	{"/domain/qemu:commandline/qemu:arg[contains(@value, 'mem-lock=on')]",
		"<qemu:arg> locks the guest's memory: remove it, locked memory cannot be fused"},
	{"/domain/qemu:commandline/qemu:arg[contains(@value, 'vfio-') or contains(@value, "
	 "'vhost-user') or contains(@value, 'vhost-scsi') or contains(@value, 'vhost-vdpa')]",
		"<qemu:arg> adds a VFIO, vhost-user, vhost-scsi or vDPA device: remove it"},
	{"/domain/metadata/pf:pagefusion[@thp and not(@thp='preserve' or @thp='balanced' or "
	 "@thp='all' or @thp='default')]",
		"<pf:pagefusion thp> in <metadata> is no policy: give it preserve, balanced, all "
		"or default"},
};

static gboolean is_domain(const xmlNode *root)
{
	return root && !root->ns && strcmp((const char *)root->name, "domain") == 0;
}

PfDomainXml *pf_domain_xml_new(const char *text, GError **error)
{
	size_t length = strlen(text);
	xmlDoc *doc = NULL;
	xmlNode *root;
	PfDomainXml *xml;

	if (length <= G_MAXINT)
		doc = xmlReadMemory(text, (int)length, "domain.xml", NULL,
			XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING);
	root = doc ? xmlDocGetRootElement(doc) : NULL;
	if (!is_domain(root)) {
		xmlFreeDoc(doc);
		g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
			"the definition of the domain is not XML with a <domain>");
		return NULL;
	}
	xml = g_new0(PfDomainXml, 1);
	xml->doc = doc;
	xml->root = root;
	return xml;
}

void pf_domain_xml_free(PfDomainXml *xml)
{
	xmlFreeDoc(xml->doc);
	g_free(xml);
}

char *pf_domain_xml_format(const PfDomainXml *xml)
{
	xmlChar *text = NULL;
	int size = 0;
	char *copy;

	xmlDocDumpMemory(xml->doc, &text, &size);
	copy = g_strndup((const char *)text, (gsize)size);
	xmlFree(text);
	return copy;
}

static xmlNode *first_match(xmlNode *node, const char *xmlns, const char *name)
{
	for (; node; node = node->next) {
		const char *href = node->ns ? (const char *)node->ns->href : NULL;

		if (node->type == XML_ELEMENT_NODE && g_strcmp0(href, xmlns) == 0 &&
			strcmp((const char *)node->name, name) == 0)
			return node;
	}
	return NULL;
}

xmlNode *pf_domain_xml_child(const xmlNode *parent, const char *xmlns, const char *name)
{
	return parent ? first_match(parent->children, xmlns, name) : NULL;
}

xmlNode *pf_domain_xml_next(const xmlNode *node, const char *xmlns, const char *name)
{
	return first_match(node->next, xmlns, name);
}

char *pf_domain_xml_attribute(const xmlNode *node, const char *name)
{
	xmlChar *value = node ? xmlGetNoNsProp((xmlNode *)node, (const xmlChar *)name) : NULL;
	char *copy = g_strdup((const char *)value);

	xmlFree(value);
	return copy;
}

xmlNode *pf_domain_xml_flag(const PfDomainXml *xml)
{
	xmlNode *metadata = pf_domain_xml_child(xml->root, NULL, "metadata");

	return pf_domain_xml_child(metadata, PF_DOMAIN_XMLNS, "pagefusion");
}

gboolean pf_domain_xml_has_flag(const PfDomainXml *xml)
{
	return pf_domain_xml_flag(xml) != NULL;
}

char *pf_domain_xml_group(const PfDomainXml *xml)
{
	g_autofree char *group = pf_domain_xml_attribute(pf_domain_xml_flag(xml), "group");

	if (!group)
		return g_strdup(PF_GROUP_DEFAULT);
	return pf_group_name_is_valid(group) ? g_steal_pointer(&group) : NULL;
}

PfThp pf_domain_xml_thp(const PfDomainXml *xml)
{
	g_autofree char *name = pf_domain_xml_attribute(pf_domain_xml_flag(xml), "thp");
	PfThp thp = PF_THP_DEFAULT;

	if (name)
		pf_thp_parse(name, &thp);
	return thp;
}

gboolean pf_domain_xml_preloads_shim(const char *value)
{
	g_auto(GStrv) files = g_strsplit_set(value, ": ", -1);

	for (size_t i = 0; files[i]; i++) {
		g_autofree char *name = g_path_get_basename(files[i]);

		if (strcmp(name, PF_DOMAIN_SHIM) == 0)
			return TRUE;
	}
	return FALSE;
}

gboolean pf_domain_xml_has_shim(const PfDomainXml *xml)
{
	xmlNode *commandline = pf_domain_xml_child(xml->root, PF_DOMAIN_QEMU_XMLNS, "commandline");
	xmlNode *env = pf_domain_xml_child(commandline, PF_DOMAIN_QEMU_XMLNS, "env");
	gboolean preload = FALSE, socket = FALSE;

	for (; env; env = pf_domain_xml_next(env, PF_DOMAIN_QEMU_XMLNS, "env")) {
		g_autofree char *name = pf_domain_xml_attribute(env, "name");
		g_autofree char *value = pf_domain_xml_attribute(env, "value");

		/* libvirt sets them in order, so the last one of a name counts. */
		if (g_strcmp0(name, "LD_PRELOAD") == 0)
			preload = value && pf_domain_xml_preloads_shim(value);
		else if (g_strcmp0(name, PF_DOMAIN_SOCKET_ENV) == 0)
			socket = value && *value;
	}
	return preload && socket;
}

/* Evaluates an expression; NULL when nothing matches. xmlXPathFreeObject() what comes back. */
static xmlXPathObject *find(const PfDomainXml *xml, xmlNode *from, const char *expression)
{
	xmlXPathContext *context = xmlXPathNewContext(xml->doc);
	xmlXPathObject *found = NULL;

	if (!context)
		return NULL;
	context->node = from;
	if (xmlXPathRegisterNs(context, BAD_CAST "qemu", BAD_CAST PF_DOMAIN_QEMU_XMLNS) == 0 &&
		xmlXPathRegisterNs(context, BAD_CAST "pf", BAD_CAST PF_DOMAIN_XMLNS) == 0)
		found = xmlXPathEvalExpression(BAD_CAST expression, context);
	xmlXPathFreeContext(context);
	if (found && xmlXPathNodeSetIsEmpty(found->nodesetval))
		g_clear_pointer(&found, xmlXPathFreeObject);
	return found;
}

/* The value of the first attribute that matches (g_free), or NULL. */
static char *find_value(const PfDomainXml *xml, xmlNode *from, const char *expression)
{
	xmlXPathObject *found = find(xml, from, expression);
	xmlChar *value = found ? xmlNodeGetContent(found->nodesetval->nodeTab[0]) : NULL;
	char *copy = g_strdup((const char *)value);

	xmlFree(value);
	if (found)
		xmlXPathFreeObject(found);
	return copy;
}

xmlNode *pf_domain_xml_channel_element(const PfDomainXml *xml)
{
	xmlNode *devices = pf_domain_xml_child(xml->root, NULL, "devices");
	xmlNode *channel = pf_domain_xml_child(devices, NULL, "channel");

	for (; channel; channel = pf_domain_xml_next(channel, NULL, "channel")) {
		xmlNode *target = pf_domain_xml_child(channel, NULL, "target");
		g_autofree char *name = pf_domain_xml_attribute(target, "name");

		if (g_strcmp0(name, PF_DOMAIN_CHANNEL) == 0)
			return channel;
	}
	return NULL;
}

char *pf_domain_xml_channel(const PfDomainXml *xml)
{
	xmlNode *channel = pf_domain_xml_channel_element(xml);
	xmlNode *source = pf_domain_xml_child(channel, NULL, "source");
	g_autofree char *type = pf_domain_xml_attribute(channel, "type");
	g_autofree char *path = pf_domain_xml_attribute(source, "path");

	return g_strcmp0(type, "unix") == 0 && path && *path ? g_steal_pointer(&path) : NULL;
}

gboolean pf_domain_xml_port_is_open(const PfDomainXml *xml)
{
	xmlNode *channel = pf_domain_xml_channel_element(xml);
	g_autofree char *state =
		pf_domain_xml_attribute(pf_domain_xml_child(channel, NULL, "target"), "state");

	return g_strcmp0(state, "connected") == 0;
}

gboolean pf_domain_xml_is_live(const PfDomainXml *xml)
{
	return xmlHasProp(xml->root, BAD_CAST "id") != NULL;
}

gboolean pf_domain_xml_is_qemu(const PfDomainXml *xml)
{
	g_autofree char *type = pf_domain_xml_attribute(xml->root, "type");

	return g_strcmp0(type, "kvm") == 0 || g_strcmp0(type, "qemu") == 0;
}

const char *pf_domain_xml_refusal(const PfDomainXml *xml)
{
	g_autofree char *group = pf_domain_xml_group(xml);

	if (!group)
		return "<pf:pagefusion group> in <metadata> is no name of a trust group: give it " PF_GROUP_NAME_RULE;
	for (size_t i = 0; i < G_N_ELEMENTS(refusals); i++) {
		xmlXPathObject *found = find(xml, xml->root, refusals[i].xpath);

		if (found) {
			xmlXPathFreeObject(found);
			return refusals[i].sentence;
		}
	}
	return NULL;
}

static void direct_file_free(gpointer data)
{
	PfDomainDirectFile *file = data;

	g_free(file->path);
	g_free(file->target);
	g_free(file);
}

static void add_direct_file(const PfDomainXml *xml, xmlNode *path, GPtrArray *files)
{
	PfDomainDirectFile *file = g_new0(PfDomainDirectFile, 1);
	xmlChar *value = xmlNodeGetContent(path);

	file->path = g_strdup((const char *)value);
	file->target = find_value(xml, path, "ancestor::disk[last()]/target/@dev");
	if (!file->target)
		file->target = g_strdup("disk");
	xmlFree(value);
	g_ptr_array_add(files, file);
}

GPtrArray *pf_domain_xml_direct_files(const PfDomainXml *xml)
{
	GPtrArray *files = g_ptr_array_new_with_free_func(direct_file_free);
	xmlXPathObject *found = find(xml, xml->root,
		"/domain/devices/disk[driver/@cache='none' or driver/@cache='directsync']"
		"//source/@file");

	for (int i = 0; found && i < found->nodesetval->nodeNr; i++)
		add_direct_file(xml, found->nodesetval->nodeTab[i], files);
	if (found)
		xmlXPathFreeObject(found);
	return files;
}
