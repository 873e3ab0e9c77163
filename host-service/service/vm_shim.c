/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation
 *
 * A VM is fused when its guest is located (guest.c) and its shim is ready. PfTalk says how far the conversation with
 * the shim is. A shim that is new maps nothing; it gets the userfaultfd device, the group's store and a staging memfd.
 * One that was fused before, by an earlier connection or an earlier service, sends back the store that it has. If that
 * is the group's store, or becomes it, the shim lists what it has fused, as soon as the guest is located (a page is
 * known here by its gfn), and that is taken over while it comes (listing.c); if not, everything is released. Pages that cannot be
 * taken over are released too, and only then the list is at its end: frames that nobody claimed may be freed after it.
 *
 * Behind LIST goes a RELEASE of nothing. Its answer tells that whatever was lost while the list was made has been
 * heard; from then on a loss of what was not fused is a breach of the protocol.
 *
 * A shim that breaks the protocol or speaks out of turn is disconnected. It comes back by itself and goes through all
 * of this again; a reason that was logged already is not logged at each of its attempts. What it has fused stays fused
 * meanwhile, and stays counted. A VM that is refused, or whose flag is off, is disconnected as well, and released when
 * it comes back. vm_patience.c says how long it may be silent.
 */
#include "host-service/service/vm_private.h"
#include "common/log.h"
#include "host-service/daemon/host_features.h"
#include "host-service/service/cpu_time.h"
#include "host-service/wire/received_fds.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define RELEASE_ID     1
#define LIST_ID        2
#define ATTACH_ID      3
#define DEVICE_RETRY_S 2

#define SPARE_LOSSES 65536u

/* Takes the reason why the shim is not ready, and logs it when it is news. */
void pf_vm_set_shim_reason(PfVm *vm, PfLogLevel level, char *reason)
{
	gboolean news = g_strcmp0(reason, vm->logged) != 0;

	pf_log_limited(&vm->log, news ? level : PF_LOG_DEBUG, "%s", reason);
	g_free(vm->shim_reason);
	vm->shim_reason = reason;
	if (!news)
		return;
	g_free(vm->logged);
	vm->logged = g_strdup(reason);
	vm->logged_ready = FALSE;
}

/* What comes next, and by when if it is the shim that has to speak. */
static void set_talk(PfVm *vm, PfTalk talk)
{
	vm->talk = talk;
	switch (talk) {
	case TALK_RETURNING:
		pf_vm_expect(vm, pf_vm_hello_ms(vm));
		break;
	case TALK_FOREIGN:
	case TALK_RELEASING:
	case TALK_ATTACHING:
	case TALK_LISTING:
	case TALK_SETTLING:
		pf_vm_expect(vm, pf_vm_answer_ms(vm));
		break;
	default:
		pf_vm_expect_nothing(vm);
	}
}

static void speaks_out_of_turn(PfVm *vm)
{
	pf_shim_link_close(vm->shim, "it spoke out of turn");
}

static void update_ready(PfVm *vm)
{
	pf_fusion_set_ready(vm->fusion, vm->talk == TALK_READY && pf_guest_located(vm->guest));
	vm->context->wanted(vm->context->userdata);
}

void pf_vm_shim_free(PfVm *vm)
{
	g_clear_pointer(&vm->shim, pf_shim_link_free);
	g_clear_handle_id(&vm->device_source, g_source_remove);
	g_clear_handle_id(&vm->take_source, g_source_remove);
	g_clear_pointer(&vm->listing, pf_listing_free);
}

static void drop_shim(PfVm *vm)
{
	pf_vm_shim_free(vm);
	pf_vm_list_ends(vm, FALSE);
	set_talk(vm, TALK_HELLO);
	vm->has_store = FALSE;
	vm->settling_losses = 0;
	vm->shim_serial++;
	g_clear_pointer(&vm->shim_reason, g_free);
	memset(&vm->state, 0, sizeof vm->state);
	pf_orders_reset(vm->orders);
	pf_fusion_shim_away(vm->fusion);
	update_ready(vm);
}

static void on_closed(void *userdata, const char *reason)
{
	PfVm *vm = userdata;

	drop_shim(vm);
	pf_vm_set_shim_reason(
		vm, PF_LOG_WARNING, g_strdup_printf("the shim in QEMU is gone: %s", reason));
}

/* Answers */

static void answered(PfVm *vm, gboolean asked)
{
	if (!asked)
		pf_shim_link_close(vm->shim, "it answered what was not asked");
	/* Others that it owes get their time from now on: it carries them out one after the other. */
	pf_vm_expect_nothing(vm);
	pf_vm_expect_answers(vm);
	vm->context->wanted(vm->context->userdata);
}

static void on_captured(void *userdata, uint64_t id, const uint8_t *answer, uint32_t n_pages)
{
	PfVm *vm = userdata;
	PfOrdersCapture capture;
	gboolean asked = vm->talk == TALK_READY &&
			 pf_orders_captured(vm->orders, pf_group_peek_store(vm->group), id, answer,
				 n_pages, &capture);

	answered(vm, asked);
	if (asked)
		pf_vm_has_captured(vm, &capture);
}

static void on_fused(void *userdata, uint64_t id, const uint8_t *results, uint32_t n_pages)
{
	PfVm *vm = userdata;

	answered(vm, vm->talk == TALK_READY && pf_orders_fused(vm->orders, id, results, n_pages));
}

/* FALSE: some of it was not fused; it looks no further than that. */
static gboolean take_loss(PfVm *vm, const PfShimLost *lost, int64_t now_us)
{
	for (uint32_t done = 0, count; done < lost->n_pages; done += count) {
		PfHva hva = {lost->hva + done * PF_PAGE_SIZE};
		uint32_t left = lost->n_pages - done;
		uint64_t in_range;
		PfGfn gfn;

		in_range = pf_guest_gfn(vm->guest, hva, &gfn);
		count = in_range < left ? (uint32_t)in_range : left;
		if (count == 0 || pf_fusion_lost(vm->fusion, gfn, (PfFrame){lost->frame + done},
					  count, lost->loss, now_us) != 0)
			return FALSE;
	}
	return TRUE;
}

static void release_all(PfVm *vm)
{
	set_talk(vm, TALK_RELEASING);
	g_clear_handle_id(&vm->take_source, g_source_remove);
	g_clear_pointer(&vm->listing, pf_listing_free);
	pf_shim_link_send(vm->shim, PF_SHIM_RELEASE, RELEASE_ID, NULL, 0, -1);
}

/* What is released may be lost as often as it was listed, and what was lost before it was listed once more. */
static gboolean is_too_much(const PfVm *vm)
{
	return vm->settling_losses > 2 * pf_guest_n_pages(vm->guest) + SPARE_LOSSES;
}

static gboolean on_take(gpointer userdata);

static void take_later(PfVm *vm, gint64 wait_us)
{
	if (vm->take_source)
		return;
	if (wait_us > 0)
		vm->take_source = g_timeout_add((guint)(wait_us / 1000 + 1), on_take, vm);
	else
		vm->take_source = g_idle_add(on_take, vm);
}

/* It has listed, or lost, more. While it is not read from it is not its fault that nothing comes. */
static void has_added(PfVm *vm)
{
	take_later(vm, 0);
	if (!pf_listing_is_full(vm->listing))
		return;
	pf_shim_link_hold(vm->shim, true);
	pf_vm_expect_nothing(vm);
}

static void go_on_reading(PfVm *vm)
{
	if (pf_listing_is_full(vm->listing))
		return;
	pf_shim_link_hold(vm->shim, false);
	if (vm->talk == TALK_LISTING && !vm->deadline_source)
		pf_vm_expect(vm, pf_vm_answer_ms(vm));
}

static void on_lost(void *userdata, const PfShimLost *lost, size_t n)
{
	PfVm *vm = userdata;
	int64_t now_us = g_get_monotonic_time();
	gboolean good = TRUE;

	if (vm->talk != TALK_READY)
		pf_vm_was_heard(vm);
	if (vm->talk == TALK_LISTING || vm->talk == TALK_TAKING) {
		if (pf_listing_add_lost(vm->listing, lost, n))
			has_added(vm);
		else
			pf_shim_link_close(vm->shim, "it has lost more than the VM can have");
		return;
	}
	/* Before the list it speaks of what is not known here. */
	if (vm->talk != TALK_READY && vm->talk != TALK_SETTLING)
		return;
	for (size_t i = 0; good && i < n; i++) {
		good = take_loss(vm, &lost[i], now_us);
		if (vm->talk != TALK_SETTLING)
			continue;
		vm->settling_losses += lost[i].n_pages;
		good = !is_too_much(vm);
	}
	if (!good)
		pf_shim_link_close(vm->shim, "it lost what it did not have");
	vm->context->wanted(vm->context->userdata);
}

static void on_state(void *userdata, const PfShimState *state)
{
	PfVm *vm = userdata;

	if (state->stopped && !vm->logged_stop)
		pf_log_limited(&vm->log, PF_LOG_ERROR, "the shim has stopped fusing: %s",
			g_strerror(state->stopped_error));
	vm->logged_stop |= state->stopped != 0;
	vm->state = *state;
}

/* Getting ready */

/* FALSE: it must not have the store; the reason is set. */
static gboolean join_store(PfVm *vm, PfStore *store)
{
	int r = pf_store_add_member(store, vm->process, (pid_t)vm->pid);

	if (r < 0) {
		pf_vm_set_shim_reason(vm, PF_LOG_ERROR,
			g_strdup_printf(
				"it cannot be written down that it shares: %s", g_strerror(-r)));
		return FALSE;
	}
	/* It comes with the store, and nobody has written that down: what it maps is heard first. */
	if (r > 0 && !pf_vm_is_known(vm))
		pf_fusion_set_complete(vm->context->fusion, vm->group_name, false);
	return TRUE;
}

static void begin_fusing(PfVm *vm)
{
	g_autoptr(GError) error = NULL;
	PfStore *store = pf_group_store(vm->group, &error);
	PfShimStore message = {0};

	g_clear_pointer(&vm->listing, pf_listing_free);
	if (!store) {
		pf_vm_set_shim_reason(vm, PF_LOG_ERROR, g_strdup(error->message));
		pf_shim_link_close(vm->shim, "there is no store for it");
		return;
	}
	if (!join_store(vm, store)) {
		pf_shim_link_close(vm->shim, "there is no room for it in the store");
		return;
	}
	if (!vm->has_store) {
		memcpy(message.group_id, pf_store_id(store), sizeof message.group_id);
		pf_shim_link_send(vm->shim, PF_SHIM_STORE, 0, &message, sizeof message,
			pf_store_readonly_fd(store));
	}
	vm->has_store = TRUE;
	pf_shim_link_send(vm->shim, PF_SHIM_STAGING, 0, NULL, 0, pf_orders_staging(vm->orders));
	set_talk(vm, TALK_READY);
	pf_log_limited(
		&vm->log, vm->logged_ready ? PF_LOG_DEBUG : PF_LOG_INFO, "the shim is ready");
	vm->logged_ready = TRUE;
	update_ready(vm);
}

/* Everything listed is taken over; what could not be has been released. */
static void end_list(PfVm *vm)
{
	pf_fusion_list_end(vm->fusion, g_get_monotonic_time());
	pf_vm_list_ends(vm, TRUE);
	begin_fusing(vm);
}

static void end_taking(PfVm *vm)
{
	const PfShimRange *refused;
	size_t n;

	refused = pf_listing_refused(vm->listing, &n);
	if (n == 0) {
		end_list(vm);
	} else if (refused) {
		set_talk(vm, TALK_SETTLING);
		pf_shim_link_send(
			vm->shim, PF_SHIM_RELEASE, RELEASE_ID, refused, n * sizeof *refused, -1);
	} else {
		release_all(vm);
	}
}

static gboolean on_take(gpointer userdata)
{
	PfVm *vm = userdata;
	uint64_t cpu_us = pf_cpu_time_us();
	gboolean more = pf_listing_step(vm->listing);
	gint64 wait;

	vm->take_source = 0;
	/* Hashing what it has listed is charged to the VM as well. */
	wait = pf_quota_spend(&vm->quota, 0, 0, pf_cpu_time_us() - cpu_us, g_get_monotonic_time());
	go_on_reading(vm);
	if (more)
		take_later(vm, wait);
	else if (vm->talk == TALK_TAKING)
		end_taking(vm);
	return G_SOURCE_REMOVE;
}

static void list(PfVm *vm)
{
	const PfShimRange nothing = {0, 0};

	g_clear_pointer(&vm->shim_reason, g_free);
	set_talk(vm, TALK_LISTING);
	vm->listing = pf_listing_new(
		vm->fusion, vm->guest, pf_group_peek_store(vm->group), vm->context->hasher);
	pf_fusion_list_begin(vm->fusion);
	pf_vm_list_begins(vm);
	pf_shim_link_send(vm->shim, PF_SHIM_LIST, LIST_ID, NULL, 0, -1);
	pf_shim_link_send(vm->shim, PF_SHIM_RELEASE, RELEASE_ID, &nothing, sizeof nothing, -1);
}

static void on_listed(void *userdata, uint64_t id, const PfShimRun *runs, uint32_t n_runs)
{
	PfVm *vm = userdata;

	pf_vm_was_heard(vm);
	if (vm->talk != TALK_LISTING || id != LIST_ID)
		speaks_out_of_turn(vm);
	else if (pf_listing_add(vm->listing, runs, n_runs))
		has_added(vm);
	else
		pf_shim_link_close(vm->shim, "it lists more than the VM can have");
}

void pf_vm_shim_guest_changed(PfVm *vm)
{
	if (vm->talk == TALK_LOCATING && pf_guest_located(vm->guest) && pf_vm_may_list(vm))
		list(vm);
	update_ready(vm);
}

void pf_vm_shim_guest_moved(PfVm *vm)
{
	if (vm->talk >= TALK_LISTING)
		pf_shim_link_close(vm->shim, "the guest's RAM has changed");
}

static void attached(PfVm *vm)
{
	if (!vm->has_store) {
		begin_fusing(vm);
		return;
	}
	set_talk(vm, TALK_LOCATING);
	pf_vm_shim_guest_changed(vm);
}

static void on_ready(void *userdata, const PfShimReady *ready)
{
	g_autofree char *names = NULL;
	PfVm *vm = userdata;

	if (vm->talk != TALK_ATTACHING) {
		speaks_out_of_turn(vm);
		return;
	}
	/* After one that says no the next may come at any time. */
	pf_vm_expect_nothing(vm);
	g_clear_pointer(&vm->shim_reason, g_free);
	switch (ready->code) {
	case PF_SHIM_READY_OK:
		attached(vm);
		return;
	case PF_SHIM_READY_NO_BLOCKS:
		vm->shim_reason = g_strdup("QEMU has no RAM of private anonymous memory");
		return;
	case PF_SHIM_READY_NO_FEATURES:
		names = pf_host_feature_names(ready->missing_features);
		pf_vm_set_shim_reason(
			vm, PF_LOG_ERROR, g_strdup_printf("the host's kernel lacks %s", names));
		return;
	default:
		pf_vm_set_shim_reason(vm, PF_LOG_ERROR,
			g_strdup_printf("the shim cannot start: %s", g_strerror(ready->error)));
	}
}

static gboolean on_device_again(gpointer userdata);

/* A kernel without the device does not get one; any other error may pass. */
static void no_device(PfVm *vm, const GError *error)
{
	pf_vm_set_shim_reason(vm, PF_LOG_ERROR, g_strdup(error->message));
	if (!g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED))
		vm->device_source = g_timeout_add_seconds(DEVICE_RETRY_S, on_device_again, vm);
}

typedef struct Attach {
	PfVm *vm; /* a reference */
	guint serial;
} Attach;

static void on_device(GObject *source, GAsyncResult *result, gpointer userdata)
{
	g_autofree Attach *attach = userdata;
	PfVm *vm = attach->vm;
	g_autoptr(GError) error = NULL;
	int fd = pf_broker_open_userfaultfd_finish(result, &error);

	if (!vm->closed && attach->serial == vm->shim_serial) {
		if (fd >= 0) {
			g_clear_pointer(&vm->shim_reason, g_free);
			set_talk(vm, TALK_ATTACHING);
			pf_shim_link_send(vm->shim, PF_SHIM_ATTACH, ATTACH_ID, NULL, 0, fd);
		} else {
			no_device(vm, error);
		}
	}
	if (fd >= 0)
		close(fd);
	pf_vm_unref(vm);
}

static void ask_for_device(PfVm *vm)
{
	Attach *attach = g_new(Attach, 1);

	set_talk(vm, TALK_DEVICE);
	vm->refs++;
	*attach = (Attach){vm, vm->shim_serial};
	pf_broker_open_userfaultfd(
		vm->context->broker, pf_guest_uuid(vm->guest), on_device, attach);
}

static gboolean on_device_again(gpointer userdata)
{
	PfVm *vm = userdata;

	vm->device_source = 0;
	ask_for_device(vm);
	return G_SOURCE_REMOVE;
}

static void maps_nothing(PfVm *vm)
{
	pf_fusion_shim_empty(vm->fusion);
	pf_vm_list_ends(vm, FALSE);
	vm->context->wanted(vm->context->userdata);
	if (vm->refusal || vm->talk == TALK_FOREIGN)
		set_talk(vm, TALK_REFUSED);
	else
		ask_for_device(vm);
}

static void on_released(void *userdata, uint64_t id)
{
	PfVm *vm = userdata;

	if (id != RELEASE_ID) {
		speaks_out_of_turn(vm);
	} else if (vm->talk == TALK_RELEASING || vm->talk == TALK_FOREIGN) {
		maps_nothing(vm);
	} else if (vm->talk == TALK_LISTING) {
		set_talk(vm, TALK_TAKING);
		take_later(vm, 0);
	} else if (vm->talk == TALK_SETTLING) {
		end_list(vm);
	} else {
		speaks_out_of_turn(vm);
	}
}

void pf_vm_adopt_store(PfVm *vm)
{
	const PfStore *store = pf_group_peek_store(vm->group);

	if (store)
		pf_fusion_adopt_store(vm->fusion, pf_store_first_own(store));
}

static void on_store_returned(void *userdata, const PfShimStore *store, int fd)
{
	PfVm *vm = userdata;
	const char *why;

	/* Refused, or of a foreign version, it is told to release everything in any case. */
	if (vm->talk == TALK_FOREIGN || vm->talk == TALK_RELEASING) {
		pf_received_fds_close_later(fd);
		return;
	}
	if (vm->talk != TALK_RETURNING) {
		pf_received_fds_close_later(fd);
		speaks_out_of_turn(vm);
		return;
	}
	if (!pf_group_take_returned(vm->group, fd, &why)) {
		pf_log_limited(&vm->log, PF_LOG_INFO, "what it shares is released: %s", why);
		release_all(vm);
		return;
	}
	pf_vm_adopt_store(vm);
	if (!join_store(vm, pf_group_peek_store(vm->group))) {
		release_all(vm);
		return;
	}
	vm->has_store = TRUE;
	ask_for_device(vm);
}

/* Only fusing needs a version in common: it goes on revoking by itself, and what it has can be released. */
static void on_foreign(PfVm *vm, const PfShimHello *hello)
{
	pf_shim_link_only_frozen(vm->shim);
	release_all(vm);
	set_talk(vm, TALK_FOREIGN);
	pf_vm_set_shim_reason(vm, PF_LOG_WARNING,
		g_strdup_printf("the VM's shim speaks protocol %u to %u and this service %u: "
				"restart the VM to load the installed one",
			hello->version_oldest, hello->version, PF_SHIM_VERSION));
}

static void on_hello(void *userdata, const PfShimHello *hello)
{
	PfVm *vm = userdata;

	if (vm->talk != TALK_HELLO)
		speaks_out_of_turn(vm);
	else if (hello->version_oldest > PF_SHIM_VERSION || hello->version < PF_SHIM_VERSION)
		on_foreign(vm, hello);
	else if (hello->page_size != PF_PAGE_SIZE)
		pf_shim_link_close(vm->shim, "its page size is not ours");
	else if (vm->refusal)
		release_all(vm);
	else if (hello->flags & PF_SHIM_HAS_STORE)
		set_talk(vm, TALK_RETURNING);
	else if (hello->fused_pages > 0)
		pf_shim_link_close(vm->shim, "it shares pages and has no store");
	else
		maps_nothing(vm);
}

static const PfShimLinkEvents shim_events = {
	.hello = on_hello,
	.ready = on_ready,
	.captured = on_captured,
	.fused = on_fused,
	.released = on_released,
	.lost = on_lost,
	.state = on_state,
	.store_returned = on_store_returned,
	.listed = on_listed,
	.closed = on_closed,
};

/* Who could write to the store through /proc, and so into every VM of the group. NULL: this user cannot. */
static const char *user_that_may_write(uid_t uid)
{
	if (uid == 0)
		return "root";
	return uid == geteuid() ? "the user that pagefusiond's service runs as" : NULL;
}

void pf_vm_take_shim(PfVm *vm, PfShimLink *link)
{
	const char *user = user_that_may_write(pf_shim_link_uid(link));

	drop_shim(vm);
	if (user) {
		pf_vm_set_shim_reason(vm, PF_LOG_ERROR,
			g_strdup_printf(
				"QEMU runs as %s: set user and group in "
				"/etc/libvirt/qemu.conf to another user and start the VM again",
				user));
		pf_shim_link_free(link);
		/* No service ever gave it a store. */
		pf_fusion_shim_empty(vm->fusion);
		return;
	}
	pf_vm_admit(vm, link);
}

void pf_vm_shim_begin(PfVm *vm, PfShimLink *link)
{
	g_clear_pointer(&vm->shim_reason, g_free);
	vm->shim = link;
	pf_shim_link_start(link, &vm->quota, pf_guest_closer(vm->guest), &shim_events, vm);
	pf_vm_expect(vm, pf_vm_hello_ms(vm));
}
