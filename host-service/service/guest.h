/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The guest's side of a VM: its channel (opened by the broker, opened again when it breaks), its
 * session, whose hints go to fusion, and where the RAM that it reported lies in QEMU.
 */
#include "host-service/decide/additions.h"
#include "host-service/decide/fusion.h"
#include "host-service/decide/quota.h"
#include "host-service/service/log_limit.h"
#include "host-service/wire/broker.h"
#include "host-service/wire/closer.h"

typedef struct PfGuest PfGuest;

typedef struct PfGuestEvents {
	/* pf_guest_located() has changed, or new hints may have made orders possible. */
	void (*changed)(void *userdata);
	/* The guest's RAM is another than before: what is fused can no longer be named by gfn,
	 * start anew. */
	void (*moved)(void *userdata);
} PfGuestEvents;

/* Everything handed in must live as long as the guest, domain only during the call. What the guest
 * sends is charged to quota. */
PfGuest *pf_guest_new(PfBroker *broker, PfFusionVm *fusion, const PfDomain *domain, PfQuota *quota,
	PfLogLimit *log, const PfGuestEvents *events, void *userdata);
void pf_guest_free(PfGuest *guest);

/* The same domain, its channel or memory changed; also says for the first time whether there is a
 * channel. */
void pf_guest_update(PfGuest *guest, const PfDomain *domain);

/* Whether the agent has reported everything in this session, and how many pages it has hinted in it, also again. */
gboolean pf_guest_has_reported(const PfGuest *guest);
uint64_t pf_guest_n_hints(const PfGuest *guest);

/* A new session, if the channel is open: what was hinted is void then, and the agent reports everything once more. */
void pf_guest_begin_session(PfGuest *guest);

/* For descriptors that this VM's QEMU sends, by whatever way. */
PfCloser *pf_guest_closer(const PfGuest *guest);

/* Whether orders for this guest's pages can be translated. */
gboolean pf_guest_located(const PfGuest *guest);

/* Where n_pages pages from gfn on lie in QEMU, or 0 when they do not lie in one located range. */
PfHva pf_guest_hva(const PfGuest *guest, PfGfn gfn, uint32_t n_pages);

/* The way back: how many pages from hva on lie in the same range as *gfn, the first; 0: not guest
 * RAM. */
uint64_t pf_guest_gfn(const PfGuest *guest, PfHva hva, PfGfn *gfn);

/* Pages of RAM that the guest has by its own account, and can have at most. */
uint64_t pf_guest_n_pages(const PfGuest *guest);

/* Why this guest's pages cannot be fused, a sentence that is valid until the next main loop
 * iteration; NULL when they can. */
const char *pf_guest_reason(const PfGuest *guest);

/* Of its domain. */
const char *pf_guest_uuid(const PfGuest *guest);

/* What is known of its additions, and since when (seconds since the epoch, 0: never seen). */
PfAdditionsState pf_guest_additions(PfGuest *guest, guint64 *since);

/* As the agent said it, empty before. */
const char *pf_guest_agent_version(const PfGuest *guest);
const char *pf_guest_kernel(const PfGuest *guest);
