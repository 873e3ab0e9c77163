/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Turning the flag on and off in a definition. Three things stand for it:
 *
 *   <metadata><pf:pagefusion/></metadata>
 *           the flag, the trust group, and the policy for huge pages
 *   <channel type='unix'> with target org.pagefusion.agent.0
 *           where the agent speaks; libvirt chooses the path
 *   <qemu:env> LD_PRELOAD and PAGEFUSION_SOCKET
 *           the shim
 *
 * Everything else in the definition belongs to somebody else and stays: other metadata, other
 * arguments for QEMU, other files in LD_PRELOAD. Both verbs first look whether there is something
 * to do, so a second on or off changes nothing. White space that only indented what is taken out
 * goes with it; libvirt formats a definition anew anyway.
 */
#include "host-service/broker/domain_xml.h"
#include <string.h>

#define QEMU PF_DOMAIN_QEMU_XMLNS

static gboolean has_attribute(xmlNode *node, const char *name, const char *value)
{
	xmlChar *is = xmlGetNoNsProp(node, BAD_CAST name);
	gboolean equal = g_strcmp0((const char *)is, value) == 0;

	xmlFree(is);
	return equal;
}

void pf_domain_xml_take_out(xmlNode *node)
{
	xmlNode *before = node->prev;

	if (before && xmlIsBlankNode(before)) {
		xmlUnlinkNode(before);
		xmlFreeNode(before);
	}
	xmlUnlinkNode(node);
	xmlFreeNode(node);
}

/* Takes an element out that holds nothing any more, not even a comment. */
static void take_out_if_empty(xmlNode *node)
{
	for (xmlNode *child = node->children; child; child = child->next)
		if (!xmlIsBlankNode(child))
			return;
	if (!node->properties)
		pf_domain_xml_take_out(node);
}

static gboolean add_flag(PfDomainXml *xml)
{
	xmlNode *metadata = pf_domain_xml_child(xml->root, NULL, "metadata");
	xmlNode *name = pf_domain_xml_child(xml->root, NULL, "name");
	xmlNode *node;

	if (pf_domain_xml_flag(xml))
		return FALSE;
	if (!metadata) {
		metadata = xmlNewDocNode(xml->doc, NULL, BAD_CAST "metadata", NULL);
		if (name)
			xmlAddNextSibling(name, metadata);
		else
			xmlAddChild(xml->root, metadata);
	}
	node = xmlNewChild(metadata, NULL, BAD_CAST "pagefusion", NULL);
	xmlSetNs(node, xmlNewNs(node, BAD_CAST PF_DOMAIN_XMLNS, BAD_CAST "pf"));
	return TRUE;
}

static gboolean remove_flag(PfDomainXml *xml)
{
	xmlNode *metadata = pf_domain_xml_child(xml->root, NULL, "metadata");
	xmlNode *node = pf_domain_xml_flag(xml);

	if (!node)
		return FALSE;
	pf_domain_xml_take_out(node);
	take_out_if_empty(metadata);
	return TRUE;
}

static gboolean add_channel(PfDomainXml *xml)
{
	xmlNode *devices = pf_domain_xml_child(xml->root, NULL, "devices");
	xmlNode *channel, *target;

	if (pf_domain_xml_channel_element(xml))
		return FALSE;
	if (!devices)
		devices = xmlNewChild(xml->root, NULL, BAD_CAST "devices", NULL);
	channel = xmlNewChild(devices, NULL, BAD_CAST "channel", NULL);
	xmlNewProp(channel, BAD_CAST "type", BAD_CAST "unix");
	target = xmlNewChild(channel, NULL, BAD_CAST "target", NULL);
	xmlNewProp(target, BAD_CAST "type", BAD_CAST "virtio");
	xmlNewProp(target, BAD_CAST "name", BAD_CAST PF_DOMAIN_CHANNEL);
	return TRUE;
}

static gboolean remove_channel(PfDomainXml *xml)
{
	xmlNode *channel = pf_domain_xml_channel_element(xml);

	if (!channel)
		return FALSE;
	pf_domain_xml_take_out(channel);
	return TRUE;
}

/* The last <qemu:env> of this name: the one that counts. */
static xmlNode *find_env(xmlNode *commandline, const char *name)
{
	xmlNode *env = pf_domain_xml_child(commandline, QEMU, "env"), *found = NULL;

	for (; env; env = pf_domain_xml_next(env, QEMU, "env"))
		if (has_attribute(env, "name", name))
			found = env;
	return found;
}

/* Sets a variable; whether that changed anything. */
static gboolean set_env(xmlNode *commandline, const char *name, const char *value)
{
	xmlNode *env = find_env(commandline, name);

	if (env && has_attribute(env, "value", value))
		return FALSE;
	if (!env) {
		env = xmlNewChild(commandline, commandline->ns, BAD_CAST "env", NULL);
		xmlNewProp(env, BAD_CAST "name", BAD_CAST name);
	}
	xmlSetProp(env, BAD_CAST "value", BAD_CAST value);
	return TRUE;
}

/* An LD_PRELOAD value without the shim, the other files and what separates them as they were
 * (g_free). */
static char *without_shim(const char *value)
{
	GString *rest = g_string_new(NULL);

	while (*value) {
		size_t separators = strspn(value, ": ");
		size_t length = strcspn(value + separators, ": ");
		g_autofree char *file = g_strndup(value + separators, length);

		if (!length || !pf_domain_xml_preloads_shim(file))
			g_string_append_len(rest, value, (gssize)(separators + length));
		value += separators + length;
	}
	/* The shim may have stood first. */
	g_string_erase(rest, 0, (gssize)strspn(rest->str, ": "));
	return g_string_free(rest, FALSE);
}

static gboolean lists_file(const char *value, const char *path)
{
	g_auto(GStrv) files = g_strsplit_set(value, ": ", -1);

	return g_strv_contains((const char *const *)files, path);
}

static gboolean add_preload(xmlNode *commandline, const char *shim_path)
{
	xmlNode *env = find_env(commandline, "LD_PRELOAD");
	xmlChar *old = env ? xmlGetNoNsProp(env, BAD_CAST "value") : NULL;
	g_autofree char *rest = without_shim(old ? (const char *)old : "");
	g_autofree char *value =
		*rest ? g_strconcat(rest, ":", shim_path, NULL) : g_strdup(shim_path);
	gboolean there = old && lists_file((const char *)old, shim_path);

	xmlFree(old);
	return !there && set_env(commandline, "LD_PRELOAD", value);
}

static gboolean remove_preload(xmlNode *commandline)
{
	xmlNode *env = find_env(commandline, "LD_PRELOAD");
	xmlChar *old = env ? xmlGetNoNsProp(env, BAD_CAST "value") : NULL;
	gboolean there = old && pf_domain_xml_preloads_shim((const char *)old);

	if (there) {
		g_autofree char *rest = without_shim((const char *)old);

		if (*rest)
			xmlSetProp(env, BAD_CAST "value", BAD_CAST rest);
		else
			pf_domain_xml_take_out(env);
	}
	xmlFree(old);
	return there;
}

static gboolean add_shim(PfDomainXml *xml, const char *shim_path, const char *shim_socket)
{
	xmlNode *commandline = pf_domain_xml_child(xml->root, QEMU, "commandline");
	gboolean changed;

	if (!commandline) {
		commandline = xmlNewChild(xml->root, NULL, BAD_CAST "commandline", NULL);
		xmlSetNs(commandline, xmlNewNs(commandline, BAD_CAST QEMU, BAD_CAST "qemu"));
	}
	changed = add_preload(commandline, shim_path);
	return set_env(commandline, PF_DOMAIN_SOCKET_ENV, shim_socket) || changed;
}

static gboolean remove_shim(PfDomainXml *xml)
{
	xmlNode *commandline = pf_domain_xml_child(xml->root, QEMU, "commandline");
	xmlNode *socket = find_env(commandline, PF_DOMAIN_SOCKET_ENV);
	gboolean changed = remove_preload(commandline) || socket;

	if (socket)
		pf_domain_xml_take_out(socket);
	if (changed)
		take_out_if_empty(commandline);
	return changed;
}

gboolean pf_domain_xml_enable(PfDomainXml *xml, const char *shim_path, const char *shim_socket)
{
	gboolean changed = add_flag(xml);

	changed = add_channel(xml) || changed;
	return add_shim(xml, shim_path, shim_socket) || changed;
}

gboolean pf_domain_xml_disable(PfDomainXml *xml)
{
	gboolean changed = remove_flag(xml);

	changed = remove_channel(xml) || changed;
	return remove_shim(xml) || changed;
}

/* Sets an attribute of the flag, NULL: takes it away; whether that changed anything. */
static gboolean set_attribute(PfDomainXml *xml, const char *name, const char *value)
{
	xmlNode *flag = pf_domain_xml_flag(xml);
	xmlAttr *old = xmlHasNsProp(flag, BAD_CAST name, NULL);

	if (!value)
		return old && xmlRemoveProp(old) == 0;
	if (has_attribute(flag, name, value))
		return FALSE;
	xmlSetNsProp(flag, NULL, BAD_CAST name, BAD_CAST value);
	return TRUE;
}

gboolean pf_domain_xml_set_thp(PfDomainXml *xml, PfThp thp)
{
	return set_attribute(xml, "thp", thp == PF_THP_DEFAULT ? NULL : pf_thp_name(thp));
}

gboolean pf_domain_xml_set_group(PfDomainXml *xml, const char *group)
{
	return set_attribute(xml, "group", strcmp(group, PF_GROUP_DEFAULT) == 0 ? NULL : group);
}
