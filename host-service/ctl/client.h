/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The service at the other end of the bus. */
#include "host-service/ctl/commands.h"
#include "host-service/front/org.pagefusion1.h"

/* gdbus-codegen makes these for its classes, not for the interface. */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PfDbusManager, g_object_unref)

/* A proxy for the service; NULL when there is no bus: *code has been reported then. The caller owns
 * it. */
PfDbusManager *pf_ctl_connect(PfCtl *ctl, PfCtlExit *code);

/* Reports why a call failed: one line that says what and what to do. Returns the exit code for
 * it. */
PfCtlExit pf_ctl_call_failed(PfCtl *ctl, const GError *error);

/* The empty dictionary of options; a floating reference. */
GVariant *pf_ctl_no_options(void);
