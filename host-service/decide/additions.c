/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An agent that has ended closes its port, one that hangs leaves a hello without answer. Two things come late: an answer,
 * because the agent may be busy, and libvirt's word, which is read only now and then. So a hello waits WAIT_S for its answer
 * before it counts, and an answer is as good as an open port for as long. What is silent is so since its port was closed or
 * the hello was sent, not since that was found out. A clock may be set back: what lies ahead of it was long ago.
 */
#include "host-service/decide/additions.h"
#include <string.h>

static gboolean is_long_ago(gint64 then, gint64 now)
{
	return then > now || now - then >= PF_ADDITIONS_WAIT_S;
}

static gboolean is_closed(const PfAdditions *additions, gint64 now)
{
	return !additions->is_open && is_long_ago(additions->answered, now);
}

static gboolean is_unanswered(const PfAdditions *additions, gint64 now)
{
	/* Before it was opened nobody could. */
	return additions->asked != 0 && is_long_ago(MAX(additions->asked, additions->moved), now);
}

static PfAdditionsState state_now(const PfAdditions *additions, gint64 now, gint64 *since)
{
	*since = now;
	if (!additions->is_heard && (!additions->is_open || !is_unanswered(additions, now))) {
		*since = 0;
		return PF_ADDITIONS_NEVER_SEEN;
	}
	if (is_closed(additions, now)) {
		*since = MAX(additions->moved, additions->answered);
		return PF_ADDITIONS_SILENT;
	}
	if (is_unanswered(additions, now)) {
		*since = MAX(additions->asked, additions->moved);
		return PF_ADDITIONS_SILENT;
	}
	return additions->is_old ? PF_ADDITIONS_TOO_OLD : PF_ADDITIONS_CONNECTED;
}

/* It is one and the same silence, whatever else becomes of it. */
static void update(PfAdditions *additions, gint64 now)
{
	gint64 since;
	PfAdditionsState state = state_now(additions, now, &since);

	if (state != additions->shown)
		additions->shown_since = MIN(since, now);
	additions->shown = state;
}

/* Each time something happens, what had become of it by then is noted first: nobody may have looked. */

void pf_additions_asked(PfAdditions *additions, gint64 now)
{
	update(additions, now);
	if (additions->asked == 0)
		additions->asked = now;
}

void pf_additions_answered(PfAdditions *additions, gboolean is_old, gint64 now)
{
	update(additions, now);
	additions->is_heard = TRUE;
	additions->is_old = is_old;
	additions->asked = 0;
	additions->answered = now;
	update(additions, now);
}

void pf_additions_port(PfAdditions *additions, gboolean is_open, gint64 now)
{
	if (!additions->is_open == !is_open)
		return;
	update(additions, now);
	additions->is_open = is_open;
	additions->moved = now;
	/* Whoever opens it next has to answer; it may have been that one who did last. */
	if (!is_open && is_long_ago(additions->answered, now))
		pf_additions_asked(additions, now);
	update(additions, now);
}

PfAdditionsState pf_additions_state(PfAdditions *additions, gint64 now, guint64 *since)
{
	update(additions, now);
	*since = (guint64)MAX(additions->shown_since, 0);
	return additions->shown;
}

/* The number at *text, 0 where there is none; *text goes behind it and the dot that follows. */
static guint64 take_number(const char **text)
{
	char *end;
	guint64 number = 0;

	if (g_ascii_isdigit(**text)) {
		number = g_ascii_strtoull(*text, &end, 10);
		*text = *end == '.' ? end + 1 : "";
	}
	return number;
}

gboolean pf_additions_is_older(const char *version, const char *than)
{
	if (!g_ascii_isdigit(*version))
		return TRUE;
	while (*version || *than) {
		guint64 a = take_number(&version), b = take_number(&than);

		if (a != b)
			return a < b;
		/* Whatever follows has no number. */
		if (!g_ascii_isdigit(*version) && !g_ascii_isdigit(*than))
			return FALSE;
	}
	return FALSE;
}
