/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the walks that look for files have in common. */
#include "guest-agent/file.h"

typedef struct PfFound {
	PfFileKey key;
	PfFileStamp stamp;
	uid_t owner;      /* root of what is no file */
	const char *name; /* last component; not owned */
	int fd;           /* open for reading; consumed by the callback */
} PfFound;

/* 0 to go on; anything else ends the walk, which returns it. */
typedef int (*PfFoundFile)(void *userdata, const PfFound *found);

/* Called between pieces of work with the pages hashed since the last call: it may wait, and serve
 * others meanwhile. Not 0 gives the pass up; it is returned. */
typedef int (*PfStep)(void *userdata, uint64_t n_hashed);
