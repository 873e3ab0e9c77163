/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * How often /dev/userfaultfd is handed out for a VM. A shim needs it once for each connection, so a few at once when a
 * service is started again and again; who wants more is no shim.
 */
#include <glib.h>
#include <stdint.h>

/* All zero at first. */
typedef struct PfDeviceAllowance {
	gint64 pid;      /* of the QEMU process that it is about */
	guint taken;     /* of PF_DEVICE_AT_ONCE */
	gint64 since_us; /* when one less was taken */
} PfDeviceAllowance;

#define PF_DEVICE_AT_ONCE  8
#define PF_DEVICE_AGAIN_US (INT64_C(30) * G_USEC_PER_SEC) /* for each one more */

/* Takes one, if there is one. Each start of QEMU has its own; pid 0: it is not known, and so no other than before. */
gboolean pf_device_allowance_take(PfDeviceAllowance *allowance, gint64 pid, gint64 now_us);
