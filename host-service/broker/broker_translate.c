/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Guest memory is linear in QEMU between the ends of a range that the guest names, or the range is not translated. The
 * guest's numbers were checked by pf_broker_check_request(); whether there is RAM in the middle, and whether it is the
 * guest's own, the shim checks for each order.
 */
#include "host-service/broker/broker_translate.h"
#include "host-service/broker/broker_domains.h"
#include "host-service/broker/qemu_process.h"
#include <inttypes.h>
#include <libvirt/libvirt-qemu.h>

/* Where a page lies: v = 0 when it is no RAM. FALSE: the monitor could not be asked. */
static gboolean ask_hva(virDomainPtr handle, uint64_t gpa, PfHva *hva)
{
	g_autofree char *command = g_strdup_printf("gpa2hva 0x%" PRIx64, gpa);
	char *reply = NULL;

	if (virDomainQemuMonitorCommand(
		    handle, command, &reply, VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP) < 0)
		return FALSE;
	if (!pf_qemu_parse_gpa2hva(reply, gpa, hva))
		hva->v = 0;
	free(reply);
	return TRUE;
}

static gboolean ask_range(virDomainPtr handle, const PfGuestRange *range, PfHva *hva)
{
	uint64_t first = range->first.v << PF_PAGE_SHIFT;
	uint64_t distance = (range->n_pages - 1) << PF_PAGE_SHIFT;
	PfHva last;

	if (!ask_hva(handle, first, hva))
		return FALSE;
	if (hva->v == 0 || distance == 0)
		return TRUE;
	if (!ask_hva(handle, first + distance, &last))
		return FALSE;
	if (last.v < hva->v || last.v - hva->v != distance)
		hva->v = 0;
	return TRUE;
}

void pf_broker_translate_work(virConnectPtr connection, const PfBrokerRequest *request,
	const char *name, const void *data, PfBrokerMessage *answer, GError **error)
{
	virDomainPtr handle = virDomainLookupByUUIDString(connection, request->vm);
	gboolean asked = handle != NULL;

	for (uint32_t i = 0; asked && i < request->n_ranges; i++)
		asked = ask_range(handle, &request->ranges[i], &answer->body.hvas[i]);
	if (asked)
		answer->n_hvas = request->n_ranges;
	else
		pf_broker_set_libvirt_error(error, G_IO_ERROR_FAILED,
			"QEMU's monitor does not say where the memory lies of VM", name);
	if (handle)
		virDomainFree(handle);
}
