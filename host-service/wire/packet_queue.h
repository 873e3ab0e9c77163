/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Packets that wait for room in a nonblocking socket, in the order in which they are to be sent. */
#include <glib.h>

typedef struct PfPacketQueue {
	GQueue packets;
	guint max;        /* so many may wait */
	gboolean is_torn; /* one found no room */
} PfPacketQueue;

void pf_packet_queue_init(PfPacketQueue *queue, guint max);

/* What waits is dropped, and its descriptors are closed. The queue is empty then, and sound. */
void pf_packet_queue_clear(PfPacketQueue *queue);

gboolean pf_packet_queue_is_empty(const PfPacketQueue *queue);
gboolean pf_packet_queue_is_full(const PfPacketQueue *queue);

/*
 * Copies size bytes behind what waits already; fd goes with them and is consumed, -1: none. Nothing is sent yet. A full
 * queue loses them, and is torn from then on.
 */
void pf_packet_queue_put(PfPacketQueue *queue, const void *packet, size_t size, int fd);

/*
 * Sends what the socket takes. 0: all is sent; -EAGAIN: the rest waits; -EOVERFLOW: the queue is torn, nothing is sent;
 * another -errno: the socket has failed.
 */
int pf_packet_queue_flush(PfPacketQueue *queue, int socket);
