// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/explain.h"
#include "common/log.h"
#include <errno.h>
#include <string.h>

static void explain_facts(int error)
{
	if (error == -EPERM)
		pf_error("/proc/iomem hides its addresses: run this as root (CAP_SYS_ADMIN in the "
			 "initial namespaces)");
	else if (error == -ENOTSUP)
		pf_error("this guest's pages are not 4 KiB: page fusion cannot work in it");
	else
		pf_error("cannot read this guest's memory layout: %s", strerror(-error));
}

static void explain_looking(int error)
{
	if (error == -EPERM)
		pf_error("page frame numbers read as 0, or mapped files cannot be opened: run this "
			 "as root (CAP_SYS_ADMIN and CAP_SYS_PTRACE in the initial namespaces)");
	else
		pf_error("cannot look at this guest's pages: %s", strerror(-error));
}

static void explain_port(int error, const char *port)
{
	if (error == -ENOENT || error == -ENODEV || error == -ENXIO)
		pf_error("no virtio-serial port %s: turn page fusion on for this VM on the host "
			 "(pagefusionctl modifyvm VM --pagefusion on)",
			port);
	else if (error == -EBUSY)
		pf_error("virtio-serial port %s is in use: stop the other pagefusion-agent", port);
	else
		pf_error("virtio-serial port %s: %s", port, strerror(-error));
}

void pf_explain(PfFailure failure, int error, const char *port)
{
	switch (failure) {
	case PF_FAILURE_NONE:
		break;
	case PF_FAILURE_FACTS:
		explain_facts(error);
		break;
	case PF_FAILURE_LOOKING:
		explain_looking(error);
		break;
	case PF_FAILURE_PORT:
		explain_port(error, port);
		break;
	case PF_FAILURE_ITSELF:
		pf_error("cannot go on: %s", strerror(-error));
		break;
	}
}
