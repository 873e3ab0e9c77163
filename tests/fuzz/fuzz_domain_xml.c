/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A domain's definition: whatever can be read can be turned on and off, and afterwards says so; and
 * what is inserted into a drive can be ejected. The first byte is no part of the definition: an odd
 * one makes the input an LD_PRELOAD value instead.
 */
#include "host-service/broker/additions_edit.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SHIM "/lib/" PF_DOMAIN_SHIM

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(gboolean holds)
{
	if (!holds)
		abort();
}

static void read_all(const PfDomainXml *xml)
{
	g_autofree char *group = pf_domain_xml_group(xml);
	g_autofree char *channel = pf_domain_xml_channel(xml);
	g_autoptr(GPtrArray) files = pf_domain_xml_direct_files(xml);
	const char *refusal = pf_domain_xml_refusal(xml);

	require(group ? pf_group_name_is_valid(group) : refusal != NULL);
	require(!channel || *channel);
	require(!refusal || *refusal);
	require(pf_domain_xml_thp(xml) <= PF_THP_ALL);
	for (guint i = 0; i < files->len; i++)
		require(((PfDomainDirectFile *)g_ptr_array_index(files, i))->path != NULL);
}

static void turn_on_and_off(PfDomainXml *xml)
{
	g_autofree char *text = NULL;
	g_autofree char *group = NULL;
	g_autoptr(PfDomainXml) again = NULL;

	pf_domain_xml_enable(xml, SHIM, "/run/s");
	require(pf_domain_xml_has_flag(xml));
	require(pf_domain_xml_has_shim(xml));
	require(!pf_domain_xml_enable(xml, SHIM, "/run/s"));
	pf_domain_xml_set_thp(xml, PF_THP_PRESERVE);
	require(pf_domain_xml_thp(xml) == PF_THP_PRESERVE);
	require(!pf_domain_xml_set_thp(xml, PF_THP_PRESERVE));
	pf_domain_xml_set_group(xml, "g");
	require(!pf_domain_xml_set_group(xml, "g"));
	group = pf_domain_xml_group(xml);
	require(g_strcmp0(group, "g") == 0);
	text = pf_domain_xml_format(xml);
	again = pf_domain_xml_new(text, NULL);
	require(again && pf_domain_xml_has_flag(again) && pf_domain_xml_has_shim(again));
	read_all(again);
	require(pf_domain_xml_disable(again));
}

static void insert_and_eject(PfDomainXml *xml)
{
	const char *iso = "/iso/" PF_ADDITIONS_FILE;
	PfAdditionsChange change = {0}, again = {0};
	xmlNode *drive = NULL;

	if (pf_additions_insert(xml, iso, TRUE, &change, &drive, NULL)) {
		g_autofree char *text = pf_additions_format(xml, drive ? drive : xml->root);

		require(change.drive[0] != 0);
		require(pf_additions_insert(xml, iso, FALSE, &again, &drive, NULL));
		require(!drive && !again.changed && !again.of_drive);
		require(strcmp(change.drive, again.drive) == 0);
		require(*text != 0);
	}
	again = (PfAdditionsChange){0};
	pf_additions_eject(xml, iso, &again);
	require(!change.drive[0] || again.changed);
	require(!pf_additions_empty(xml, iso, &again));
	pf_domain_xml_port_is_open(xml);
}

static char *definition_with_preload(const char *value)
{
	g_autofree char *escaped = g_markup_escape_text(value, -1);

	return g_strdup_printf("<domain xmlns:qemu='" PF_DOMAIN_QEMU_XMLNS
			       "'><qemu:commandline><qemu:env name='LD_PRELOAD' value='%s'/>"
			       "</qemu:commandline></domain>",
		escaped);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autofree char *text = NULL;
	g_autofree char *wrapped = NULL;
	g_autoptr(PfDomainXml) xml = NULL;

	if (size == 0)
		return 0;
	text = g_strndup((const char *)data + 1, size - 1);
	if (data[0] & 1)
		wrapped = definition_with_preload(text);
	xml = pf_domain_xml_new(wrapped ? wrapped : text, NULL);
	if (!xml)
		return 0;
	read_all(xml);
	insert_and_eject(xml);
	turn_on_and_off(xml);
	return 0;
}
