/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Files of which some may never answer: those of local file systems are looked at directly, all others
 * with a deadline, and a device on which something had to be left behind is left alone. */
#include "guest-agent/find/mounts.h"
#include "guest-agent/find/opening.h"
#include "guest-agent/find/visit.h"

typedef struct PfReach PfReach;

enum {
	PF_REACH_OK = PF_OPENING_OK,
	PF_REACH_E_UNWANTED = PF_OPENING_E_UNWANTED,
	PF_REACH_E_SILENT, /* did not answer, or is left alone because others of its device did not */
};

/* mounts may be NULL: then nothing is known to be local. It must live as long as the reach. */
int pf_reach_new(PfReach **reach, const PfMounts *mounts, int timeout_ms);
void pf_reach_free(PfReach *reach);

/* A pass begins: devices are tried again when nothing is left behind on any, or after a long time. */
void pf_reach_begin(PfReach *reach, int64_t now_ms);

/* As pf_opening_open(). device is what is known of it before; name is for the log. */
int pf_reach_open(PfReach *reach, dev_t device, const char *path, const char *name, PfFound *found);

/* Reads the build-id of a file that is new; one whose build-id cannot be had is one without. 0 or
 * -ENOMEM. */
int pf_reach_identify(PfReach *reach, PfFile *file, int fd);

/* As pf_visitor_visit(), or PF_REACH_E_SILENT. */
int pf_reach_visit(PfReach *reach, PfVisitor *visitor, PfFile *file, int fd, const PfRam *ram,
	PfStep step, void *userdata);

/* Consumes fd, a file of that device. */
void pf_reach_close(PfReach *reach, dev_t device, int fd);

/* Files that did not answer, all in all. */
uint64_t pf_reach_left_behind(const PfReach *reach);
