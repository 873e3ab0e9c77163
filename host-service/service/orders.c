/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * At most MAX_ORDERS are with the shim at once, so that each has its place in the socket; one CAPTURE among them,
 * because captures share the staging memfd. Fusion has no way to take an order back, so a capture that finds another
 * one under way is held until that is answered.
 *
 * A shim answers in the order in which it was asked, and has to: one that could answer the others, with new ones coming
 * all the time, would never have to give the capture back that it was asked for first.
 */
#include "host-service/service/orders.h"
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_ORDERS 4

typedef struct Outstanding {
	uint64_t id;
	PfOrderType type;
	uint32_t n_pages;
	gint64 sent_us;
} Outstanding;

struct PfOrders {
	PfFusionVm *fusion;
	PfGuest *guest;
	PfHasher *hasher;
	PfLogLimit *log;
	int staging;
	Outstanding sent[MAX_ORDERS]; /* the oldest first */
	unsigned n_sent;
	PfOrder *held;     /* room for one order of fusion's */
	gboolean has_held; /* it is a capture that waits for the staging memfd */
};

int pf_orders_make_staging(GError **error)
{
	int fd = memfd_create("pagefusion-staging", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd >= 0 && ftruncate(fd, PF_SHIM_MAX_CAPTURE * PF_PAGE_SIZE) == 0 &&
		fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
		return fd;
	g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
		"no memfd to receive pages in: %s", g_strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

PfOrders *pf_orders_new(
	PfFusionVm *fusion, PfGuest *guest, PfHasher *hasher, PfLogLimit *log, int staging)
{
	PfOrders *orders = g_new0(PfOrders, 1);

	orders->fusion = fusion;
	orders->guest = guest;
	orders->hasher = hasher;
	orders->log = log;
	orders->staging = staging;
	orders->held = g_new0(PfOrder, 1);
	return orders;
}

void pf_orders_free(PfOrders *orders)
{
	if (!orders)
		return;
	close(orders->staging);
	g_free(orders->held);
	g_free(orders);
}

int pf_orders_staging(const PfOrders *orders)
{
	return orders->staging;
}

void pf_orders_reset(PfOrders *orders)
{
	orders->has_held = FALSE;
	orders->n_sent = 0;
}

gboolean pf_orders_are_out(const PfOrders *orders)
{
	return orders->n_sent > 0;
}

gboolean pf_orders_capture_is_out(const PfOrders *orders)
{
	for (unsigned i = 0; i < orders->n_sent; i++)
		if (orders->sent[i].type == PF_ORDER_CAPTURE)
			return TRUE;
	return FALSE;
}

static void send_fuse(const PfOrders *orders, PfShimLink *shim, const PfOrder *order)
{
	static PfShimRun runs[PF_SHIM_MAX_RUNS];

	for (uint32_t i = 0; i < order->n_runs; i++) {
		const PfOrderRun *run = &order->runs[i];

		/* A page outside what is located has hva 0, which is no RAM: the shim says so. */
		runs[i] = (PfShimRun){
			.hva = pf_guest_hva(orders->guest, run->gfn, run->n_pages).v,
			.frame = run->frame.v,
			.n_pages = run->n_pages,
			.flags = run->may_break_huge ? PF_SHIM_RUN_MAY_BREAK_HUGE : 0,
		};
	}
	pf_shim_link_send(shim, PF_SHIM_FUSE, order->id, runs, order->n_runs * sizeof *runs, -1);
}

static void send_capture(const PfOrders *orders, PfShimLink *shim, const PfOrder *order)
{
	PfShimCapture pages[PF_SHIM_MAX_CAPTURE];
	uint32_t n = 0;

	for (uint32_t i = 0; i < order->n_runs; i++)
		for (uint32_t k = 0; k < order->runs[i].n_pages && n < PF_SHIM_MAX_CAPTURE;
			k++, n++)
			pages[n] = (PfShimCapture){
				pf_guest_hva(orders->guest, (PfGfn){order->runs[i].gfn.v + k}, 1).v,
				n, 0};
	pf_shim_link_send(shim, PF_SHIM_CAPTURE, order->id, pages, n * sizeof *pages, -1);
}

void pf_orders_pump(PfOrders *orders, PfShimLink *shim)
{
	const PfOrder *order = orders->held;

	while (orders->n_sent < MAX_ORDERS) {
		if (!orders->has_held &&
			!pf_fusion_next_order(orders->fusion, orders->held, g_get_monotonic_time()))
			return;
		orders->has_held =
			order->type == PF_ORDER_CAPTURE && pf_orders_capture_is_out(orders);
		if (orders->has_held)
			return;
		orders->sent[orders->n_sent++] = (Outstanding){
			order->id, order->type, order->n_pages, g_get_monotonic_time()};
		if (order->type == PF_ORDER_CAPTURE)
			send_capture(orders, shim, order);
		else
			send_fuse(orders, shim, order);
	}
}

/* The order that an answer is for: the oldest, and no other kind. FALSE: it is not. Its place is free then. */
static gboolean end_order(
	PfOrders *orders, uint64_t id, PfOrderType type, uint32_t n_pages, gint64 *sent_us)
{
	const Outstanding *order = &orders->sent[0];

	if (orders->n_sent == 0 || order->id != id || order->type != type ||
		order->n_pages != n_pages)
		return FALSE;
	*sent_us = order->sent_us;
	orders->n_sent--;
	memmove(&orders->sent[0], &orders->sent[1], orders->n_sent * sizeof orders->sent[0]);
	return TRUE;
}

typedef struct Captured {
	PfStore *store;
	PfLogLimit *log;
	const uint8_t (*pages)[PF_PAGE_SIZE];
} Captured;

static bool publish(void *userdata, uint32_t page, PfFrame frame)
{
	const Captured *captured = userdata;
	int error = pf_store_write(captured->store, frame, captured->pages[page]);

	if (error)
		pf_log_limited(captured->log, PF_LOG_WARNING,
			"a frame cannot be written to the store: %s", g_strerror(-error));
	return error == 0;
}

gboolean pf_orders_captured(PfOrders *orders, PfStore *store, uint64_t id, const uint8_t *answer,
	uint32_t n_pages, PfOrdersCapture *what)
{
	static uint8_t pages[PF_SHIM_MAX_CAPTURE][PF_PAGE_SIZE];
	uint8_t results[PF_SHIM_MAX_CAPTURE];
	PfDigest digests[PF_SHIM_MAX_CAPTURE];
	Captured captured = {store, orders->log, pages};
	PfCapture capture = {results, digests, publish, &captured, &what->n_not_given};
	gint64 sent_us;

	if (!end_order(orders, id, PF_ORDER_CAPTURE, n_pages, &sent_us))
		return FALSE;
	*what = (PfOrdersCapture){.took_us = g_get_monotonic_time() - sent_us};
	/* Our copy is hashed, and our copy is published: what QEMU does to the staging memfd
	 * meanwhile is its own affair. */
	for (uint32_t i = 0; i < n_pages; i++) {
		results[i] = answer[i];
		if (results[i] != PF_SHIM_DONE)
			continue;
		if (pread(orders->staging, pages[i], PF_PAGE_SIZE, (off_t)(i * PF_PAGE_SIZE)) !=
				(ssize_t)PF_PAGE_SIZE ||
			pf_hasher_page(orders->hasher, pages[i], &digests[i]) != 0)
			results[i] = PF_SHIM_FAILED;
	}
	return pf_fusion_captured(orders->fusion, id, n_pages, &capture, g_get_monotonic_time()) ==
	       0;
}

gboolean pf_orders_fused(PfOrders *orders, uint64_t id, const uint8_t *results, uint32_t n_pages)
{
	gint64 sent_us;

	return end_order(orders, id, PF_ORDER_FUSE, n_pages, &sent_us) &&
	       pf_fusion_fused(orders->fusion, id, n_pages, results, g_get_monotonic_time()) == 0;
}
