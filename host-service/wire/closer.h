/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * Closes descriptors in another thread. Closing one that somebody else has sent, or a socket with messages that nobody has
 * read, can take as long as its sender likes: in the main loop's thread that would stop every VM.
 */
#include <glib.h>

/* Of one sender: whoever sends what cannot be closed holds up his own descriptors alone. */
typedef struct PfCloser PfCloser;

PfCloser *pf_closer_new(void);
/* What it has still to close is closed all the same. */
void pf_closer_free(PfCloser *closer);

/*
 * NULL: the one for all that ends by itself or can be interrupted: sockets of ours, and memory. It is there for ever.
 * fd is consumed; a negative one is none.
 */
void pf_closer_close(PfCloser *closer, int fd);

/* How many are not closed yet. */
guint pf_closer_n_pending(const PfCloser *closer);
