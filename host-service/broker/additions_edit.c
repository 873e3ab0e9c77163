/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The medium is ours when it is the image of the configuration, or has its file name: it may have been put there by another
 * path. It is put into a drive with two additions of its own. startupPolicy='optional': a VM starts without an image that is
 * not there any more. A <seclabel> that keeps libvirt from giving the file to QEMU's user: what is in it is executed by root
 * in every guest that it is shown to, and a QEMU that somebody has taken over could otherwise write to it.
 *
 * A drive that was there is as before when it is empty again (only its type is "file" then, which means nothing to an empty
 * drive). One that was added has a user alias, by which it is found again. A machine of the i440fx kind has an IDE controller
 * in its definition only when something needs it, and libvirt adds it by itself but does not take it out: where that was to
 * be expected the alias says so, with IDE_TOO behind it.
 */
#include "host-service/broker/additions_edit.h"
#include <gio/gio.h>
#include <string.h>

#define IDE_TOO PF_ADDITIONS_ALIAS "-ide"

/* Where drives of a kind are attached. */
typedef struct Bus {
	const char *name;
	char letter;       /* their names begin with it: hda, sda */
	guint n_places;    /* that need no second controller */
	guint a_bus;       /* of them on each of a controller's buses */
	gboolean is_fixed; /* a name's place is known */
} Bus;

static const Bus ide = {"ide", 'h', 4, 2, TRUE};
static const Bus sata = {"sata", 's', 6, 6, TRUE};
static const Bus scsi = {"scsi", 's', 7, 7, FALSE};
static const Bus usb = {"usb", 's', 26, 26, FALSE};

/* Reading */

static xmlNode *devices_of(const PfDomainXml *xml)
{
	return pf_domain_xml_child(xml->root, NULL, "devices");
}

static gboolean has(const xmlNode *node, const char *attribute, const char *value)
{
	g_autofree char *is = pf_domain_xml_attribute(node, attribute);

	return g_strcmp0(is, value) == 0;
}

/* The first CD drive behind that element, which is one or NULL. */
static xmlNode *next_drive(const PfDomainXml *xml, const xmlNode *drive)
{
	xmlNode *disk = drive ? pf_domain_xml_next(drive, NULL, "disk")
			      : pf_domain_xml_child(devices_of(xml), NULL, "disk");

	while (disk && !has(disk, "device", "cdrom"))
		disk = pf_domain_xml_next(disk, NULL, "disk");
	return disk;
}

/* What is in a drive (g_free), as its source is named; NULL: nothing. */
static char *medium_of(const xmlNode *drive)
{
	static const char *const names[] = {"file", "dev", "volume", "name", "dir", "protocol"};
	const xmlNode *source = pf_domain_xml_child(drive, NULL, "source");

	for (gsize i = 0; source && i < G_N_ELEMENTS(names); i++) {
		g_autofree char *name = pf_domain_xml_attribute(source, names[i]);

		if (name && *name)
			return g_steal_pointer(&name);
	}
	return NULL;
}

static gboolean is_ours(const char *medium, const char *iso)
{
	g_autofree char *name = g_path_get_basename(medium);

	return strcmp(medium, iso) == 0 || strcmp(name, PF_ADDITIONS_FILE) == 0;
}

static xmlNode *find_ours(const PfDomainXml *xml, const char *iso)
{
	for (xmlNode *drive = next_drive(xml, NULL); drive; drive = next_drive(xml, drive)) {
		g_autofree char *medium = medium_of(drive);

		if (medium && is_ours(medium, iso))
			return drive;
	}
	return NULL;
}

static xmlNode *find_empty(const PfDomainXml *xml)
{
	for (xmlNode *drive = next_drive(xml, NULL); drive; drive = next_drive(xml, drive)) {
		g_autofree char *medium = medium_of(drive);

		if (!medium)
			return drive;
	}
	return NULL;
}

static char *name_of(const xmlNode *drive)
{
	g_autofree char *name =
		pf_domain_xml_attribute(pf_domain_xml_child(drive, NULL, "target"), "dev");

	return name && *name ? g_steal_pointer(&name) : g_strdup("?");
}

/* The first drive is the one that is spoken of. */
static void note(PfAdditionsChange *change, const xmlNode *drive)
{
	g_autofree char *name = name_of(drive);

	if (!change->drive[0])
		g_strlcpy(change->drive, name, sizeof(change->drive));
}

/* A drive that is there */

static void remove_child(xmlNode *parent, const char *name)
{
	xmlNode *child = pf_domain_xml_child(parent, NULL, name);

	if (child)
		pf_domain_xml_take_out(child);
}

static void remove_medium(xmlNode *drive)
{
	remove_child(drive, "source");
	/* Of a running VM. */
	remove_child(drive, "backingStore");
}

static void put_medium(xmlNode *drive, const char *iso)
{
	xmlNode *source, *label;

	remove_medium(drive);
	xmlSetProp(drive, BAD_CAST "type", BAD_CAST "file");
	source = xmlNewChild(drive, NULL, BAD_CAST "source", NULL);
	xmlNewProp(source, BAD_CAST "file", BAD_CAST iso);
	xmlNewProp(source, BAD_CAST "startupPolicy", BAD_CAST "optional");
	label = xmlNewChild(source, NULL, BAD_CAST "seclabel", NULL);
	xmlNewProp(label, BAD_CAST "model", BAD_CAST "dac");
	xmlNewProp(label, BAD_CAST "relabel", BAD_CAST "no");
}

/* A drive that is added */

static gboolean has_controller(const PfDomainXml *xml, const char *type)
{
	xmlNode *node = pf_domain_xml_child(devices_of(xml), NULL, "controller");

	while (node && (!has(node, "type", type) || has(node, "model", "none")))
		node = pf_domain_xml_next(node, NULL, "controller");
	return node != NULL;
}

/* The bus that a machine is born with, or NULL. */
static const Bus *bus_of_machine(const PfDomainXml *xml)
{
	xmlNode *os = pf_domain_xml_child(xml->root, NULL, "os");
	g_autofree char *machine =
		pf_domain_xml_attribute(pf_domain_xml_child(os, NULL, "type"), "machine");

	if (!machine)
		return NULL;
	if (strstr(machine, "q35"))
		return &sata;
	return strcmp(machine, "pc") == 0 || g_str_has_prefix(machine, "pc-") ? &ide : NULL;
}

static guint64 number_of(const xmlNode *node, const char *name)
{
	g_autofree char *value = pf_domain_xml_attribute(node, name);

	return value ? g_ascii_strtoull(value, NULL, 10) : 0;
}

/* Whether a disk has this name, or is where a drive of this name would be. */
static gboolean is_at(const xmlNode *disk, const Bus *bus, const char *name, guint place)
{
	xmlNode *target = pf_domain_xml_child(disk, NULL, "target");
	xmlNode *address = pf_domain_xml_child(disk, NULL, "address");

	if (has(target, "dev", name))
		return TRUE;
	return bus->is_fixed && has(target, "bus", bus->name) && address &&
	       number_of(address, "controller") == 0 &&
	       number_of(address, "bus") * bus->a_bus + number_of(address, "unit") == place;
}

static gboolean is_free(const PfDomainXml *xml, const Bus *bus, const char *name, guint place)
{
	xmlNode *disk = pf_domain_xml_child(devices_of(xml), NULL, "disk");

	while (disk && !is_at(disk, bus, name, place))
		disk = pf_domain_xml_next(disk, NULL, "disk");
	return disk == NULL;
}

static gboolean find_place(const PfDomainXml *xml, const Bus *bus, char name[4])
{
	for (guint place = 0; place < bus->n_places; place++) {
		g_snprintf(name, 4, "%cd%c", bus->letter, (char)('a' + place));
		if (is_free(xml, bus, name, place))
			return TRUE;
	}
	return FALSE;
}

static const Bus *choose_bus(const PfDomainXml *xml, char name[4])
{
	const Bus *bus = bus_of_machine(xml);

	if (bus && find_place(xml, bus, name))
		return bus;
	if (has_controller(xml, "scsi") && find_place(xml, &scsi, name))
		return &scsi;
	return has_controller(xml, "usb") && find_place(xml, &usb, name) ? &usb : NULL;
}

static xmlNode *add_drive(PfDomainXml *xml, const Bus *bus, const char *name)
{
	const char *alias =
		bus == &ide && !has_controller(xml, "ide") ? IDE_TOO : PF_ADDITIONS_ALIAS;
	xmlNode *drive = xmlNewChild(devices_of(xml), NULL, BAD_CAST "disk", NULL), *node;

	xmlNewProp(drive, BAD_CAST "type", BAD_CAST "file");
	xmlNewProp(drive, BAD_CAST "device", BAD_CAST "cdrom");
	node = xmlNewChild(drive, NULL, BAD_CAST "driver", NULL);
	xmlNewProp(node, BAD_CAST "name", BAD_CAST "qemu");
	xmlNewProp(node, BAD_CAST "type", BAD_CAST "raw");
	node = xmlNewChild(drive, NULL, BAD_CAST "target", NULL);
	xmlNewProp(node, BAD_CAST "dev", BAD_CAST name);
	xmlNewProp(node, BAD_CAST "bus", BAD_CAST bus->name);
	xmlNewChild(drive, NULL, BAD_CAST "readonly", NULL);
	node = xmlNewChild(drive, NULL, BAD_CAST "alias", NULL);
	xmlNewProp(node, BAD_CAST "name", BAD_CAST alias);
	return drive;
}

static gboolean alias_is(const xmlNode *drive, const char *alias)
{
	return has(pf_domain_xml_child(drive, NULL, "alias"), "name", alias);
}

static gboolean has_ide_disk(const PfDomainXml *xml)
{
	xmlNode *disk = pf_domain_xml_child(devices_of(xml), NULL, "disk");

	while (disk && !has(pf_domain_xml_child(disk, NULL, "target"), "bus", "ide"))
		disk = pf_domain_xml_next(disk, NULL, "disk");
	return disk != NULL;
}

static void remove_ide(const PfDomainXml *xml)
{
	xmlNode *node = pf_domain_xml_child(devices_of(xml), NULL, "controller");

	while (node && !has(node, "type", "ide"))
		node = pf_domain_xml_next(node, NULL, "controller");
	if (node)
		pf_domain_xml_take_out(node);
}

static void remove_drive(PfDomainXml *xml, xmlNode *drive)
{
	gboolean ide_too = alias_is(drive, IDE_TOO);

	pf_domain_xml_take_out(drive);
	if (ide_too && !has_ide_disk(xml))
		remove_ide(xml);
}

/* Verbs */

static gboolean refuse(const PfDomainXml *xml, gboolean may_add, GError **error)
{
	xmlNode *drive = next_drive(xml, NULL);
	g_autofree char *medium = NULL, *name = NULL;

	if (drive) {
		medium = medium_of(drive);
		name = name_of(drive);
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
			"its CD drive %s holds %s: eject that first", name, medium);
	} else if (may_add) {
		g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
			"it has no CD drive, and no place for one on an IDE, SATA, SCSI or USB "
			"controller: add a CD drive to its definition");
	} else {
		g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
			"it has no CD drive, and none can be added while it runs: shut it off and "
			"insert again, which adds one, or attach one with virsh");
	}
	return FALSE;
}

static xmlNode *make_drive(PfDomainXml *xml, PfAdditionsChange *change)
{
	char name[4];
	const Bus *bus = devices_of(xml) ? choose_bus(xml, name) : NULL;

	if (!bus)
		return NULL;
	change->of_drive = 1;
	return add_drive(xml, bus, name);
}

gboolean pf_additions_insert(PfDomainXml *xml, const char *iso, gboolean may_add,
	PfAdditionsChange *change, xmlNode **drive, GError **error)
{
	xmlNode *found = find_ours(xml, iso);
	g_autofree char *medium = found ? medium_of(found) : NULL;
	gboolean there = g_strcmp0(medium, iso) == 0;

	*change = (PfAdditionsChange){0};
	if (!found)
		found = find_empty(xml);
	if (!found && may_add && !next_drive(xml, NULL))
		found = make_drive(xml, change);
	if (!found)
		return refuse(xml, may_add, error);
	if (!there)
		put_medium(found, iso);
	change->changed = there ? 0 : 1;
	note(change, found);
	if (drive)
		*drive = there ? NULL : found;
	return TRUE;
}

xmlNode *pf_additions_empty(PfDomainXml *xml, const char *iso, PfAdditionsChange *change)
{
	xmlNode *drive = find_ours(xml, iso);

	if (!drive)
		return NULL;
	note(change, drive);
	change->changed = 1;
	remove_medium(drive);
	return drive;
}

static gboolean is_added_and_empty(const xmlNode *drive)
{
	g_autofree char *medium = medium_of(drive);

	return !medium && (alias_is(drive, PF_ADDITIONS_ALIAS) || alias_is(drive, IDE_TOO));
}

void pf_additions_eject(PfDomainXml *xml, const char *iso, PfAdditionsChange *change)
{
	xmlNode *drive, *next;

	while (pf_additions_empty(xml, iso, change))
		;
	for (drive = next_drive(xml, NULL); drive; drive = next) {
		next = next_drive(xml, drive);
		if (!is_added_and_empty(drive))
			continue;
		note(change, drive);
		change->changed = change->of_drive = 1;
		remove_drive(xml, drive);
	}
}

char *pf_additions_format(const PfDomainXml *xml, xmlNode *device)
{
	xmlBuffer *buffer = xmlBufferCreate();
	char *text;

	xmlNodeDump(buffer, xml->doc, device, 0, 0);
	text = g_strdup((const char *)xmlBufferContent(buffer));
	xmlBufferFree(buffer);
	return text;
}
