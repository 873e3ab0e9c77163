/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The way to the host through its life: a port that is looked for, opened, knocked at and lost. */
#include "guest-agent/tell/channel.h"

typedef struct PfLink {
	char *wanted;                 /* path of the port, owned; NULL: found by its name */
	bool wait;                    /* for a port, instead of failing without */
	PfConversation *conversation; /* not owned */

	PfChannel channel; /* fd -1: no port */
	char found[256];   /* path that was found by the port's name, or the name alone */
	bool missed;       /* there is none, and that was said */
	int64_t next_look_ms, next_knock_ms, knock_ms;
	uint64_t acknowledged, bytes_sent;
	bool waited;      /* something waited for the host when that was looked at last */
	int64_t heard_ms; /* when the host was last known to hear us */
} PfLink;

/* Times are milliseconds of any clock, the same in all calls. */

/* wanted is copied. 0 or -ENOMEM, which leaves a link that may be deinitialized. */
int pf_link_init(PfLink *link, const char *wanted, bool wait, PfConversation *conversation);
void pf_link_deinit(PfLink *link);

/* From now on that port is wanted (copied; NULL as above); the one that is open is closed when it is another. 0; -ENOMEM:
 * nothing has changed. */
int pf_link_want(PfLink *link, const char *wanted);

/* Path of the port, or of the one that is looked for; valid until another one is looked for. */
const char *pf_link_path(const PfLink *link);

/* Does what is due: looks for a port, or knocks. 0; -errno when the port cannot be opened and is
 * not to be waited for. */
int pf_link_tend(PfLink *link, int64_t now_ms);

/* When it is to be tended next; INT64_MAX: not before something comes in. */
int64_t pf_link_due_ms(const PfLink *link);

/* As those of the channel; prepare gives fd -1 without a port. -ENODEV only where the port is not
 * to be waited for. */
int pf_link_prepare(PfLink *link, struct pollfd *poll, int *timeout_ms, int64_t now_ms);
int pf_link_dispatch(PfLink *link, const struct pollfd *poll, int64_t now_ms);

/* A hello must come soon. */
void pf_link_expect_hello(PfLink *link, int64_t now_ms);

bool pf_link_connected(const PfLink *link);

/* Whether there is a session, and the host takes what it is told. */
bool pf_link_heard(PfLink *link, int64_t now_ms);
