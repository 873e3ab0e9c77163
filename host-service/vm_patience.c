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
 * One that owed a capture is not counted on for captures for a while; a longer one each time, until it has answered one.
 *
 * A connection costs the service and the broker something before it is worth anything. A few may come at once, each
 * FORGET_US takes one off; one beyond that has to wait, unread, and a newer one takes its place.
 */
#include "host-service/vm_private.h"

#define CONNECTIONS_AT_ONCE 8
#define FORGET_US           (30 * G_USEC_PER_SEC)
#define MAX_STEPS           6 /* of the pause, from one second doubling */
#define MAX_WAIT_S          30

/* The pauses without captures, in times of the deadline: a minute to an hour. */
#define CAPTURE_PAUSE_FIRST 2
#define CAPTURE_PAUSE_LAST  120

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

static void pause_captures(PfVm *vm)
{
	guint first = pf_vm_answer_ms(vm) * CAPTURE_PAUSE_FIRST;
	guint last = pf_vm_answer_ms(vm) * CAPTURE_PAUSE_LAST;

	vm->capture_pause_ms = CLAMP(vm->capture_pause_ms * 2, first, last);
	g_clear_handle_id(&vm->capture_source, g_source_remove);
	vm->capture_source = g_timeout_add(vm->capture_pause_ms, on_capture_again, vm);
	pf_fusion_set_capturing(vm->fusion, false);
}

void pf_vm_has_captured(PfVm *vm)
{
	if (!vm->capture_source)
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

void pf_vm_patience_free(PfVm *vm)
{
	pf_vm_expect_nothing(vm);
	g_clear_handle_id(&vm->wait_source, g_source_remove);
	g_clear_handle_id(&vm->capture_source, g_source_remove);
	g_clear_pointer(&vm->waiting, pf_shim_link_free);
}
