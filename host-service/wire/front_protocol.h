/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What the front (the process that has the bus) and the service say to each other: one struct a packet (packet.h) over a
 * SOCK_SEQPACKET socket pair, at most one descriptor with it. The front asks for views; the service answers each query, in
 * their order, with what was asked for and an END, and has stores kept or dropped at any time.
 * Both ends are the same binary, so there is no version. The front takes the service for hostile: a service that a
 * guest has taken over can show false numbers and refuse to answer, and nothing more. pf_front_check_message() is the only way in.
 */
#include "host-service/wire/view.h"
#include <stdbool.h>

#define PF_FRONT_MAGIC      0x31464650u /* "PFF1" */
#define PF_FRONT_MAX_VM     256         /* bytes of a name or UUID, with the final 0 */
#define PF_FRONT_MAX_REASON 512
#define PF_FRONT_MAX_TEXT   256
#define PF_FRONT_MAX_STORE  64 /* bytes of the name under which a store is kept, with the final 0 */
#define PF_FRONT_MAX_STORES 1024  /* kept at once */
#define PF_FRONT_MAX_VMS    65536 /* in an answer */

typedef enum PfFrontWant {
	PF_FRONT_WANT_HOST = 1 << 0,
	PF_FRONT_WANT_VMS =
		1 << 1, /* every domain, in the order of names; or the one that `vm` names */
} PfFrontWant;

/* From the front. What it has no use for is zero. */
typedef struct PfFrontQuery {
	uint32_t magic;
	uint32_t want;            /* PfFrontWant bits; 0: only whether libvirt is there */
	uint64_t id;              /* never 0 */
	char vm[PF_FRONT_MAX_VM]; /* UUID or name, looked up in this order; empty: all. Only with WANT_VMS. */
} PfFrontQuery;

typedef enum PfFrontMessageType {
	PF_FRONT_HOST = 64, /* host */
	PF_FRONT_VM = 65,   /* vm; as many as there are */
	PF_FRONT_END = 66,  /* end */
	PF_FRONT_KEEP =
		67, /* store, and its descriptor: systemd is to keep it over a restart; id is 0 */
	PF_FRONT_DROP = 68, /* store: it need not be kept any more; id is 0 */
} PfFrontMessageType;

/* A PfVmView without pointers. */
typedef struct PfFrontVm {
	PfDomain domain;
	char reason[PF_FRONT_MAX_REASON];
	char agent_version[PF_FRONT_MAX_TEXT];
	char kernel[PF_FRONT_MAX_TEXT];
	PfVmFigures figures;
} PfFrontVm;

typedef struct PfFrontEnd {
	uint32_t connected;               /* to libvirt */
	uint32_t found;                   /* the VM that was asked for; 1 where none was */
	char reason[PF_FRONT_MAX_REASON]; /* why libvirt is not there; empty while it is */
} PfFrontEnd;

typedef struct PfFrontMessage {
	uint32_t magic;
	uint32_t type; /* PfFrontMessageType */
	uint64_t id;   /* of the query */
	union {
		PfHostView host;
		PfFrontVm vm;
		PfFrontEnd end;
		char store[PF_FRONT_MAX_STORE]; /* pf_front_is_store_name() */
	} body;
} PfFrontMessage;

/* Whether a store can be kept under this name, by either side: "store-" and 32 hexadecimal digits, in lower case. */
bool pf_front_is_store_name(const char *name);

/* Whether size bytes are a query: right size, text that ends. The service trusts the front otherwise. */
bool pf_front_check_query(const PfFrontQuery *query, size_t size);

/*
 * Whether size bytes with n_fds descriptors are a message of the service's: right size, type and number of descriptors, enums and
 * booleans in range. Text is made to end and cleaned in place (common/text.h), so that nothing of it is harmful afterwards.
 */
bool pf_front_check_message(PfFrontMessage *message, size_t size, size_t n_fds);
