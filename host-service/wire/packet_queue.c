/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A conversation in which a packet is missing is worse than none. So who puts packets in need not look whether each has
 * found room: that shows when they are to be sent.
 */
#include "host-service/wire/packet_queue.h"
#include "host-service/wire/packet.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

typedef struct Packet {
	int fd; /* owned; -1: none */
	size_t size;
	char bytes[];
} Packet;

static void close_if_any(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void free_packet(gpointer data)
{
	Packet *packet = data;

	close_if_any(packet->fd);
	g_free(packet);
}

void pf_packet_queue_init(PfPacketQueue *queue, guint max)
{
	*queue = (PfPacketQueue){.packets = G_QUEUE_INIT, .max = max};
}

void pf_packet_queue_clear(PfPacketQueue *queue)
{
	g_queue_clear_full(&queue->packets, free_packet);
	queue->is_torn = FALSE;
}

gboolean pf_packet_queue_is_empty(const PfPacketQueue *queue)
{
	return queue->packets.length == 0;
}

gboolean pf_packet_queue_is_full(const PfPacketQueue *queue)
{
	return queue->packets.length >= queue->max;
}

void pf_packet_queue_put(PfPacketQueue *queue, const void *bytes, size_t size, int fd)
{
	Packet *packet;

	if (pf_packet_queue_is_full(queue)) {
		queue->is_torn = TRUE;
		close_if_any(fd);
		return;
	}
	packet = g_malloc(sizeof(*packet) + size);
	packet->fd = fd;
	packet->size = size;
	memcpy(packet->bytes, bytes, size);
	g_queue_push_tail(&queue->packets, packet);
}

int pf_packet_queue_flush(PfPacketQueue *queue, int socket)
{
	const Packet *first;

	if (queue->is_torn)
		return -EOVERFLOW;
	while ((first = g_queue_peek_head(&queue->packets))) {
		int r = pf_packet_send(socket, first->bytes, first->size, first->fd);

		if (r < 0)
			return r;
		free_packet(g_queue_pop_head(&queue->packets));
	}
	return 0;
}
