/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A VM that is shut off gets the medium in its persistent definition. One that runs gets it in its drive, and its definition
 * stays as it is: what was put in for once is not there at the next start. To change a drive libvirt asks QEMU, which may
 * never answer, so that is done in a thread. Out it goes wherever it is: first of the drive, because the guest can keep that
 * locked, then nothing has been changed; then of the definition.
 *
 * Calls of libvirt, virDomainGetName() too, forget its last error: what is said with an error is asked for before.
 *
 * root in the guests will execute what is in the image, so it has to belong to root here, and so have the directories by
 * which it is found: a definition names it, and it is opened again at each start. libvirt is told not to give it to QEMU's
 * user (additions_edit.c), who has to be able to read it, therefore.
 */
#include "host-service/broker/additions.h"
#include "host-service/broker/additions_edit.h"
#include "host-service/broker/broker_domains.h"
#include <errno.h>
#include <fcntl.h>
#include <libvirt/virterror.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ISO9660_MAGIC    "CD001"
#define ISO9660_MAGIC_AT 0x8001

/* The image */

static gboolean refuse_iso(GError **error, const char *path, const char *what)
{
	g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "%s %s", path, what);
	return FALSE;
}

static gboolean others_can_write(const struct stat *status)
{
	/* In a sticky directory everybody has his own files only. */
	gboolean is_sticky = S_ISDIR(status->st_mode) && status->st_mode & S_ISVTX;

	return (status->st_uid != 0 && status->st_uid != geteuid()) ||
	       (status->st_mode & (S_IWGRP | S_IWOTH) && !is_sticky);
}

static gboolean others_can_replace(const char *path)
{
	g_autofree char *way = g_strdup(path);
	struct stat status;

	for (char *slash; (slash = strrchr(way, '/'));) {
		*slash = 0;
		if (stat(*way ? way : "/", &status) < 0 || others_can_write(&status))
			return TRUE;
	}
	return FALSE;
}

/* As it is named, and as it is when the symbolic links are followed. */
static gboolean is_in_safe_place(const char *path)
{
	char *followed = realpath(path, NULL);
	gboolean safe = followed && !others_can_replace(path) && !others_can_replace(followed);

	free(followed);
	return safe;
}

static gboolean check_open_iso(int fd, const char *path, GError **error)
{
	char magic[sizeof(ISO9660_MAGIC) - 1];
	struct stat status;

	if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
		return refuse_iso(error, path,
			"is no file: name the image with the guest additions (additions-iso in "
			"pagefusiond.conf)");
	if (others_can_write(&status))
		return refuse_iso(error, path,
			"can be written by others than root, and root in a guest would execute "
			"what is in it: chown root and chmod go-w it");
	if (!is_in_safe_place(path))
		return refuse_iso(error, path,
			"is in a directory that others than root can write to, and root in a guest "
			"would execute what they put there: copy it to /usr/share/pagefusion");
	if (!(status.st_mode & S_IROTH))
		return refuse_iso(error, path, "cannot be read by QEMU: chmod o+r it");
	if (pread(fd, magic, sizeof(magic), ISO9660_MAGIC_AT) != sizeof(magic) ||
		memcmp(magic, ISO9660_MAGIC, sizeof(magic)) != 0)
		return refuse_iso(error, path,
			"is no ISO 9660 image: install the package pagefusion-guest-additions "
			"anew, or make the image with ./run package");
	return TRUE;
}

static gboolean check_iso(const char *path, GError **error)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), code = errno;
	gboolean good;

	if (fd >= 0) {
		good = check_open_iso(fd, path, error);
		close(fd);
		return good;
	}
	if (code == ENOENT || code == ENOTDIR)
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED,
			"there is no %s: install the package pagefusion-guest-additions, or make "
			"the image with ./run package and name it with additions-iso in "
			"pagefusiond.conf",
			path);
	else
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "%s cannot be read: %s", path,
			g_strerror(code));
	return FALSE;
}

/* What both do */

static PfDomainXml *read_xml(virDomainPtr handle, unsigned flags, GError **error)
{
	const char *name = virDomainGetName(handle);
	char *text = virDomainGetXMLDesc(handle, flags);
	PfDomainXml *xml;

	if (!text) {
		pf_broker_set_libvirt_error(
			error, G_IO_ERROR_FAILED, "libvirt cannot read VM", name);
		return NULL;
	}
	xml = pf_domain_xml_new(text, error);
	free(text);
	return xml;
}

/* The first drive is the one that is spoken of. */
static void add_change(PfAdditionsChange *change, const PfAdditionsChange *more)
{
	if (!change->drive[0])
		memcpy(change->drive, more->drive, sizeof(change->drive));
	change->changed |= more->changed;
	change->of_drive |= more->of_drive;
}

static gboolean change_definition(virDomainPtr handle, const char *iso, gboolean insert,
	PfAdditionsChange *change, GError **error)
{
	g_autoptr(PfDomainXml) xml =
		read_xml(handle, VIR_DOMAIN_XML_INACTIVE | VIR_DOMAIN_XML_SECURE, error);
	PfAdditionsChange here = {0};

	if (!xml)
		return FALSE;
	if (!insert)
		pf_additions_eject(xml, iso, &here);
	else if (!pf_additions_insert(xml, iso, TRUE, &here, NULL, error)) {
		g_prefix_error(error, "VM %s: ", virDomainGetName(handle));
		return FALSE;
	}
	if (here.changed && !pf_broker_define(handle, xml, error))
		return FALSE;
	add_change(change, &here);
	return TRUE;
}

/* The running VM */

static gboolean update_drive(
	virDomainPtr handle, const PfDomainXml *xml, xmlNode *drive, gboolean force, GError **error)
{
	g_autofree char *text = pf_additions_format(xml, drive);
	const char *name = virDomainGetName(handle);
	unsigned flags = VIR_DOMAIN_AFFECT_LIVE | (force ? VIR_DOMAIN_DEVICE_MODIFY_FORCE : 0);

	if (virDomainUpdateDeviceFlags(handle, text, flags) == 0)
		return TRUE;
	pf_broker_set_libvirt_error(
		error, G_IO_ERROR_FAILED, "libvirt cannot change the CD drive of VM", name);
	return FALSE;
}

static gboolean insert_live(
	virDomainPtr handle, const char *iso, PfAdditionsChange *change, GError **error)
{
	g_autoptr(PfDomainXml) xml = read_xml(handle, 0, error);
	xmlNode *drive;

	if (!xml)
		return FALSE;
	if (!pf_additions_insert(xml, iso, FALSE, change, &drive, error)) {
		g_prefix_error(error, "VM %s: ", virDomainGetName(handle));
		return FALSE;
	}
	change->running = 1;
	return !drive || update_drive(handle, xml, drive, FALSE, error);
}

/* "Tray" is in what QEMU says of a locked one, and in what libvirt says when the guest has not let go in time. */
static void explain_locked(virDomainPtr handle, const char *drive, GError **error)
{
	g_autofree char *reason = NULL;

	if (!strstr((*error)->message, "tray"))
		return;
	reason = g_strdup((*error)->message);
	g_clear_error(error);
	g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
		"the guest of VM %s uses the CD in drive %s: unmount and eject it in the guest first, "
		"or say --force (%s)",
		virDomainGetName(handle), drive, reason);
}

static gboolean eject_live(virDomainPtr handle, const char *iso, gboolean force,
	PfAdditionsChange *change, GError **error)
{
	g_autoptr(PfDomainXml) xml = read_xml(handle, 0, error);
	PfAdditionsChange here = {0};
	xmlNode *drive;

	if (!xml)
		return FALSE;
	while ((drive = pf_additions_empty(xml, iso, &here))) {
		if (!update_drive(handle, xml, drive, force, error)) {
			if (!force)
				explain_locked(handle, here.drive, error);
			return FALSE;
		}
		add_change(change, &here);
		here = (PfAdditionsChange){0};
	}
	change->running = change->changed;
	return virDomainIsPersistent(handle) != 1 ||
	       change_definition(handle, iso, FALSE, change, error);
}

/* A PfBrokerWork; data is the broker's configuration. */
static void work(virConnectPtr connection, const PfBrokerRequest *request, const char *name,
	const void *data, PfBrokerMessage *answer, GError **error)
{
	const char *iso = ((const PfBrokerConfig *)data)->additions_iso;
	PfAdditionsChange *change = &answer->body.additions;
	virDomainPtr handle = pf_broker_find_vm(connection, request->vm, error);

	if (!handle)
		return;
	if (request->type == PF_BROKER_INSERT_ADDITIONS)
		insert_live(handle, iso, change, error);
	else
		eject_live(handle, iso, request->force != 0, change, error);
	virDomainFree(handle);
}

/* Which of both */

static gboolean begin(virDomainPtr handle, PfBrokerThreads *threads, const PfBrokerConfig *config,
	const PfBrokerRequest *request, GError **error)
{
	const char *name = virDomainGetName(handle);
	char uuid[VIR_UUID_STRING_BUFLEN];

	if (virDomainGetUUIDString(handle, uuid) < 0) {
		pf_broker_set_libvirt_error(
			error, G_IO_ERROR_FAILED, "libvirt cannot read VM", name);
		return FALSE;
	}
	if (pf_broker_threads_begin(threads, request, uuid, name, work, config))
		return TRUE;
	g_set_error(error, G_IO_ERROR, G_IO_ERROR_PENDING,
		"QEMU has not finished an earlier change of the CD drive of VM %s: try again later",
		name);
	return FALSE;
}

/* Its state has a definition of its own, which is not ours to change. */
static gboolean is_saved(virDomainPtr handle, GError **error)
{
	const char *name = virDomainGetName(handle);

	if (virDomainHasManagedSaveImage(handle, 0) != 1)
		return FALSE;
	g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
		"VM %s has a saved state, in which its CD drive cannot be changed: start it first, or "
		"drop the state (virsh managedsave-remove %s)",
		name, name);
	return TRUE;
}

static gboolean serve(virDomainPtr handle, PfBrokerThreads *threads, const PfBrokerConfig *config,
	const PfBrokerRequest *request, PfBrokerMessage *answer, GError **error)
{
	const char *name = virDomainGetName(handle);
	int active = virDomainIsActive(handle);

	if (active < 0)
		pf_broker_set_libvirt_error(
			error, G_IO_ERROR_FAILED, "libvirt cannot read VM", name);
	else if (active > 0)
		return begin(handle, threads, config, request, error);
	else if (!is_saved(handle, error))
		change_definition(handle, config->additions_iso,
			request->type == PF_BROKER_INSERT_ADDITIONS, &answer->body.additions,
			error);
	return FALSE;
}

gboolean pf_broker_serve_additions(virConnectPtr connection, PfBrokerThreads *threads,
	const PfBrokerConfig *config, const PfBrokerRequest *request, PfBrokerMessage *answer,
	GError **error)
{
	virDomainPtr handle = pf_broker_find_vm(connection, request->vm, error);
	gboolean begun = FALSE;

	if (!handle)
		return FALSE;
	if (request->type == PF_BROKER_EJECT_ADDITIONS || check_iso(config->additions_iso, error))
		begun = serve(handle, threads, config, request, answer, error);
	virDomainFree(handle);
	return begun;
}
