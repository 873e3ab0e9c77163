/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * One VM's guest channel (proto/PROTOCOL.md): bytes from the guest in, checked hints out. No I/O
 * and no clock of its own. The guest is not trusted: whatever is no valid message of this session
 * is dropped and counted, and what is valid has been checked against the protocol's limits before
 * the sink hears of it.
 */
#include "common/page.h"
#include "proto/limits.h"
#include <glib.h>

typedef struct PfSession PfSession;

#define PF_SESSION_WINDOW_FRAMES 8

enum {
	PF_SESSION_OK = 0,
	PF_SESSION_E_FLOOD, /* the guest sent more frames than its window allows: close the channel
			       for a while */
};

/* What the guest said of itself. Text is valid UTF-8 without control characters, made so if it was
 * not. */
typedef struct PfGuestInfo {
	const char *agent_version;
	const char *kernel;
	uint32_t page_size; /* bytes; a session with another than ours gets no further than this */
	uint32_t protocol;  /* its newest version; a session with an older one than ours likewise */
	const PfGuestRange *ram; /* ascending, disjoint, none of them empty */
	size_t n_ram;
} PfGuestInfo;

typedef struct PfModuleInfo {
	const uint8_t *build_id; /* NULL where there is none */
	size_t build_id_size;    /* at most PF_SESSION_MAX_BUILD_ID */
	const char *name;        /* valid UTF-8, no control characters */
	uint64_t n_pages;        /* 1 to PF_SESSION_MAX_MODULE_PAGES */
} PfModuleInfo;

/* Pointers are valid during the call only. module_id is below PF_SESSION_MAX_MODULES. */
typedef struct PfSessionSink {
	/* A new session: all that was hinted before is void. */
	void (*started)(void *userdata, const PfGuestInfo *info);
	/* Declares a module, or declares it again: then its hints are withdrawn. */
	void (*module)(void *userdata, uint32_t module_id, const PfModuleInfo *info);
	/*
	 * n_pages pages of a declared module from file_page on lie at gfn and following: inside the
	 * guest's RAM ranges and inside the module.
	 */
	void (*hints)(void *userdata, uint32_t module_id, uint64_t file_page, PfGfn gfn,
		uint32_t n_pages, const PfDigest *digests);
	/* Pages of a declared module that are not hinted any more: ascending, disjoint, inside the module. */
	void (*withdrawn)(
		void *userdata, uint32_t module_id, const PfFileRange *ranges, size_t n_ranges);
	/* A scan is complete. */
	void (*reported)(void *userdata, uint64_t n_modules, uint64_t n_pages);
} PfSessionSink;

typedef struct PfSessionCounters {
	uint64_t frames;        /* read and valid */
	uint64_t skipped_bytes; /* no valid frame */
	uint64_t dropped;       /* frames that are no valid message, or of another session */
	uint64_t refused_hints; /* pages outside RAM or module, or of an undeclared module */
} PfSessionCounters;

/* sink and userdata must live as long as the session. new_session_id gives random non-zero
 * numbers. */
PfSession *pf_session_new(
	const PfSessionSink *sink, void *userdata, uint64_t (*new_session_id)(void *userdata));
void pf_session_free(PfSession *session);

/* The channel was (re)opened: forgets unread input and output and queues a hello. */
void pf_session_open(PfSession *session);

/* size bytes came from the guest. PF_SESSION_OK, a PF_SESSION_E_*, or -ENOMEM. Calls the sink. */
int pf_session_feed(PfSession *session, const uint8_t *data, size_t size);

/* Bytes to send to the guest: *size of them, 0 when there are none. Valid until the next call on
 * this session. */
const uint8_t *pf_session_output(PfSession *session, size_t *size);

/* n bytes of the output were sent. */
void pf_session_sent(PfSession *session, size_t n);

void pf_session_get_counters(const PfSession *session, PfSessionCounters *counters);
