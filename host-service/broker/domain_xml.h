/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * A domain's definition, as libvirt prints it: what page fusion reads in it (domain_xml.c) and what
 * turning the flag on and off changes in it (domain_edit.c). additions_edit.h has the rest. No I/O.
 */
#include "host-service/config/group_name.h"
#include "host-service/config/thp.h"
#include <libxml/tree.h>

#define PF_DOMAIN_XMLNS      "https://pagefusion.org/xmlns/domain/1"
#define PF_DOMAIN_QEMU_XMLNS "http://libvirt.org/schemas/domain/qemu/1.0"
#define PF_DOMAIN_CHANNEL    "org.pagefusion.agent.0"
#define PF_DOMAIN_SHIM       "libpagefusion-vmm.so" /* file name, in whatever directory */
#define PF_DOMAIN_SOCKET_ENV "PAGEFUSION_SOCKET"

/* A definition; the document is owned. */
typedef struct PfDomainXml {
	xmlDoc *doc;
	xmlNode *root; /* <domain> */
} PfDomainXml;

/* NULL with error set (G_IO_ERROR_INVALID_DATA): not XML, or not a <domain>. */
PfDomainXml *pf_domain_xml_new(const char *text, GError **error);
void pf_domain_xml_free(PfDomainXml *xml);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PfDomainXml, pf_domain_xml_free)

/* The whole definition as text (g_free). */
char *pf_domain_xml_format(const PfDomainXml *xml);

/* The flag, an element of the metadata, or NULL. */
xmlNode *pf_domain_xml_flag(const PfDomainXml *xml);
gboolean pf_domain_xml_has_flag(const PfDomainXml *xml);

/* Whether QEMU is started with the shim and the service's socket in its environment. */
gboolean pf_domain_xml_has_shim(const PfDomainXml *xml);

/* The trust group of the flag (g_free): PF_GROUP_DEFAULT when it names none, or there is no flag. NULL when it names
 * what can be none, an empty one too (which is a refusal). */
char *pf_domain_xml_group(const PfDomainXml *xml);

/* The policy of the flag for huge pages: PF_THP_DEFAULT when it names none, or one that there is not
 * (which is a refusal), or there is no flag. */
PfThp pf_domain_xml_thp(const PfDomainXml *xml);

/* The guest channel's element, known by its name alone, or NULL. */
xmlNode *pf_domain_xml_channel_element(const PfDomainXml *xml);

/* The path of the guest channel's unix socket (g_free), or NULL: no such channel, or no path in
 * this definition. */
char *pf_domain_xml_channel(const PfDomainXml *xml);

/* Whether the guest has the channel's port open, in the definition of a running domain. */
gboolean pf_domain_xml_port_is_open(const PfDomainXml *xml);

/* Whether this is the definition of a running domain. */
gboolean pf_domain_xml_is_live(const PfDomainXml *xml);

/* Whether QEMU runs this domain, rather than another hypervisor. */
gboolean pf_domain_xml_is_qemu(const PfDomainXml *xml);

/* Why this domain cannot be fused: one sentence that names the element and what to change, or NULL.
 * Not owned. */
const char *pf_domain_xml_refusal(const PfDomainXml *xml);

/* A file that QEMU reads with O_DIRECT: a disk with cache='none' or 'directsync', or an image that
 * it is based on. */
typedef struct PfDomainDirectFile {
	char *path;
	char *target; /* the disk's name in the guest: vda */
} PfDomainDirectFile;

/* They are in a new array (g_ptr_array_unref) that owns them. Whether that is safe depends on the
 * file system. */
GPtrArray *pf_domain_xml_direct_files(const PfDomainXml *xml);

/*
 * Turns the flag on or off. What on writes: the metadata element, the guest channel if it is not
 * there, and QEMU's environment; off takes exactly these out. Whether anything was changed.
 */
gboolean pf_domain_xml_enable(PfDomainXml *xml, const char *shim_path, const char *shim_socket);
gboolean pf_domain_xml_disable(PfDomainXml *xml);

/* Sets the policy of the flag, which must be there; PF_THP_DEFAULT: it names none. Whether anything
 * was changed. */
gboolean pf_domain_xml_set_thp(PfDomainXml *xml, PfThp thp);

/* Sets the trust group of the flag, which must be there; PF_GROUP_DEFAULT: it names none. Whether anything was changed. */
gboolean pf_domain_xml_set_group(PfDomainXml *xml, const char *group);

/* The element children of parent with this name and namespace (NULL: none), one after the other. */
xmlNode *pf_domain_xml_child(const xmlNode *parent, const char *xmlns, const char *name);
xmlNode *pf_domain_xml_next(const xmlNode *node, const char *xmlns, const char *name);

/* An attribute's value (g_free), or NULL, also where node is NULL. */
char *pf_domain_xml_attribute(const xmlNode *node, const char *name);

/* Takes an element out, with the white space before it. */
void pf_domain_xml_take_out(xmlNode *node);

/* Whether one of the files in an LD_PRELOAD value is the shim. */
gboolean pf_domain_xml_preloads_shim(const char *value);
