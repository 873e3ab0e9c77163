/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the broker learns from QEMU and its process rather than from libvirt's API. */
#include "common/page.h"
#include <glib.h>

#define PF_QEMU_PID_DIR "/run/libvirt/qemu"

/*
 * The process that runs a domain, by the pid file NAME.pid that libvirt keeps in pid_dir; 0 when
 * there is none, or when the process it names is not that domain's.
 */
gint64 pf_qemu_pid(const char *pid_dir, const char *name, const char *uuid);

/* Connects to the guest channel's unix socket at path, which pid's QEMU serves. The caller owns the
 * descriptor (nonblocking, close-on-exec); -1 with error set. */
int pf_qemu_connect(const char *path, gint64 pid, GError **error);

/*
 * Reads the monitor's answer to "gpa2hva": the host address of this guest-physical address (both in
 * bytes). FALSE: it says that there is no RAM, or it is not the answer that QEMU gives.
 */
gboolean pf_qemu_parse_gpa2hva(const char *reply, uint64_t gpa, PfHva *hva);
