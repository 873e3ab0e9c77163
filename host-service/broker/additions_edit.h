/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The medium of the guest additions in a domain's definition. No I/O. */
#include "host-service/broker/domain_xml.h"
#include "host-service/wire/broker.h"

#define PF_ADDITIONS_FILE  "pagefusion-guest-additions.iso" /* file name, in whatever directory */
#define PF_ADDITIONS_ALIAS "ua-pagefusion-additions"        /* of a drive that was added for it */

/*
 * Puts the image into a CD drive: into one that is empty, or holds an image of ours by another path, or, if may_add, into one
 * that it adds to a definition without any. *drive (unless NULL) is the changed element, NULL where it was in a drive
 * already. FALSE with error set (G_IO_ERROR_NOT_SUPPORTED, one line that says what to do), and nothing changed.
 */
gboolean pf_additions_insert(PfDomainXml *xml, const char *iso, gboolean may_add,
	PfAdditionsChange *change, xmlNode **drive, GError **error);

/* Empties the next drive that holds the image, if there is one; NULL: there is none (any more). */
xmlNode *pf_additions_empty(PfDomainXml *xml, const char *iso, PfAdditionsChange *change);

/* Takes the image out of all drives, and with it the drive that was added for it, unless that holds something else now. */
void pf_additions_eject(PfDomainXml *xml, const char *iso, PfAdditionsChange *change);

/* A device as text (g_free). */
char *pf_additions_format(const PfDomainXml *xml, xmlNode *device);
