/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The shim of a VM, in the fuzzer: it obeys orders against RAM of a byte a page, and lies as it is told. What the
 * service sends is checked: orders name located RAM of this VM and frames that there are, and are never too many.
 */
#include "common/page.h"
#include "proto/shim_protocol.h"
#include <glib.h>
#include <stdbool.h>

#define QEMU_PAGES      256u /* of a VM's RAM, from gfn 0 on */
#define QEMU_MAX_ORDERS 4u   /* that the service may have out at once */

/* A failed assertion would vanish with NDEBUG; a broken rule must always end the run. */
#define MUST(condition)                                                                            \
	do {                                                                                       \
		if (!(condition))                                                                  \
			broken_rule(#condition, __FILE__, __LINE__);                               \
	} while (0)
_Noreturn void broken_rule(const char *what, const char *file, int line);

typedef struct HostileQemu {
	uint64_t ram_at;         /* hva of its gfn 0 */
	int socket;              /* -1: not connected */
	GQueue inbox;            /* of packets that are not obeyed yet, owned */
	GArray *orders;          /* ids of CAPTURE and FUSE that are not answered */
	uint64_t capture;        /* the one of them that is a CAPTURE, or 0 */
	int store, staging;      /* -1: none */
	uint8_t group_id[16];    /* of the store */
	uint8_t ram[QEMU_PAGES]; /* content */
	int64_t map[QEMU_PAGES]; /* frame, or -1 */
	bool (*frame_exists)(void *userdata, uint64_t frame);
	void *userdata;
} HostileQemu;

void qemu_init(HostileQemu *qemu, uint64_t ram_at,
	bool (*frame_exists)(void *userdata, uint64_t frame), void *userdata);
void qemu_deinit(HostileQemu *qemu);

/* A new connection; the caller owns the service's end. */
int qemu_connect(HostileQemu *qemu);
void qemu_disconnect(HostileQemu *qemu);

/* Takes and checks what the service has sent. */
void qemu_receive(HostileQemu *qemu);

/* Carries out the oldest order and answers it, with the bytes of lie XORed over the answer. false: there is none. */
bool qemu_obey(HostileQemu *qemu, const uint8_t *lie, size_t size);

/* Any packet; fd -1: none goes along. The header is right but for what the packet is asked to be. */
void qemu_send(
	HostileQemu *qemu, uint16_t type, uint64_t id, const void *data, size_t size, int fd);

/* HELLO, and the store that it has. */
void qemu_hello(HostileQemu *qemu, const uint8_t *lie, size_t size);
void qemu_return_store(HostileQemu *qemu, int fd);

/* It loses pages that it maps, and says so. */
void qemu_lose(HostileQemu *qemu, unsigned first, unsigned n, PfShimLoss loss);
