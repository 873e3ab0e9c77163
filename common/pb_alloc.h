/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
#include <protobuf-c/protobuf-c.h>
#include <stddef.h>

/*
 * An allocator for protobuf-c that stops at a limit: a small message may ask for a large tree (a
 * repeated empty submessage costs two bytes on the wire and a struct in memory). Reset between
 * messages; not shared by threads.
 */
typedef struct PfPbAlloc {
	ProtobufCAllocator base; /* hand &alloc->base to the unpack and free functions */
	size_t limit;            /* bytes */
	size_t used;             /* bytes handed out and not freed */
} PfPbAlloc;

void pf_pb_alloc_init(PfPbAlloc *alloc, size_t limit_bytes);
