/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A bucket that is full at first, and gets one back every PF_DEVICE_AGAIN_US. */
#include "host-service/broker/device_allowance.h"

static void give_back(PfDeviceAllowance *allowance, gint64 now_us)
{
	gint64 n = (now_us - allowance->since_us) / PF_DEVICE_AGAIN_US;

	allowance->since_us += n * PF_DEVICE_AGAIN_US;
	allowance->taken -= (guint)MIN(n, allowance->taken);
}

gboolean pf_device_allowance_take(PfDeviceAllowance *allowance, gint64 pid, gint64 now_us)
{
	if (pid != 0 && pid != allowance->pid)
		*allowance = (PfDeviceAllowance){.pid = pid};
	if (allowance->taken == 0)
		allowance->since_us = now_us;
	else
		give_back(allowance, now_us);
	if (allowance->taken == PF_DEVICE_AT_ONCE)
		return FALSE;
	allowance->taken++;
	return TRUE;
}
