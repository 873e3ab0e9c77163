/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the service shows, as values of the interface org.pagefusion1.Manager. */
#include "host-service/decide/metrics.h"

#define PF_DBUS_VALUES "a(ssts)" /* QueryMetrics: object, metric, value, unit */

/* A string; what is not UTF-8 in it is replaced. A floating reference. */
GVariant *pf_dbus_text(const char *string);

/* The dictionary of a VM; a floating reference. */
GVariant *pf_dbus_describe_vm(const PfVmView *vm);

/* Add what the query selects, and what has a value now, to a builder of PF_DBUS_VALUES. */
void pf_dbus_add_host_values(
	GVariantBuilder *values, const PfMetricQuery *query, const PfHostView *host);
void pf_dbus_add_vm_values(GVariantBuilder *values, const PfMetricQuery *query, const PfVmView *vm);
