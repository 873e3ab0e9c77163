/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The orders that a VM's shim has: fusion's, in the shim's terms, and its answers back. */
#include "common/digest.h"
#include "host-service/decide/fusion.h"
#include "host-service/service/guest.h"
#include "host-service/service/log_limit.h"
#include "host-service/service/shim_link.h"
#include "host-service/service/store.h"

typedef struct PfOrders PfOrders;

/* A memfd for captures to come back in, for pf_orders_new(); -1 with error set. */
int pf_orders_make_staging(GError **error);

/* staging is consumed; the others must live as long as the orders. */
PfOrders *pf_orders_new(
	PfFusionVm *fusion, PfGuest *guest, PfHasher *hasher, PfLogLimit *log, int staging);
void pf_orders_free(PfOrders *orders);

/* The memfd for STAGING; it stays theirs. */
int pf_orders_staging(const PfOrders *orders);

/* Sends what fusion has for this VM, as far as the shim has room. */
void pf_orders_pump(PfOrders *orders, PfShimLink *shim);

/* Whether it owes an answer, and whether one to a CAPTURE. */
gboolean pf_orders_are_out(const PfOrders *orders);
gboolean pf_orders_capture_is_out(const PfOrders *orders);

/* The shim is gone: nothing of it will be answered. */
void pf_orders_reset(PfOrders *orders);

/* How a capture went: how long the answer took, and how many pages had not the bytes that were asked for, or none. */
typedef struct PfOrdersCapture {
	gint64 took_us;
	uint32_t n_not_given;
} PfOrdersCapture;

/*
 * Its answers, in the order in which it was asked; FALSE: that is not the next one, so the shim has to go. Frames are
 * written to the store.
 */
gboolean pf_orders_captured(PfOrders *orders, PfStore *store, uint64_t id, const uint8_t *answer,
	uint32_t n_pages, PfOrdersCapture *what);
gboolean pf_orders_fused(PfOrders *orders, uint64_t id, const uint8_t *results, uint32_t n_pages);
