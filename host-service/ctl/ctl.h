/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
#include <stdio.h>

/* How pagefusionctl ends; pagefusionctl(1) documents the numbers. */
typedef enum PfCtlExit {
	PF_CTL_OK = 0,
	PF_CTL_FAILED = 1,
	PF_CTL_USAGE = 2,
	PF_CTL_NO_SUCH_VM = 3,
	PF_CTL_REFUSED = 4,
	PF_CTL_UNREACHABLE = 5,
} PfCtlExit;

/*
 * The whole program: runs the command that the arguments name, with its output on out and one line
 * on err when it fails. The bus is the system bus, or what DBUS_SYSTEM_BUS_ADDRESS names.
 */
PfCtlExit pf_ctl_run(int argc, char **argv, FILE *out, FILE *err);
