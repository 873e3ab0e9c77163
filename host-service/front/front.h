/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The front is the first process of pagefusiond: it starts and ends the others, has the bus, and speaks with systemd. It
 * parses nothing that guests or QEMU processes send. This is its end of the service's socket (front_protocol.h).
 */
#include "host-service/wire/keeper.h"
#include "host-service/wire/view.h"
#include <gio/gio.h>

typedef struct PfFront PfFront;

/* What the service answered. */
typedef struct PfFrontAnswer {
	gboolean connected; /* to libvirt */
	char *reason;       /* why not, one sentence; empty while it is */
	gboolean found;     /* the VM that was asked for; TRUE where none was */
	PfHostView host;    /* zeros unless it was asked for */
	GPtrArray *vms;     /* of PfVmView, which own what they point to */
} PfFrontAnswer;
void pf_front_answer_free(PfFrontAnswer *answer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PfFrontAnswer, pf_front_answer_free)

/*
 * fd is consumed. closed() is called once, from the main loop, when the service has ended or sent what is no message.
 * keeper (copied) may be NULL.
 */
PfFront *pf_front_new(
	int fd, const PfGroupsKeeper *keeper, void (*closed)(void *userdata), void *userdata);
/* Queries that are not answered yet are answered by the main context, with G_IO_ERROR_CLOSED. */
void pf_front_free(PfFront *front);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PfFront, pf_front_free)

/* want: PfFrontWant bits; vm: UUID or name, NULL for all. G_IO_ERROR_TIMED_OUT: the service has not answered in 10 s. */
void pf_front_query(
	PfFront *front, guint want, const char *vm, GAsyncReadyCallback callback, void *userdata);
PfFrontAnswer *pf_front_query_finish(GAsyncResult *result, GError **error);
