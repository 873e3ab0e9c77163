/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Files of which some may never answer: those of local file systems are looked at directly, those that root has mounted
 * from elsewhere with a deadline, and a device that does not keep it is left out; all others are left alone. */
#include "guest-agent/find/mounts.h"
#include "guest-agent/find/opening.h"
#include "guest-agent/find/visit.h"

typedef struct PfReach PfReach;

enum {
	PF_REACH_OK = PF_OPENING_OK,
	PF_REACH_E_FAILED = PF_OPENING_E_FAILED,
	PF_REACH_E_REFUSED = PF_OPENING_E_REFUSED,
	PF_REACH_E_UNWANTED = PF_OPENING_E_UNWANTED,
	PF_REACH_E_SILENT, /* did not answer, or is left alone because others of its device did not */
};

/* Where a file lies. */
typedef struct PfPlace {
	pid_t pid;    /* a process that maps it */
	dev_t device; /* as maps shows it, which st_dev need not be */
	bool local;   /* it answers */
} PfPlace;

/* mounts is the table of this process, which the reach keeps up to date, or NULL. It must live as long as the reach. */
int pf_reach_new(PfReach **reach, PfMounts *mounts, int timeout_ms);
void pf_reach_free(PfReach *reach);

/* A pass begins: devices are tried again when nothing is left behind on any, or after a long time. */
void pf_reach_begin(PfReach *reach, int64_t now_ms);

/* It ends: what was held for it is let go. */
void pf_reach_end(PfReach *reach);

/* Finds out, without touching it, where a file lies that maps of a process shows with that device and path. False: it
 * is to be left alone. */
bool pf_reach_place(PfReach *reach, pid_t pid, dev_t device, const char *path, PfPlace *place);

/* As pf_opening_open(), by map_files; what is there turns out to be less local or not for us at all
 * (PF_REACH_E_REFUSED). path is for the log. */
int pf_reach_open(
	PfReach *reach, PfPlace *place, const char *map, const char *path, PfFound *found);

/* Reads the build-id of a file that is new; one whose build-id cannot be had is one without. 0 or
 * -ENOMEM. */
int pf_reach_identify(PfReach *reach, const PfPlace *place, PfFile *file, int fd);

/* As pf_visitor_visit(), or PF_REACH_E_SILENT. */
int pf_reach_visit(PfReach *reach, const PfPlace *place, PfVisitor *visitor, PfFile *file, int fd,
	const PfRam *ram, PfStep step, void *userdata);

/* Consumes fd, a file of that place. */
void pf_reach_close(PfReach *reach, const PfPlace *place, int fd);

/* Files that did not answer, all in all. */
uint64_t pf_reach_left_behind(const PfReach *reach);

/* Mappings of files that a user may be serving, all in all. */
uint64_t pf_reach_left_alone(const PfReach *reach);
