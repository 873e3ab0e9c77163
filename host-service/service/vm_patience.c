/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation
 *
 * Others may wait for what a shim has to say: a page that it was asked to capture is asked of nobody else meanwhile, and
 * frames are kept as long as it may map them. So whenever the shim has to speak next there is a deadline; when it passes
 * the shim is disconnected, and what it was asked for is void. A shim that was only slow (its VM was stopped, the host
 * is overloaded) comes back by itself. What it has said may lie in the socket, because its VM is held back by its quota
 * or the service itself had no time: then it is given the same time once more, and not oftener, or a QEMU that is always
 * held back would have all the time it wants.
 *
 * One that owed a capture is not counted on for captures for a while; a longer one each time, until it has answered one
 * well. Who answers late, but in time, delays the others just as much: so it is the same with an answer that took longer
 * than others have patience, or that took its time and had not all that was asked for.
 *
 * While a shim lists what it has fused nothing that its group needs no more is given back. So a list has an end, however
 * much the shim says meanwhile. Each connection brings another: after one that broke off the next has to wait, longer each
 * time, and after any other as long as that took.
 *
 * Hints that a quota has refused are asked for again, by a new session: an agent reports only what changes. Whether they
 * were refused, and whether there is room by now, depends on which pages were fused, and the guest is not to learn that.
 * So it is asked when it has hinted more than its quotas let in for sure, refused or not, and at times that only depend on
 * what it has said. Each time costs it a whole report: the pauses grow, and begin anew after a session with less.
 *
 * A connection costs the service and the broker something before it is worth anything. A few may come at once, each
 * FORGET_US takes one off; one beyond that has to wait, unread, and a newer one takes its place.
 */
#include "host-service/service/vm_private.h"

#define CONNECTIONS_AT_ONCE 8
#define FORGET_US           (30 * G_USEC_PER_SEC)
#define MAX_STEPS           6 /* of the pause, from one second doubling */
#define MAX_WAIT_S          30

/* The pauses without captures, or before another list, in times of the deadline: a minute to an hour. */
#define PAUSE_FIRST 2
#define PAUSE_LAST  120

/* Long for a capture. */
#define CAPTURE_SLOW_US G_USEC_PER_SEC

/* A list's time in times of the deadline: at least, for each GiB, and at most. */
#define LIST_BASE      2
#define LIST_GIB_PAGES (1u << 18)
#define LIST_LAST      10

#define ASK_FIRST_S 60
#define ASK_LAST_S  3600

guint pf_vm_answer_ms(const PfVm *vm)
{
	return vm->context->answer_ms ? vm->context->answer_ms : PF_VM_ANSWER_MS;
}

guint pf_vm_hello_ms(const PfVm *vm)
{
	return pf_vm_answer_ms(vm) / 3;
}

/* Captures */

static gboolean on_capture_again(gpointer userdata)
{
	PfVm *vm = userdata;

	vm->capture_source = 0;
	pf_fusion_set_capturing(vm->fusion, true);
	vm->context->wanted(vm->context->userdata);
	return G_SOURCE_REMOVE;
}

/* After one of this length. */
static guint next_pause_ms(const PfVm *vm, guint ms)
{
	return CLAMP(ms * 2, pf_vm_answer_ms(vm) * PAUSE_FIRST, pf_vm_answer_ms(vm) * PAUSE_LAST);
}

static void pause_captures(PfVm *vm)
{
	vm->capture_pause_ms = next_pause_ms(vm, vm->capture_pause_ms);
	g_clear_handle_id(&vm->capture_source, g_source_remove);
	vm->capture_source = g_timeout_add(vm->capture_pause_ms, on_capture_again, vm);
	pf_fusion_set_capturing(vm->fusion, false);
}

void pf_vm_has_captured(PfVm *vm, const PfOrdersCapture *capture)
{
	if (capture->took_us > PF_FUSION_PATIENCE_US ||
		(capture->took_us > CAPTURE_SLOW_US && capture->n_not_given > 0))
		pause_captures(vm);
	else if (!vm->capture_source)
		vm->capture_pause_ms = 0;
}

/* Deadlines */

static gboolean on_deadline(gpointer userdata);

static void set_deadline(PfVm *vm)
{
	g_clear_handle_id(&vm->deadline_source, g_source_remove);
	vm->deadline_source = g_timeout_add(vm->deadline_ms, on_deadline, vm);
}

static gboolean on_deadline(gpointer userdata)
{
	PfVm *vm = userdata;

	vm->deadline_source = 0;
	if (!vm->extended && pf_shim_link_has_unread(vm->shim)) {
		vm->extended = TRUE;
		set_deadline(vm);
		return G_SOURCE_REMOVE;
	}
	if (pf_orders_capture_is_out(vm->orders))
		pause_captures(vm);
	pf_shim_link_close(vm->shim, "it does not answer");
	return G_SOURCE_REMOVE;
}

void pf_vm_expect_nothing(PfVm *vm)
{
	g_clear_handle_id(&vm->deadline_source, g_source_remove);
}

void pf_vm_expect(PfVm *vm, guint ms)
{
	vm->deadline_ms = ms;
	vm->extended = FALSE;
	set_deadline(vm);
}

void pf_vm_expect_answers(PfVm *vm)
{
	if (!vm->deadline_source && pf_orders_are_out(vm->orders))
		pf_vm_expect(vm, pf_vm_answer_ms(vm));
}

void pf_vm_was_heard(PfVm *vm)
{
	if (vm->deadline_source)
		pf_vm_expect(vm, vm->deadline_ms);
}

/* Lists */

static guint list_ms(const PfVm *vm)
{
	uint64_t times = LIST_BASE + pf_guest_n_pages(vm->guest) / LIST_GIB_PAGES;

	return pf_vm_answer_ms(vm) * (guint)MIN(times, LIST_LAST);
}

static gboolean on_list_too_long(gpointer userdata)
{
	PfVm *vm = userdata;

	vm->list_source = 0;
	pf_shim_link_close(vm->shim, "its list takes too long");
	return G_SOURCE_REMOVE;
}

static gboolean on_list_again(gpointer userdata)
{
	PfVm *vm = userdata;

	vm->list_wait_source = 0;
	pf_vm_shim_guest_changed(vm);
	return G_SOURCE_REMOVE;
}

gboolean pf_vm_may_list(PfVm *vm)
{
	gint64 wait_us = vm->next_list_us - g_get_monotonic_time();

	if (wait_us <= 0)
		return TRUE;
	if (vm->list_wait_source)
		return FALSE;
	vm->list_wait_source = g_timeout_add((guint)(wait_us / 1000 + 1), on_list_again, vm);
	pf_vm_set_shim_reason(vm, PF_LOG_DEBUG,
		g_strdup("its shim's list of what it shares took too long, or broke off: it is "
			 "asked for another later"));
	return FALSE;
}

void pf_vm_list_begins(PfVm *vm)
{
	vm->is_listing = TRUE;
	vm->list_us = g_get_monotonic_time();
	vm->list_source = g_timeout_add(list_ms(vm), on_list_too_long, vm);
}

void pf_vm_list_ends(PfVm *vm, gboolean whole)
{
	gint64 now_us = g_get_monotonic_time(), pause_us = now_us - vm->list_us;

	if (!vm->is_listing)
		return;
	vm->is_listing = FALSE;
	g_clear_handle_id(&vm->list_source, g_source_remove);
	vm->list_pause_ms = whole ? 0 : next_pause_ms(vm, vm->list_pause_ms);
	vm->next_list_us = now_us + MAX(pause_us, vm->list_pause_ms * G_GINT64_CONSTANT(1000));
}

/* Connections */

/* Seconds that it has to wait. */
static guint count_connection(PfVm *vm)
{
	gint64 now = g_get_monotonic_time();
	guint passed = (guint)MIN((now - vm->connections_since_us) / FORGET_US, vm->n_connections);

	vm->n_connections -= passed;
	vm->connections_since_us =
		vm->n_connections == 0 ? now : vm->connections_since_us + passed * FORGET_US;
	if (vm->n_connections < CONNECTIONS_AT_ONCE + MAX_STEPS)
		vm->n_connections++;
	if (vm->n_connections <= CONNECTIONS_AT_ONCE)
		return 0;
	return MIN(1u << (vm->n_connections - CONNECTIONS_AT_ONCE - 1), MAX_WAIT_S);
}

static gboolean on_wait_over(gpointer userdata)
{
	PfVm *vm = userdata;

	vm->wait_source = 0;
	pf_vm_shim_begin(vm, g_steal_pointer(&vm->waiting));
	return G_SOURCE_REMOVE;
}

void pf_vm_admit(PfVm *vm, PfShimLink *link)
{
	guint seconds = count_connection(vm);
	gboolean is_news = !vm->is_held_off && seconds > 0;

	vm->is_held_off = seconds > 0;
	g_clear_pointer(&vm->waiting, pf_shim_link_free);
	if (seconds == 0 && !vm->wait_source) {
		pf_vm_shim_begin(vm, link);
		return;
	}
	vm->waiting = link;
	if (!vm->wait_source)
		vm->wait_source = g_timeout_add_seconds(seconds, on_wait_over, vm);
	pf_vm_set_shim_reason(vm, is_news ? PF_LOG_WARNING : PF_LOG_DEBUG,
		g_strdup("its shim connects again and again, and has to wait"));
}

/* Hints */

void pf_vm_ask_again(PfVm *vm, gint64 now_us)
{
	if (now_us < vm->ask_us || !pf_guest_has_reported(vm->guest))
		return;
	if (pf_guest_n_hints(vm->guest) <= pf_fusion_sure_hints(vm->fusion)) {
		vm->ask_pause_s = 0;
		return;
	}
	if (vm->refusal)
		return;
	vm->ask_pause_s = CLAMP(vm->ask_pause_s * 2, ASK_FIRST_S, ASK_LAST_S);
	vm->ask_us = now_us + vm->ask_pause_s * G_USEC_PER_SEC;
	pf_guest_begin_session(vm->guest);
}

void pf_vm_patience_free(PfVm *vm)
{
	pf_vm_expect_nothing(vm);
	g_clear_handle_id(&vm->wait_source, g_source_remove);
	g_clear_handle_id(&vm->capture_source, g_source_remove);
	g_clear_handle_id(&vm->list_source, g_source_remove);
	g_clear_handle_id(&vm->list_wait_source, g_source_remove);
	g_clear_pointer(&vm->waiting, pf_shim_link_free);
}
