/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What is known of a guest's additions: from the guest's side whether its agent answers, from libvirt whether the channel's
 * port is open in the guest. No I/O and no clock; times are seconds since the epoch.
 */
#include "host-service/wire/view.h"

/* For an answer, and for libvirt's word that the port is open. */
#define PF_ADDITIONS_WAIT_S 30

/* All zero at first. */
typedef struct PfAdditions {
	gboolean is_heard; /* an agent has answered, once */
	gboolean is_old;   /* the one that did last */
	gboolean is_open;  /* the port, by libvirt's word */
	gint64 asked;      /* since when nobody has answered; 0: somebody has */
	gint64 answered;   /* the newest answer */
	gint64 moved;      /* is_open has changed */

	PfAdditionsState shown;
	gint64 shown_since;
} PfAdditions;

/* A hello was sent, or cannot be: whoever has answered before has to do it again. */
void pf_additions_asked(PfAdditions *additions, gint64 now);

/* Somebody has answered; is_old: with a version or a protocol that is older than it should be. */
void pf_additions_answered(PfAdditions *additions, gboolean is_old, gint64 now);

/* Whether libvirt says that the port is open; it may say so a little late. */
void pf_additions_port(PfAdditions *additions, gboolean is_open, gint64 now);

/* The state now, and since when it is that; 0: never seen. */
PfAdditionsState pf_additions_state(PfAdditions *additions, gint64 now, guint64 *since);

/* Whether a version, which may be any text, is older than another. What has no number is older than everything. */
gboolean pf_additions_is_older(const char *version, const char *than);
