/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* A VM's record, and what its two files do for each other: vm.c and, for the conversation with the shim, vm_shim.c. */
#include "host-service/service/guest.h"
#include "host-service/service/listing.h"
#include "host-service/service/orders.h"
#include "host-service/service/vm.h"

/*
 * Which message of the conversation with the shim comes next, in the order of the conversation: from LISTING on it is
 * about the guest's pages. LOST and STATE come at any time.
 */
typedef enum PfTalk {
	TALK_HELLO,     /* HELLO */
	TALK_FOREIGN,   /* RELEASED, likewise: there is no version in common */
	TALK_RETURNING, /* STORE_RETURN */
	TALK_RELEASING, /* RELEASED, of everything */
	TALK_REFUSED,   /* none: the VM is not to be fused, or there is no version in common */
	TALK_DEVICE,    /* none: the broker is asked for the device */
	TALK_ATTACHING, /* READY, also after one that said no */
	TALK_LOCATING,  /* none: the list waits for the guest to be located, or for its time */
	TALK_LISTING,   /* LISTED, then RELEASED */
	TALK_TAKING,    /* none: the rest of the list is taken over */
	TALK_SETTLING,  /* RELEASED, of what cannot be taken over */
	TALK_READY,     /* answers to orders */
} PfTalk;

struct PfVm {
	int refs; /* one for the owner, one for each answer of the broker that is awaited */
	gboolean closed;
	const PfVmContext *context;
	int process; /* a pidfd of QEMU's */
	uint64_t process_id;
	gint64 pid;
	char *name, *group_name;
	PfGroup *group;
	PfFusionVm *fusion;
	PfGuest *guest;
	PfOrders *orders;
	PfQuota quota; /* of its guest's and its QEMU's messages together */
	PfLogLimit log;
	PfThp thp;     /* in force */
	char *refusal; /* why it is not to be fused at all; NULL: it is */

	PfShimLink *shim;
	guint shim_serial; /* counts shims: an answer meant for an earlier one is void */
	PfTalk talk;
	gboolean has_store;    /* the shim holds the group's store already */
	char *shim_reason;     /* why it is not ready; NULL: it is, or on its way */
	char *logged;          /* the newest reason that was logged, of any shim */
	gboolean logged_ready; /* ready was logged after it */
	gboolean logged_stop;  /* once: what has stopped in QEMU never starts again */
	guint device_source, take_source;
	uint64_t settling_losses; /* pages said to be lost while SETTLING, fused or not */
	PfListing *listing;       /* LISTING to SETTLING */
	PfShimState state;

	/* vm_patience.c */
	guint deadline_source, deadline_ms; /* it has to say something; 0: it need not */
	gboolean extended;                  /* the deadline has passed once already */
	PfShimLink *waiting;                /* a connection that has to wait, until: */
	guint wait_source;
	guint n_connections;  /* lately */
	gboolean is_held_off; /* so many that the last one had to wait */
	gint64 connections_since_us;
	guint capture_source, capture_pause_ms; /* it is not asked for captures; the newest pause */
	gint64 ask_us;                          /* refused hints are not asked for before that */
	guint ask_pause_s;                      /* the newest pause of that kind */
	gboolean is_listing;
	guint list_source, list_wait_source; /* its list has taken too long; the next may begin */
	guint list_pause_ms;                 /* the newest after one that broke off */
	gint64 list_us, next_list_us;        /* the newest began, the next may not begin earlier */

	char *reason; /* the newest that pf_vm_view() has made */
};

/* vm.c */
void pf_vm_unref(PfVm *vm);

/* vm_shim.c */

/* The guest was located, or is no longer; it is located elsewhere than it was. */
void pf_vm_shim_guest_changed(PfVm *vm);
void pf_vm_shim_guest_moved(PfVm *vm);

/* Fusion goes on with the numbers of the group's store, if there is one. */
void pf_vm_adopt_store(PfVm *vm);

/* The conversation begins; link is consumed. */
void pf_vm_shim_begin(PfVm *vm, PfShimLink *link);

/* What keeps it from being fused, also logged when it is news. */
void pf_vm_set_shim_reason(PfVm *vm, PfLogLevel level, char *reason);

/* Lets go of the shim, at the end of the VM. */
void pf_vm_shim_free(PfVm *vm);

/* vm_patience.c */

/* The shim has to say something from now on, or answer its orders; what that is begins the wait anew. */
void pf_vm_expect(PfVm *vm, guint ms);
void pf_vm_expect_nothing(PfVm *vm);
void pf_vm_expect_answers(PfVm *vm);
/* It has said something, if that was expected. */
void pf_vm_was_heard(PfVm *vm);
void pf_vm_has_captured(PfVm *vm, const PfOrdersCapture *capture);

/* FALSE: not yet; pf_vm_shim_guest_changed() follows when it may. */
gboolean pf_vm_may_list(PfVm *vm);
/* A list begins: it has to end in time. It ends, if there is one: whole, or broken off. */
void pf_vm_list_begins(PfVm *vm);
void pf_vm_list_ends(PfVm *vm, gboolean whole);

/* For how long the shim may be silent, in general and at first. */
guint pf_vm_answer_ms(const PfVm *vm);
guint pf_vm_hello_ms(const PfVm *vm);

/* A shim that has connected; consumed. It has to wait when there were too many. */
void pf_vm_admit(PfVm *vm, PfShimLink *link);

/* At the end of the VM. */
void pf_vm_patience_free(PfVm *vm);
