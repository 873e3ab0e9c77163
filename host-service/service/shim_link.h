/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The service's end of a shim's connection (proto/shim_protocol.h): packets to and from checked
 * structs. QEMU is not trusted: what is not a valid message of the protocol ends the connection,
 * and sizes and enums were checked before the events hear of them. What they mean is checked by who
 * gets them.
 */
#include "host-service/decide/quota.h"
#include "host-service/wire/closer.h"
#include "proto/shim_protocol.h"
#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

typedef struct PfShimLink PfShimLink;

/* Pointers are valid during the call only. An event may close the link, not free it. */
typedef struct PfShimLinkEvents {
	void (*hello)(void *userdata, const PfShimHello *hello);
	void (*ready)(void *userdata, const PfShimReady *ready);
	void (*captured)(void *userdata, uint64_t id, const uint8_t *results, uint32_t n_pages);
	void (*fused)(void *userdata, uint64_t id, const uint8_t *results, uint32_t n_pages);
	void (*released)(void *userdata, uint64_t id);
	void (*lost)(void *userdata, const PfShimLost *lost, size_t n);
	void (*state)(void *userdata, const PfShimState *state);
	/* fd is the event's: memory of any kind; -1: what came was something else. */
	void (*store_returned)(void *userdata, const PfShimStore *store, int fd);
	void (*listed)(void *userdata, uint64_t id, const PfShimRun *runs, uint32_t n_runs);
	/* The connection has ended; reason is a sentence. Called once, from the main loop; may free
	 * the link. */
	void (*closed)(void *userdata, const char *reason);
} PfShimLinkEvents;

/* fd is consumed. NULL with error set when the peer cannot be known. Nothing is read before
 * pf_shim_link_start(). */
PfShimLink *pf_shim_link_new(int fd, GError **error);
void pf_shim_link_free(PfShimLink *link);

/* Whether the process that connected is still there: its number may be another's by now. */
bool pf_shim_link_is_alive(const PfShimLink *link);

/* The peer, as the kernel knows it (SO_PEERCRED). */
pid_t pf_shim_link_pid(const PfShimLink *link);
uid_t pf_shim_link_uid(const PfShimLink *link);

/*
 * The time that messages take is charged to quota, and closer closes descriptors that nobody wants; both may be NULL. All
 * four must live as long as the link.
 */
void pf_shim_link_start(PfShimLink *link, PfQuota *quota, PfCloser *closer,
	const PfShimLinkEvents *events, void *userdata);

/* Nothing is read until it is held no longer, not even the end of the connection. */
void pf_shim_link_hold(PfShimLink *link, bool hold);

/* Something has come that nobody has heard of yet. */
bool pf_shim_link_has_unread(const PfShimLink *link);

/* The shim speaks another version: what is not frozen in the protocol is not read any more. */
void pf_shim_link_only_frozen(PfShimLink *link);

/* Ends the connection: closed() follows from the main loop, with this reason, a literal. */
void pf_shim_link_close(PfShimLink *link, const char *reason);

/*
 * Sends one message; fd (-1: none) is not consumed. What cannot be sent at once ends the
 * connection: orders are limited in number, so a shim that reads has room for them.
 */
void pf_shim_link_send(
	PfShimLink *link, PfShimType type, uint64_t id, const void *payload, size_t size, int fd);
