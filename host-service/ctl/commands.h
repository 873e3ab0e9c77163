/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the files of pagefusionctl share: one run of the program, and its commands. */
#include "host-service/ctl/ctl.h"
#include <glib.h>

#define PF_CTL_MODIFY_USAGE                                                                        \
	"modifyvm VM [--pagefusion on|off] [--group NAME] [--thp preserve|balanced|all|default]"

/* The options that were given. */
typedef struct PfCtlOptions {
	gboolean help;
	gboolean json;
	gboolean long_list;
	gboolean machine_readable;
	gboolean force;
	char *pagefusion;  /* NULL: not given */
	char *thp, *group; /* likewise */
} PfCtlOptions;

typedef struct PfCtl {
	FILE *out;
	FILE *err;
	PfCtlOptions options;
	char **args; /* the command's arguments: as many as it takes, valid UTF-8 */
	unsigned n_args;
} PfCtl;

/* Writes "pagefusionctl: " and the message as one line without control characters to err. Returns
 * code. */
PfCtlExit pf_ctl_fail(PfCtl *ctl, PfCtlExit code, const char *format, ...) G_GNUC_PRINTF(3, 4);

PfCtlExit pf_ctl_list_vms(PfCtl *ctl);
PfCtlExit pf_ctl_show_vm_info(PfCtl *ctl);
PfCtlExit pf_ctl_modify_vm(PfCtl *ctl);
PfCtlExit pf_ctl_metrics_query(PfCtl *ctl);
PfCtlExit pf_ctl_insert_additions(PfCtl *ctl);
PfCtlExit pf_ctl_eject_additions(PfCtl *ctl);
