/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the broker does for its clients. Only a running domain with the flag gets its channel opened,
 * its memory looked up or a userfaultfd: a service that a guest has taken over reaches no other VM
 * through here, and turning the flag on takes effect only when that VM is started anew.
 *
 * A userfaultfd that sees the kernel's faults is a tool for exploiting races in it, so it is handed
 * out for a VM that runs, and so often as its shim can have use for it: no more of them than there
 * are such VMs, times a few, can be passed on to anybody.
 */
#include "host-service/broker/broker_domains.h"
#include "host-service/broker/qemu_process.h"
#include <errno.h>
#include <fcntl.h>
#include <libvirt/virterror.h>

static const PfDomain *find_fusing(const PfBrokerDomains *domains, const char *uuid, GError **error)
{
	const PfDomain *domain = pf_broker_domains_find(domains, uuid);

	if (domain && domain->active && domain->enabled)
		return domain;
	if (domain)
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
			"VM %s does not run with page fusion turned on", domain->name);
	else
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND,
			"there is no VM with the UUID %s", uuid);
	return NULL;
}

static int open_userfaultfd(GError **error)
{
	int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), code = errno;

	if (fd >= 0)
		return fd;
	if (code == ENOENT)
		g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
			"this kernel has no /dev/userfaultfd: page fusion needs Linux 6.8 or newer "
			"with CONFIG_USERFAULTFD (on Debian 12: linux-image-amd64 from "
			"bookworm-backports)");
	else
		g_set_error(error, G_IO_ERROR, g_io_error_from_errno(code),
			"/dev/userfaultfd cannot be opened (%s): run pagefusiond as root",
			g_strerror(code));
	return -1;
}

int pf_broker_serve_userfaultfd(PfBrokerDomains *domains, const char *uuid, GError **error)
{
	const PfDomain *domain = find_fusing(domains, uuid, error);

	if (!domain)
		return -1;
	if (pf_broker_domains_take_device(domains, uuid, g_get_monotonic_time()))
		return open_userfaultfd(error);
	g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY,
		"the shim of VM %s has connected too often: it gets a userfaultfd again in %d seconds at most",
		domain->name, (int)(PF_DEVICE_AGAIN_US / G_USEC_PER_SEC));
	return -1;
}

int pf_broker_serve_channel(const PfBrokerDomains *domains, const char *uuid, GError **error)
{
	const PfDomain *domain = find_fusing(domains, uuid, error);

	if (!domain)
		return -1;
	if (!domain->channel[0]) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND,
			"VM %s has no channel " PF_DOMAIN_CHANNEL
			": shut it down and turn page fusion on again",
			domain->name);
		return -1;
	}
	return pf_qemu_connect(domain->channel, domain->pid, error);
}

void pf_broker_set_libvirt_error(
	GError **error, GIOErrorEnum code, const char *what, const char *name)
{
	g_autofree char *reason = g_strdup(virGetLastErrorMessage());

	g_strdelimit(g_strchomp(reason), "\r\n", ' ');
	g_set_error(error, G_IO_ERROR, code, "%s %s: %s", what, name, reason);
}

static void set_away(GError **error)
{
	g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_NOT_CONNECTED,
		"libvirt does not answer: start libvirtd or virtqemud, then try again");
}

gboolean pf_broker_serve_translate(const PfBrokerDomains *domains, virConnectPtr connection,
	PfBrokerThreads *threads, const PfBrokerRequest *request, GError **error)
{
	const PfDomain *domain = find_fusing(domains, request->vm, error);

	if (!domain)
		return FALSE;
	if (!connection) {
		set_away(error);
		return FALSE;
	}
	if (pf_broker_threads_begin(
		    threads, request, request->vm, domain->name, pf_broker_translate_work, NULL))
		return TRUE;
	g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY,
		"QEMU's monitor has not answered yet where the memory lies of VM %s", domain->name);
	return FALSE;
}

virDomainPtr pf_broker_find_vm(virConnectPtr connection, const char *vm, GError **error)
{
	virDomainPtr by_uuid = NULL, by_name;

	if (!connection) {
		set_away(error);
		return NULL;
	}
	if (pf_broker_is_uuid(vm))
		by_uuid = virDomainLookupByUUIDString(connection, vm);
	by_name = virDomainLookupByName(connection, vm);
	if (by_uuid && by_name) {
		virDomainFree(by_uuid);
		virDomainFree(by_name);
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED,
			"%s is the UUID of one VM and the name of another: rename the other one",
			vm);
		return NULL;
	}
	if (by_uuid || by_name)
		return by_uuid ? by_uuid : by_name;
	if (virGetLastErrorCode() == VIR_ERR_NO_DOMAIN)
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND,
			"there is no VM %s: see 'pagefusionctl list vms'", vm);
	else
		pf_broker_set_libvirt_error(
			error, G_IO_ERROR_FAILED, "libvirt cannot look up VM", vm);
	return NULL;
}

static gboolean may_change(virDomainPtr handle, GError **error)
{
	const char *name = virDomainGetName(handle);
	int state = VIR_DOMAIN_NOSTATE;

	if (virDomainIsPersistent(handle) == 0) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
			"VM %s is transient: page fusion is turned on in a persistent definition, "
			"make one with virsh define",
			name);
		return FALSE;
	}
	if (virDomainGetState(handle, &state, NULL, 0) < 0) {
		pf_broker_set_libvirt_error(
			error, G_IO_ERROR_FAILED, "libvirt cannot read VM", name);
		return FALSE;
	}
	if (state != VIR_DOMAIN_SHUTOFF) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY,
			"VM %s is %s: page fusion can only be changed while it is shut off; "
			"shut it down first (virsh shutdown %s)",
			name, pf_broker_domains_state_name(state), name);
		return FALSE;
	}
	if (virDomainHasManagedSaveImage(handle, 0) == 1) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY,
			"VM %s has a saved state: page fusion can only be changed while it is "
			"shut off; start it and shut it down first, or drop the state (virsh "
			"managedsave-remove %s)",
			name, name);
		return FALSE;
	}
	return TRUE;
}

/* What belongs to the flag, and how to turn it on with it. NULL: nothing of the request does. */
static const char *needs_flag(const PfBrokerRequest *request)
{
	if (request->changes & PF_VM_SET_THP)
		return "there is no policy for huge pages: turn it on as well (pagefusionctl "
		       "modifyvm VM --pagefusion on --thp POLICY)";
	if (request->changes & PF_VM_SET_GROUP)
		return "it is in no trust group: turn it on as well (pagefusionctl modifyvm VM "
		       "--pagefusion on --group NAME)";
	return NULL;
}

static gboolean edit(PfDomainXml *xml, const PfBrokerConfig *config, const char *name,
	const PfBrokerRequest *request, gboolean *changed, GError **error)
{
	gboolean enable = request->enabled == 1;
	const char *needs = needs_flag(request);
	g_autofree char *refusal = NULL;

	if (enable)
		*changed = pf_domain_xml_enable(xml, config->shim_path, config->shim_socket);
	else if (request->changes & PF_VM_SET_ENABLED)
		*changed = pf_domain_xml_disable(xml);
	if (needs && !pf_domain_xml_has_flag(xml)) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
			"VM %s: page fusion is off, so %s", name, needs);
		return FALSE;
	}
	if (request->changes & PF_VM_SET_THP)
		*changed = pf_domain_xml_set_thp(xml, (PfThp)request->thp) || *changed;
	if (request->changes & PF_VM_SET_GROUP)
		*changed = pf_domain_xml_set_group(xml, request->group) || *changed;
	/* Only now: a policy or a group that is a refusal may have been replaced. */
	refusal = enable ? pf_broker_domains_refusal(xml) : NULL;
	if (refusal)
		g_set_error(
			error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED, "VM %s: %s", name, refusal);
	return !refusal;
}

gboolean pf_broker_define(virDomainPtr handle, const PfDomainXml *xml, GError **error)
{
	g_autofree char *text = pf_domain_xml_format(xml);
	const char *name = virDomainGetName(handle);
	virDomainPtr defined = virDomainDefineXML(virDomainGetConnect(handle), text);

	if (!defined) {
		pf_broker_set_libvirt_error(error, G_IO_ERROR_FAILED,
			"libvirt refuses the new definition and keeps the old one of VM", name);
		return FALSE;
	}
	virDomainFree(defined);
	return TRUE;
}

static gboolean change_definition(virDomainPtr handle, const PfBrokerConfig *config,
	const PfBrokerRequest *request, GError **error)
{
	const char *name = virDomainGetName(handle);
	g_autoptr(PfDomainXml) xml = NULL;
	gboolean changed = FALSE;
	char *text;

	if (!may_change(handle, error))
		return FALSE;
	text = virDomainGetXMLDesc(handle, VIR_DOMAIN_XML_INACTIVE | VIR_DOMAIN_XML_SECURE);
	if (!text) {
		pf_broker_set_libvirt_error(
			error, G_IO_ERROR_FAILED, "libvirt cannot read VM", name);
		return FALSE;
	}
	xml = pf_domain_xml_new(text, error);
	free(text);
	if (!xml || !edit(xml, config, name, request, &changed, error))
		return FALSE;
	return !changed || pf_broker_define(handle, xml, error);
}

gboolean pf_broker_serve_modify(PfBrokerDomains *domains, virConnectPtr connection,
	const PfBrokerConfig *config, const PfBrokerRequest *request, GError **error)
{
	virDomainPtr handle;
	char uuid[VIR_UUID_STRING_BUFLEN];
	gboolean done;

	handle = pf_broker_find_vm(connection, request->vm, error);
	if (!handle)
		return FALSE;
	done = change_definition(handle, config, request, error);
	/* So that the service is told before the front has the answer. */
	if (done && virDomainGetUUIDString(handle, uuid) == 0)
		pf_broker_domains_refresh(domains, uuid);
	virDomainFree(handle);
	return done;
}
