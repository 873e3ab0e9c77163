/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* A guest that keeps the service busy: it sends as fast as its channel takes it. */
#include "tests/vmm/toy_guest.h"

/*
 * n times, of this kind:
 *   hints      1024 pages of RAM with digests that nobody else has
 *   withdrawn  64 pages of RAM are hinted, and withdrawn one by one
 *   sessions   a new session
 *   rubbish    64 KiB that are no frame
 * It goes on where the channel is opened anew meanwhile.
 */
void toy_flood(ToyGuest *guest, const char *kind, uint64_t n);
